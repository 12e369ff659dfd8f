"""Optimisers and schedules as a training's settings make them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from perdure.config import load
from perdure.errors import RecipeError
from perdure.train.settings import SGD, Adam, AdamW, Constant, Cosine, EpochCosine, Milestone, QuarterCosine, Training


def test_a_cosine_rises_in_a_straight_line_first() -> None:
    """ZSCL's: (i + 1) / W for i < W, then half of 1 + cos(pi (i - W) / (N - W))."""
    rates = [Cosine(warmup=4).factor(i, 12, 0, 1) for i in range(13)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([(1 + math.cos(math.pi * i / 8)) / 2 for i in range(9)], abs=1e-15)
    assert Cosine(warmup=12).factor(12, 12, 0, 1) == 1.0, "a rise as long as the training has no fall"


def test_schedules_by_epoch() -> None:
    """Four epochs; the step plays no part."""
    by_epoch = {
        Constant(): [1, 1, 1, 1],
        EpochCosine(): [1, 0.8535533905932737, 0.5, 0.14644660940672627],
        Milestone(milestone=2): [1, 1, 0.1, 0.1],
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


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(RecipeError, match=r"optimizer must be given a momentum above 0 for nesterov=true, but got"):
        load(Training, {"lr": 1, "epochs": 1, "batch_size": 1, "optimizer": {"nesterov": True, "momentum": 0}})


def test_the_peak_may_follow_the_batch() -> None:
    assert Training(lr=0.03, epochs=1, batch_size=128).peak == 0.03
    assert Training(lr=0.03, epochs=1, batch_size=128, scale_lr=True).peak == 0.015
