"""The evaluator sees every test image once, in order, and reduces scores honestly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from perdure import Backbone, FeatureStore, methods
from perdure.checks.subject import small_stream
from perdure.data import Stream
from perdure.errors import StreamError
from perdure.eval import evaluate


@pytest.fixture
def fitted(backbone: Backbone, store: FeatureStore) -> Any:
    method = methods.get("simplecil")(backbone, store=store)
    for task in small_stream():
        method.fit_task(task)
    return method


def test_every_test_image_is_there_in_order(fitted: Any) -> None:
    stream = small_stream()
    p = evaluate(fitted, stream, upto=2)
    assert p.labels.tolist() == [label for i in range(3) for label in stream.test(i).labels]
    assert p.task.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert p.top.shape == (18, 5)
    assert set(p.top.ravel()) <= set(fitted.classes_)


def test_best_class_is_what_predict_says(fitted: Any) -> None:
    stream = small_stream()
    assert evaluate(fitted, stream, upto=0).top[:, 0].tolist() == fitted.predict(stream.test(0)).tolist()


def test_ties_go_to_the_class_seen_first(fitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(fitted), "scores_of", lambda self, data: [torch.zeros(len(data), 6)])
    p = evaluate(fitted, small_stream(), upto=0)
    assert (p.top == np.array(fitted.classes_)[:5]).all()
    assert p.confidence == pytest.approx(np.full(6, 1 / 6))


@pytest.mark.parametrize("size", [4, 5, 6])
def test_scores_become_the_five_best_classes_and_the_softmax_of_the_best(
    size: int, fitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against NumPy, in batches that are not square, the last of one image or of two."""
    scores = {i: np.random.default_rng(i).normal(0, 3, (6, 6)).astype(np.float32) for i in range(2)}
    given = iter(scores.values())
    monkeypatch.setattr(type(fitted), "scores_of", lambda self, data: torch.tensor(next(given)).split(size))
    p = evaluate(fitted, small_stream(), upto=1)
    together = np.concatenate(list(scores.values())).astype(np.float64)
    assert np.array_equal(p.top, np.array(fitted.classes_)[np.argsort(-together, axis=1)[:, :5]])
    likely = np.exp(together) / np.exp(together).sum(1, keepdims=True)
    np.testing.assert_allclose(p.confidence, likely.max(1), rtol=1e-5)
    assert p.confidence.dtype == np.float32
    assert p.task.tolist() == [0] * 6 + [1] * 6


def test_a_task_without_test_images_leaves_a_gap(fitted: Any) -> None:
    stream = small_stream()
    tests = [stream.test(0).subset(np.arange(0)), stream.test(1), stream.test(2).subset(np.arange(2))]
    gap = Stream(list(stream), tests, stream.class_names, {})
    p = evaluate(fitted, gap, upto=2)
    assert p.task.tolist() == [1] * 6 + [2] * 2
    assert p.labels.tolist() == [*stream.test(1).labels, *stream.test(2).labels[:2]]
    none = evaluate(fitted, gap, upto=0)
    assert (none.top.shape, none.task.dtype, none.confidence.dtype) == ((0, 5), np.int64, np.float32)


@pytest.mark.parametrize("bad", [3, -1])
def test_a_task_that_does_not_exist_is_refused(bad: int, fitted: Any) -> None:
    with pytest.raises(StreamError, match=f"between 0 and 2, but got {bad}"):
        evaluate(fitted, small_stream(), upto=bad)
