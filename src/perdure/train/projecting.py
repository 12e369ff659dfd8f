"""Steps that kept images hold back: what GEM and A-GEM share beside their projections.

The images do not teach. Before every step the loss's gradient on them is taken, and the gradient of the step gives way
to it; see :mod:`perdure.modules.gradient_projection`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from perdure.modules.adapter import adapters_in, dropping
from perdure.train.batches import Batch
from perdure.train.session import Session
from perdure.train.settings import SGD, Augment, ImageTraining, Optimizer

LARGE_BYTES = 10**9


class HeldTraining(ImageTraining):
    """A training whose steps go where their gradient points. Clipping shortens a step as a whole, and does no harm."""

    lr: float = Field(0.1, gt=0, description="peak learning rate")
    epochs: int = Field(3, ge=1, description="passes over the images of a task")
    batch_size: int = Field(16, ge=1, description="images per step")
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of the gradient, as projected; null: any")
    optimizer: Optimizer = Field(SGD(momentum=0.0), description="new at every task; another one may do harm again")
    augment: Augment = Field(Augment(min_scale=1.0, flip=False), description="training views, of kept images too")

    @model_validator(mode="after")
    def _steps_follow_the_gradient(self) -> Self:
        how = self.optimizer
        if not isinstance(how, SGD) or how.momentum or how.weight_decay:
            told = f"{how.name}, momentum {how.momentum}" if isinstance(how, SGD) else how.name
            what = f"{told}, weight decay {how.weight_decay}: they change a step after its projection"
            warnings.warn(f"{type(self).__name__}: {what}, and it may do harm to earlier tasks again", stacklevel=2)
        return self


class Guard:
    """A session's ``after_backward``: gives its parameters the projected gradients, if their own would do harm.

    Every group of kept images passes by itself: through a graph of all groups, each backward pass would go through the
    images of all. Views are the training's, and adapters drop nothing.

    Args:
        session: of images with kept ones beside them, of which a step takes none by itself.
        loss: of a batch.
        n_new: the session's own images, whom the kept ones follow.
        group_of: the group of each kept image, e.g. its task.
        per_group: images of each group in every step, drawn anew without repetition; None: all.
        project: the gradient of a step and those of the groups, row by row, to the one to take; None: as it is.
    """

    def __init__(
        self,
        session: Session[Batch],
        loss: Callable[[Batch], Tensor],
        n_new: int,
        group_of: Sequence[int],
        per_group: int | None,
        project: Callable[[Float[Tensor, " p"], Float[Tensor, "t p"]], Float[Tensor, " p"] | None],
    ) -> None:
        self.session, self.loss, self.n_new, self.per_group, self.project = session, loss, n_new, per_group, project
        of = torch.tensor(group_of, dtype=torch.long)
        self.groups = [(of == group).nonzero()[:, 0] for group in of.unique()]
        self.adapters = [adapter for part in session.modules for adapter in adapters_in(part)]
        size = 4 * len(self.groups) * sum(p.numel() for p in session.learned)
        if size > LARGE_BYTES:
            what = f"gradients of {len(self.groups)} earlier tasks take {size / 1e9:.1f} GB"
            warnings.warn(f"{what}: a smaller part, or agem, takes less", stacklevel=3)

    def __call__(self) -> None:
        """Once per step, when its gradients are there."""
        if not self.groups:
            return
        learned = self.session.learned
        g = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in learned])
        if (found := self.project(g, self.gradients(len(g)))) is not None:
            for p, part in zip(learned, found.split([p.numel() for p in learned]), strict=True):
                p.grad = part.view_as(p)

    def gradients(self, size: int) -> Float[Tensor, "t p"]:
        """The gradient of the mean loss of each group, zero where a parameter has no part in it.

        Args:
            size: p, numbers that learn.
        """
        learned, rng, source = self.session.learned, self.session.rng, self.session.source
        rows = torch.zeros(len(self.groups), size, device=learned[0].device)
        with dropping(self.adapters, None), torch.enable_grad():
            for row, group in zip(rows, self.groups, strict=True):
                chosen = group
                if self.per_group is not None and self.per_group < len(group):
                    chosen = group[torch.randperm(len(group), generator=rng)[: self.per_group]]
                for part in (self.n_new + chosen).split(self.session.config.batch_size):
                    value = self.loss(source.batch(part, rng)) * (len(part) / len(chosen))
                    found = torch.autograd.grad(value, learned, materialize_grads=True)
                    row += torch.cat([x.flatten() for x in found])
        return rows
