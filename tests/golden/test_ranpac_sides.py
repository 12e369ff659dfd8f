"""RanPAC keeps a factor of G for few images and G itself for many: scores must not tell which."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from stubs import clusters, predicted, scores, teach, untaught
from torch import Tensor

from perdure.errors import CheckpointError, ConfigError
from perdure.methods.ranpac import RanPAC, RanPACConfig
from perdure.modules import ridge as algebra
from perdure.modules import ridge_sums
from perdure.modules.ridge import merge_ridge, solve_ridge, unpack
from perdure.modules.ridge_choice import GRID

SIZES = [1, 1, 3, 6, 1, 8, 5, 10, 4, 9]  # images of a task; M / 2 is passed in the eighth
CHOICES: list[Any] = ["per_task", {"name": "fixed", "value": 0.5}, "cumulative"]


def ranpac(dim: int, *, seed: int = 0, **config: Any) -> Any:
    return untaught(RanPAC, dim, RanPACConfig(**config), seed=seed)


def tasks(dim: int = 6) -> list[tuple[Tensor, np.ndarray]]:
    """Images of five classes that come again and again."""
    features, labels = clusters(5, 12, dim, noise=8.0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))[: sum(SIZES)]
    return [(features[part], labels[part.numpy()]) for part in order.split(SIZES)]


def primal_always(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge_sums, "has_room", lambda n, m: False)


@pytest.mark.parametrize("head", ["linear", "cosine"])
@pytest.mark.parametrize("ridge", CHOICES, ids=["per_task", "fixed", "cumulative"])
@pytest.mark.parametrize(("dim", "m"), [(6, 60), (60, 0)])
def test_scores_are_those_of_the_whole_matrix(
    dim: int, m: int, ridge: Any, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def course() -> tuple[Any, list[Tensor], list[int]]:
        method, found, sides = ranpac(dim, projection_dim=m, ridge=ridge, head=head), [], []
        for task in tasks(dim):
            teach(method, task)
            h, w = method.lift(tasks(dim)[0][0]), method.weight
            found.append(F.normalize(h, dim=1) @ F.normalize(w, dim=0) if head == "cosine" else h @ w)
            sides.append(method.whole_)
        return method, found, sides

    ours, found, sides = course()
    assert sides == [0] * 7 + [1] * 3
    primal_always(monkeypatch)
    other, expected, sides = course()
    assert sides == [1] * 10
    assert ours.ridges_ == other.ridges_
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
    assert ours.n_val_ == other.n_val_
    for name in ("gram_", "sums_", "val_gram_", "val_sums_"):
        torch.testing.assert_close(getattr(ours, name), getattr(other, name))
    assert ours.learned_parameters() == 60 * 5


@pytest.mark.parametrize("m", [1, 2, 3, 7, 61])
def test_any_m_has_two_sides(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = [ranpac(6, projection_dim=m, ridge={"name": "fixed", "value": 0.5}) for _ in range(2)]
    for task in tasks():
        teach(ours[0], task)
        with monkeypatch.context() as patch:
            primal_always(patch)
            teach(ours[1], task)
        assert ours[0].whole_ == (2 * ours[0].kept.n >= m)
        torch.testing.assert_close(ours[0].weight, ours[1].weight, rtol=1e-8, atol=1e-8)


def test_a_cumulative_ridge_changes_over_before_anything_was_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(5, 12, 6, noise=8.0)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    course = [(features[part], labels[part.numpy()]) for part in order.split([1] * 31 + [9, 20])]
    ours, other = (ranpac(6, projection_dim=60, ridge="cumulative") for _ in range(2))
    teach(ours, *course[:31])
    assert (ours.whole_, ours.n_val_, len(ours.val_gram_)) == (1, 0, 60 * 60)
    teach(ours, *course[31:])
    primal_always(monkeypatch)
    teach(other, *course)
    assert ours.ridges_ == other.ridges_
    assert ours.n_val_ == other.n_val_ > 0
    torch.testing.assert_close(ours.weight, other.weight, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("ridge", CHOICES, ids=["per_task", "fixed", "cumulative"])
@pytest.mark.parametrize("upto", [6, 9])
def test_a_state_of_either_side_goes_on(ridge: Any, upto: int) -> None:
    config = {"projection_dim": 60, "ridge": ridge}
    straight, resumed = ranpac(6, **config, seed=3), ranpac(6, **config, seed=4)
    teach(straight, *tasks()[:upto])
    resumed.load_state_dict(straight.state_dict())
    assert torch.equal(scores(straight, tasks()[9][0]), scores(resumed, tasks()[9][0]))
    resumed = ranpac(6, **config, seed=3).load_state_dict(straight.state_dict())
    for method in (straight, resumed):
        teach(method, *tasks()[upto:])
    state = resumed.state_dict()
    for name, value in straight.state_dict().items():
        same = torch.equal(value, state[name]) if isinstance(value, Tensor) else value == state[name]
        assert same, name
    assert torch.equal(scores(straight, tasks()[9][0]), scores(resumed, tasks()[9][0]))


def test_a_state_costs_what_was_taught() -> None:
    method = teach(ranpac(6, projection_dim=1000), *tasks()[:5])
    state = method.state_dict()
    held = [value.numel() for name, value in state.items() if isinstance(value, Tensor) and name != "taught_"]
    assert sum(held) < 12 * (1000 + 5) + 20
    assert method.factor_.shape == (12, 1000)


def test_a_state_of_another_projection_is_refused() -> None:
    method = teach(ranpac(6, projection_dim=60, ridge="fixed"), *tasks()[:3])
    before, state = scores(method, tasks()[9][0]), method.state_dict()
    sums = torch.cat([state["projection_sums_"][:5], torch.tensor([1.5], dtype=torch.float64)])
    with pytest.raises(CheckpointError, match=r"sum of \|W_R\| in row 5 must be .*, but got 1\.5"):
        method.load_state_dict({**state, "projection_sums_": sums})
    with pytest.raises(CheckpointError, match=r"gram_ must be float64 of shape .*, but got 'float64 of shape \(0,\)'"):
        method.load_state_dict({**state, "whole_": 1})
    assert torch.equal(scores(method, tasks()[9][0]), before)


@pytest.mark.parametrize("upto", [6, 7])
def test_a_failed_task_leaves_either_side_as_it_was(upto: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = teach(ranpac(6, projection_dim=60, ridge="cumulative"), *tasks()[:upto])
    before, state = scores(method, tasks()[9][0]), method.state_dict()
    monkeypatch.setattr("perdure.methods.ranpac.add_class_counts", None)
    with pytest.raises(TypeError):
        teach(method, tasks()[upto])
    assert all(value is method.state_dict()[name] for name, value in state.items() if isinstance(value, Tensor))
    assert method.whole_ == 0
    assert torch.equal(scores(method, tasks()[9][0]), before)


@pytest.mark.parametrize("sizes", [(1, 2), (7, 9), (9, 10), (1, 10)])
def test_both_sides_merge_and_unlearn(sizes: tuple[int, int]) -> None:
    mine, theirs = (teach(ranpac(6, projection_dim=60, ridge="fixed"), *tasks()[:k]) for k in sizes)
    kept = [method.kept.statistics for method in (mine, theirs)]
    gram, sums = merge_ridge(*kept, torch.arange(len(theirs.classes_)), 5)  # in the order of arrival in both
    rows = torch.cat([mine.lift(f) for k in sizes for f, _ in tasks()[:k]])
    torch.testing.assert_close(unpack(gram, 60), rows.T @ rows)
    together = sum(F.pad(q, (0, 5 - q.shape[1])) for _, q in kept)
    torch.testing.assert_close(sums, together)
    gram, sums = merge_ridge((gram, sums), kept[1], torch.arange(len(theirs.classes_)), 5, subtract=True)
    torch.testing.assert_close(unpack(gram, 60), unpack(kept[0][0], 60))


@pytest.mark.parametrize("upto", [7, 8])
def test_a_fixed_ridge_that_is_numerically_zero_is_refused_on_either_side(upto: int) -> None:
    method = teach(ranpac(6, projection_dim=60, ridge={"name": "fixed", "value": 1e-16}), *tasks()[:upto])
    assert method.whole_ == upto - 7
    with pytest.raises(ConfigError, match=r"lambda must be .* 1e-16\. Raise it"):
        predicted(method, tasks()[0][0])


@pytest.mark.parametrize("upto", [7, 8])
def test_a_chosen_ridge_that_is_numerically_zero_is_raised_alike(upto: int, monkeypatch: pytest.MonkeyPatch) -> None:
    method = teach(ranpac(6, projection_dim=60), *[(3e3 * f, labels) for f, labels in tasks()[:upto]])
    method.ridges_ = [*method.ridges_[:-1], 1e-8]
    trace, tried = float(unpack(method.kept.statistics[0], 60).trace()), []
    monkeypatch.setattr(algebra, "solve_ridge", lambda *a: tried.append(a[2]) or solve_ridge(*a))
    assert torch.isfinite(method.weight).all()
    assert tried == [min(r for r in GRID if r > trace * torch.finfo(torch.float64).eps / 8)]
    assert tried[0] > 1e-7
