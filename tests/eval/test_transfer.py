"""Transfer, Average and Last by hand, and what the evaluator asks of classes that are not taught yet."""

from __future__ import annotations

import dataclasses as dc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from open_vocabulary import KNOWN, Reader, reachable, show
from perdure import Backbone, FeatureStore, Stream, load_stream
from perdure.backbone.tiny import small_vit
from perdure.data import Candidate, LabelledImages
from perdure.errors import ShapeError
from perdure.eval import (
    Answers,
    Predictions,
    average_over_sets,
    evaluate,
    last_over_sets,
    set_matrix,
    transfer_over_sets,
    untold_matrix,
    zero_shot_accuracy,
    zero_shot_transfer,
)
from perdure.eval.evaluator import TaughtImagesWarning
from perdure.methods.simplecil import SimpleCIL
from small_folders import fill_named

NAN = float("nan")


@pytest.mark.parametrize(
    ("matrix", "wanted"),
    [
        ([[1, 0.5, 0.2], [0.8, 1, 0.4], [0.6, 0.8, 1]], (0.40, 0.70, 0.80)),
        ([[1, 2, 3], [4, 5, 6], [7, 8, 9]], (3.25, 5, 8)),
        ([[1, 0, 3], [4, 5, 6], [7, 8, 9]], (2.25, 43 / 9, 8)),
        ([[1, NAN, NAN], [0.8, 1, NAN], [0.6, 0.8, 1]], (NAN, NAN, 0.80)),
        ([[1, 0.5, NAN], [0.8, 1, 0.4], [0.6, 0.8, 1]], (NAN, NAN, 0.80)),
        ([[0.5]], (NAN, 0.5, 0.5)),
    ],
)
def test_three_means_by_hand(matrix: list[list[float]], wanted: tuple[float, float, float]) -> None:
    a = np.array(matrix, dtype=float)
    found = (transfer_over_sets(a), average_over_sets(a), last_over_sets(a))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


def said(task: list[int], right: list[int], untaught: tuple[list[int], list[int]] | None) -> Predictions:
    """Told answers, and answers about untaught classes, each 1 where right; ordinary ones are all wrong."""
    n = len(task)
    answers = None
    if untaught is not None:
        answers = Answers(np.array(untaught[0]), np.ones(len(untaught[0]), int), np.array(untaught[1]))
    wrong, sure = np.zeros((n, 1), int), np.ones(n, np.float32)
    return Predictions(np.array(task), np.ones(n, int), wrong, sure, told=np.array(right), untaught=answers)


def test_rows_stand_after_a_sets_last_task_and_columns_are_all_of_a_set() -> None:
    """Two tasks of one set, then one of another: the row after the first task is not there."""
    after = [
        said([0, 0], [1, 1], ([1, 1, 2], [0, 0, 0])),
        said([0, 0, 1, 1], [1, 0, 1, 1], ([2, 2], [1, 0])),
        said([0, 0, 1, 1, 2, 2], [1, 0, 1, 0, 1, 1], None),
    ]
    assert set_matrix(after, ["a", "a", "b"]).tolist() == [[0.75, 0.5], [0.5, 1]]
    assert [zero_shot_accuracy(p) for p in after[:2]] == [0, 0.5]
    assert np.isnan(zero_shot_accuracy(after[2]))
    assert zero_shot_transfer(after) == 0.25
    plain = [dc.replace(p, untaught=None) for p in after]
    np.testing.assert_array_equal(set_matrix(plain, ["a", "a", "b"]), [[0.75, NAN], [0.5, 1]])
    assert np.isnan(zero_shot_transfer(plain))
    bare = [dc.replace(p, told=None) for p in plain]
    assert np.isnan(set_matrix(bare, ["a", "a", "b"])).all()


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    """Two folders with a test part; two classes of theirs have one name."""
    made = {"zoo": {"ant": 2, "emu": 2, "yak": 2}, "farm": {"cow": 2, "emu": 2}}
    for name, classes in made.items():
        for part in ("train", "test"):
            fill_named(tmp_path / name / part, classes, salt=f"{name} {part}")
    return [tmp_path / name for name in made]


@pytest.fixture
def reader(store: FeatureStore) -> Reader:
    KNOWN.clear()
    return Reader(small_vit(), store=store)


def truth(stream: Stream, **instead: str) -> None:
    """Every test image shows its class's name, or what stands for it."""
    for task in stream:
        test = stream.test(task.index)
        names = [stream.class_names[c] for c in test.labels.tolist()]
        show(test, [instead.get(name.replace("/", "_"), name) for name in names])


def test_untaught_classes_are_asked_for_within_their_set(reader: Reader, sets: list[Path]) -> None:
    stream = load_stream(datasets=sets, base=2, increment=1, order_seed=None)
    truth(stream, farm_cow="farm/emu")
    names = [[task.class_names[c] for c in task.classes] for task in stream]
    assert names == [["zoo/ant", "zoo/emu"], ["zoo/yak"], ["farm/cow", "farm/emu"]]
    after, asked = [], []
    for task in stream:
        reader.fit_task(task)
        after.append(evaluate(reader, stream, upto=task.index))
        everything = [each for each in reader.asked if len(each) == 5]
        assert len(everything) == 3, "for each task's test images, all five"
        asked.append([[c.name for c in each] for each in reader.asked if len(each) < 5])
        reader.asked.clear()
    assert asked == [[["zoo/yak"], ["farm/cow", "farm/emu"]], [["farm/cow", "farm/emu"]], []]
    assert [p.untaught is None for p in after] == [False, False, True]
    first = after[0].untaught
    assert first is not None
    assert first.task.tolist() == [1, 1, 2, 2, 2, 2]
    assert first.labels.tolist() == [2, 2, 3, 3, 4, 4]
    assert first.best.tolist() == [2, 2, 4, 4, 4, 4]
    assert [zero_shot_accuracy(p) for p in after[:2]] == [4 / 6, 2 / 4]
    assert zero_shot_transfer(after) == pytest.approx((4 / 6 + 2 / 4) / 2)
    assert set_matrix(after, ["zoo", "zoo", "farm"]).tolist() == [[1, 0.5], [1, 0.5]]
    assert untold_matrix(after, ["zoo", "zoo", "farm"]).tolist() == [[1, 0.5], [1, 0.5]]
    every = after[0].among_all
    assert every is not None
    assert every.task.tolist() == [0] * 4 + [1] * 2 + [2] * 4
    assert every.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert every.best.tolist() == [0, 0, 1, 1, 2, 2, 4, 4, 4, 4]


def test_untaught_names_may_take_images_where_no_set_is_told(reader: Reader, sets: list[Path]) -> None:
    stream = load_stream(datasets=sets, order_seed=None)
    truth(stream, zoo_emu="farm/emu", farm_cow="zoo/ant")
    after = [evaluate(reader.fit_task(task), stream, upto=task.index) for task in stream]
    assert untold_matrix(after, ["zoo", "farm"]).tolist() == [pytest.approx([2 / 3, 0.5])] * 2
    closed = [dc.replace(p, among_all=None) for p in after]
    np.testing.assert_allclose(untold_matrix(closed, ["zoo", "farm"])[0], [after[0].correct.mean(), NAN])
    np.testing.assert_allclose(untold_matrix(closed, ["zoo", "farm"])[1], [2 / 3, 0.5])


def test_candidates_say_what_they_are_called_and_of_which_set(reader: Reader, sets: list[Path]) -> None:
    (sets[1] / "train" / "cow").rename(sets[1] / "train" / "red_cow")
    (sets[1] / "test" / "cow").rename(sets[1] / "test" / "red_cow")
    stream = load_stream(datasets=sets, order_seed=None)
    evaluate(reader.fit_task(stream[0]), stream, upto=0)
    farm = (Candidate("farm/emu", "emu", "farm"), Candidate("farm/red_cow", "red cow", "farm"))
    zoo = tuple(Candidate(f"zoo/{name}", name, "zoo") for name in ("ant", "emu", "yak"))
    assert reader.asked == [farm, (*zoo, *farm), (*zoo, *farm)]


def test_without_sets_the_whole_stream_is_asked_for(reader: Reader, sets: list[Path]) -> None:
    stream = load_stream(sets[0], tasks=3, order_seed=None)
    truth(stream)
    p = evaluate(reader.fit_task(stream[0]), stream, upto=0)
    both = (Candidate("emu", "emu", None), Candidate("yak", "yak", None))
    assert reader.asked == [both, both]
    assert (p.told, zero_shot_accuracy(p)) == (None, 1)
    reader.fit_task(stream[1])
    reader.asked.clear()
    evaluate(reader, stream, upto=1)
    assert reader.asked == [both[1:]]


def test_told_answers_are_of_the_images_set_and_need_no_second_pass(reader: Reader, sets: list[Path]) -> None:
    stream = load_stream(datasets=sets, tasks=2, order_seed=None)
    truth(stream, zoo_emu="farm/emu", zoo_ant="farm/cow", farm_emu="zoo/emu")
    for task in stream:
        reader.fit_task(task)
    reader.passed.clear()
    p = evaluate(reader, stream)
    assert reader.passed == [len(stream.test(task.index)) for task in stream]
    assert p.told is not None
    of = {name: c for c, name in stream.class_names.items()}
    zoo, farm = {of["zoo/ant"], of["zoo/emu"], of["zoo/yak"]}, {of["farm/cow"], of["farm/emu"]}
    for task in stream:
        assert set(p.told[p.task == task.index].tolist()) <= (zoo if task.dataset == "zoo" else farm)
    assert (p.top[p.labels == of["zoo/emu"], 0] == of["farm/emu"]).all(), "with the set untold"
    assert (p.told[p.labels == of["zoo/yak"]] == of["zoo/yak"]).all()
    scores = torch.cat(list(reader.scores_of(stream.test(0))))
    columns = [reader.classes_.index(c) for c in reader.classes_ if c in zoo]
    best = [reader.classes_[columns[j]] for j in scores[:, columns].argmax(1).tolist()]
    assert p.told[p.task == 0].tolist() == best


def test_what_is_scored_by_classes_taught_alone_has_no_other_answers(
    backbone: Backbone, store: FeatureStore, sets: list[Path]
) -> None:
    stream = load_stream(datasets=sets)
    method = SimpleCIL(backbone, store=store).fit_task(stream[0])
    p = evaluate(method, stream, upto=0)
    assert (p.untaught, p.among_all) == (None, None)
    assert p.told is not None
    assert np.array_equal(p.told, p.top[:, 0]), "of the first set there are no other classes"
    alone = load_stream(sets[0], tasks=1)
    assert evaluate(SimpleCIL(backbone, store=store).fit_task(alone[0]), alone).told is None


@pytest.mark.filterwarnings("ignore::perdure.eval.evaluator.UnknownClassesWarning")
def test_a_set_of_which_nothing_is_taught_is_answered_as_without_sets(reader: Reader, sets: list[Path]) -> None:
    stream = load_stream(datasets=sets, order_seed=None)
    truth(stream)
    p = evaluate(reader.fit_task(load_stream(datasets=sets[:1])[0]), stream)
    assert p.told is not None
    assert np.array_equal(p.told[p.task == 1], p.top[p.task == 1, 0])
    assert p.untaught is not None
    assert p.untaught.task.tolist() == [1] * 4
    assert set(p.untaught.labels.tolist()) == set(p.labels[p.task == 1].tolist())
    assert zero_shot_accuracy(p) == 1


def test_a_stream_that_goes_on_is_asked_by_its_own_tasks(reader: Reader, sets: list[Path]) -> None:
    reader.fit_task(load_stream(datasets=sets[:1])[0])
    more = load_stream(datasets=sets, known=reader, tasks=2, order_seed=None)
    truth(more)
    p = evaluate(reader.fit_task(more[0]), more, upto=1)
    assert p.untaught is not None
    assert (p.untaught.task.tolist(), p.untaught.labels.tolist(), p.task.tolist()) == ([1, 1], [4, 4], [0, 0])
    assert reader.asked[0] == (Candidate("farm/emu", "emu", "farm"),)
    everything = ["farm/cow", "farm/emu", "zoo/ant", "zoo/emu", "zoo/yak"]
    assert [sorted(c.name for c in each) for each in reader.asked[1:]] == [everything] * 2


def test_tests_that_were_taught_are_left_out_of_untaught_classes_too(reader: Reader, sets: list[Path]) -> None:
    stream = load_stream(sets[0], tasks=3, order_seed=None)
    taught = dc.replace(stream[0], train=stream[0].train.joined(relabelled(stream.test(1), stream[0].classes[0])))
    reader.fit_task(taught)
    p = evaluate(reader, stream, upto=0, without_taught=True)
    assert p.untaught is not None
    assert p.untaught.task.tolist() == [2, 2]
    assert len(reader.asked) == 1


def relabelled(images: LabelledImages, label: int) -> LabelledImages:
    return LabelledImages(images.source, np.full(len(images), label), images.rows)


@pytest.mark.usefixtures("any_shape")
def test_scores_of_other_widths_are_refused(reader: Reader, sets: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = load_stream(sets[0], tasks=3)
    reader.fit_task(stream[0])
    monkeypatch.setattr(Reader, "_scores_among", lambda self, data, candidates: iter([torch.zeros(len(data), 5)]))
    with pytest.raises(ShapeError, match=r"Reader\.scores_among: scores must be \(b, 2\).*got \(2, 5\)"):
        evaluate(reader, stream, upto=0)


class Ahead(Reader):
    """Looks for names of classes to come in all that a task tells, but for the images' files.

    Who reads the names of files that are not its own fails the common check ``check_names_come_with_their_task``.
    """

    found: set[str]

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        super()._learn(task, rng)
        told = [getattr(task, field.name) for field in dc.fields(task) if field.name != "train"]
        self.found = {*reachable(told), *reachable(vars(self)), *reachable(task.train.labels.tolist())}


def test_a_method_that_reads_ahead_finds_no_name_to_come(store: FeatureStore, sets: list[Path]) -> None:
    stream = load_stream(datasets=sets, base=1, increment=1)
    method, known = Ahead(small_vit(), store=store), set[str]()
    for task in stream:
        method.fit_task(task)
        known |= {*task.class_names.values(), *task.display_names.values()}
        every = {*stream.class_names.values(), *stream.display_names.values()}
        assert method.found & every == known
    assert known == every


def test_what_a_method_is_asked_it_does_not_know(store: FeatureStore, sets: list[Path]) -> None:
    stream = load_stream(datasets=sets, base=1, increment=1)
    method = Reader(small_vit(), store=store).fit_task(stream[0])
    evaluate(method, stream, upto=0)
    assert {c.name for each in method.asked for c in each} == set(stream.class_names.values())
    told = {*stream[0].class_names.values(), *stream[0].display_names.values()}
    assert {*method.names_, *method.displays_, *method.texts_} == told


def test_taught_tests_of_an_ordinary_stream_are_still_told(reader: Reader, sets: list[Path]) -> None:
    stream = load_stream(sets[0], tasks=1)
    joined = stream.test(0).joined(stream[0].train.subset(np.arange(1)))
    with pytest.warns(TaughtImagesWarning, match="^1 of 7 test images were taught"):
        evaluate(reader.fit_task(stream[0]), Stream([stream[0]], [joined], stream.class_names, {}))
