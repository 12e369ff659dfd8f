from __future__ import annotations

import pytest
import torch

from perdure.errors import ConfigError, DataError, ShapeError
from perdure.modules import ridge
from perdure.modules.ridge import (
    add_gram_,
    merge_ridge,
    no_statistics,
    packed_gram,
    solve_ridge,
    solve_ridge_upwards,
    trace,
    unpack,
    zero_ridge,
)


@pytest.fixture
def h() -> torch.Tensor:
    return torch.randn(17, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def y() -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.arange(17) % 3).double()


@pytest.mark.parametrize("block", [1, 4, 11, 512])
def test_the_packed_gram_is_the_full_one(h: torch.Tensor, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "BLOCK", block)
    packed = packed_gram(11)
    assert packed.dtype == torch.float64
    assert not packed.any()
    add_gram_(packed, h)
    add_gram_(packed, h[:5])
    torch.testing.assert_close(unpack(packed, 11), h.T @ h + h[:5].T @ h[:5])


@pytest.mark.parametrize(("block", "stored"), [(1, 66), (4, 44 + 28 + 9), (512, 121)])
def test_only_blocks_from_the_diagonal_on_are_stored(block: int, stored: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "BLOCK", block)
    assert len(packed_gram(11)) == stored
    assert len(packed_gram(0)) == 0
    gram, sums = no_statistics(11)
    assert (len(gram), sums.shape, sums.dtype) == (stored, (11, 0), torch.float64)


def test_solve_ridge_by_hand() -> None:
    gram, sums = torch.diag(torch.tensor([1.0, 4.0]).double()), torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(solve_ridge(gram, sums, 1.0), torch.tensor([[0.5, 0], [0, 0.2]], dtype=torch.float64))


def test_solve_ridge_equals_a_general_solver(h: torch.Tensor, y: torch.Tensor) -> None:
    gram, sums = h.T @ h, h.T @ y
    expected = torch.linalg.solve(gram + 0.3 * torch.eye(11, dtype=torch.float64), sums)
    torch.testing.assert_close(solve_ridge(gram, sums, 0.3), expected)


def test_a_ridge_that_is_numerically_zero_is_refused() -> None:
    singular = torch.full((2, 2), 1e8, dtype=torch.float64)
    with pytest.raises(ConfigError, match=r"ridge: lambda must be large enough .*, but got 1e-12\. Raise it"):
        solve_ridge(singular, torch.ones(2, 1, dtype=torch.float64), 1e-12)


def test_the_first_ridge_that_can_be_done_is_taken(h: torch.Tensor, y: torch.Tensor) -> None:
    few, made = h[:3], []

    def gram() -> torch.Tensor:
        made.append(few.T @ few * 1e8)
        return made[-1].clone()

    sums = few.T @ y[:3] * 1e8
    found = solve_ridge_upwards(gram, sums, [1e-30, 1e-25, 1.0, 100.0])
    torch.testing.assert_close(found, solve_ridge(made[0].clone(), sums, 1.0))
    assert len(made) == 3
    with pytest.raises(ConfigError, match="but got 1e-25"):
        solve_ridge_upwards(gram, sums, [1e-30, 1e-25])
    torch.testing.assert_close(solve_ridge_upwards(gram, sums, [5.0]), solve_ridge(made[0].clone(), sums, 5.0))


def test_a_ridge_up_to_zero_is_passed_over(h: torch.Tensor, y: torch.Tensor) -> None:
    gram, sums = h.T @ h, h.T @ y
    found = solve_ridge_upwards(gram.clone, sums, [0.1, 0.3, 1.0], 0.3)
    assert torch.equal(found, solve_ridge(gram.clone(), sums, 1.0))
    with pytest.raises(ConfigError, match=r"lambda must be .*, but got 0\.3\. Raise it"):
        solve_ridge_upwards(gram.clone, sums, [0.1, 0.3], 0.3)
    with pytest.raises(ConfigError, match=r"lambda must be .*, but got 0\.3\. Raise it"):
        solve_ridge(gram.clone(), sums, 0.3, 0.3)


def test_zero_is_a_share_of_the_trace_while_there_are_fewer_images_than_features(h: torch.Tensor) -> None:
    packed = packed_gram(11)
    add_gram_(packed, h)
    assert trace(packed, 11) == pytest.approx(float(h.square().sum()))
    assert zero_ridge(8.0, 10, 11) == torch.finfo(torch.float64).eps
    assert zero_ridge(8.0, 11, 11) == 0


def pair(h: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    packed = packed_gram(h.shape[1])
    add_gram_(packed, h)
    return packed, h.T @ y


@pytest.mark.parametrize("block", [4, 512])
def test_merging_is_gathering_together(
    h: torch.Tensor, y: torch.Tensor, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "BLOCK", block)
    mine, theirs = pair(h[:9], y[:9]), pair(h[9:], y[9:][:, [2, 0]])
    before = [t.clone() for t in (*mine, *theirs)]
    gram, sums = merge_ridge(mine, theirs, torch.tensor([2, 0]), 4)
    torch.testing.assert_close(unpack(gram, 11), h.T @ h)
    expected = torch.nn.functional.pad(h.T @ y, (0, 1))
    expected[:, 1] = h[:9].T @ y[:9, 1]
    torch.testing.assert_close(sums, expected)
    assert all(map(torch.equal, before, (*mine, *theirs)))


@pytest.mark.parametrize("block", [4, 512])
def test_a_subtracted_task_was_never_learned(
    h: torch.Tensor, y: torch.Tensor, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ridge, "BLOCK", block)
    kept, task = pair(h[:12], y[:12]), pair(1e3 * h[12:], y[12:])
    both = merge_ridge(kept, task, torch.arange(3), 3)
    gram, sums = merge_ridge(both, task, torch.arange(3), 3, subtract=True)
    forgotten, never = (solve_ridge(unpack(g, 11), q, 1.0) for g, q in ((gram, sums), kept))
    learned = solve_ridge(unpack(both[0], 11), both[1], 1.0)
    torch.testing.assert_close(forgotten, never, atol=1e-9, rtol=0)
    assert (learned - never).abs().max() > 1e-2


def test_a_subtracted_class_leaves_an_empty_column(h: torch.Tensor, y: torch.Tensor) -> None:
    everything, one = pair(h, y), pair(h[2::3], y[2::3, 2:])
    gram, sums = merge_ridge(everything, one, torch.tensor([2]), 3, subtract=True)
    rest = torch.arange(17) % 3 != 2
    torch.testing.assert_close(unpack(gram, 11), h[rest].T @ h[rest])
    assert sums[:, 2].abs().max() < 1e-12
    torch.testing.assert_close(sums[:, :2], h[rest].T @ y[rest][:, :2])


@pytest.mark.usefixtures("any_shape")
def test_what_cannot_be_merged_is_refused(h: torch.Tensor, y: torch.Tensor) -> None:
    mine = pair(h, y)
    with pytest.raises(ShapeError, match=r"must be \(121, 11\), but got \(81, 9\)\. Lift both"):
        merge_ridge(mine, pair(h[:, :9], y), torch.arange(3), 3)
    with pytest.raises(ShapeError, match="width must be at least 4, but got 3"):
        merge_ridge(mine, pair(h, y), torch.tensor([0, 1, 3]), 3)
    with pytest.raises(ShapeError, match="width must be at least 3, but got 2"):
        merge_ridge(mine, pair(h, y[:, :1]), torch.tensor([0]), 2)
    with pytest.raises(DataError, match=r"diagonal of the Gram matrix must be non-negative .*, but got -"):
        merge_ridge(mine, pair(3 * h, y), torch.arange(3), 3, subtract=True)
    alone, apart = merge_ridge(mine, pair(h, y[:, :0]), torch.arange(0), 3)
    torch.testing.assert_close(unpack(alone, 11), 2 * h.T @ h)
    assert torch.equal(apart, mine[1])
    nothing = packed_gram(0), torch.zeros(0, 1, dtype=torch.float64)
    assert merge_ridge(nothing, nothing, torch.tensor([0]), 1)[1].shape == (0, 1)
