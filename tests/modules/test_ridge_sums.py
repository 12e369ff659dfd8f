from __future__ import annotations

import pytest
import torch

from perdure.modules import ridge_sums
from perdure.modules.random_features import RandomFeatures
from perdure.modules.ridge_choice import CumulativeRidge, FixedRidge, RidgePerTask
from perdure.modules.ridge_sums import RidgeSums

CPU = torch.device("cpu")


@pytest.fixture
def lift() -> RandomFeatures:
    return RandomFeatures.drawn(0, 3, 20, CPU)


@pytest.fixture
def f() -> torch.Tensor:
    return torch.randn(16, 3, generator=torch.Generator().manual_seed(1))


def nothing() -> RidgeSums:
    empty = torch.zeros(0, 20).double(), torch.zeros(0, 0).double(), torch.zeros(0).double()
    return RidgeSums(*empty, torch.zeros(20, 0).double(), empty[2], torch.zeros(20, 0).double(), 0, 0)


def test_a_choice_is_told_how_many_images_are_to_fit(
    lift: RandomFeatures, f: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(ridge_sums, "chosen_on_statistics", lambda *a: asked.append(a[2:4]) or 5.0)
    rng, labels = torch.Generator().manual_seed(0), torch.arange(16) % 2
    kept, ridge = nothing().taught(CumulativeRidge(validation_fraction=0.25), [], lift, f, labels, 2, rng)
    assert kept.whole
    assert (kept.n, kept.n_val, ridge, asked) == (16, 4, 5.0, [(12, 4)])


def test_a_ridge_is_that_of_before_while_nothing_was_held_out(lift: RandomFeatures, f: torch.Tensor) -> None:
    rng, one = torch.Generator(), torch.arange(1)
    for how in (RidgePerTask(first=3.0), CumulativeRidge(first=3.0)):
        assert nothing().taught(how, [], lift, f[:1], one, 1, rng)[1] == 3.0
        assert nothing().taught(how, [7.0, 8.0], lift, f[:1], one, 1, rng)[1] == 8.0
    assert nothing().taught(FixedRidge(value=2.0), [7.0], lift, f[:1], one, 1, rng)[1] == 2.0
