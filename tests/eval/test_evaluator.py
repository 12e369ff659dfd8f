"""The evaluator sees every test image once, in order, and reduces scores honestly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from perdure import Backbone, FeatureStore, methods
from perdure.checks.subject import small_stream
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


def test_a_task_that_does_not_exist_is_refused(fitted: Any) -> None:
    with pytest.raises(StreamError, match="got 3"):
        evaluate(fitted, small_stream(), upto=3)
