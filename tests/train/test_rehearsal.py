from __future__ import annotations

from typing import Any

import pytest
import torch

from perdure.modules.gaussians import Gaussians
from perdure.modules.normal import Normal
from perdure.train.rehearsal import Old, RehearsedRows, add_by_class, near_names, visits
from perdure.train.settings import Training


def old(n: int, **changes: Any) -> Old:
    """Gaussians that lie at 10, 20, … and hardly vary, of classes 0, 1, …"""
    normals = [Normal(torch.full((2,), 10.0 * (i + 1)).double(), 1e-3 * torch.eye(2).double()) for i in range(n)]
    told = {"per_step": None, "samples": 7, "per_epoch": 40, "apart": torch.arange(0), "per_pair": 0, **changes}
    return Old(normals, torch.arange(n), **told)


def source(n: int, before: Old, batch_size: int = 4, **train: Any) -> RehearsedRows:
    """``n`` images at 0, 0, … of class 100."""
    config = Training(lr=1.0, epochs=1, batch_size=batch_size, **train)
    return RehearsedRows(torch.zeros(n, 2), torch.full((n,), 100), config, before)


def test_without_old_classes_there_are_images_alone() -> None:
    rng = torch.Generator().manual_seed(0)
    made = source(6, old(0))
    plans = made.plan(rng)
    assert sorted(torch.cat(plans).tolist()) == list(range(6))
    batch = made.batch(plans[0], rng)
    assert (batch.rows.shape, batch.columns.tolist(), batch.apart.shape) == ((4, 2), [100] * 4, (0, 0, 2))


def test_an_epoch_visits_every_old_class() -> None:
    """Five classes in two steps: three each, so that one comes twice; 40 samples are six or seven of each visited."""
    rng = torch.Generator().manual_seed(0)
    made = source(6, old(5))
    assert made.old.schedule(2) == (3, 7)
    batches = [made.batch(plan, rng) for plan in made.plan(rng)]
    assert [len(b.rows) for b in batches] == [4 + 21, 2 + 21]
    columns = torch.cat([b.columns for b in batches])
    counts = torch.bincount(columns)
    assert counts[:5].sort().values.tolist() == [7, 7, 7, 7, 14]
    assert int(counts[100]) == 6
    rows = torch.cat([b.rows for b in batches])
    wanted = torch.where(columns == 100, 0, 10 * (columns + 1))[:, None].expand(-1, 2).float()
    torch.testing.assert_close(rows, wanted, atol=0.01, rtol=0)


def test_how_many_are_visited_can_be_told() -> None:
    assert old(5, per_step=2).schedule(9) == (2, 7)
    assert old(100, per_epoch=2000).schedule(50) == (2, 20)
    assert old(10, per_epoch=1).schedule(3) == (4, 1)


def test_a_list_is_read_over_and_over_from_its_start() -> None:
    found = visits(7, 2, 4, torch.Generator().manual_seed(1))
    assert sorted(found.flatten()[:7].tolist()) == list(range(7))
    assert found.flatten()[7] == found[0, 0]
    assert not torch.equal(found, visits(7, 2, 4, torch.Generator().manual_seed(2)))
    assert visits(2, 5, 1, torch.Generator()).flatten().bincount().tolist() == [3, 2]


def test_every_pair_has_samples_of_its_own() -> None:
    rng = torch.Generator().manual_seed(0)
    made = source(3, old(3, per_step=1, samples=2, apart=torch.tensor([2, 0, 2]), per_pair=5))
    (plan,) = made.plan(rng)
    batch = made.batch(plan, rng)
    assert batch.apart.shape == (3, 5, 2)
    torch.testing.assert_close(batch.apart.mean((1, 2)), torch.tensor([30.0, 10, 30]), atol=0.01, rtol=0)
    assert not torch.equal(batch.apart[0], batch.apart[2])
    assert not torch.equal(batch.apart, made.batch(plan, rng).apart), "fresh in every step"


def test_a_part_of_a_step_has_its_own_images_and_samples() -> None:
    rng = torch.Generator().manual_seed(0)
    made = source(3, old(2, per_step=2, samples=2))
    (plan,) = made.plan(rng)
    parts = [made.batch(part, rng).columns for part in plan.tensor_split(2)]
    assert parts[0].tolist()[:3] == [100] * 3
    assert sorted(torch.cat(parts)[3:].tolist()) == [0, 0, 1, 1]


@pytest.mark.parametrize(("degrees", "theta", "pairs"), [(30, 0.55, 1), (40, 0.65, 0), (40, 0.69, 1), (0, 0.65, 0)])
def test_names_that_are_near(degrees: int, theta: float, pairs: int) -> None:
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    texts = torch.stack([torch.tensor([-1.0, 0]), torch.tensor([1.0, 0]), torch.stack([angle.cos(), angle.sin()])])
    slots, new = near_names(texts, [0, 1], torch.tensor([2]), theta)
    assert (slots.tolist(), new.tolist()) == ([1] * pairs, [2] * pairs)


def test_a_distance_that_is_theta_is_too_large() -> None:
    texts = torch.tensor([[1.0, 0], [0, 1.0]])
    assert len(near_names(texts, [0], torch.tensor([1]), 2**0.5)[0]) == 0
    assert len(near_names(texts, [0], torch.tensor([1]), 2**0.5 + 1e-12)[0]) == 1


def test_a_class_that_comes_again_gets_one_more_gaussian() -> None:
    g = Gaussians(1)
    of = add_by_class(g, [], torch.tensor([[0.0], [2], [7], [9]]), torch.tensor([1, 1, 0, 0]))
    assert (of, g.means.flatten().tolist()) == ([0, 1], [8, 1])
    of = add_by_class(g, of, torch.tensor([[20.0], [22]]), torch.tensor([1, 1]))
    assert (of, g.means.flatten().tolist()) == ([0, 1, 1], [8, 1, 21])
    joined = add_by_class(g, of, torch.tensor([[24.0], [5]]), torch.tensor([1, 2]))
    assert (joined, g.means.flatten().tolist()) == ([0, 1, 1, 2], [8, 1, 22, 5])
    assert of == [0, 1, 1]
    assert (g.counts.tolist(), float(g.covariance(2))) == ([2, 2, 3, 1], pytest.approx(4))
