"""Streams over several data sets: names that tell the sets apart, each set cut by itself, and what does not fit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perdure import Backbone, FeatureStore, Stream, load_stream
from perdure.backbone.tiny import small_vit
from perdure.data import Dataset
from perdure.data.datasets import datasets
from perdure.data.several import short_name
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import DataError, SplitError, UnknownNameError
from perdure.methods.simplecil import SimpleCIL
from small_folders import fill, fill_named


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    """Two folders that share a class's name."""
    farm = fill_named(tmp_path / "farm", {"cow": 4, "emu": 4}, salt="f")
    return [fill(tmp_path / "zoo", emu=5, llama_glama=5, zebu=5), farm]


def names(stream: Stream) -> list[list[str]]:
    return [[task.class_names[c] for c in task.classes] for task in stream]


def test_sets_come_in_turn_and_their_classes_are_told_apart(sets: list[Path]) -> None:
    stream = load_stream(datasets=sets, order_seed=None)
    assert names(stream) == [["zoo/emu", "zoo/llama_glama", "zoo/zebu"], ["farm/cow", "farm/emu"]]
    assert [(task.index, task.dataset, task.domain, task.classes) for task in stream] == [
        (0, "zoo", None, (0, 1, 2)),
        (1, "farm", None, (3, 4)),
    ]
    assert [task.display_names for task in stream] == [{0: "emu", 1: "llama glama", 2: "zebu"}, {3: "cow", 4: "emu"}]
    assert stream.class_names == {
        0: "zoo/emu", 1: "zoo/llama_glama", 2: "zoo/zebu", 3: "farm/cow", 4: "farm/emu",
    }  # fmt: skip
    assert stream.display_names == {0: "emu", 1: "llama glama", 2: "zebu", 3: "cow", 4: "emu"}
    assert [(len(task.train), len(stream.test(task.index))) for task in stream] == [(12, 3), (6, 2)]
    assert names(load_stream(datasets=sets[::-1], order_seed=None))[0] == ["farm/cow", "farm/emu"]


def test_a_name_is_qualified_whatever_other_sets_hold(sets: list[Path]) -> None:
    assert names(load_stream(datasets=sets[1:], order_seed=None)) == [["farm/cow", "farm/emu"]]
    assert load_stream(sets[1], tasks=1)[0].dataset is None


@pytest.mark.parametrize(
    ("cut", "sizes"),
    [
        ({}, [3, 2]),
        ({"tasks": 2}, [2, 1, 1, 1]),
        ({"base": 2, "increment": 1}, [2, 1, 2]),
        ({"increment": 1}, [1] * 5),
    ],
)
def test_each_set_is_cut_by_itself(cut: dict[str, Any], sizes: list[int], sets: list[Path]) -> None:
    stream = load_stream(datasets=sets, **cut)
    assert [len(task.classes) for task in stream] == sizes
    assert [task.index for task in stream] == list(range(len(sizes)))
    assert [task.dataset for task in stream] == sorted((task.dataset or "" for task in stream), reverse=True)


def test_a_set_is_as_it_is_alone(sets: list[Path]) -> None:
    """The same images, drawn and ordered alike."""
    asked = {"train_per_class": 2, "test_per_class": 1, "split_seed": 3, "test_fraction": 0.5, "tasks": 2}
    for seed in (1993, 7, None):
        together = load_stream(datasets=sets, order_seed=seed, **asked)  # type: ignore[arg-type]
        for at, folder in enumerate(sets):
            alone = load_stream(folder, order_seed=seed, **asked)  # type: ignore[arg-type]
            for task in alone:
                other = together[2 * at + task.index]
                assert np.array_equal(other.train.keys, task.train.keys)
                assert np.array_equal(together.test(other.index).keys, alone.test(task.index).keys)
                assert other.classes == tuple(c + 3 * at for c in task.classes)


def test_rule_and_fingerprint_tell_the_sets(sets: list[Path], tmp_path: Path) -> None:
    stream = load_stream(datasets=sets, order_seed=None, tasks=2)
    assert stream.rule == {
        "scenario": "class",
        "datasets": [["zoo", [(0, 1), (2,)]], ["farm", [(3,), (4,)]]],
    }
    assert load_stream(datasets=sets, order_seed=None, tasks=2).fingerprint == stream.fingerprint
    (tmp_path / "farm").rename(tmp_path / "ranch")
    other = load_stream(datasets=[sets[0], tmp_path / "ranch"], order_seed=None, tasks=2)
    assert other.fingerprint != stream.fingerprint
    assert names(other)[2:] == [["ranch/cow"], ["ranch/emu"]]


def test_what_is_wrong_in_a_set_is_told_of_it(sets: list[Path]) -> None:
    for folder in sets:
        (folder / "emu" / "bad.png").touch()
        (folder / "emu" / "drawing.svg").touch()
    fill(sets[0], zebra=1)
    (sets[0] / "zebra" / "000.png").write_bytes((sets[0] / "zebu" / "000.png").read_bytes())
    with pytest.raises(DataError, match=r"bad\.png"):
        load_stream(datasets=sets)
    stream = load_stream(datasets=sets, skip_corrupt=True)
    assert stream.quarantined == tuple(f"{folder / 'emu' / 'bad.png'}: empty file" for folder in sets)
    assert [told.split(": ")[0] for told in stream.unread] == [str(folder / "emu" / "drawing.svg") for folder in sets]
    (note,) = stream.notes
    assert note.startswith("zoo: 1 images are in several classes (zebra, zebu)")


def test_every_folder_is_read_by_the_range_that_is_asked_for(sets: list[Path]) -> None:
    stream = load_stream(datasets=sets, value_range=(0, 9))
    assert [task.train.reading.value_range for task in stream] == [(0, 9)] * 2


def test_registered_sets_and_folders_stand_side_by_side(sets: list[Path]) -> None:
    stream = load_stream(datasets=["synthetic", str(sets[1])], train_per_class=3)
    assert [task.dataset for task in stream] == ["synthetic", "farm"]
    assert set(names(stream)[0]) == {f"synthetic/pattern {i}" for i in range(6)}
    assert stream[1].classes in ((6, 7), (7, 6))
    assert [len(task.train) for task in stream] == [18, 6]


def test_ids_are_numbered_on_whatever_a_set_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = synthetic_dataset([-5, 2**40, 7], train_per_class=2)
    monkeypatch.setattr("perdure.data.loading.load_dataset", lambda data, **_: odd)
    stream = load_stream(datasets=["synthetic", "digits"], order_seed=None)
    assert [task.classes for task in stream] == [(0, 1, 2), (3, 4, 5)]
    assert names(stream)[1] == ["digits/pattern -5", "digits/pattern 7", f"digits/pattern {2**40}"]
    assert stream[1].train.labels.tolist() == [3, 3, 5, 5, 4, 4]
    assert stream.test(0).classes == (0, 1, 2)


def test_short_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fill(tmp_path / "farm", cow=1))
    assert [
        short_name(each) for each in ("cifar10", tmp_path / "farm", str(tmp_path / "farm") + os.sep, ".", "cow/..")
    ] == [*("cifar10", "farm", "farm", "farm", "farm")]
    assert short_name("no/such/cafe\u0301") == "caf\xe9"

    @datasets.register("tests-flowers", "tests-blossoms")
    def flowers() -> Dataset:
        """Never loaded."""
        raise AssertionError

    try:
        assert [short_name(f"tests-{each}") for each in ("flowers", "blossoms")] == ["tests-flowers"] * 2
    finally:
        for each in ("tests-flowers", "tests-blossoms"):
            del datasets._things[each]
        del datasets._aliases["tests-blossoms"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({}, r"data must be given, or datasets, and not both, but got \{'data': None, 'datasets': None\}"),
        ({"data": "digits", "datasets": ["synthetic"]}, r"not both, but got \{'data': 'digits', 'datasets': \['synth"),
        ({"datasets": "digits"}, r"datasets must be a list of data sets, but got 'digits'"),
        ({"datasets": []}, r"datasets must be a list of data sets, but got \[\]"),
        ({"datasets": ["digits", "digits"]}, r"datasets must be of different names .*\n    digits\n    digits\n"),
        ({"datasets": ["synthetic", "a/x", "b/x"]}, r"of different names .*\n    a/x\n    b/x\n"),
        ({"datasets": ["digits"], "tasks": 11}, r"^stream, digits: tasks must be .* \(10\), but got 11"),
        ({"datasets": ["digits"], "base": 11, "increment": 1}, r"^stream, digits: base must be .* but got 11"),
        ({"datasets": ["digits"], "tasks": 2, "increment": 5}, r"^stream, digits: split must be .*'increment': 5"),
        ({"datasets": ["digits"], "train_per_class": 0}, "train_per_class must be at least 1, but got 0"),
    ],
)
def test_what_does_not_fit_is_refused(asked: dict[str, Any], told: str) -> None:
    with pytest.raises(SplitError, match=told):
        load_stream(**asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"sizes": [3, 7]}, {"class_order": [1, 0]}, {"scenario": "domain"}, {"domain_order": ["day"]},
        {"aliases": "names.txt"},
    ],
)  # fmt: skip
def test_what_is_of_one_set_is_refused_with_the_way_to_go(asked: dict[str, Any]) -> None:
    with pytest.raises(SplitError, match=r"keys of one data set must be absent with datasets, but got \{") as caught:
        load_stream(datasets=["digits"], **asked)
    assert f"{asked}. Remove them: tasks, or base and increment, are of each set" in str(caught.value)


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(UnknownNameError, match=r"'digitz'.*Did you mean 'digits'"):
        load_stream(datasets=["synthetic", "digitz"])


@pytest.fixture(scope="module")
def vit() -> Backbone:
    """64 px, a millisecond per image."""
    return small_vit()


@pytest.fixture
def method(vit: Backbone, store: FeatureStore, sets: list[Path]) -> SimpleCIL:
    """Taught the first of two sets."""
    return SimpleCIL(vit, store=store).fit_task(load_stream(datasets=sets[:1], order_seed=None)[0])


def test_a_stream_of_sets_goes_on_from_a_method(method: SimpleCIL, sets: list[Path], tmp_path: Path) -> None:
    fill(sets[0], ant=5)
    third = fill(tmp_path / "sea", seal=5)
    stream = load_stream(datasets=[*sets, third], known=method, order_seed=None)
    assert names(stream) == [["zoo/ant"], ["farm/cow", "farm/emu"], ["sea/seal"]]
    ids = [c for task in stream for c in task.classes]
    assert len({*ids, *method.classes_}) == 7
    assert [task.index for task in stream] == [1, 2, 3]
    for task in stream:
        method.fit_task(task)
    assert method.class_names == {0: "zoo/emu", 1: "zoo/llama_glama", 2: "zoo/zebu"} | stream.class_names
    assert method.displays_ == ["emu", "llama glama", "zebu", "ant", "cow", "emu", "seal"]
    with pytest.raises(SplitError, match=r"(?s)classes that the method does not know.*zoo\n.*farm"):
        load_stream(datasets=sets, known=method)


def test_a_set_that_comes_alone_to_a_method_of_several_is_told(method: SimpleCIL, sets: list[Path]) -> None:
    with pytest.raises(SplitError, match=r"(?s)zebu \(4 of 4\).*called SET/CLASS: give datasets=\[SET\]"):
        load_stream(sets[0], known=method)
    again = load_stream(datasets=[sets[0]], known=SimpleCIL(method.backbone, store=method.store))
    assert len(again[0].classes) == 3


def test_a_class_with_its_sets_name_is_renamed(method: SimpleCIL) -> None:
    method.rename_class("zoo/llama_glama", "zoo/lama_glama")
    assert (method.names_[1], method.displays_[1]) == ("zoo/lama_glama", "lama glama")
    method.rename_class("zoo/lama_glama", "farm/llama")  # another set's: a whole name
    assert (method.names_[1], method.displays_[1]) == ("farm/llama", "farm/llama")
    method.rename_class("zoo/zebu", "zebu")
    assert method.displays_ == ["emu", "farm/llama", "zebu"]


def test_predictions_are_told_by_name(method: SimpleCIL, sets: list[Path]) -> None:
    method.fit_task(load_stream(datasets=sets, order_seed=None)[1])
    tests = load_stream(datasets=sets, order_seed=None).test(1)
    assert set(method.predict_names(tests)) <= set(method.names_)
    shown = method.predict_names(tests, display=True)
    assert shown == [name.partition("/")[2] for name in method.predict_names(tests)]
