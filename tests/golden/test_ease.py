"""The golden tests of EASE's specification, section 12, and its pitfalls."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure import Backbone, FeatureStore, Stream
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError
from perdure.methods.aper import APER, APERConfig
from perdure.methods.ease import EASE, EASEConfig
from perdure.modules.heads import cosine_scores
from perdure.modules.prototypes import completed
from perdure.train.session import Session

IDS = [4, 2, 7, 0, 5, 9]
TRAIN: dict[str, Any] = {"epochs": 1, "batch_size": 8, "augment": {"min_scale": 1.0, "flip": False}}
QUICK: dict[str, Any] = {"rank": 2, "train": TRAIN}


def ease(backbone: Backbone, store: FeatureStore, **config: Any) -> EASE:
    return EASE(backbone, EASEConfig(adapter=QUICK, **config), store=store)


def stream(sizes: tuple[int, ...] = (2, 2, 2)) -> Stream:
    ids = IDS[: sum(sizes)]
    return class_incremental(synthetic_dataset(ids, train_per_class=4, test_per_class=2), sizes, ids)


def values(part: nn.Module) -> list[Tensor]:
    return [t.clone() for t in part.state_dict().values()]


def alike(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def by_hand(sums: list[list[list[float]]], tasks: list[int], **config: Any) -> EASE:
    """A method whose prototypes are given: sums[k][slot]; one class per slot."""
    method = EASE(Backbone.load("test_vit", pretrained=False, device="cpu"), EASEConfig(**config))
    method.sums_ = [torch.tensor(s, dtype=torch.float64) for s in sums]
    method.slot_tasks_, method.slot_columns_ = tasks, list(range(len(tasks)))
    method.counts_, method.classes_ = torch.ones(len(tasks), dtype=torch.long), list(range(len(tasks)))
    return method


def naive(means: Tensor, tasks: list[int]) -> Tensor:
    filled = means.clone()
    for c, b in enumerate(tasks):
        for k in range(b + 1, len(means)):
            newer = [j for j, t in enumerate(tasks) if t >= k]
            similar = [float(F.cosine_similarity(means[b, c], means[b, j], dim=0)) for j in newer]
            total = sum(math.exp(s) for s in similar)
            filled[k, c] = sum((math.exp(s) / total * means[k, j] for s, j in zip(similar, newer, strict=True)))
    return filled


def test_01_one_task_is_simplecil_on_its_adapters_features(backbone: Backbone, store: FeatureStore) -> None:
    tasks = stream((3,))
    for alpha in (0.0, 0.1, 5.0):
        method = ease(backbone, store, alpha=alpha).fit_task(tasks[0])
        [view] = method.adapters_.views
        features = torch.cat([view.features(x) for _, x in tasks[0].train.batches(backbone.preprocess, 12)])
        columns = method.columns(tasks[0].train.labels)
        means = torch.stack([features[columns == c].double().mean(0) for c in range(3)])
        x = torch.cat([view.features(x) for _, x in tasks.test(0).batches(backbone.preprocess, 6)])
        found = torch.cat(list(method.scores_of(tasks.test(0))))
        torch.testing.assert_close(found, cosine_scores(x, means), atol=1e-5, rtol=0)


def test_02_one_new_class_is_the_completion() -> None:
    means = torch.tensor([[[1.0, 0], [0, 1]], [[9, 9], [0, 1]]], dtype=torch.float64)
    assert completed(means, [0, 1])[1].tolist() == [[0, 1], [0, 1]]


def test_03_two_new_classes_are_weighted_by_softmax_over_them() -> None:
    subspace_0 = [[1.0, 0], [1, 0], [0, 1]]  # the old class, and two new ones at cosine 1 and 0
    subspace_1 = [[0.0, 0], [1, 0], [0, 1]]
    found = completed(torch.tensor([subspace_0, subspace_1], dtype=torch.float64), [0, 1, 1])[1, 0]
    assert found.tolist() == pytest.approx([0.7311, 0.2689], abs=1e-4)
    colder = completed(torch.tensor([subspace_0, subspace_1], dtype=torch.float64), [0, 1, 1], 0.1)[1, 0]
    assert float(colder[0]) > 0.99


@pytest.mark.parametrize(("reweight", "expected"), [("code", 1.05), ("paper", 1.1)])
def test_04_own_subspace_counts_most(reweight: str, expected: float) -> None:
    half = math.sqrt(0.75)
    method = by_hand([[[1.0, 0]] * 3] * 3, [0, 1, 2], alpha=0.1, reweight=reweight)
    features = torch.tensor([[[1.0, 0]], [[0.5, half]], [[0.5, half]]])  # cosines 1, .5, .5 to every prototype
    assert float(method._ensemble(features)[0, 0]) == pytest.approx(expected, abs=1e-6)


def test_05_real_prototypes_stay_and_the_rest_is_made(backbone: Backbone, store: FeatureStore) -> None:
    tasks, method = stream(), ease(backbone, store)
    method.fit_task(tasks[0])
    for task in tasks[1:]:
        before = method.prototypes.clone()
        method.fit_task(task)
        after = method.prototypes
        for slot, b in enumerate(method.slot_tasks_):
            for k in range(len(method.adapters_.views)):
                real = method.sums_[k][slot] / method.counts_[slot]
                assert torch.equal(after[k, slot], real) == (k <= b)
        old = before.shape[1]
        for slot in range(old):
            b = method.slot_tasks_[slot]
            assert torch.equal(after[: b + 1, slot], before[: b + 1, slot])


@pytest.mark.parametrize("tasks", [[0, 1], [0, 0, 1, 2, 2, 2], [0, 1, 1, 1, 2, 3, 3]])
def test_06_and_08_vectorised_is_naive_after_every_task_of_unequal_sizes(tasks: list[int]) -> None:
    rng = torch.Generator().manual_seed(0)
    means = torch.randn(tasks[-1] + 1, len(tasks), 5, generator=rng, dtype=torch.float64)
    torch.testing.assert_close(completed(means, tasks), naive(means, tasks), atol=1e-10, rtol=0)


def test_07_the_scale_of_a_subspace_does_not_matter() -> None:
    rng = torch.Generator().manual_seed(0)
    sums, features = torch.randn(2, 3, 4, generator=rng).tolist(), torch.randn(2, 5, 4, generator=rng)
    one, other = by_hand(sums, [0, 1, 1]), by_hand(sums, [0, 1, 1])
    other.sums_ = [other.sums_[0], 7 * other.sums_[1]]
    scaled = features * torch.tensor([1.0, 7.0])[:, None, None]
    torch.testing.assert_close(one._ensemble(features), other._ensemble(scaled))


def test_09_one_fresh_adapter_learns_and_older_ones_stand_still(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, method = stream(), ease(backbone, store)
    learned: list[int] = []
    plain = Session.run

    def spy(session: Session[Any], loss: Any) -> None:
        def watched(batch: Any) -> Tensor:
            assert all(p.requires_grad for p in session.learned)
            return loss(batch)

        x = torch.zeros(2, 3, 160, 160, dtype=torch.uint8)
        fresh = method.adapters_.views[-1]  # not a copy of the last
        assert torch.equal(fresh.features(x), backbone.features(x))
        learned.append(sum(p.numel() for p in session.learned))
        plain(session, watched)

    monkeypatch.setattr(Session, "run", spy)
    for task in tasks:
        before = values(method.adapters_)
        method.fit_task(task)
        assert alike(before, values(method.adapters_)[: len(before)])
        assert not any(p.requires_grad for p in method.adapters_.parameters())
    adapter = sum(p.numel() for p in method.adapters_[0].parameters())
    assert learned == [adapter + 2 * 64 + 1] * 3  # one adapter, the proxy head and its temperature


def test_10_with_one_adapter_and_the_bare_backbone_it_orders_as_apers_parts_do(
    backbone: Backbone, store: FeatureStore
) -> None:
    """The released ``aper`` mode is the method ``aper``; on one task its parts are the same features and means."""
    tasks = stream((3,))
    method = ease(backbone, store, beta=1.0).fit_task(tasks[0])
    aper = APER(backbone, APERConfig(adapt=QUICK), store=store)
    aper.tuned_.load_state_dict(method.adapters_[0].state_dict())
    aper.first.how = None  # with that adapter
    aper.fit_task(tasks[0])
    d = backbone.dim
    torch.testing.assert_close(aper.prototypes[:, d:], method.prototypes[0])
    torch.testing.assert_close(aper.prototypes[:, :d], method.frozen_sums_ / method.counts_[:, None])
    x = torch.cat([x for _, x in tasks.test(0).batches(backbone.preprocess, 6)])
    cosines = cosine_scores(backbone.features(x), aper.prototypes[:, :d])
    own = cosine_scores(method.adapters_.views[0].features(x), aper.prototypes[:, d:])
    torch.testing.assert_close(method.scores(x), own + cosines, atol=1e-5, rtol=0)


def test_12_a_method_read_back_goes_on_alike(backbone: Backbone, store: FeatureStore) -> None:
    tasks, straight = stream(), ease(backbone, store)
    for task in tasks[:2]:
        straight.fit_task(task)
    resumed = ease(backbone, store).load_state_dict(straight.state_dict())
    for method in (straight, resumed):
        method.fit_task(tasks[2])
    assert torch.equal(straight.prototypes, resumed.prototypes)
    for i in range(3):
        assert torch.equal(straight.predict(tasks.test(i)), resumed.predict(tasks.test(i)))


def test_13_a_smaller_last_task_works(backbone: Backbone, store: FeatureStore) -> None:
    tasks, method = stream((2, 3, 1)), ease(backbone, store)
    for task in tasks:
        method.fit_task(task)
    assert method.prototypes.shape == (3, 6, 64)
    assert torch.cat(list(method.scores_of(tasks.test(2)))).shape == (2, 6)


def test_an_image_passes_every_adapter_once(backbone: Backbone, store: FeatureStore) -> None:
    tasks, method, passes = stream(), ease(backbone, store), backbone.passes
    tested = 0
    for t, task in enumerate(tasks):
        before = passes.images
        method.fit_task(task)
        n = len(task.train)
        assert passes.images - before == n + n * (t + 1)  # one epoch, then its means in every subspace so far
        before = passes.images
        for i in range(t + 1):
            method.predict(tasks.test(i))
        tested += passes.images - before
    images = sum(len(tasks.test(i)) for i in range(3))
    assert tested == 3 * images  # T N, where asking anew after every task would be T (T + 1)(2 T + 1) / 6 / T * N
    before = passes.images
    method.predict(tasks.test(0))
    assert passes.images == before


def test_a_class_that_comes_again_scores_by_its_best_slot(backbone: Backbone, store: FeatureStore) -> None:
    tasks, method = stream((2,)), ease(backbone, store)
    method.fit_task(tasks[0])
    method.fit_task(type(tasks[0])(1, tasks[0].train, tasks[0].classes))
    assert (method.slot_columns_, method.slot_tasks_) == ([0, 1, 0, 1], [0, 0, 1, 1])
    found = torch.cat(list(method.scores_of(tasks.test(0))))
    assert found.shape == (4, 2)
    assert bool(torch.isfinite(found).all())


def test_a_failed_task_leaves_no_adapter_behind(backbone: Backbone, store: FeatureStore) -> None:
    tasks, method = stream(), ease(backbone, store)
    method.fit_task(tasks[0])
    before = method.predict(tasks.test(0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EASE, "_with", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            method.fit_task(tasks[1])
    assert torch.equal(method.predict(tasks.test(0)), before)
    method.fit_task(tasks[1])
    assert len(method.adapters_) == len(method.adapters_.views) == 2


def test_a_convolutional_network_is_refused(store: FeatureStore) -> None:
    with pytest.raises(BackboneError, match="seat beside every MLP, but got 'test_resnet"):
        ease(Backbone.load("test_resnet", pretrained=False, device="cpu"), store)
