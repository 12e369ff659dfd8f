"""Training a backbone's own or inserted parts on images, and the adaptation to the classes of one task.

The adaptation, a throw-away cosine head on a backbone of which a part learns, is the first session of APER and RanPAC
and every session of EASE.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import math
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone, PromptTokens, Site
from perdure.data import LabelledImages
from perdure.errors import ConfigError
from perdure.modules.adapter import Adapter
from perdure.modules.augment import random_crop_flip, random_window_flip
from perdure.modules.cosine_head import CosineHead
from perdure.modules.ssf import ScaleShift
from perdure.train.loop import OptimizerName, ScheduleName, shuffled, train
from perdure.train.schedule import ScheduledConfig
from perdure.types import Event, Progress, no_progress

Variant = Literal["finetune", "vpt_shallow", "vpt_deep", "ssf", "adapter"]


class TuningConfig(ScheduledConfig):
    """Settings of training on images."""

    lr: float = Field(0.01, gt=0, description="peak learning rate; sgd has momentum 0.9")
    epochs: int = Field(20, ge=1, description="passes over the images of a task that is trained on")
    batch_size: int = Field(48, ge=1, description="images per step")
    optimizer: OptimizerName = Field("sgd", description="new at every task")
    schedule: ScheduleName = Field("epoch_cosine", description="of the learning rate")
    weight_decay: float = Field(5e-4, ge=0, description="of everything that learns, a throw-away head too")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of all gradients together; null: no clipping")
    min_scale: float = Field(0.05, gt=0, le=1, description="smallest area a random crop keeps; 1: no crop")
    flip: bool = Field(True, description="mirror half of the training images")
    resize: int | None = Field(
        None,
        ge=1,
        description="side, in pixels, that whole training images are resized to, for a random window of the backbone's "
        "size in place of a crop by min_scale; null: crops are cut from the eval view",
    )
    rank: int = Field(64, ge=1, description="width of an adapter's bottleneck (r)")
    prompt_length: int = Field(5, ge=1, description="prompt tokens, of vpt_deep in every block (p)")
    prompt_init: Literal["uniform", "zeros"] = Field(
        "uniform", description="uniform is VPT's; zeros is published for APER, and its p tokens stay equal for ever"
    )

    @property
    def augments(self) -> bool:
        """Whether an image's view changes from epoch to epoch."""
        return self.flip or self.min_scale < 1 or self.resize is not None


@dc.dataclass(frozen=True, slots=True, eq=False)
class ImageBatch:
    """One training batch: augmented images, or the tokens of images whose view does not change."""

    images: Tensor  # (b, 3, h, w) uint8
    tokens: Tensor | None  # (b, n, d) input of block 0
    columns: Tensor  # (b,) on the backbone's device

    def features(self, backbone: Backbone) -> Float[Tensor, "b d"]:
        """With gradient where something in ``backbone`` learns."""
        if self.tokens is None:
            return backbone.embed(self.images)
        return backbone.pool(backbone.walk(self.tokens))


@contextlib.contextmanager
def image_epochs(
    backbone: Backbone,
    data: LabelledImages,
    columns: Int[Tensor, " n"],
    config: TuningConfig,
    rng: torch.Generator,
    *,
    patches: Callable[[np.ndarray], Tensor] | None = None,
    progress: Progress = no_progress,
) -> Iterator[Iterator[Iterator[ImageBatch]]]:
    """Every epoch's batches, drawn from ``rng``; the images are decoded once.

    Args:
        backbone: whose eval view and device they are for.
        data: the images.
        columns: of their classes.
        config: epochs, batch size, augmentation.
        rng: a CPU generator.
        patches: rows of ``FeatureStore.patches`` by position, taken where views do not change.
        progress: called with every batch.

    Raises:
        ConfigError: if images are to be resized to less than the backbone's size.
        StorageError: if the temporary directory cannot hold the decoded images.
        DataError: naming the image, if one cannot be read.
    """
    c, n, stored, view = config, len(data), patches if not config.augments else None, backbone.preprocess
    if c.resize is not None:
        if c.resize < view.image_size:
            must_be = f"at least the backbone's {view.image_size}"
            raise ConfigError("image_epochs", "resize", must_be, c.resize, "Raise method.resize, or leave it out")
        view = dc.replace(view, image_size=c.resize, crop_mode="squash", crop_pct=1.0)

    def epoch(pixels: Tensor, e: int) -> Iterator[ImageBatch]:
        done = e * n
        for positions in shuffled(n, c.batch_size, rng):
            images, tokens = pixels[:0], None
            if stored is not None:
                tokens = stored(positions.numpy()).view(-1, *backbone.tokens_shape).to(backbone.device)
            else:
                images = pixels[positions].to(backbone.device)
                if c.resize is not None:
                    images = random_window_flip(images, rng, side=backbone.preprocess.image_size, flip=c.flip)
                elif c.augments:
                    images = random_crop_flip(images, rng, min_scale=c.min_scale, flip=c.flip)
            yield ImageBatch(images, tokens, columns[positions].to(backbone.device))
            done += len(positions)
            progress(Event("training", done, c.epochs * n))

    none = contextlib.nullcontext(torch.empty(0))
    with data.decoded(view) if stored is None else none as pixels:
        yield (epoch(pixels, e) for e in range(c.epochs))


def adaptable(
    backbone: Backbone, variant: Variant, config: TuningConfig, rng: torch.Generator
) -> tuple[Backbone, nn.Module]:
    """A backbone with a part that may learn, frozen for now, and that part.

    Source: Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models", IJCV 2024, section 5: adapters
    start as nothing, scales and shifts near the identity; prompts as Jia et al., "Visual Prompt Tuning", ECCV 2022,
    draw them, or as zeros.

    Args:
        backbone: is not changed; all variants but ``finetune`` share its weights.
        variant: what learns.
        config: rank and prompt length.
        rng: of initial values.

    Raises:
        BackboneError: if the backbone has no seat for it.
    """
    if variant == "finetune":
        thawed = backbone.thawed_copy()
        thawed.requires_grad_(False)
        return thawed, thawed.model

    def make(site: Site) -> nn.Module:
        if variant == "adapter":
            return Adapter(site.n_in, config.rank, rng)
        if variant == "ssf":
            return ScaleShift(site.n_out, rng)
        pixels = math.prod(backbone.vit.patch_embed.patch_size)
        v = (6 / (3 * pixels + site.n_in)) ** 0.5 if config.prompt_init == "uniform" else 0.0
        return PromptTokens(v * (2 * torch.rand(config.prompt_length, site.n_in, generator=rng) - 1))

    seat, shallow = {"adapter": "mlp", "ssf": "outputs"}.get(variant, "tokens"), variant == "vpt_shallow"
    view = backbone.view()
    return view, view.insert(seat, make, blocks=[0] if shallow else None, stay=shallow).requires_grad_(False)


@contextlib.contextmanager
def learning(part: nn.Module, rng: torch.Generator) -> Iterator[list[nn.Parameter]]:
    """The parameters of ``part``, which learn inside, with the dropout of adapters, and are frozen afterwards.

    Args:
        part: from :func:`adaptable`.
        rng: of the dropout.
    """
    adapters = [m for m in part.modules() if isinstance(m, Adapter)]
    parameters = list(part.parameters())
    seed = int(torch.randint(2**62, (), generator=rng)) if adapters else 0
    dropout = torch.Generator(parameters[0].device).manual_seed(seed)
    part.requires_grad_(True)
    for adapter in adapters:
        adapter.dropout_rng = dropout
    try:
        with torch.enable_grad():
            yield parameters
    finally:
        for adapter in adapters:
            adapter.dropout_rng = None
        part.requires_grad_(False)
        for p in parameters:
            p.grad = None


def adapt(
    backbone: Backbone,
    part: nn.Module,
    data: LabelledImages,
    columns: Int[Tensor, " n"],
    config: TuningConfig,
    rng: torch.Generator,
    *,
    patches: Callable[[np.ndarray], Tensor] | None = None,
    progress: Progress = no_progress,
) -> None:
    """Trains a part of a backbone to tell the classes of one task apart; the cosine head it takes is thrown away.

    Source: as :func:`adaptable`: cross-entropy on sigma cos(f, w_c), sigma learned from 1.

    Args:
        backbone: with that part.
        part: what learns.
        data: the task's images.
        columns: of their classes; any numbers.
        config: the training's settings.
        rng: a CPU generator.
        patches: as for :func:`image_epochs`.
        progress: called with every batch.

    Raises:
        TrainingError: if the loss is no longer finite.
    """
    c, (classes, own) = config, torch.unique(columns, return_inverse=True)
    head = CosineHead(backbone.dim)
    head.grow(len(classes), rng)
    head.to(backbone.device)

    def loss(batch: ImageBatch) -> Tensor:
        return F.cross_entropy(head(batch.features(backbone)), batch.columns)

    batches = image_epochs(backbone, data, own, c, rng, patches=patches, progress=progress)
    with learning(part, rng) as parameters, batches as epochs:
        train(
            loss, [*parameters, *head.parameters()], epochs,
            n_steps=c.epochs * -(-len(data) // c.batch_size), n_epochs=c.epochs, lr=c.lr, optimizer=c.optimizer,
            schedule=c.schedule, milestone=c.milestone, weight_decay=c.weight_decay, clip_norm=c.clip_norm,
        )  # fmt: skip
