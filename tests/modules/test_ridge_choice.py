from __future__ import annotations

import pytest
import torch

from perdure.errors import ConfigError
from perdure.modules import ridge_choice
from perdure.modules.random_features import RandomFeatures
from perdure.modules.ridge import no_statistics, zero_ridge
from perdure.modules.ridge_choice import (
    best_ridge,
    chosen_on_factors,
    chosen_on_rows,
    chosen_on_statistics,
    held_out,
    summed_kernels,
    validation_losses_dual,
    validation_losses_primal,
)

GRID = [1e-2, 1.0, 1e2]
CPU = torch.device("cpu")
LABELS = torch.arange(17) % 3 * 7  # the numbers of the columns do not matter


@pytest.fixture
def h() -> torch.Tensor:
    return torch.randn(17, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.arange(17) % 3).double()


def best_by_hand(h: torch.Tensor, y: torch.Tensor, fit: torch.Tensor, val: torch.Tensor) -> float:
    losses = []
    for ridge in ridge_choice.GRID:
        gram = h[fit].T @ h[fit] + ridge * torch.eye(h.shape[1], dtype=torch.float64)
        losses.append(float((h[val] @ torch.linalg.solve(gram, h[fit].T @ y[fit]) - y[val]).square().mean()))
    assert 0 < losses.index(min(losses)) < len(losses) - 1
    return ridge_choice.GRID[losses.index(min(losses))]


def test_rows_are_held_out_at_random() -> None:
    fit, val = held_out(10, 0.2, torch.Generator().manual_seed(0))
    again, _ = held_out(10, 0.2, torch.Generator().manual_seed(0))
    assert (len(fit), len(val)) == (8, 2)
    assert sorted([*fit.tolist(), *val.tolist()]) == list(range(10)) != [*fit.tolist(), *val.tolist()]
    assert torch.equal(fit, again)
    assert [len(part) for part in held_out(1, 0.9, torch.Generator())] == [1, 0]


@pytest.mark.parametrize(("columns", "other"), [(0, "dual"), (9, "dual"), (40, "primal")])
def test_the_ridge_for_some_rows_is_the_best_by_hand(
    y: torch.Tensor, columns: int, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge_choice, f"validation_losses_{other}", None)  # must not be used: it costs more
    rng = torch.Generator().manual_seed(2)
    f, projection = y.float() + 0.5 * torch.randn(17, 3, generator=rng), torch.randn(3, columns, generator=rng)
    lift, (fit, val) = RandomFeatures(projection, CPU), held_out(17, 0.3, rng)
    found = chosen_on_rows(lift, f, LABELS, fit, val)
    assert found == best_by_hand(lift(f), y, fit, val)


def test_nothing_is_chosen_without_held_out_rows_or_with_one_class(h: torch.Tensor) -> None:
    lift, rows = RandomFeatures(torch.zeros(11, 0), CPU), torch.arange(17)
    assert chosen_on_rows(lift, h, LABELS, rows, rows[:0]) is None
    assert chosen_on_rows(lift, h, torch.full((17,), 5), rows[:9], rows[9:]) is None


def test_the_ridge_for_statistics_is_the_best_by_hand(y: torch.Tensor) -> None:
    f, rows = torch.randn(17, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(17)
    lift, labels = RandomFeatures(torch.zeros(4, 0), CPU), torch.arange(17) % 3
    everything, held = (lift.added(no_statistics(4), f, labels, part, 3) for part in (rows, rows[11:]))
    before = [t.clone() for t in (*everything, *held)]
    assert chosen_on_statistics(everything, held, 11, 6, CPU) == best_by_hand(f, y, rows[:11], rows[11:])
    assert all(map(torch.equal, before, (*everything, *held)))


def test_the_ridge_for_factors_is_the_best_by_hand(y: torch.Tensor) -> None:
    rng = torch.Generator().manual_seed(2)
    f, rows, labels = y + 0.5 * torch.randn(17, 3, generator=rng), torch.arange(17), torch.arange(17) % 3
    lift, (fit, val) = RandomFeatures(torch.randn(3, 40, generator=rng), CPU), held_out(17, 0.3, rng)
    none = torch.zeros(0, 40).double(), torch.zeros(0, 0).double()
    factors = [lift.appended(none, f, labels, part, 3) for part in (fit, val)]
    assert chosen_on_factors(*factors, CPU) == best_by_hand(lift(f), y, fit, val)
    statistics = [lift.added(no_statistics(40), f, labels, part, 3) for part in (rows, val)]
    assert chosen_on_statistics(*statistics, len(fit), len(val), CPU) == best_by_hand(lift(f), y, fit, val)


def test_zero_is_that_of_the_rows_to_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = torch.arange(6), torch.arange(6) % 2
    f = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    lift, none = RandomFeatures(torch.eye(3, 40), CPU), (torch.zeros(0, 40).double(), torch.zeros(0, 0).double())
    factors = [lift.appended(none, f, labels, part, 2) for part in (rows[:4], rows[4:])]
    statistics = [lift.added(no_statistics(40), f, labels, part, 2) for part in (rows, rows[4:])]
    found = []
    for name in ("dual", "primal"):
        monkeypatch.setattr(ridge_choice, f"validation_losses_{name}", lambda *a: found.append(a[-1]) or [1.0] * 17)
    chosen_on_factors(*factors, CPU)
    for n_fit in (4, 40):
        chosen_on_statistics(*statistics, n_fit, 2, CPU)
    zero = zero_ridge(float(lift(f[:4]).square().sum()), 4, 40)
    assert zero > 0
    assert found == pytest.approx([zero, zero, 0])


@pytest.mark.parametrize("widths", [(11,), (1, 10), (4, 5, 2)])
def test_kernels_are_summed_over_blocks_of_any_width(h: torch.Tensor, widths: tuple[int, ...]) -> None:
    fit, val = h[:9], h[9:]
    blocks = list(zip(fit.split(widths, dim=1), val.split(widths, dim=1), strict=True))
    before = [part.clone() for pair_ in blocks for part in pair_]
    kernel, cross = summed_kernels(blocks)
    torch.testing.assert_close(kernel, fit @ fit.T)
    torch.testing.assert_close(cross, val @ fit.T)
    assert all(map(torch.equal, before, (part for pair_ in blocks for part in pair_)))


def test_dual_and_primal_losses_agree(h: torch.Tensor, y: torch.Tensor) -> None:
    fit, val, y_fit, y_val = h[:9], h[9:], y[:9], y[9:]
    dual = validation_losses_dual(fit @ fit.T, val @ fit.T, y_fit, y_val, GRID)
    primal = validation_losses_primal(fit.T @ fit, fit.T @ y_fit, val.T @ val, val.T @ y_val, 8, GRID)
    by_hand = []
    for value in GRID:
        weight = torch.linalg.inv(fit.T @ fit + value * torch.eye(11, dtype=torch.float64)) @ fit.T @ y_fit
        by_hand.append(float(((val @ weight - y_val) ** 2).mean()))
    assert dual == pytest.approx(by_hand, abs=1e-10)
    assert primal == pytest.approx(by_hand, abs=1e-10)
    assert len({round(loss, 3) for loss in by_hand}) == 3


def test_losses_leave_their_statistics_alone(h: torch.Tensor, y: torch.Tensor) -> None:
    kernel, gram = h @ h.T, h.T @ h
    before = kernel.clone(), gram.clone()
    validation_losses_dual(kernel, kernel, y, y, GRID)
    validation_losses_primal(gram, h.T @ y, gram, h.T @ y, 17, GRID)
    assert torch.equal(kernel, before[0])
    assert torch.equal(gram, before[1])


def test_an_unsolvable_ridge_costs_infinity() -> None:
    zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert validation_losses_dual(zero, zero, one, one, [0.0, 1.0]) == [float("inf"), 1.0]
    assert validation_losses_primal(zero, zero, zero, zero, 1, [0.0, 1.0]) == [float("inf"), 1.0]
    assert validation_losses_dual(zero, zero, one, one, [0.5, 1.0], 0.5) == [float("inf"), 1.0]
    assert validation_losses_primal(zero, zero, zero, zero, 1, [0.5, 1.0], 0.5) == [float("inf"), 1.0]


def test_the_best_ridge() -> None:
    assert best_ridge([1.0, 2.0, 3.0], [0.3, 0.1, 0.2]) == 2.0
    assert best_ridge([1.0, 2.0, 3.0], [0.3, 0.1, 0.1]) == 2.0
    assert best_ridge([1.0, 2.0], [float("nan"), 0.1]) == 2.0
    with pytest.raises(ConfigError, match=r"losses must be finite for some lambda, but got \[nan, inf\]\. Look"):
        best_ridge([1.0, 2.0], [float("nan"), float("inf")])
