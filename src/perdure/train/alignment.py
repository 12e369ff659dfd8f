"""Alignment of a classifier head on samples from class Gaussians, in place of images that were not kept."""

from __future__ import annotations

import contextlib
import dataclasses as dc
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from perdure.config import Config
from perdure.modules.gaussians import Gaussians, sampled_epoch
from perdure.modules.heads import GrowingLinear
from perdure.train.session import Session
from perdure.train.settings import SGD, EpochCosine, Training
from perdure.types import Progress, no_progress


class Alignment(Config):
    """Settings of an alignment: SGD that falls to zero by epoch, of as many steps per epoch as there are classes."""

    epochs: int = Field(ge=1, description="with fresh samples each, and with as many steps as classes")
    lr: float = Field(gt=0, description="peak learning rate, SGD, falling by epoch")
    samples: int = Field(ge=1, description="per class and epoch")
    ridge: float = Field(1e-4, ge=0, description="added to all variances")
    weight_decay: float | None = Field(None, ge=0, description="of the head; null: as in the training of the task")


class ScaledAlignment(Alignment):
    """Settings of SLCA's alignment: logits are normalised, and the means of older tasks are shortened."""

    epochs: int = Field(5, ge=1, description="with fresh samples each, and with as many steps as classes")
    lr: float = Field(0.01, gt=0, description="peak learning rate, SGD, falling by epoch")
    samples: int = Field(256, ge=1, description="samples per class and epoch")
    batch_size: int = Field(256, ge=1, description="samples per step")
    tau: float = Field(0.1, ge=0, description="temperature of the normalised logits; 0: plain logits")
    mean_decay: float = Field(0.1, ge=0, le=1, description="the mean of the oldest task is shortened by this at most")


def shortened(task: int, n_tasks: int, decay: float) -> float:
    """What the mean of a class of ``task`` (from 0) is multiplied by after ``n_tasks``: 1 for the newest.

    Source: Zhang et al., "SLCA", ICCV 2023, its released code.

    Args:
        task: from 0.
        n_tasks: so far.
        decay: 0.1: no less than 0.9.
    """
    return 1 - decay + decay * (task + 1) / n_tasks


@dc.dataclass(frozen=True, slots=True)
class Samples:
    """The batches of an alignment: an epoch draws from every Gaussian.

    Args:
        gaussians: of features, one or more per class.
        columns: of each Gaussian; below 0: it is left out.
        config: of the alignment.
        n: samples per Gaussian and epoch.
        batch_size: samples per step.
        scales: of each mean; None: 1.
        diagonal: whether covariances are left out.
    """

    gaussians: Gaussians
    columns: Sequence[int]
    config: Alignment
    n: int
    batch_size: int
    scales: Sequence[float] | None = None
    diagonal: bool = False

    def open(self) -> contextlib.AbstractContextManager[object]:
        """Nothing to prepare."""
        return contextlib.nullcontext()

    def plan(self, rng: torch.Generator) -> list[tuple[Tensor, Tensor]]:
        """All samples of an epoch and their columns, by batch."""
        return list(
            sampled_epoch(
                self.gaussians, self.columns, self.n, rng,
                batch_size=self.batch_size, n_steps=1 + max(self.columns), scales=self.scales, ridge=self.config.ridge,
                diagonal=self.diagonal,
            )
        )  # fmt: skip

    def batch(self, plan: tuple[Tensor, Tensor], rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """The samples and their columns."""
        return plan


def align(
    head: GrowingLinear,
    samples: Samples,
    rng: torch.Generator,
    *,
    weight_decay: float,
    of_logits: Callable[[Tensor], Tensor] = lambda logits: logits,
    progress: Progress = no_progress,
) -> None:
    """Trains all rows of ``head``, in place.

    Source: Zhang et al., "SLCA", ICCV 2023, section 3.3.

    Args:
        head: of all classes seen.
        samples: what it is trained on, with the settings.
        rng: a CPU generator.
        weight_decay: where the settings have none.
        of_logits: what the softmax is taken of.
        progress: called after every step.
    """

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        device = head.weight.device
        return F.cross_entropy(of_logits(head(batch[0].to(device))), batch[1].to(device))

    config = samples.config
    decay = weight_decay if config.weight_decay is None else config.weight_decay
    training = Training(
        lr=config.lr, epochs=config.epochs, batch_size=samples.batch_size,
        optimizer=SGD(weight_decay=decay), schedule=EpochCosine(),
    )  # fmt: skip
    Session(samples, training, rng, fast=[head], stage="aligning", progress=progress).run(loss)
