"""Optimisers and schedules as a training's settings make them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import nn

from perdure.config import load
from perdure.errors import RecipeError
from perdure.train.settings import (
    SGD,
    Adam,
    AdamW,
    Constant,
    Cosine,
    EpochCosine,
    Milestone,
    QuarterCosine,
    Training,
    scaled_lr,
)

SEVEN = {"lr": 1, "epochs": 7, "batch_size": 1}


def test_a_cosine_rises_in_a_straight_line_first() -> None:
    """ZSCL's: (i + 1) / W for i < W, then half of 1 + cos(pi (i - W) / (N - W))."""
    rates = [Cosine(warmup=4).factor(i, 12, 0, 1) for i in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([(1 + math.cos(math.pi * i / 8)) / 2 for i in range(9)], abs=1e-15)
    assert Cosine(warmup=12).factor(12, 12, 0, 1) == 1.0, "a rise as long as the training has no fall"


def test_a_cosine_goes_by_steps_whatever_the_epochs() -> None:
    """It falls to zero, and more steps than planned do not raise the rate again."""
    wanted = [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0]
    assert [Cosine().factor(t, 4, 7, 8) for t in range(6)] == pytest.approx(wanted)


def test_a_quarter_cosine_ends_low_and_is_constant_for_one_epoch() -> None:
    """CODA-Prompt, golden test 9: K = 20 ends at 0.015707 of the peak; for K = 1 its formula divides by K - 1 = 0."""
    for released in (False, True):
        schedule = QuarterCosine(released=released)
        assert [schedule.factor(step, 40, 0, 20) for step in (0, 1)] == [1, 1]
        assert schedule.factor(0, 5, 0, 1) == schedule.factor(4, 5, 0, 1) == 1
    assert QuarterCosine().factor(38, 40, 19, 20) == pytest.approx(0.015707, abs=1e-6)


def test_a_milestone_must_be_told_where_it_is_used_and_nowhere_else() -> None:
    with pytest.raises(RecipeError, match=r"schedule\.milestone must be given, but got None"):
        load(Training, {**SEVEN, "schedule": "milestone"})
    with pytest.raises(RecipeError, match=r"schedule\.milestone must be greater than or equal to 1, but got 0"):
        load(Training, {**SEVEN, "schedule": {"name": "milestone", "milestone": 0}})
    with pytest.raises(RecipeError, match=r"but got 'schedule\.milestone'\. Another kind of schedule has it"):
        load(Training, {**SEVEN, "schedule": {"name": "epoch_cosine", "milestone": 1}})
    with pytest.raises(RecipeError, match=r"schedule\.name must be one of .*but got 'mielstone'\. Did you mean 'mile"):
        load(Training, {**SEVEN, "schedule": "mielstone"})


def test_a_milestone_out_of_reach_is_told() -> None:
    with pytest.warns(UserWarning, match="Training: milestone=7 is never reached in 7 epochs"):
        load(Training, {**SEVEN, "schedule": {"name": "milestone", "milestone": 7}})
    with pytest.warns(UserWarning, match="Training: again=7 is never reached in 7 epochs"):
        load(Training, {**SEVEN, "schedule": {"name": "milestone", "milestone": 6, "again": 7}})
    last = {"name": "milestone", "milestone": 6}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load(Training, {**SEVEN, "schedule": last}).schedule == Milestone(milestone=6)
        with pytest.raises(RecipeError, match="epochs must be greater than or equal to 1, but got 0"):
            load(Training, {**SEVEN, "schedule": last, "epochs": 0})


def test_schedules_by_epoch() -> None:
    """Four epochs; the step plays no part."""
    by_epoch = {
        Constant(): [1, 1, 1, 1],
        EpochCosine(): [1, 0.8535533905932737, 0.5, 0.14644660940672627],
        Milestone(milestone=2): [1, 1, 0.1, 0.1],
        Milestone(milestone=1, again=3): [1, 0.1, 0.1, 0.01],
        QuarterCosine(): [math.cos(99 * math.pi * e / 600) for e in range(4)],
        QuarterCosine(released=True): [math.cos(99 * math.pi * e / 600) for e in (0, 0, 1, 2)],
    }
    for schedule, wanted in by_epoch.items():
        assert [schedule.factor(step, 8, epoch, 4) for epoch in range(4) for step in (0, 7)] == pytest.approx(
            [w for w in wanted for _ in range(2)], abs=1e-12
        )


@pytest.mark.parametrize(
    ("settings", "kind", "told"),
    [
        (SGD(), torch.optim.SGD, {"momentum": 0.9, "nesterov": False, "weight_decay": 0.0}),
        (SGD(momentum=0.5, nesterov=True, weight_decay=0.1), torch.optim.SGD,
         {"momentum": 0.5, "nesterov": True, "weight_decay": 0.1}),
        (Adam(), torch.optim.Adam, {"betas": (0.9, 0.999), "amsgrad": False, "weight_decay": 0.0}),
        (AdamW(beta1=0.8, beta2=0.7, amsgrad=True, weight_decay=0.2), torch.optim.AdamW,
         {"betas": (0.8, 0.7), "amsgrad": True, "weight_decay": 0.2}),
    ],
)  # fmt: skip
def test_an_optimiser_gets_its_settings(settings: Any, kind: type, told: dict[str, Any]) -> None:
    made = settings.make([{"params": [nn.Parameter(torch.zeros(1))]}], 0.3)
    assert type(made) is kind
    (group,) = made.param_groups
    assert {key: group[key] for key in told} == told
    assert group["lr"] == 0.3


def after_gradients(optimizer: Any, gradients: list[float], *, start: float = 0.0) -> list[float]:
    """Where a new optimiser at rate 0.1 takes a parameter, gradient by gradient."""
    parameter, seen = nn.Parameter(torch.tensor(start, dtype=torch.float64)), []
    step = optimizer.make([{"params": [parameter]}], 0.1)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        step.step()
        seen.append(parameter.item())
    return seen


def test_sgd_has_momentum() -> None:
    assert after_gradients(SGD(), [1.0, 1.0]) == pytest.approx([-0.1, -0.1 - 0.19])
    assert after_gradients(SGD(momentum=0.0), [1.0, 1.0]) == pytest.approx([-0.1, -0.2])


@pytest.mark.parametrize(("kind", "left"), [(SGD, 0.95), (AdamW, 0.95), (Adam, 0.9)])
def test_weight_decay_without_a_gradient(kind: Any, left: float) -> None:
    """Adam's is part of the gradient, of which its first step keeps the sign alone."""
    assert after_gradients(kind(weight_decay=0.5), [0.0], start=1.0) == pytest.approx([left])
    assert after_gradients(kind(), [0.0] * 4, start=1.0)[-1] == 1


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.8)])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_by_hand(kind: Any, betas: tuple[float, float], amsgrad: bool) -> None:
    gradients = [2.0, 0.5, 0.1, 0.1, 0.1]
    m = v = largest = at = 0.0
    wanted = []
    for t, g in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        largest = max(largest, v)
        used = largest if amsgrad else v
        at -= 0.1 * m / (1 - betas[0] ** t) / (math.sqrt(used / (1 - betas[1] ** t)) + 1e-8)
        wanted.append(at)
    settings = kind(beta1=betas[0], beta2=betas[1], amsgrad=amsgrad)
    assert after_gradients(settings, gradients) == pytest.approx(wanted)


def test_betas_and_amsgrad_matter() -> None:
    gradients = [2.0, 0.5, 0.1, 0.1, 0.1]
    ends = {after_gradients(Adam(beta1=0.5, beta2=b, amsgrad=a), gradients)[-1] for b in (0.8, 0.9) for a in (0, 1)}
    assert len(ends) == 4
    usual = after_gradients(Adam(), gradients)
    assert usual == after_gradients(Adam(beta1=0.9, beta2=0.999, amsgrad=False), gradients)


@pytest.mark.parametrize(("batch_size", "lr"), [(16, 0.001875), (128, 0.015), (256, 0.03), (1, 0.03 / 256)])
def test_the_linear_scaling_rule(batch_size: int, lr: float) -> None:
    assert scaled_lr(0.03, batch_size) == pytest.approx(lr, rel=1e-12)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(RecipeError, match=r"optimizer must be given a momentum above 0 for nesterov=true, but got"):
        load(Training, {"lr": 1, "epochs": 1, "batch_size": 1, "optimizer": {"nesterov": True, "momentum": 0}})


def test_the_peak_may_follow_the_batch() -> None:
    assert Training(lr=0.03, epochs=1, batch_size=128).peak == 0.03
    assert Training(lr=0.03, epochs=1, batch_size=128, scale_lr=True).peak == 0.015
