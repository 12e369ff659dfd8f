"""Alignment of a classifier head on samples from class Gaussians, in place of images that were not kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from perdure.modules.gaussians import Gaussians, sampled_epoch
from perdure.modules.heads import GrowingLinear
from perdure.train.loop import train


def align(
    head: GrowingLinear,
    gaussians: Gaussians,
    columns: Sequence[int],
    rng: torch.Generator,
    *,
    epochs: int,
    lr: float,
    weight_decay: float,
    samples: int,
    batch_size: int,
    ridge: float,
    scales: Sequence[float] | None = None,
    diagonal: bool = False,
    of_logits: Callable[[Tensor], Tensor] = lambda logits: logits,
) -> None:
    """Trains all rows of ``head``, in place, by SGD that falls to zero by epoch, of as many steps as classes.

    Source: Zhang et al., "SLCA", ICCV 2023, section 3.3.

    Args:
        head: of all classes seen.
        gaussians: of features, one or more per class.
        columns: of each Gaussian; below 0: it is left out.
        rng: a CPU generator.
        epochs: with fresh samples each.
        lr: peak learning rate.
        weight_decay: of the head.
        samples: per Gaussian and epoch.
        batch_size: samples per step.
        ridge: added to all variances.
        scales: of each mean.
        diagonal: whether covariances are left out.
        of_logits: what the softmax is taken of.
    """
    device, n_classes = head.weight.device, len(head.bias)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(of_logits(head(batch[0].to(device))), batch[1].to(device))

    batches = (
        sampled_epoch(
            gaussians, columns, samples, rng,
            batch_size=batch_size, n_steps=n_classes, scales=scales, ridge=ridge, diagonal=diagonal,
        )
        for _ in range(epochs)
    )  # fmt: skip
    head.requires_grad_(True)
    with torch.enable_grad():
        train(
            loss, head.parameters(), batches,
            n_steps=epochs * n_classes, n_epochs=epochs, lr=lr, schedule="epoch_cosine", weight_decay=weight_decay,
        )  # fmt: skip
    head.requires_grad_(False)
