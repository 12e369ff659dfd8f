"""One plain training loop: batches in, a loss, a step; called by the methods that train."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from perdure.errors import TrainingError

B = TypeVar("B")


def train(
    loss: Callable[[B], Tensor],
    parameters: Iterable[nn.Parameter],
    epochs: Iterable[Iterable[B]],
    *,
    n_steps: int,
    lr: float,
    optimizer: Literal["sgd", "adamw"] = "sgd",
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> None:
    """Minimises ``loss`` with a cosine learning-rate schedule to zero over all steps.

    Args:
        loss: scalar loss of one batch.
        parameters: what learns.
        epochs: the batches of each epoch.
        n_steps: how many batches there will be in all, for the schedule.
        lr: peak learning rate.
        optimizer: ``sgd`` (momentum 0.9) or ``adamw``.
        weight_decay: of all parameters.
        clip_norm: largest norm of all gradients together; longer ones are shortened to it.

    Raises:
        TrainingError: if the loss is no longer finite.
    """
    learning = list(parameters)
    if optimizer == "sgd":
        step: torch.optim.Optimizer = torch.optim.SGD(learning, lr, momentum=0.9, weight_decay=weight_decay)
    else:
        step = torch.optim.AdamW(learning, lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(step, lambda t: (1 + math.cos(math.pi * min(t / n_steps, 1))) / 2)
    for batches in epochs:
        for batch in batches:
            step.zero_grad()
            value = loss(batch)
            if not torch.isfinite(value):
                raise TrainingError("train", "loss", "finite", value.item(), f"Lower lr, now {lr}")
            value.backward()
            if clip_norm is not None:
                nn.utils.clip_grad_norm_(learning, clip_norm)
            step.step()
            schedule.step()


def shuffled(n: int, batch_size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """One epoch's batches of positions, each position once, in an order drawn from ``rng``."""
    yield from torch.randperm(n, generator=rng).split(batch_size)
