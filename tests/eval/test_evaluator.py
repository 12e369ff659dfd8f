"""The evaluator sees every test image once, in order, and reduces scores honestly."""

from __future__ import annotations

import dataclasses as dc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perdure import Backbone, FeatureStore, Task, load_stream, methods
from perdure.checks.subject import small_stream
from perdure.data import Stream
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import ShapeError, StreamError
from perdure.eval import evaluate
from perdure.eval.evaluator import TaughtImagesWarning, UnknownClassesWarning
from small_folders import fill

pytestmark = pytest.mark.filterwarnings("ignore::perdure.eval.evaluator.UnknownClassesWarning")


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


def test_members_are_kept_by_name_task_after_task(fitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def members(self: Any, data: Any) -> Any:
        n = len(data)
        return {"first": iter(torch.eye(6)[[0] * n].split(4)), "last": iter(torch.eye(6)[[5] * n].split(4))}

    assert evaluate(fitted, small_stream(), upto=0).members == {}
    monkeypatch.setattr(type(fitted), "_members_of", members)
    p, ids = evaluate(fitted, small_stream(), upto=1), fitted.classes_
    assert {name: best.tolist() for name, best in p.members.items()} == {"first": [ids[0]] * 12, "last": [ids[5]] * 12}
    stream = small_stream()
    none = Stream(list(stream), [stream.test(0).subset(np.arange(0))] * 3, stream.class_names, {})
    assert [best.shape for best in evaluate(fitted, none, upto=1).members.values()] == [(0,), (0,)]


def test_a_member_must_score_all_classes(fitted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(fitted), "_members_of", lambda self, data: {"odd": iter([torch.zeros(len(data), 5)])})
    with pytest.raises(ShapeError, match=r"SimpleCIL\.members_of: scores of odd must be \(b, 6\).*got \(6, 5\)"):
        evaluate(fitted, small_stream(), upto=0)


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


@pytest.fixture
def grown(backbone: Backbone, store: FeatureStore, tmp_path: Path) -> Any:
    """Taught emu, llama and zebu; then a folder that sorts before them appears."""
    data = fill(tmp_path / "data", emu=10, llama=10, zebu=10)
    method = methods.get("simplecil")(backbone, store=store)
    for task in load_stream(data, tasks=1):
        method.fit_task(task)
    fill(data, anchor=10)
    return method, data


def test_a_stream_that_numbers_classes_anew_is_read_by_names(grown: Any) -> None:
    method, data = grown
    afresh = load_stream(data, tasks=1)
    p = evaluate(method, afresh)
    names = [afresh.class_names[c] for c in afresh.test(0).labels.tolist()]
    assert [{**method.class_names, 4: "anchor"}[c] for c in p.labels.tolist()] == names
    assert p.top[:, 0].tolist() == method.predict(afresh.test(0)).tolist()
    assert not p.correct[np.array(names) == "anchor"].any()
    assert p.correct[np.array(names) != "anchor"].mean() == 1


def test_a_stream_that_goes_on_is_evaluated_from_its_first_task(grown: Any) -> None:
    method, data = grown
    more = load_stream(data, known=method)
    method.fit_task(more[0])
    for p in (evaluate(method, more), evaluate(method, more, upto=1)):
        assert (p.task.tolist(), p.labels.tolist()) == ([0, 0], [3, 3])
    for bad in (0, 2):
        with pytest.raises(StreamError, match=f"upto must be between 1 and 1, but got {bad}"):
            evaluate(method, more, upto=bad)


def test_the_last_task_is_the_streams_if_none_is_given(fitted: Any) -> None:
    stream = small_stream()
    assert evaluate(fitted, stream).task.tolist() == evaluate(fitted, stream, upto=2).task.tolist()


def named_stream(names: dict[int, str], seed: int = 0) -> Stream:
    ids = list(names)
    made = synthetic_dataset(ids, train_per_class=3, test_per_class=2, seed=seed)
    return class_incremental(dc.replace(made, class_names=names), [len(ids)], ids)


@pytest.mark.parametrize(
    ("taught", "asked", "labels"),
    [
        ({0: "a", 1: "b"}, {0: "b", 1: "a"}, [1, 0]),
        ({0: "a", 1: "b"}, {5: "c", 0: "x", 1: "a"}, [5, 6, 0]),
        ({0: "0", 1: "1", 2: "2"}, {0: "00", 1: "1", 2: "11"}, [3, 1, 4]),  # names that look like ids
        ({0: "0", 1: "1"}, {0: "eleven"}, [2]),
        ({0: "1", 1: "0"}, {0: "0", 1: "1"}, [1, 0]),
        ({-5: "a", 2**40: "b"}, {0: "b", 1: "c", 2: "a"}, [2**40, 1, -5]),
    ],
)
def test_a_class_is_never_taken_for_another(
    taught: dict[int, str], asked: dict[int, str], labels: list[int], backbone: Backbone, store: FeatureStore
) -> None:
    method = methods.get("simplecil")(backbone, store=store).fit_task(named_stream(taught)[0])
    p = evaluate(method, named_stream(asked, seed=1))
    assert p.labels.tolist() == [c for c in labels for _ in range(2)]
    unknown = [c for c, name in zip(labels, asked.values(), strict=True) if name not in taught.values()]
    assert not p.correct[np.isin(p.labels, unknown)].any()
    assert not np.isin(p.top, unknown).any()


def test_classes_that_were_taught_without_names_are_known_by_their_ids(backbone: Backbone, store: FeatureStore) -> None:
    stream = named_stream({0: "1", 1: "cat", 2: "dog"})
    nameless = stream[0].train.of_classes([0, 1])
    method = methods.get("simplecil")(backbone, store=store).fit_task(Task(0, nameless, (0, 1)))
    assert evaluate(method, stream).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_stream_without_names_is_read_by_ids(fitted: Any) -> None:
    stream = small_stream()
    bare = Stream(list(stream), [stream.test(i) for i in range(3)], {}, {})
    assert np.array_equal(evaluate(fitted, bare).labels, evaluate(fitted, stream).labels)


def test_test_images_that_were_taught_are_told(fitted: Any) -> None:
    stream = small_stream()
    tests = [stream.test(0).joined(stream[1].train.subset(np.arange(3))), stream.test(1), stream.test(2)]
    more, message = (
        Stream(list(stream), tests, stream.class_names, {}),
        r"^3 of 21 test images were taught, so .*them out$",
    )
    with pytest.warns(TaughtImagesWarning, match=message) as told:
        evaluate(fitted, more)
    assert told[0].filename == __file__
    left = evaluate(fitted, more, without_taught=True)
    assert np.array_equal(left.top, evaluate(fitted, stream).top)
    evaluate(fitted, stream)


def test_a_folder_split_anew_is_told(grown: Any) -> None:
    method, data = grown
    fill(data, emu=30)
    with pytest.warns(TaughtImagesWarning, match="of 12 test images were taught"):
        evaluate(method, load_stream(data, tasks=1))
    assert len(evaluate(method, load_stream(data, known=method, include_known=True)).labels) > 2


def test_classes_that_the_method_does_not_know_are_told(fitted: Any) -> None:
    stream = small_stream((2, 2, 2))
    method = type(fitted)(fitted.backbone, store=fitted.store).fit_task(stream[0])
    with pytest.warns(UnknownClassesWarning, match="^test images of pattern 42, pattern 5 count as wrong: ") as told:
        evaluate(method, stream, upto=1)
    assert told[0].filename == __file__
    evaluate(method, stream, upto=0)
