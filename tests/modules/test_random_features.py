from __future__ import annotations

import numpy as np
import pytest
import torch

from perdure.errors import CheckpointError
from perdure.modules import random_features
from perdure.modules.random_features import RandomFeatures
from perdure.modules.ridge import no_statistics, unpack

CPU = torch.device("cpu")


@pytest.fixture
def f() -> torch.Tensor:
    return torch.randn(17, 3, generator=torch.Generator().manual_seed(0))


def lift(columns: int) -> RandomFeatures:
    return RandomFeatures(torch.randn(3, columns, generator=torch.Generator().manual_seed(1)), CPU)


def test_features_are_lifted_in_float64(f: torch.Tensor) -> None:
    random = lift(8)
    assert random.m == 8
    assert torch.equal(random(f), torch.relu(f.double() @ random.projection.double()))
    assert lift(0).m == 3
    assert torch.equal(lift(0)(f), f.double())


@pytest.mark.parametrize("width", [1, 3, 512])
@pytest.mark.parametrize("columns", [0, 8])
def test_blocks_are_the_columns(f: torch.Tensor, columns: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_features, "ROWS", width)
    blocks = list(lift(columns).blocks(f))
    assert len(blocks) == -(-(columns or 3) // width)
    torch.testing.assert_close(torch.cat(blocks, dim=1), lift(columns)(f))


@pytest.mark.parametrize("rows", [1, 5, 512])
def test_statistics_grow_in_new_tensors(f: torch.Tensor, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_features, "ROWS", rows)
    random, labels, order = lift(8), torch.arange(17) % 4, torch.randperm(17)
    labels[labels == 3] = 0
    first = random.added(no_statistics(8), f, labels, order[:9], 3)
    before = [t.clone() for t in first]
    gram, sums = random.added(first, f, labels, order[9:], 4)
    h = random(f)
    torch.testing.assert_close(unpack(gram, 8), h.T @ h)
    torch.testing.assert_close(sums, h.T @ torch.nn.functional.one_hot(labels, 4).double())
    assert all(map(torch.equal, before, first))


@pytest.mark.parametrize("rows", [1, 5, 512])
def test_a_factor_grows_by_some_rows(f: torch.Tensor, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random_features, "ROWS", rows)
    random, labels, order = lift(60), torch.arange(17) % 4, torch.randperm(17)
    labels[labels == 3] = 0
    known = torch.zeros(0, 60).double(), torch.zeros(0, 0).double()
    for which, width in ((order[:9], 3), (order[9:16], 4), (order[:0], 5)):
        known = random.appended(known, f, labels, which, width)
    h, y = random(f[order[:16]]), torch.nn.functional.one_hot(labels[order[:16]], 5).double()
    assert known[0].shape == (16, 60)
    torch.testing.assert_close(known[0].T @ known[0], h.T @ h)
    torch.testing.assert_close(known[0].T @ known[1], h.T @ y)


def test_random_features_are_drawn_again() -> None:
    drawn = RandomFeatures.drawn(3, 5, 40, CPU)
    assert torch.equal(drawn.projection, torch.randn(5, 40, generator=torch.Generator().manual_seed(3)))
    torch.testing.assert_close(drawn.totals, drawn.projection.double().abs().sum(1))
    assert RandomFeatures.drawn(3, 5, 40, torch.device("meta")).device == CPU  # as on MPS, which has no float64
    drawn.require_totals(drawn.totals * (1 + 1e-7))
    for change in (1 + 1e-5, 1 - 1e-5, float("nan")):
        other = drawn.totals.clone()
        other[2] *= change
        with pytest.raises(CheckpointError, match=rf"in row 2 must be .* but got {float(other[2])}.*PyTorch"):
            drawn.require_totals(other)
    RandomFeatures.drawn(3, 5, 0, CPU).require_totals(torch.zeros(5).double())


def test_random_features_of_another_seed_are_told_by_every_row() -> None:
    one, other = (RandomFeatures.drawn(seed, 20, 10_000, CPU) for seed in (0, 1))
    assert ((one.totals / other.totals - 1).abs() > 1e-6).all()
    with pytest.raises(CheckpointError, match="in row "):
        one.require_totals(other.totals)


@pytest.mark.parametrize(("d", "columns"), [(4, 4), (5, 40), (7, 13)])
def test_the_stream_of_numbers_is_known(d: int, columns: int) -> None:
    """Should a PyTorch draw others for a seed, this is how W_R is still to be had: by MT19937 and Box and Muller."""
    stream = np.random.MT19937()
    stream._legacy_seeding(3)

    def normal(n: int) -> np.ndarray:
        u = (stream.random_raw(n) % 2**24 / 2**24).reshape(-1, 2, 8)
        radius, angle = np.sqrt(-2 * np.log(1 - u[:, 0])), 2 * np.pi * u[:, 1]
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).ravel()

    n, over = d * columns, d * columns % 16
    expected = normal(n - over)
    stream.random_raw(over)
    if over:  # the last sixteen are drawn once more
        expected = np.concatenate([expected[: n - 16], normal(16)])
    drawn = RandomFeatures.drawn(3, d, columns, CPU).projection
    np.testing.assert_allclose(drawn.ravel().numpy(), expected, atol=1e-5)
