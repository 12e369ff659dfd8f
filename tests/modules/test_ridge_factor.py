from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from perdure.errors import ConfigError
from perdure.modules import ridge_factor
from perdure.modules.ridge import solve_ridge, unpack, zero_ridge
from perdure.modules.ridge_factor import (
    has_room,
    kernel,
    solve_factor_upwards,
    statistics_of,
    turn_,
    with_room,
)

M = 60


@pytest.fixture
def h() -> torch.Tensor:
    """Rows as ReLU leaves them: many columns are zero for all images."""
    rng = torch.Generator().manual_seed(0)
    return torch.relu(
        torch.randn(29, 3, dtype=torch.float64, generator=rng) @ torch.randn(3, M, generator=rng).double()
    )


@pytest.fixture
def y() -> torch.Tensor:
    return F.one_hot(torch.arange(29) % 4).double()


def grown(h: torch.Tensor, y: torch.Tensor, *sizes: int) -> tuple[torch.Tensor, torch.Tensor]:
    known = h[:0], y[:0, :0]
    for rows, targets in zip(h.split(sizes), y.split(sizes), strict=True):
        width = max(known[1].shape[1], int(targets.argmax(1).max()) + 1)
        old = len(known[0])
        known = with_room(known, len(rows), width)
        known[0][old:], known[1][old:] = rows, targets[:, :width]
        turn_(known, old)
    return known


@pytest.mark.parametrize("columns", [7, 512])
@pytest.mark.parametrize("panel", [1, 4, 128])
@pytest.mark.parametrize("sizes", [(29,), (1,) * 29, (3, 1, 20, 5), (20, 9)])
def test_a_factor_stands_for_its_rows(
    h: torch.Tensor, y: torch.Tensor, sizes: tuple[int, ...], panel: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge_factor, "PANEL", panel)
    monkeypatch.setattr(ridge_factor, "BLOCK", columns)
    before = h.clone(), y.clone()
    factor, targets = grown(h, y, *sizes)
    assert factor.shape == (29, M)
    torch.testing.assert_close(factor.T @ factor, h.T @ h)
    torch.testing.assert_close(factor.T @ targets, h.T @ y)
    gram, sums = statistics_of((factor, targets))
    torch.testing.assert_close(unpack(gram, M), h.T @ h)
    torch.testing.assert_close(sums, h.T @ y)
    assert torch.equal(h, before[0])
    assert torch.equal(y, before[1])


def test_a_factor_is_that_of_the_sum_alone(h: torch.Tensor, y: torch.Tensor) -> None:
    """Neither the order of the images nor that of the tasks is kept."""
    h = torch.relu(h + torch.randn(29, M, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
    order = torch.randperm(29, generator=torch.Generator().manual_seed(2))
    one, other = grown(h, y, 3, 1, 20, 5)[0], grown(h[order], y[order], 10, 19)[0]
    torch.testing.assert_close(one.abs(), other.abs(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("n", [2, 3, 29])
def test_no_row_of_a_factor_is_an_image_though_columns_are_zero(h: torch.Tensor, y: torch.Tensor, n: int) -> None:
    h = h[:n].clone()
    h[:, :5] = 0
    factor = grown(h, y[:n], *(1,) * n)[0]
    cosines = F.normalize(factor, dim=1) @ F.normalize(h, dim=1).T
    own = F.normalize(h, dim=1) @ F.normalize(h, dim=1).T
    alike = own.fill_diagonal_(0).max()  # as near as another image
    assert cosines.abs().max() < max(1 - 1e-6, float(alike) + 1e-6) or n > 3
    assert (factor[:, None] - h[None]).abs().amax(-1).min() > 1e-3


def test_room_is_made_in_a_copy(h: torch.Tensor, y: torch.Tensor) -> None:
    factor, targets = with_room((h, y), 2, 6)
    assert torch.equal(factor, torch.cat([h, torch.zeros(2, M)]))
    assert torch.equal(targets, F.pad(y, (0, 2, 0, 2)))
    factor += 1
    assert not torch.equal(factor[:29], h)


def test_no_rows_leave_a_factor_as_it_was(h: torch.Tensor, y: torch.Tensor) -> None:
    known = grown(h[:9], y[:9], 9)
    same = with_room(known, 0, y.shape[1])
    turn_(same, 9)
    assert all(map(torch.equal, same, known))


def test_a_factor_has_room_while_it_is_smaller() -> None:
    assert [has_room(n, 10) for n in (0, 4, 5, 6)] == [True, True, False, False]
    assert has_room(5, 11)
    assert not has_room(6, 11)


def test_the_kernel_is_the_full_product(h: torch.Tensor) -> None:
    torch.testing.assert_close(unpack(kernel(h), 29), h @ h.T)


def test_a_factor_is_solved_as_its_sum_is(h: torch.Tensor, y: torch.Tensor) -> None:
    known, gram, sums = grown(h, y, 3, 1, 20, 5), h.T @ h, h.T @ y
    expected = solve_ridge(gram.clone(), sums, 0.7)
    torch.testing.assert_close(solve_factor_upwards(known, [0.7, 100.0]), expected)
    zero = 0.99 * zero_ridge(float(gram.trace()), 29, M)
    torch.testing.assert_close(solve_factor_upwards(known, [zero, 0.7, 100.0]), expected)
    with pytest.raises(ConfigError, match=f"but got {zero}. Raise it"):
        solve_factor_upwards(known, [zero])
