"""One plain training loop: batches in, a loss, a step; called by the methods that train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from perdure.errors import ConfigError, TrainingError
from perdure.train.settings import Constant, Cosine, EpochCosine, Milestone, QuarterCosine
from perdure.train.settings import scaled_lr as scaled_lr

B = TypeVar("B")
OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal[
    "constant", "cosine", "epoch_cosine", "quarter_cosine", "quarter_cosine_released", "milestone"
]  # fmt: skip

SCHEDULES: dict[str, Any] = {
    "constant": Constant(), "cosine": Cosine(), "epoch_cosine": EpochCosine(), "quarter_cosine": QuarterCosine(),
    "quarter_cosine_released": QuarterCosine(released=True),
}  # fmt: skip
OPTIMIZERS: dict[OptimizerName, Any] = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def train(
    loss: Callable[[B], Tensor],
    parameters: Iterable[nn.Parameter],
    epochs: Iterable[Iterable[B]],
    *,
    n_steps: int,
    lr: float,
    slow: Iterable[nn.Parameter] = (),
    slow_factor: float = 1.0,
    optimizer: OptimizerName = "sgd",
    betas: tuple[float, float] = (0.9, 0.999),
    amsgrad: bool = False,
    schedule: ScheduleName = "cosine",
    n_epochs: int | None = None,
    milestone: int | None = None,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
    after_step: Callable[[], None] = lambda: None,
) -> None:
    """Minimises ``loss`` with a new optimiser.

    Args:
        loss: scalar loss of one batch.
        parameters: what learns.
        epochs: the batches of each epoch.
        n_steps: batches in all, for the schedule.
        lr: peak learning rate.
        slow: what else learns, at another rate.
        slow_factor: that rate, in units of ``lr``.
        optimizer: ``sgd`` (momentum 0.9), ``adam`` or ``adamw``.
        betas: of Adam.
        amsgrad: Adam's variant that never forgets its largest second moment.
        schedule: see :func:`lr_factor`.
        n_epochs: how many epochs there will be, for the schedules by epoch.
        milestone: an epoch, for the schedule of that name.
        weight_decay: of all parameters.
        clip_norm: largest norm of all gradients together.
        after_step: called after every step.

    Raises:
        ConfigError: if the schedule needs ``n_epochs`` or ``milestone`` and does not get it.
        TrainingError: if the loss is no longer finite.
    """
    rates = ((list(parameters), lr), (list(slow), lr * slow_factor))
    groups: list[dict[str, Any]] = [{"params": part, "peak": peak} for part, peak in rates if part]
    options = {"betas": betas, "amsgrad": amsgrad} if optimizer != "sgd" else {"momentum": 0.9}
    step, t = OPTIMIZERS[optimizer](groups, lr=lr, weight_decay=weight_decay, **options), 0
    for epoch, batches in enumerate(epochs):
        for batch in batches:
            for group in step.param_groups:
                group["lr"] = group["peak"] * lr_factor(schedule, t, n_steps, epoch, n_epochs, milestone)
            step.zero_grad()
            if not torch.isfinite(value := loss(batch)):
                raise TrainingError("train", "loss", "finite", value.item(), f"Lower lr, now {lr}")
            value.backward()
            if clip_norm:
                nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], clip_norm)
            step.step()
            after_step()
            t += 1


def lr_factor(
    schedule: ScheduleName,
    step: int,
    n_steps: int,
    epoch: int = 0,
    n_epochs: int | None = None,
    milestone: int | None = None,
) -> float:
    """What the peak learning rate is multiplied by at one step.

    ``cosine`` falls to zero over all steps, ``epoch_cosine`` by epoch, so that the last epoch is not at zero yet.
    ``quarter_cosine`` is cos(99 π e / (200 (K - 1))) in epoch e of K, from 1 down to 0.0157 (CODA-Prompt's formula);
    constant for K = 1, where that is undefined. ``quarter_cosine_released`` is CODA-Prompt's code: the same, but one
    epoch late, at the peak in its first two epochs. ``milestone`` is a tenth from that epoch on.

    Args:
        schedule: one of the above, or ``constant``.
        step: from 0.
        n_steps: in all.
        epoch: from 0.
        n_epochs: in all.
        milestone: an epoch, from 0.

    Raises:
        ConfigError: if the schedule needs ``n_epochs`` or ``milestone`` and does not get it.
    """
    if schedule == "constant" or schedule == "cosine":
        return SCHEDULES[schedule].factor(step, n_steps, epoch, n_epochs or 1)
    name, value = ("milestone", milestone) if schedule == "milestone" else ("n_epochs", n_epochs)
    if value is None:
        raise ConfigError("train", name, f"given for schedule={schedule}", value, f"Pass {name} to train")
    if schedule == "milestone":
        return Milestone(milestone=value).factor(step, n_steps, epoch, n_epochs or 1)
    return SCHEDULES[schedule].factor(step, n_steps, epoch, value)


def shuffled(n: int, batch_size: int, rng: torch.Generator) -> Iterator[Tensor]:
    """One epoch's batches of positions, each position once, in an order drawn from ``rng``."""
    yield from torch.randperm(n, generator=rng).split(batch_size)
