from __future__ import annotations

import pytest
import torch

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
    assert len(blocks) == (-(-columns // width) or 1)
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
