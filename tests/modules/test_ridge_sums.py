from __future__ import annotations

import pytest
import torch

from perdure.modules import ridge_sums
from perdure.modules.random_features import RandomFeatures
from perdure.modules.ridge_choice import CumulativeRidge, FixedRidge, RidgePerTask
from perdure.modules.ridge_sums import RidgeSums, joined

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


@pytest.mark.parametrize(("first", "second"), [(3, 5), (3, 9), (12, 4), (3, 13), (0, 4)])
@pytest.mark.parametrize("how", [FixedRidge(value=2.0), CumulativeRidge(validation_fraction=0.25)])
def test_what_two_kept_is_what_one_would_have_kept(
    first: int, second: int, how: FixedRidge | CumulativeRidge, lift: RandomFeatures, f: torch.Tensor
) -> None:
    columns = torch.arange(16) % 2
    held = how.name == "cumulative"

    def kept(*pieces: list[int]) -> RidgeSums:
        found = nothing()
        for rows in filter(len, pieces):
            n_val = len(rows) // 4 if held else 0
            split = (torch.arange(n_val, len(rows)), torch.arange(n_val)) if held else None
            found = found.added(lift, f[rows], columns[rows], split, 2)
        return (
            found if pieces[0] else nothing().added(lift, f[:0], columns[:0], (columns[:0],) * 2 if held else None, 2)
        )

    one, other = list(range(first)), list(range(first, first + second))
    both, ridges = joined(how, kept(one), [1.0, 2.0], kept(other), [3.0, 1.0], CPU)
    straight = kept(one, other) if one else kept(other)
    assert (both.n, both.n_val, both.whole) == (straight.n, straight.n_val, straight.whole)
    for mine, theirs in zip(both.statistics, straight.statistics, strict=True):
        torch.testing.assert_close(mine, theirs)
    torch.testing.assert_close(both.weight(how, 2.0, CPU), straight.weight(how, 2.0, CPU))
    assert ridges == [3.0, straight.best_ridge(CPU) if straight.n_val else 2.0]
    if straight.whole:
        torch.testing.assert_close(both.val_gram, straight.val_gram)
        torch.testing.assert_close(both.val_sums, straight.val_sums)
