"""Streams that go on from a method: what is new to it, under its ids, behind its tasks."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from perdure import Backbone, FeatureStore, Stream, load_stream
from perdure.backbone.tiny import small_vit
from perdure.data import LabelledImages
from perdure.errors import ConfigError, DataNotFoundError, SplitError, UnknownNameError
from perdure.methods.simplecil import SimpleCIL
from small_folders import fill, fill_named


@pytest.fixture(scope="module")
def vit() -> Backbone:
    """64 px, a millisecond per image."""
    return small_vit()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten images each of two classes; two of them are held out."""
    return fill(tmp_path / "data", emu=10, llama=10)


@pytest.fixture
def method(vit: Backbone, store: FeatureStore, data: Path) -> SimpleCIL:
    """Taught what there is, in one task."""
    return SimpleCIL(vit, store=store).fit_task(load_stream(data, tasks=1, order_seed=None)[0])


def counts(stream: Stream) -> list[dict[str, tuple[int, int]]]:
    """Training and test images by name, task by task."""

    def n(images: LabelledImages, c: int) -> int:
        return int((images.labels == c).sum())

    return [
        {name: (n(task.train, c), n(stream.test(task.index), c)) for c, name in task.class_names.items()}
        for task in stream
    ]


def test_only_new_classes_come_in_one_task_that_has_the_next_index(method: SimpleCIL, data: Path) -> None:
    fill(data, anchor=10, zebu=5)
    stream = load_stream(data, known=method)
    assert counts(stream) == [{"anchor": (8, 2), "zebu": (4, 1)}]
    assert (stream.first, [task.index for task in stream]) == (1, [1])
    assert stream.class_names == {2: "anchor", 3: "zebu"}
    assert stream.display_names == {2: "anchor", 3: "zebu"}
    assert len(stream.test(1)) == 3


@pytest.mark.parametrize(
    ("cut", "names"),
    [
        ({"tasks": 2, "order_seed": None}, [["anchor", "bat"], ["cow"]]),
        ({"sizes": [1, 2], "order_seed": None}, [["anchor"], ["bat", "cow"]]),
        ({"base": 1, "increment": 1, "order_seed": None}, [["anchor"], ["bat"], ["cow"]]),
        ({"class_order": ["cow", "anchor", "bat"]}, [["cow", "anchor", "bat"]]),
        ({"class_order": ["cow", "anchor", "bat"], "increment": 2}, [["cow", "anchor"], ["bat"]]),
        ({"order_seed": 0}, [["cow", "bat", "anchor"]]),
    ],
)
def test_new_classes_are_cut_and_ordered_as_any(
    cut: dict[str, Any], names: list[list[str]], method: SimpleCIL, data: Path
) -> None:
    stream = load_stream(fill(data, cow=3, bat=3, anchor=3), known=method, **cut)
    assert [list(task.class_names[c] for c in task.classes) for task in stream] == names
    assert [task.index for task in stream] == list(range(1, 1 + len(names)))
    for task in stream:
        method.fit_task(task)
    assert method.names_[2:] == [name for each in names for name in each]


@pytest.mark.parametrize("tasks", [0, 2, 7])
def test_more_tasks_than_new_classes_are_refused(tasks: int, method: SimpleCIL, data: Path) -> None:
    with pytest.raises(SplitError, match=rf"tasks must be between 1 and the number of classes \(1\), but got {tasks}"):
        load_stream(fill(data, anchor=3), known=method, tasks=tasks)


def test_an_order_that_names_known_classes_is_refused(method: SimpleCIL, data: Path) -> None:
    with pytest.raises(SplitError, match="'emu'"):
        load_stream(fill(data, anchor=3), known=method, class_order=["anchor", "emu", "llama"])


def test_images_of_known_classes_come_if_they_were_not_taught(method: SimpleCIL, data: Path) -> None:
    fill(data, emu=16, anchor=5)
    stream = load_stream(data, known=method, include_known=True)
    (task,) = stream
    taught = set(method.taught_keys.tolist())
    assert not taught & {*task.train.keys.tolist(), *stream.test(1).keys.tolist()}
    found = counts(stream)[0]
    assert found["anchor"] == (4, 1)
    assert sum(found["emu"]) <= 8
    assert found["emu"][0] >= 3
    seen = {*task.train.keys.tolist(), *stream.test(1).keys.tolist()}
    everything = load_stream(data, tasks=1)
    assert seen | taught >= set(everything[0].train.of_classes([1]).keys.tolist())
    assert task.class_names == {0: "emu", 2: "anchor"} | ({1: "llama"} if "llama" in found else {})
    method.fit_task(task)
    assert method.names_ == ["emu", "llama", "anchor"]
    assert method.n_taught_ == len(taught) + len(task.train)


def test_a_test_part_that_was_held_out_is_tested_again(vit: Backbone, store: FeatureStore, tmp_path: Path) -> None:
    """With ``train`` and ``test`` folders nothing is split anew: the same test images, and the new training images."""
    root = tmp_path / "parts"
    fill(root / "train", emu=4)
    fill_named(root / "test", {"emu": 3}, salt="t")
    method = SimpleCIL(vit, store=store).fit_task(load_stream(root, tasks=1)[0])
    fill(root / "train", emu=6)
    assert counts(load_stream(root, known=method, include_known=True)) == [{"emu": (2, 3)}]
    shutil.copy(root / "train" / "emu" / "000.png", root / "test" / "emu" / "copy.png")
    assert counts(load_stream(root, known=method, include_known=True)) == [{"emu": (2, 3)}]


def test_nothing_new_is_told_with_what_there_is(method: SimpleCIL, data: Path) -> None:
    told = r"data must be with classes that the method does not know, but got '.*data'\. {}"
    more = "4 new images are of known classes: include_known=True takes them"
    with pytest.raises(SplitError, match=told.format(".* new images? (is|are) of known classes|Add some")):
        load_stream(data, known=method)
    root = data.parent / "parts"
    for name in ("emu", "llama"):
        shutil.copytree(data / name, root / "train" / name)
    fill_named(root / "test", {"emu": 1}, salt="t")
    method.fit_task(load_stream(root, known=method, include_known=True)[0])
    told = told.replace("data'", "parts'")
    with pytest.raises(SplitError, match=told.format("Add some")):
        load_stream(root, known=method)
    with pytest.raises(SplitError, match=r"with new classes or images, but got '.*parts'\. Add some\."):
        load_stream(root, known=method, include_known=True)
    fill_named(root / "train", {"emu": 4}, salt="more")
    with pytest.raises(SplitError, match=told.format(more)):
        load_stream(root, known=method)


def test_a_renamed_folder_is_no_new_class(method: SimpleCIL, data: Path) -> None:
    (data / "llama").rename(data / "lama")
    fill(data, anchor=5)
    told = r"not taught under another name \(these were\), but got \['lama \(\d+ of \d+\)'\]\. .*method\.rename_class\("
    options: list[dict[str, Any]] = [{}, {"include_known": True}, {"test_fraction": 0.0}]
    for each in options:
        with pytest.raises(SplitError, match=told):
            load_stream(data, known=method, **each)


def test_a_new_class_may_hold_an_image_of_a_known_one(method: SimpleCIL, data: Path) -> None:
    fill(data, anchor=4)
    shutil.copy(data / "emu" / "000.png", data / "anchor" / "copy.png")
    assert counts(load_stream(data, known=method, test_fraction=0.0)) == [{"anchor": (5, 0)}]


def test_few_images_of_a_class_are_few_of_the_new_ones(method: SimpleCIL, data: Path) -> None:
    fill(data, emu=14, anchor=9)
    found = counts(load_stream(data, known=method, include_known=True, train_per_class=3, test_per_class=1))[0]
    assert found["emu"] == (3, 1)
    assert found["anchor"] == (3, 1)
    alone = load_stream(data, known=method, train_per_class=3)[0]
    fresh = load_stream(data, tasks=3, class_order=["anchor", "emu", "llama"], train_per_class=3)[0]
    assert alone.train.keys.tolist() == fresh.train.keys.tolist()


def test_a_new_domain_brings_known_classes_only_when_asked(vit: Backbone, store: FeatureStore, tmp_path: Path) -> None:
    root = tmp_path / "domains"
    fill_named(root / "day", {"emu": 5, "llama": 5}, salt="day")
    method = SimpleCIL(vit, store=store)
    for task in load_stream(root, scenario="domain"):
        method.fit_task(task)
    fill_named(root / "dusk", {"emu": 5, "llama": 5, "ant": 5}, salt="dusk")
    stream = load_stream(root, scenario="domain", known=method, include_known=True, test_fraction=0.0)
    assert [(task.index, task.domain) for task in stream if task.domain == "dusk"] == [(2, "dusk")]
    assert stream[-1].class_names == {0: "emu", 1: "llama", 2: "ant"}
    new = load_stream(root, scenario="domain", known=method)
    assert counts(new) == [{"ant": (4, 1)}]
    assert [(task.index, task.domain, task.classes) for task in new] == [(1, "dusk", (2,))]
    for task in stream:
        method.fit_task(task)
    with pytest.raises(SplitError, match="with new classes or images, but got"):
        load_stream(root, scenario="domain", known=method, include_known=True, test_fraction=0.0)


def test_a_method_of_domains_goes_on_with_classes(vit: Backbone, store: FeatureStore, tmp_path: Path) -> None:
    fill_named(tmp_path / "domains" / "day", {"emu": 5, "llama": 5})
    method = SimpleCIL(vit, store=store).fit_task(load_stream(tmp_path / "domains", scenario="domain")[0])
    method.fit_task(load_stream(fill(tmp_path / "classes", ant=5, llama=5), known=method)[0])
    assert method.class_names == {0: "emu", 1: "llama", 2: "ant"}


def test_a_named_data_set_goes_on_too(vit: Backbone, store: FeatureStore, data: Path) -> None:
    method = SimpleCIL(vit, store=store).fit_task(load_stream(data, tasks=1)[0])
    stream = load_stream("synthetic", known=method, tasks=3)
    assert stream.class_names == {2 + i: f"pattern {i}" for i in range(6)}
    for task in stream:
        method.fit_task(task)
    with pytest.raises(SplitError, match=r"but got 'synthetic'\. Add some"):
        load_stream("synthetic", known=method)


def test_the_range_of_deep_images_goes_on(vit: Backbone, store: FeatureStore, tmp_path: Path) -> None:
    def deep(name: str, value: int) -> None:
        (tmp_path / "deep" / name).mkdir(parents=True)
        for i in range(3):
            Image.fromarray(np.full((8, 8), value + i, dtype=np.uint16)).save(tmp_path / "deep" / name / f"{i}.png")

    deep("ant", 1000)
    method = SimpleCIL(vit, store=store)
    method.fit_task(load_stream(tmp_path / "deep", tasks=1, value_range=(0, 4095))[0])
    deep("bat", 2000)
    task = load_stream(tmp_path / "deep", known=method)[0]
    assert task.train.reading.value_range == (0, 4095)
    assert method.fit_task(task).reading.value_range == (0, 4095)
    for given in ((), np.array([0, 4095])):
        with pytest.raises(ConfigError, match="value_range must be two finite numbers"):
            load_stream(tmp_path / "deep", known=method, value_range=given)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", [str, Path, lambda p: f"{p}/", lambda p: os.path.relpath(p), lambda p: f"~/{p.name}"])
def test_a_folder_may_be_given_in_any_way(
    way: Any, method: SimpleCIL, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(data, anchor=5)
    monkeypatch.setenv("HOME", str(data.parent))
    monkeypatch.chdir(data.parent)
    assert counts(load_stream(way(data), known=method)) == [{"anchor": (4, 1)}]


def test_links_are_folders_like_others(method: SimpleCIL, data: Path, tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere", anchor=5)
    (data / "anchor").symlink_to(tmp_path / "elsewhere" / "anchor")
    (tmp_path / "link").symlink_to(data)
    assert counts(load_stream(tmp_path / "link", known=method)) == [{"anchor": (4, 1)}]


def test_names_of_any_script_and_aliases_for_all_classes_there_are(method: SimpleCIL, data: Path) -> None:
    fill_named(data, {"ラマ 🦙": 5, "n02085620-Chihuahua": 5})
    (data.parent / "names.yaml").write_text("emu: Emu!\nラマ 🦙: Lama\n", encoding="utf-8")
    stream = load_stream(data, known=method, aliases=data.parent / "names.yaml")
    assert set(stream.class_names.values()) == {"ラマ 🦙", "n02085620-Chihuahua"}
    assert set(stream.display_names.values()) == {"Lama", "Chihuahua"}
    (data.parent / "names.yaml").write_text("ema: Emu!\n", encoding="utf-8")
    with pytest.raises(UnknownNameError, match="'ema'"):
        load_stream(data, known=method, aliases=data.parent / "names.yaml")


@pytest.mark.parametrize("bad", ["a stream", "a class", "a path"])
def test_what_is_no_method_is_refused(bad: str, data: Path) -> None:
    known: Any = {"a stream": load_stream(data, tasks=1), "a class": SimpleCIL, "a path": data}[bad]
    with pytest.raises(SplitError, match=f"known must be a method, but got '{type(known).__name__}'"):
        load_stream(data, known=known)


def test_a_missing_folder_is_named(method: SimpleCIL, tmp_path: Path) -> None:
    with pytest.raises((DataNotFoundError, UnknownNameError), match="gone"):
        load_stream(tmp_path / "gone", known=method)


def test_include_known_is_refused_without_a_method() -> None:
    with pytest.raises(SplitError, match="include_known must be left out without known, but got True"):
        load_stream("synthetic", tasks=2, include_known=True)


def test_images_in_several_classes_are_told(tmp_path: Path) -> None:
    data = fill(tmp_path / "data", emu=3, llama=3)
    shutil.copy(data / "emu" / "000.png", data / "llama" / "copy.png")
    (note,) = load_stream(data, tasks=1).notes
    assert note == "1 images are in several classes (emu, llama), so some labels are wrong: see perdure data check"
    for i in range(12):
        (data / f"c{i}").mkdir()
        shutil.copy(data / "emu" / "000.png", data / f"c{i}")
    (note,) = load_stream(data, tasks=1, test_fraction=0).notes
    assert "(c0, c1, c10, c11, c2, c3, c4, c5, c6, c7 and 4 more)" in note


def test_a_refusal_shows_a_name_that_is_not_utf8(method: SimpleCIL, data: Path, tmp_path: Path) -> None:
    other = data.rename(tmp_path / os.fsdecode(b"caf\xe9"))
    with pytest.raises(SplitError, match=r"caf\\\\xe9'"):
        load_stream(other, known=method)
    with pytest.raises(UnknownNameError, match=r"'th\\\\xe9'"):
        load_stream(os.fsdecode(b"th\xe9"), known=method)
