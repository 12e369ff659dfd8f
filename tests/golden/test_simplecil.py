"""The numbered golden tests of SimpleCIL's specification, section 12."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import NearestCentroid
from stubs import clusters, cut, known, predicted, scores, teach, untaught

from perdure import Backbone, FeatureStore, load_stream
from perdure.data.order import order_classes
from perdure.methods.simplecil import SimpleCIL


def test_01_two_classes_by_hand() -> None:
    method = teach(untaught(SimpleCIL, 2), ([[2, 0], [0, 2], [0, 4]], [0, 0, 1]))
    assert method.prototypes.tolist() == [[1, 1], [0, 4]]
    expected = torch.tensor([[2**-0.5, 0], [2**-0.5, 1]])
    torch.testing.assert_close(scores(method, [[1, 0], [0, 1]]), expected)
    assert predicted(method, [[1, 0], [0, 1]]) == [0, 1]


def test_02_the_mean_is_of_raw_features() -> None:
    method = teach(untaught(SimpleCIL, 2), ([[10, 0], [0, 1]], [0, 0]))
    assert method.prototypes.tolist() == [[5, 0.5]]
    assert scores(method, [[0, 1]]).item() == pytest.approx(0.0995, abs=5e-5)  # the mean of unit vectors gives 0.7071


@pytest.mark.parametrize("a", [1e-3, 7.0])
@pytest.mark.parametrize("b", [1e-3, 7.0])
def test_03_scale_invariance(a: float, b: float) -> None:
    features, labels = clusters(4, 6, 5)
    plain = scores(teach(untaught(SimpleCIL, 5), (features, labels)), features)
    scaled = scores(teach(untaught(SimpleCIL, 5), (b * features, labels)), a * features)
    torch.testing.assert_close(scaled, plain, atol=1e-6, rtol=0)
    assert plain.std() > 0.1


@pytest.mark.parametrize(
    "groups", [[[3, 1, 5, 0, 2, 4]], [[5, 2, 1], [0, 4, 3]], [[4, 0], [5, 3], [1, 2]], [[5], [3], [1], [4], [0], [2]]]
)
def test_04_task_order_and_split_invariance(groups: list[list[int]]) -> None:
    features, labels = clusters(6, 10, 8, noise=1.5)
    pooled = teach(untaught(SimpleCIL, 8), (features, labels))
    method = teach(untaught(SimpleCIL, 8), *cut(features, labels, groups))
    assert method.classes_ == [c for group in groups for c in group]
    torch.testing.assert_close(method.prototypes, pooled.prototypes[method.classes_], atol=1e-12, rtol=0)
    assert predicted(method, features) == predicted(pooled, features)
    assert predicted(pooled, features) != labels.tolist()  # hard enough to notice a difference


def test_05_a_class_in_two_domains_of_unequal_size() -> None:
    method = teach(untaught(SimpleCIL, 2), ([[8, 0]], [3]), ([[0, 4], [0, 2], [4, 2]], [3, 3, 3]))
    assert method.classes_ == [3]
    assert method.prototypes.tolist() == [[3, 2]]
    assert method.counts_.tolist() == [4]


def test_06_an_unseen_class_is_never_predicted() -> None:
    method = teach(untaught(SimpleCIL, 2), ([[1, 0], [1, 0.1], [1, -0.1]], [0, 2, 4]))
    assert (scores(method, [[-1, 0]]) < 0).all()
    assert scores(method, [[-1, 0]]).shape == (1, 3)
    assert predicted(method, [[-1, 0.5], [-1, -0.5]]) == [2, 4]


def test_07_cosine_is_euclidean_for_unit_vectors() -> None:
    features, labels = clusters(5, 8, 6, noise=1.5)
    unit = F.normalize(features, dim=1)
    method = teach(untaught(SimpleCIL, 6), (unit, labels))
    nearest = NearestCentroid().fit(unit.numpy(), labels)
    nearest.centroids_ /= np.linalg.norm(nearest.centroids_, axis=1, keepdims=True)
    assert predicted(method, unit) == nearest.predict(unit.numpy()).tolist() != labels.tolist()


def test_08_resumed_is_straight() -> None:
    features, labels = clusters(4, 9, 6)
    first, *rest = cut(features, labels, [[2, 0], [3], [1]])
    straight = teach(untaught(SimpleCIL, 6), first, *rest)
    resumed = untaught(SimpleCIL, 6).load_state_dict(teach(untaught(SimpleCIL, 6), first).state_dict())
    teach(resumed, *rest)
    assert resumed.classes_ == straight.classes_ == [2, 0, 3, 1]
    assert torch.equal(resumed.sums_, straight.sums_)
    assert torch.equal(resumed.counts_, straight.counts_)


def test_09_cached_features_score_as_the_live_backbone(backbone: Backbone, store: FeatureStore) -> None:
    stream = load_stream("synthetic", tasks=2)
    method = SimpleCIL(backbone, store=store).fit_task(stream[0])
    cached = torch.cat(list(method.scores_of(stream.test(0))))
    live = [method.scores(images) for _, images in stream.test(0).batches(backbone.preprocess, 5)]
    assert torch.equal(cached, torch.cat(live))
    assert cached.std() > 0


def test_10_the_class_order_of_seed_1993() -> None:
    order = order_classes({c: f"class {c}" for c in range(100)}, seed=1993)
    np.random.seed(1993)  # what the references do
    assert order == np.random.permutation(100).tolist()
    assert order[:5] == [68, 56, 78, 8, 23]
    assert sorted(order) == list(range(100))


def test_equal_scores_go_to_the_class_that_came_first() -> None:
    method = teach(untaught(SimpleCIL, 2), ([[0, 1]], [9]), ([[0, 2]], [1]))
    assert predicted(method, [[0, 1], [1, 1]]) == [9, 9]


def test_the_labels_of_data_to_predict_do_not_matter() -> None:
    method = teach(untaught(SimpleCIL, 2), ([[1, 0], [0, 1]], [0, 1]))
    assert method.predict(known([[0, 1]], [77])).tolist() == [1]
