"""Scores among classes by their names: columns of those taught, and any class where a method is open-vocabulary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from open_vocabulary import Reader, direction, show
from perdure import Backbone, FeatureStore, load_stream
from perdure.checks.subject import small_stream
from perdure.data import Candidate
from perdure.errors import NotFittedError, StreamError, UnknownNameError
from perdure.methods.simplecil import SimpleCIL
from small_folders import fill


@pytest.fixture
def fitted(backbone: Backbone, store: FeatureStore) -> SimpleCIL:
    method = SimpleCIL(backbone, store=store)
    for task in small_stream()[:2]:
        method.fit_task(task)
    return method


def of(*names: str) -> list[Candidate]:
    return [Candidate(name, name) for name in names]


def test_taught_classes_are_columns_in_the_order_asked_for(fitted: SimpleCIL) -> None:
    tests = small_stream().test(1)
    scores = torch.cat(list(fitted.scores_of(tests)))
    names = fitted.names_
    among = torch.cat(list(fitted.scores_among(tests, of(names[3], names[0], names[3]))))
    assert torch.equal(among, scores[:, [3, 0, 3]])
    assert (not fitted.promises.open_vocabulary, not fitted.promises.class_names) == (True, True)
    assert [part.shape for part in fitted.scores_among(tests, [])] == [(len(tests), 0)]


def test_a_class_that_was_not_taught_is_named(fitted: SimpleCIL) -> None:
    tests = small_stream().test(0)
    asked = of(fitted.names_[0], "patern 42", "cow")
    with pytest.raises(UnknownNameError, match=r"SimpleCIL\.scores_among: candidate must be a class that was t") as got:
        next(fitted.scores_among(tests, asked))
    assert "but got 'patern 42'. Did you mean 'pattern 42'" in str(got.value)


def test_it_is_asked_of_what_learned_and_of_files_read_alike(
    backbone: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    with pytest.raises(NotFittedError, match=r"SimpleCIL\.scores_among"):
        next(SimpleCIL(backbone, store=store).scores_among(small_stream().test(0), []))
    folder = fill(tmp_path / "data", cow=3, emu=3)
    method = SimpleCIL(backbone, store=store).fit_task(load_stream(folder, tasks=1)[0])
    other = load_stream(folder, tasks=1, value_range=(0, 9)).test(0)
    with pytest.raises(StreamError, match=r"SimpleCIL\.scores_among: value_range of the images.*\(0\.0, 9\.0\)"):
        next(method.scores_among(other, of("cow")))


def test_an_open_vocabulary_takes_any_class(backbone: Backbone, store: FeatureStore) -> None:
    stream = small_stream()
    method = Reader(backbone, store=store).fit_task(stream[0])
    tests = stream.test(2)
    show(tests, ["never taught"] * len(tests))
    asked = [Candidate("never taught", "x", "zoo"), Candidate(method.names_[0], "y")]
    scores = torch.cat(list(method.scores_among(tests, asked)))
    assert scores.shape == (len(tests), 2)
    np.testing.assert_allclose(scores[:, 0], 1, rtol=1e-6)
    assert float(scores[0, 1]) == pytest.approx(float(direction("never taught") @ direction(method.names_[0])))
    assert method.asked == [tuple(asked)]
    assert method.promises.open_vocabulary
    assert method.promises.class_names
