"""The numbered golden tests of RanPAC's specification, section 12, and the extensions of perdure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge, RidgeClassifier
from stubs import clusters, cut, known, predicted, scores, teach, untaught
from torch import Tensor

from perdure import Task
from perdure.errors import ConfigError
from perdure.learned import Derived
from perdure.methods.ranpac import RanPAC, RanPACConfig
from perdure.modules import random_features, ridge_choice
from perdure.modules import ridge as algebra
from perdure.modules.ridge import add_gram_, packed_gram, solve_ridge, unpack
from perdure.modules.ridge_choice import (
    GRID,
    best_ridge,
    summed_kernels,
    validation_losses_dual,
    validation_losses_primal,
)


def ranpac(dim: int, *, seed: int = 0, **config: Any) -> Any:
    return untaught(RanPAC, dim, RanPACConfig(**config), seed=seed)


def fixed(value: float) -> dict[str, Any]:
    return {"name": "fixed", "value": value}


def one_hot(labels: np.ndarray, classes: int) -> Tensor:
    return F.one_hot(torch.from_numpy(labels), classes).double()


def split(method: Any, task: int, n: int) -> tuple[Tensor, Tensor]:
    """The method's random 80:20 split of a task's rows."""
    rows = torch.randperm(n, generator=method._generator(task))
    return rows[: int(0.8 * n)], rows[int(0.8 * n) :]


def losses_by_hand(h_fit: Tensor, y_fit: Tensor, h_val: Tensor, y_val: Tensor) -> np.ndarray:
    """Held-out squared error for every lambda of the grid, float64 normal equations."""
    eye = np.eye(h_fit.shape[1])
    gram, sums = (h_fit.T @ h_fit).numpy(), (h_fit.T @ y_fit).numpy()
    weights = [np.linalg.solve(gram + ridge * eye, sums) for ridge in GRID]
    return np.array([np.mean((h_val.numpy() @ w - y_val.numpy()) ** 2) for w in weights])


def test_01_equals_scikit_learn_ridge() -> None:
    features, labels = clusters(3, 14, 6, noise=2.0)
    features, labels = features[:40], labels[:40]
    method = teach(ranpac(6, projection_dim=12, ridge=fixed(0.7)), (features, labels))
    h = method.lift(features)
    assert torch.equal(h, torch.relu(features @ method.lift.projection.double()))
    assert h.shape == (40, 12)
    reference = Ridge(alpha=0.7, fit_intercept=False).fit(h, one_hot(labels, 3))
    np.testing.assert_allclose(method.weight.T, reference.coef_, atol=1e-8, rtol=0)


def test_02_argmax_equals_scikit_learn_ridge_classifier() -> None:
    features, labels = clusters(3, 14, 6, noise=2.0)
    method = teach(ranpac(6, projection_dim=12, ridge=fixed(0.7)), (features, labels))
    reference = RidgeClassifier(alpha=0.7, fit_intercept=False).fit(method.lift(features), labels)
    assert predicted(method, features) == reference.predict(method.lift(features)).tolist() != labels.tolist()


@pytest.mark.parametrize("ridge", [1e-2, 1, 1e2])
def test_03_dual_primal_and_eigen_paths_agree(ridge: float) -> None:
    features, labels = clusters(3, 10, 6, noise=2.0)
    method, y = ranpac(6, projection_dim=50), one_hot(labels, 3)
    fit, val = split(method, 0, 30)
    h_fit, h_val = method.lift(features[fit]), method.lift(features[val])
    kernel, cross = summed_kernels(zip(h_fit.split(7, dim=1), h_val.split(7, dim=1), strict=True))
    torch.testing.assert_close(kernel, h_fit @ h_fit.T, atol=1e-9, rtol=0)
    torch.testing.assert_close(cross, h_val @ h_fit.T, atol=1e-9, rtol=0)

    primal = h_val @ solve_ridge(h_fit.T @ h_fit, h_fit.T @ y[fit], ridge)
    eigenvalues, vectors = torch.linalg.eigh(kernel)
    eigen = (cross @ vectors / (eigenvalues + ridge)) @ (vectors.T @ y[fit])
    dual = cross @ solve_ridge(kernel.clone(), y[fit], ridge)
    torch.testing.assert_close(dual, primal, atol=1e-9, rtol=0)
    torch.testing.assert_close(eigen, primal, atol=1e-9, rtol=0)

    loss = float((primal - y[val]).square().mean())
    of_dual = validation_losses_dual(kernel, cross, y[fit], y[val], [ridge])
    statistics = h_fit.T @ h_fit, h_fit.T @ y[fit], h_val.T @ h_val, h_val.T @ y[val]
    assert [*of_dual, *validation_losses_primal(*statistics, len(val), [ridge])] == pytest.approx([loss] * 2, abs=1e-9)


@pytest.mark.parametrize("groups", [[[3, 0, 4, 2, 1]], [[4, 1], [0, 3, 2]], [[2], [4], [0], [3], [1]]])
def test_04_split_invariance_for_a_fixed_ridge(groups: list[list[int]]) -> None:
    features, labels = clusters(5, 8, 6, noise=2.0)
    config = {"projection_dim": 20, "ridge": fixed(3.0)}
    pooled = teach(ranpac(6, **config), (features, labels))
    method = teach(ranpac(6, **config), *cut(features, labels, groups))
    close = {"atol": 1e-10, "rtol": 1e-10}
    torch.testing.assert_close(unpack(method.gram_, 20), unpack(pooled.gram_, 20), **close)
    torch.testing.assert_close(method.sums_, pooled.sums_[:, method.classes_], **close)
    torch.testing.assert_close(method.weight, pooled.weight[:, method.classes_], **close)
    assert predicted(method, features) == predicted(pooled, features) != labels.tolist()


def test_04_the_published_ridge_depends_on_the_split() -> None:
    features, labels = clusters(5, 20, 6, noise=2.0)
    pooled = teach(ranpac(6, projection_dim=20), (features, labels))
    method = teach(ranpac(6, projection_dim=20), *cut(features, labels, [[2], [4], [0], [3], [1]]))
    assert len(pooled.ridges_) == 1
    assert len(method.ridges_) == 5
    assert method.ridges_[-1] != pooled.ridges_[-1]


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_05_chunk_size_does_not_matter(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(4, 10, 6, noise=2.0)
    monkeypatch.setattr(random_features, "ROWS", rows)
    method = teach(ranpac(6, projection_dim=20), (features, labels))
    h = torch.relu(features @ method.lift.projection.double())
    torch.testing.assert_close(unpack(method.gram_, 20), h.T @ h, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(method.sums_, h.T @ one_hot(labels, 4), atol=1e-10, rtol=1e-10)
    losses = losses_by_hand(*(part for s in split(method, 0, 40) for part in (h[s], one_hot(labels, 4)[s])))
    assert method.ridges_ == [GRID[losses.argmin()]]


@pytest.mark.parametrize(("m", "block"), [(23, 5), (20, 5), (530, 512)])
def test_05_triangle_equals_full(m: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algebra, "BLOCK", block)
    h = torch.randn(9, m, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    packed = packed_gram(m)
    assert m * (m + 1) // 2 <= len(packed) < m * m
    for chunk in h.split(4):
        add_gram_(packed, chunk)
    full = unpack(packed, m)
    torch.testing.assert_close(full, h.T @ h, atol=1e-10, rtol=0)


def test_06_without_projection_by_hand() -> None:
    method = teach(ranpac(2, projection_dim=0, ridge=fixed(1.0)), ([[1, 0], [0, 2]], [0, 1]))
    torch.testing.assert_close(method.weight, torch.tensor([[1 / 2, 0], [0, 2 / 5]], dtype=torch.float64))
    torch.testing.assert_close(scores(method, [[4, -5]]), torch.tensor([[2.0, -2.0]]))


def test_07_a_huge_ridge_matches_class_sums() -> None:
    features, labels = clusters(3, 12, 6, noise=2.0)
    uneven = torch.cat([features[:20], features[24:26]]), np.concatenate([labels[:20], labels[24:26]])
    config = {"projection_dim": 20, "ridge": fixed(1e14)}
    method = teach(ranpac(6, **config), uneven)
    torch.testing.assert_close(1e14 * method.weight, method.sums_, rtol=1e-9, atol=1e-8)
    by_sums = (method.lift(features) @ method.sums_).argmax(1).tolist()
    by_means = (method.lift(features) @ (method.sums_ / method.counts_)).argmax(1).tolist()
    assert predicted(method, features) == by_sums != by_means

    balanced = teach(ranpac(6, **config), (features, labels))
    by_means = (balanced.lift(features) @ (balanced.sums_ / balanced.counts_)).argmax(1).tolist()
    assert predicted(balanced, features) == by_means


def test_08_the_difference_of_two_columns_is_the_lda_direction() -> None:
    features, labels = clusters(2, 30, 5, noise=2.0)
    features = features - features.mean(0)
    method = teach(ranpac(5, projection_dim=0, ridge=fixed(1e-9)), (features, labels))
    means = torch.stack([features[:30].mean(0), features[30:].mean(0)])
    within = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in (features[:30], features[30:]))
    lda = torch.linalg.solve(within, means[1] - means[0])
    assert F.cosine_similarity(method.weight[:, 1] - method.weight[:, 0], lda, dim=0) > 1 - 1e-8


def test_09_the_head_is_linear_unless_asked_otherwise() -> None:
    features, labels = clusters(3, 12, 6, noise=2.0)
    by_head = {}
    for head in ("linear", "cosine"):
        method = teach(ranpac(6, projection_dim=20, head=head), (features, labels))
        before = predicted(method, features)
        scaled = method.weight * torch.tensor([1.0, 10.0, 1.0])
        method._solved = Derived()
        method._solved.of(method.sums_, lambda scaled=scaled: scaled)
        by_head[head] = (before, predicted(method, features))
    assert by_head["linear"][0] != by_head["linear"][1]
    assert by_head["cosine"][0] == by_head["cosine"][1]
    assert RanPACConfig().head == "linear"


def test_09_preset_pilot_is_the_cosine_head() -> None:
    features, labels = clusters(3, 12, 6, noise=2.0)
    pilot, cosine, paper = (
        teach(ranpac(6, projection_dim=20, **config), (features, labels))
        for config in ({"preset": "pilot", "adapt": "none"}, {"head": "cosine"}, {"preset": "paper", "adapt": "none"})
    )
    assert torch.equal(scores(pilot, features), scores(cosine, features))
    by_hand = F.normalize(pilot.lift(features), dim=1) @ F.normalize(pilot.weight, dim=0)
    torch.testing.assert_close(scores(pilot, features), by_hand.float())
    torch.testing.assert_close(scores(paper, features), (paper.lift(features) @ paper.weight).float())


def test_10_nan_is_never_chosen_and_ties_go_to_the_smaller_ridge() -> None:
    nan, inf = float("nan"), float("inf")
    assert best_ridge([1.0, 10.0, 100.0, 1e3], [nan, inf, 0.5, 0.7]) == 100.0
    assert best_ridge([1.0, 10.0, 100.0], [0.7, 0.5, 0.5]) == 10.0
    with pytest.raises(ConfigError, match=r"lambda.*nan, inf"):
        best_ridge([1.0, 10.0], [nan, inf])


def test_11_only_the_present_task_chooses_the_ridge() -> None:
    features, labels = clusters(6, 20, 6, noise=2.0)
    old, new = cut(features, labels, [[0, 1, 2], [3, 4, 5]])
    clean = teach(ranpac(6, projection_dim=20), old, new)
    corrupted = teach(ranpac(6, projection_dim=20), (1e3 * torch.flip(old[0], [0]), old[1]), new)
    assert corrupted.ridges_[0] != clean.ridges_[0]
    assert corrupted.ridges_[1] == clean.ridges_[1]


@pytest.mark.parametrize("m", [20, 200])
def test_12_rows_sorted_by_class_are_shuffled_first(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(5, 20, 6, noise=2.0)
    chosen = teach(ranpac(6, projection_dim=m), (features, labels)).ridges_
    order = torch.randperm(100, generator=ranpac(6, projection_dim=m)._generator(0))
    monkeypatch.setattr(torch, "randperm", lambda n, generator: torch.arange(n))
    assert teach(ranpac(6, projection_dim=m), (features[order], labels[order.numpy()])).ridges_ == chosen
    assert teach(ranpac(6, projection_dim=m), (features, labels)).ridges_ != chosen  # a whole class held out


@pytest.mark.parametrize("ridge", ["per_task", "fixed", "cumulative"])
def test_13_resumed_is_straight(ridge: str) -> None:
    features, labels = clusters(5, 8, 6, noise=2.0)
    first, *rest = cut(features, labels, [[4, 1], [0, 3], [2]])
    config = {"projection_dim": 20, "ridge": ridge, "seed": 3}
    straight = teach(ranpac(6, **config), first, *rest)
    resumed = ranpac(6, **config).load_state_dict(teach(ranpac(6, **config), first).state_dict())
    teach(resumed, *rest)
    assert (
        straight.state_dict().keys() == resumed.state_dict().keys() >= {"projection_seed_", "gram_", "sums_", "ridges_"}
    )
    for key, value in straight.state_dict().items():
        other = resumed.state_dict()[key]
        assert torch.equal(value, other) if isinstance(value, Tensor) else value == other, key
    assert torch.equal(scores(resumed, features), scores(straight, features))
    assert torch.equal(ranpac(6, **config).lift.projection, straight.lift.projection)
    assert not torch.equal(ranpac(6, projection_dim=20, seed=4).lift.projection, straight.lift.projection)


def test_13_a_loaded_state_replaces_what_was_solved() -> None:
    features, labels = clusters(4, 8, 6)
    method = teach(ranpac(6, projection_dim=20, ridge="fixed"), *cut(features, labels, [[0, 1]]))
    other = teach(ranpac(6, projection_dim=20, ridge="fixed"), *cut(features, labels, [[2, 3]]))
    assert predicted(method, features[:1]) == [0]
    assert torch.equal(scores(method.load_state_dict(other.state_dict()), features), scores(other, features))


def test_14_two_domains_equal_their_pooled_data() -> None:
    features, labels = clusters(3, 12, 6, noise=2.0)
    even = np.arange(36) % 2 == 0
    config = {"projection_dim": 20, "ridge": fixed(3.0)}
    pooled = teach(ranpac(6, **config), (features, labels))
    method = teach(ranpac(6, **config), (features[even], labels[even]), (features[~even], labels[~even]))
    assert method.classes_ == [0, 1, 2]
    assert method.counts_.tolist() == [12, 12, 12]
    torch.testing.assert_close(method.sums_, pooled.sums_, atol=1e-10, rtol=1e-10)
    assert predicted(method, features) == predicted(pooled, features) != labels.tolist()


@pytest.mark.parametrize("m", [12, 20])
def test_enough_rows_choose_in_the_primal(m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(4, 25, 6, noise=2.0)
    monkeypatch.setattr(ridge_choice, "validation_losses_dual", None)  # must not be used
    method = teach(ranpac(6, projection_dim=m), (features, labels))
    h, y = method.lift(features), one_hot(labels, 4)
    fit, val = split(method, 0, 100)
    best = losses_by_hand(h[fit], y[fit], h[val], y[val]).argmin()
    assert 0 < best < len(GRID) - 1
    assert method.ridges_ == [GRID[best]]


def test_few_rows_choose_in_the_dual(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(4, 10, 6, noise=2.0)
    monkeypatch.setattr(ridge_choice, "validation_losses_primal", None)  # must not be used
    method = teach(ranpac(6, projection_dim=200), (features, labels))
    h, y = method.lift(features), one_hot(labels, 4)
    fit, val = split(method, 0, 40)
    kernel, cross = h[fit] @ h[fit].T, h[val] @ h[fit].T
    losses = [float((cross @ solve_ridge(kernel.clone(), y[fit], r) - y[val]).square().mean()) for r in GRID]
    assert 0 < np.argmin(losses) < len(GRID) - 1
    assert method.ridges_ == [GRID[np.argmin(losses)]]


def test_the_cumulative_ridge_is_chosen_on_held_out_rows_of_all_tasks() -> None:
    features, labels = clusters(4, 30, 6, noise=2.0)
    tasks = cut(features, labels, [[0, 1], [2, 3], [0, 3]])  # the last brings known classes again
    method = teach(ranpac(6, projection_dim=12, ridge="cumulative"), *tasks)
    h_fit, y_fit, h_val, y_val, chosen = [], [], [], [], []
    for index, (rows, its_labels) in enumerate(tasks):
        fit, val = split(method, index, 60)
        h, y = method.lift(rows), one_hot(its_labels, 4)
        for part, kept in ((h[fit], h_fit), (y[fit], y_fit), (h[val], h_val), (y[val], y_val)):
            kept.append(part)
        losses = losses_by_hand(torch.cat(h_fit), torch.cat(y_fit), torch.cat(h_val), torch.cat(y_val))
        chosen.append(GRID[losses.argmin()])
    assert method.ridges_ == chosen
    assert method.n_val_ == 36
    torch.testing.assert_close(unpack(method.val_gram_, 12), torch.cat(h_val).T @ torch.cat(h_val))
    everything = torch.cat([method.lift(rows) for rows, _ in tasks])  # held-out rows are used for W_o all the same
    torch.testing.assert_close(unpack(method.gram_, 12), everything.T @ everything)


@pytest.mark.parametrize(
    "ridge", [fixed(0.5), {"name": "per_task", "first": 0.5}, {"name": "cumulative", "first": 0.5}]
)
def test_tasks_of_one_image(ridge: dict[str, Any]) -> None:
    tasks = [([[1.0, 0.0]], [5]), ([[0.0, 1.0]], [2])]
    method = teach(ranpac(2, projection_dim=16, ridge=ridge), *tasks)
    assert method.ridges_ == [0.5, 0.5]
    assert predicted(method, [[1, 0], [0, 1]]) == [5, 2]


def test_one_image_keeps_the_last_choice() -> None:
    features, labels = clusters(3, 20, 6, noise=2.0)
    method = teach(ranpac(6, projection_dim=20), (features, labels), (features[:1], labels[:1]))
    assert method.ridges_[1] == method.ridges_[0] != method.config.ridge.first


def test_a_few_images_of_one_new_class_leave_the_method_able_to_predict() -> None:
    features, labels = clusters(11, 30, 32, noise=1.0)
    known_classes, new = cut(30 * features, labels, [list(range(10)), [10]])
    method = teach(ranpac(32, projection_dim=512), known_classes)
    before = np.mean(np.equal(predicted(method, known_classes[0]), known_classes[1]))
    teach(method, (new[0][:5], new[1][:5]))
    after = np.mean(np.equal(predicted(method, known_classes[0]), known_classes[1]))
    assert before > 0.9
    assert after > before - 0.1


def test_a_chosen_ridge_too_small_for_the_gram_matrix_is_raised() -> None:
    features, labels = clusters(10, 3, 32, noise=0.1)  # nearly noiseless: the smallest lambdas fit best
    method = teach(ranpac(32, projection_dim=500), (300 * features, labels))
    assert predicted(method, 300 * features) == labels.tolist()


def test_an_unsolvable_ridge_is_refused_with_its_value() -> None:
    config = {"projection_dim": 0, "ridge": fixed(1e-30)}
    method = teach(ranpac(2, **config), ([[1e3, 1e3]], [0]))
    with pytest.raises(ConfigError, match=r"lambda must be .* 1e-30\. Raise it"):
        method.predict(known([[1.0, 0.0]]))


def test_the_head_counts_as_learned_and_is_solved_once_per_task(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clusters(3, 8, 6)
    method = teach(ranpac(6, projection_dim=20, ridge="fixed"), (features, labels))
    calls = []
    monkeypatch.setattr(algebra, "solve_ridge", lambda *a: calls.append(1) or solve_ridge(*a))
    predicted(method, features), predicted(method, features)
    assert len(calls) == 1
    assert method.learned_parameters() == 60
    method.fit_task(Task(1, known(features, labels), (0, 1, 2)))
    predicted(method, features)
    assert len(calls) == 2
