"""What the methods on a CLIP refuse, and how they look up candidates."""

from __future__ import annotations

import numpy as np
import pytest

from perdure.checks.subject import named_task
from perdure.data import Candidate, Task
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import StreamError
from perdure.memory import FeatureStore
from perdure.methods.clip_zeroshot import ClipZeroShot
from tiny_clip import clip


def test_a_class_that_comes_again_keeps_its_text(store: FeatureStore) -> None:
    images = synthetic_dataset((5, 7), train_per_class=2).train
    method = ClipZeroShot(clip(), store=store).fit_task(named_task(0, images))
    names = {5: "pattern 5", 7: "pattern 7"}
    other = Task(1, images, (5, 7), class_names=names, display_names={5: "pattern 5", 7: "a zebra"})
    with pytest.raises(
        StreamError, match="text of class 'pattern 7' must be 'pattern 7', as it was taught, but got 'a z"
    ):
        method.fit_task(other)
    assert (method.tasks_seen_, method.displays_) == (1, ["pattern 5", "pattern 7"])
    method.fit_task(Task(1, images, (5, 7), class_names=names, display_names=names))
    assert method.tasks_seen_ == 2


def test_candidates_keep_their_order_and_taught_ones_their_texts(store: FeatureStore) -> None:
    images = synthetic_dataset((5, 7), train_per_class=2).train
    method = ClipZeroShot(clip(), store=store).fit_task(named_task(0, images))
    names = ["a cat", "pattern 7", "a dog", "pattern 5"]
    texts, columns = method.texts_among([Candidate(name, name) for name in names])
    assert columns.tolist() == [-1, 1, -1, 0]
    np.testing.assert_array_equal(texts[[3, 1]], method.texts_)
    np.testing.assert_array_equal(texts[[0, 2]], method.class_texts(["a cat", "a dog"], None))
