"""How much a loss depends on each weight: the diagonal of the Fisher information, estimated from labelled images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, TypeVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.config import Config
from perdure.data import LabelledImages
from perdure.memory import FeatureStore
from perdure.modules.losses import masked_cross_entropy
from perdure.modules.merging import split_like
from perdure.train.batches import Batch, TaskImages
from perdure.train.settings import ImageTraining
from perdure.types import Event

B = TypeVar("B")


class FisherPass(Config):
    """Settings of the pass that estimates the Fisher information."""

    estimator: Literal["batch", "per_sample"] = Field(
        "batch", description="square the gradient of each batch's mean loss, or that of each image's loss"
    )
    clip: float | None = Field(1e-4, gt=0, description="largest value of a weight; null: no clipping")
    logits: Literal["seen", "task"] = Field(
        "seen", description="take the softmax over all classes seen, or over the task's own"
    )


def diagonal_fisher(
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[B],
    loss: Callable[[B], Tensor],
    *,
    clip: float | None = None,
) -> dict[str, Tensor]:
    """The mean over batches of the squared gradient of a batch's loss, float32, by the parameters' names.

    Every batch counts the same, however large it is; batches of one image give the mean over images. Gradients that
    are stored in ``.grad`` are neither used nor changed, and a parameter that the loss does not use has zeros.

    Source: Marouf, Roy, Tartaglione & Lathuilière, "Weighted Ensemble Models Are Strong Continual Learners", ECCV 2024.

    Args:
        parameters: by name; frozen ones too.
        batches: of anything; if there are none, all is zero.
        loss: the scalar loss of one batch.
        clip: the largest value.
    """
    learned, n = list(parameters.values()), 0
    sums = [torch.zeros_like(p, dtype=torch.float32, requires_grad=False) for p in learned]
    with _thawed(learned), torch.enable_grad():
        for batch in batches:
            n += 1
            gradients = torch.autograd.grad(loss(batch), learned, allow_unused=True, materialize_grads=True)
            for total, gradient in zip(sums, gradients, strict=True):
                total += gradient.float().square()
    return {name: (total / max(n, 1)).clamp(min=0, max=clip) for name, total in zip(parameters, sums, strict=True)}


def fisher_of_images(
    backbone: Backbone,
    head: nn.Module,
    data: LabelledImages,
    columns: Int[Tensor, " n"],
    how: FisherPass,
    config: ImageTraining,
    rng: torch.Generator,
    store: FeatureStore,
) -> dict[str, Tensor]:
    """The information of a network's weights on images, by the names of ``backbone.model.named_parameters()``.

    One pass over the training views with their true labels; a last, smaller batch is kept, and counts as the others do.
    The head has no part in it: two tasks' heads are not of one form.

    Args:
        backbone: the network.
        head: maps features to the logits of all classes seen.
        data: the images.
        columns: of their classes.
        how: the estimator.
        config: batch size and views.
        rng: a CPU generator.
        store: it tells where it stands.
    """
    parameters = dict(backbone.model.named_parameters())
    kept = {"shuffle": True, "drop_last": "never"}
    each = {"batch_size": 1} if how.estimator == "per_sample" else {}
    source = TaskImages(
        backbone, data, columns, config.model_copy(update={**kept, **each}), store, parameters.values()
    )  # fmt: skip
    compared = columns.unique() if how.logits == "task" else None

    def batches() -> Iterator[Batch]:
        plans = source.plan(rng)
        for i, plan in enumerate(plans):
            yield source.batch(plan, rng)
            store.progress(Event("Fisher information", i + 1, len(plans)))

    def loss(batch: Batch) -> Tensor:
        return masked_cross_entropy(head(batch.features(backbone)), batch.columns, compared)

    with source.open():
        return diagonal_fisher(parameters, batches(), loss, clip=how.clip)


def in_a_row(values: Mapping[str, Tensor]) -> Float[Tensor, " weights"]:
    """All values in one row, on the CPU: what a method keeps.

    Args:
        values: by the names of the weights, in their order.
    """
    return torch.cat([value.flatten() for value in values.values()]).cpu()


def by_name(row: Float[Tensor, " weights"], backbone: Backbone) -> dict[str, Tensor]:
    """The values of :func:`in_a_row`, by the names of ``backbone.model.named_parameters()`` and on its device.

    Args:
        row: one number per weight.
        backbone: whose weights they belong to.
    """
    names, weights = zip(*backbone.model.named_parameters(), strict=True)
    return dict(zip(names, split_like(row.to(backbone.device), weights), strict=True))


@contextlib.contextmanager
def _thawed(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Parameters whose gradient can be taken; afterwards each is as it was."""
    before = [(p, p.requires_grad) for p in parameters]
    for p, _ in before:
        p.requires_grad_(True)
    try:
        yield
    finally:
        for p, was in before:
            p.requires_grad_(was)
