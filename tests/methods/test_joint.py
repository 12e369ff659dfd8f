from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from perdure import Backbone, FeatureStore, Stream
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods.joint import Joint, JointConfig

IDS = [4, 0, 9, 7, 2]


@pytest.fixture
def stream() -> Stream:
    return class_incremental(synthetic_dataset(IDS, train_per_class=12, test_per_class=8), [2, 2, 1], IDS)


def accuracy(method: Joint, stream: Stream) -> float:
    right = [method.predict(stream.test(i)).numpy() == stream.test(i).labels for i in range(len(stream))]
    return float(np.concatenate(right).mean())


def test_as_accurate_as_logistic_regression(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    method = Joint(backbone, JointConfig(train={"batch_size": 16}), store=store)
    for task in stream:
        method.fit_task(task)
    train = torch.cat([store.features(backbone, task.train)[:] for task in stream])
    test = torch.cat([store.features(backbone, stream.test(i))[:] for i in range(3)])
    scaler = StandardScaler().fit(train)
    labels, test_labels = (
        np.concatenate([x.labels for x in part])
        for part in ([task.train for task in stream], [stream.test(i) for i in range(3)])
    )
    reference = LogisticRegression(max_iter=1000).fit(scaler.transform(train), labels)
    best = float((reference.predict(scaler.transform(test)) == test_labels).mean())
    assert best > 0.9
    assert accuracy(method, stream) >= best - 0.05
    np.testing.assert_allclose(method.mean_, scaler.mean_, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(method.scale_, scaler.scale_, rtol=1e-4)


def test_keeps_every_feature(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    method = Joint(backbone, JointConfig(train={"epochs": 1}), store=store).fit_task(stream[0]).fit_task(stream[1])
    kept = [method.features_, method.columns_]
    assert sum(t.nbytes for t in kept) == 48 * (4 * backbone.dim + 8)
    assert torch.equal(method.features_[24:], store.features(backbone, stream[1].train)[:])
    assert method.columns_[24:].tolist() == [IDS.index(c) for c in stream[1].train.labels]
    assert Joint.tags.keeps_data


def test_retrained_from_scratch(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    straight, disturbed = (
        Joint(backbone, JointConfig(train={"epochs": 2}), store=store).fit_task(stream[0]) for _ in range(2)
    )
    with torch.no_grad():
        disturbed.head_.weight.fill_(1e3)
    straight.fit_task(stream[1])
    disturbed.fit_task(stream[1])
    assert straight.head_.weight.shape == (4, backbone.dim)
    assert torch.equal(straight.head_.weight, disturbed.head_.weight)


def test_one_image_and_constant_dimensions_stay_finite(backbone: Backbone, store: FeatureStore) -> None:
    one = class_incremental(synthetic_dataset([3], train_per_class=1), [1], [3])
    method = Joint(backbone, JointConfig(train={"epochs": 1}), store=store).fit_task(one[0])
    assert (method.scale_ == 1).all()
    assert torch.isfinite(torch.cat(list(method.scores_of(one.test(0))))).all()


def test_epochs_and_learning_rate_matter(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    def loss(**config: float) -> float:
        method = Joint(backbone, JointConfig(train=config), store=store).fit_task(stream[0])
        scores = torch.cat(list(method.scores_of(stream[0].train)))
        return float(torch.nn.functional.cross_entropy(scores, method.columns(stream[0].train.labels)))

    assert loss(epochs=20) < loss(epochs=1) < float(np.log(2))
    assert loss(epochs=1, lr=0.01) < loss(epochs=1)


def test_learns_where_gradients_are_off(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    with torch.no_grad():
        silent = Joint(backbone, JointConfig(train={"epochs": 1}), store=store).fit_task(stream[0])
    plain = Joint(backbone, JointConfig(train={"epochs": 1}), store=store).fit_task(stream[0])
    assert torch.equal(silent.head_.weight, plain.head_.weight)
