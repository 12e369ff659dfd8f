"""Sections of settings that all training shares: what is trained how long, by which optimiser, on which views.

A method has these sections in its own configuration, with its own defaults; ``config.train.lr`` is then
``method.train.lr`` in a recipe.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import nn

from perdure.config import Config

# --- optimisers


class SGD(Config):
    """Stochastic gradient descent."""

    name: Literal["sgd"] = "sgd"
    weight_decay: float = Field(0.0, ge=0, description="of everything that learns")
    momentum: float = Field(0.9, ge=0, lt=1, description="0: none")
    nesterov: bool = Field(False, description="Nesterov's form of momentum")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("given a momentum above 0 for nesterov=true")
        return self

    def make(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        """A new optimiser of these parameter groups."""
        return torch.optim.SGD(
            groups, lr=lr, momentum=self.momentum, nesterov=self.nesterov, weight_decay=self.weight_decay
        )


class _Adaptive(Config):
    weight_decay: float = Field(0.0, ge=0, description="of everything that learns")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    amsgrad: bool = Field(False, description="the variant that never forgets its largest second moment")

    def _options(self) -> dict[str, Any]:
        return {"betas": (self.beta1, self.beta2), "amsgrad": self.amsgrad, "weight_decay": self.weight_decay}


class Adam(_Adaptive):
    """Adam; weight decay is part of the gradient."""

    name: Literal["adam"] = "adam"

    def make(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        """A new optimiser of these parameter groups."""
        return torch.optim.Adam(groups, lr=lr, **self._options())


class AdamW(_Adaptive):
    """Adam with weight decay beside the gradient."""

    name: Literal["adamw"] = "adamw"

    def make(self, groups: Iterable[dict[str, Any]], lr: float) -> torch.optim.Optimizer:
        """A new optimiser of these parameter groups."""
        return torch.optim.AdamW(groups, lr=lr, **self._options())


Optimizer: TypeAlias = Annotated[SGD | Adam | AdamW, Field(discriminator="name")]


# --- schedules: what the peak learning rate is multiplied by


class Constant(Config):
    """The peak throughout."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
        """At ``step`` of ``n_steps``, in ``epoch`` of ``n_epochs``; both count from 0."""
        return 1.0


class Cosine(Config):
    """Falls to zero over all steps, after a linear rise if there is one."""

    name: Literal["cosine"] = "cosine"
    warmup: int = Field(0, ge=0, description="steps of the rise: step i of W is at (i + 1) / W of the peak")

    def factor(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
        """At ``step`` of ``n_steps``, in ``epoch`` of ``n_epochs``; both count from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        return (1 + math.cos(math.pi * min((step - self.warmup) / max(n_steps - self.warmup, 1), 1))) / 2


class EpochCosine(Config):
    """Falls by epoch, so that the last epoch is not at zero yet."""

    name: Literal["epoch_cosine"] = "epoch_cosine"

    def factor(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
        """At ``step`` of ``n_steps``, in ``epoch`` of ``n_epochs``; both count from 0."""
        return (1 + math.cos(math.pi * epoch / n_epochs)) / 2


class QuarterCosine(Config):
    """CODA-Prompt's: cos(99 π e / (200 (K - 1))) in epoch e of K, from 1 down to 0.0157; constant for K = 1."""

    name: Literal["quarter_cosine"] = "quarter_cosine"
    released: bool = Field(False, description="as its code runs: an epoch late, at the peak in the first two epochs")

    def factor(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
        """At ``step`` of ``n_steps``, in ``epoch`` of ``n_epochs``; both count from 0."""
        shown = max(epoch - 1, 0) if self.released else epoch
        return math.cos(99 * math.pi * shown / (200 * (n_epochs - 1))) if n_epochs > 1 else 1.0


class Milestone(Config):
    """The peak, a tenth of it from one epoch on, and a hundredth from another on."""

    name: Literal["milestone"] = "milestone"
    milestone: int = Field(ge=1, description="the epoch, from 0, at which a tenth begins")
    again: int | None = Field(None, ge=1, description="the epoch at which a hundredth begins; null: none")

    def factor(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
        """At ``step`` of ``n_steps``, in ``epoch`` of ``n_epochs``; both count from 0."""
        return 0.1 ** sum(epoch >= at for at in (self.milestone, self.again) if at is not None)


Schedule: TypeAlias = Annotated[
    Constant | Cosine | EpochCosine | QuarterCosine | Milestone, Field(discriminator="name")
]


# --- what a training needs


def scaled_lr(base: float, batch_size: int) -> float:
    """The linear scaling rule: ``base`` is meant for 256 images per step.

    Args:
        base: learning rate.
        batch_size: images per step.
    """
    return base * batch_size / 256


class Augment(Config):
    """How training views differ from the eval view: torchvision's random crop, and a mirror image half of the time."""

    min_scale: float = Field(0.05, gt=0, le=1, description="smallest area a random crop keeps; 1: no crop")
    flip: bool = Field(True, description="mirror half of the training images")
    resize: int | None = Field(
        None,
        ge=1,
        description="side, in pixels, that whole training images are resized to, for a random window of the backbone's "
        "size in place of a crop by min_scale; null: crops are cut from the eval view",
    )

    @property
    def changes_views(self) -> bool:
        """Whether an image's view changes from epoch to epoch."""
        return self.flip or self.min_scale < 1 or self.resize is not None


class Training(Config):
    """How something is trained: on features, images, or samples."""

    lr: float = Field(gt=0, description="peak learning rate")
    epochs: int = Field(ge=1, description="passes over the images of a task that is trained on")
    batch_size: int = Field(ge=1, description="images per step")
    accumulate: int = Field(1, ge=1, description="parts a step's batch passes in, one after another, for less memory")
    scale_lr: bool = Field(False, description="multiply lr by batch_size / 256, the linear scaling rule")
    optimizer: Optimizer = Field(SGD(), description="new at every task")
    schedule: Schedule = Field(Cosine(), description="of the learning rate")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of all gradients together; null: no clipping")
    shuffle: bool = Field(True, description="draw the order of the training images anew in every epoch")
    drop_last: Literal["never", "from_4_batches", "always"] = Field(
        "never", description="leave out an epoch's last, smaller batch"
    )

    @property
    def peak(self) -> float:
        """The peak learning rate that the optimiser gets."""
        return scaled_lr(self.lr, self.batch_size) if self.scale_lr else self.lr

    @model_validator(mode="after")
    def _milestone_is_reached(self) -> Training:
        s = self.schedule
        for name, at in (("milestone", s.milestone), ("again", s.again)) if isinstance(s, Milestone) else ():
            if at is not None and at >= self.epochs:
                what = f"{name}={at} is never reached in {self.epochs} epochs"
                warnings.warn(f"{type(self).__name__}: {what}", stacklevel=2)
        return self


class ImageTraining(Training):
    """How something is trained on images."""

    augment: Augment = Field(Augment(), description="training views")


Learns: TypeAlias = Iterable[nn.Module | nn.Parameter]
"""What a training changes: modules, which are thawed for it, and parameters."""
