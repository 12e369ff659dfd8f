"""A class is its name: what a method knows of its classes, tasks and images, and what it refuses to mix up."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perdure import Backbone, FeatureStore, Task, load_stream, methods
from perdure.backbone.tiny import small_vit
from perdure.checks.subject import CLASS_IDS, small_stream
from perdure.data import ArraySource, LabelledImages
from perdure.data.reading import Reading
from perdure.errors import CheckpointError, ConfigError, SplitError, StreamError, UnknownNameError
from perdure.methods import Method
from perdure.methods.simplecil import SimpleCIL
from small_folders import fill, fill_named


@pytest.fixture(scope="module")
def vit() -> Backbone:
    """64 px, a millisecond per image."""
    return small_vit()


@pytest.fixture
def method(vit: Backbone, store: FeatureStore) -> SimpleCIL:
    return SimpleCIL(vit, store=store)


def some(labels: list[int], seed: int = 0) -> LabelledImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (len(labels), 8, 8, 3), dtype=np.uint8)
    return LabelledImages(ArraySource(pixels, "some"), np.array(labels))


def task(index: int, names: Mapping[int, str], seed: int | None = None, **more: Any) -> Task:
    return Task(index, some(list(names), index if seed is None else seed), tuple(names), class_names=names, **more)


def nameless(index: int, *classes: int) -> Task:
    return Task(index, some(list(classes), index), classes)


def test_a_class_that_appears_does_not_move_the_ones_that_are_known(
    method: SimpleCIL, store: FeatureStore, tmp_path: Path
) -> None:
    """The whole of a new user's story: a fifth folder, which sorts before the others."""
    data = fill(tmp_path / "data", emu=10, llama=10, okapi=10, panda=10)
    first = load_stream(data, tasks=2)
    for each in first:
        method.fit_task(each)
    tests = first.test(0).joined(first.test(1))
    before, guesses = method.scores(tests), method.predict(tests)
    ids = method.class_names
    fill(data, anchor=10)

    state, afresh = method.state_dict(), load_stream(data, tasks=5, order_seed=None)
    told = r"task\.index must be 2 \(the next unseen task\), but got 4\. .*load_stream\(data, known=method\)"
    with pytest.raises(StreamError, match=told):
        method.fit_task(afresh[-1])
    with pytest.raises(StreamError, match=r"name of class \d must be '\w+', as it was taught, but got '\w+'.*known="):
        method.fit_task(afresh[2])  # the third task, as it should be, of a stream that numbers classes anew
    assert method.state_dict().keys() == state.keys()
    assert all(value is state[key] for key, value in method.state_dict().items())

    more = load_stream(data, known=method)
    assert (len(more), more.first, more[0].index) == (1, 2, 2)
    assert more[0].classes == (4,)
    assert more[0].class_names == more.class_names == {4: "anchor"}
    method.fit_task(more[0])
    after, now = method.scores(tests), method.predict(tests)
    assert torch.equal(after[:, :4], before)
    assert {**ids, 4: "anchor"} == method.class_names
    changed = now != guesses
    assert set(now[changed].tolist()) <= {4}
    assert method.predict_names(more.test(2)) == [method.class_names[int(c)] for c in method.predict(more.test(2))]


def test_a_folder_of_the_new_class_alone_does_not_merge_into_the_first(method: SimpleCIL, tmp_path: Path) -> None:
    for each in load_stream(fill(tmp_path / "data", emu=6, llama=6), tasks=1):
        method.fit_task(each)
    weights = method.scores(load_stream(tmp_path / "data", tasks=1).test(0))
    alone = fill(tmp_path / "new", anchor=6)
    with pytest.raises(StreamError, match=r"task\.index must be 1 \(.*\), but got 0"):
        method.fit_task(load_stream(alone, tasks=1)[0])
    for each in load_stream(alone, known=method):
        method.fit_task(each)
    assert method.class_names == {0: "emu", 1: "llama", 2: "anchor"}
    assert torch.equal(method.scores(load_stream(tmp_path / "data", tasks=1).test(0))[:, :2], weights)


@pytest.mark.parametrize("name", ["simplecil", "ranpac"])
@pytest.mark.parametrize("arrivals", [("ant", "bee", "cow", "dog"), ("dog", "ant", "cow", "bee")])
def test_a_stream_that_is_continued_is_the_one_known_in_advance(
    name: str, arrivals: tuple[str, ...], vit: Backbone, store: FeatureStore, tmp_path: Path
) -> None:
    kind = methods.get(name)
    settings = dict(kind.tags.small)
    whole = kind(vit, settings, store=store)
    for each in load_stream(fill(tmp_path / "whole", ant=6, bee=6, cow=6, dog=6), sizes=[1] * 4, class_order=arrivals):
        whole.fit_task(each)
    grown = kind(vit, settings, store=store)
    for arrived in arrivals:
        for each in load_stream(fill(tmp_path / "grown", **{arrived: 6}), known=grown):
            grown.fit_task(each)
    assert grown.names_ == whole.names_ == list(arrivals)
    assert grown.classes_ == [0, 1, 2, 3]
    tests = load_stream(tmp_path / "whole", tasks=1).test(0)
    assert torch.equal(grown.scores(tests), whole.scores(tests))
    assert grown.predict_names(tests) == whole.predict_names(tests)


@pytest.mark.parametrize(
    ("second", "told"),
    [
        ({7: "dog"}, "name of class 7 must be 'cat', as it was taught, but got 'dog'"),
        ({8: "cat"}, "id of class 'cat' must be 7, as it was taught, but got 8"),
        ({-4: "cat"}, "id of class 'cat' must be 7, as it was taught, but got -4"),
        ({7: "eel", -3: "cat"}, "name of class 7 must be 'cat', as it was taught, but got 'eel'"),
        ({9: "ox", 7: "Cat"}, "name of class 7 must be 'cat', as it was taught, but got 'Cat'"),
    ],
)
def test_another_name_or_another_id_is_refused(second: dict[int, str], told: str, method: SimpleCIL) -> None:
    method.fit_task(task(0, {7: "cat", -3: "eel"}))
    before = method.state_dict()
    with pytest.raises(StreamError, match=told) as error:
        method.fit_task(task(1, second))
    assert "load_stream(data, known=method) numbers new ones on from those known" in str(error.value)
    assert all(method.state_dict()[key] is before[key] for key in before)


def test_a_known_class_comes_again_beside_a_new_one(method: SimpleCIL) -> None:
    method.fit_task(task(0, {7: "cat"})).fit_task(task(1, {2**40: "猫 🐈", 7: "cat"}))
    assert method.class_names == {7: "cat", 2**40: "猫 🐈"}
    assert (method.names_, method.classes_, method.tasks_seen_) == (["cat", "猫 🐈"], [7, 2**40], 2)


def test_a_task_without_names_is_called_by_ids(method: SimpleCIL) -> None:
    method.fit_task(nameless(0, *CLASS_IDS[:2])).fit_task(nameless(1, -7, 42))
    assert method.class_names == {100: "100", -7: "-7", 42: "42"}
    assert method.unnamed == {100, -7, 42}
    images = some([1, 2, 3])
    assert method.predict_names(images) == [str(c) for c in method.predict(images).tolist()]
    assert method.predict_names(images, display=True) == method.predict_names(images)
    with pytest.raises(StreamError, match="name of class 42 must be '42', as it was taught, but got 'cow'"):
        method.fit_task(task(2, {42: "cow"}))


def test_a_task_without_names_brings_known_classes_again(method: SimpleCIL) -> None:
    method.fit_task(task(0, {7: "cat"})).fit_task(nameless(1, 7, 8))
    assert method.class_names == {7: "cat", 8: "8"}
    assert method.unnamed == {8}
    with pytest.raises(StreamError, match="id of class '8' must be 8, as it was taught, but got 9"):
        method.fit_task(task(2, {9: "8"}))


def test_numbers_of_numpy_are_ids_too(method: SimpleCIL, vit: Backbone, store: FeatureStore) -> None:
    names = {np.int64(c): np.str_(f"n{c}") for c in (3, 5)}
    method.fit_task(Task(0, some([5, 3]), tuple(np.array([5, 3])), class_names=names))
    assert [type(c) for c in method.classes_] == [int, int]
    assert [type(name) for name in method.names_] == [str, str]
    again = SimpleCIL(vit, store=store).load_state_dict(method.state_dict())
    assert again.class_names == {5: "n5", 3: "n3"}


def test_names_are_part_of_the_state(method: SimpleCIL, vit: Backbone, store: FeatureStore) -> None:
    method.fit_task(task(0, {7: "cat", 5: "ox_1"}, display_names={7: "Cat!", 5: "ox 1"}))
    again = SimpleCIL(vit, store=store).load_state_dict(method.state_dict())
    assert again.class_names == {7: "cat", 5: "ox_1"}
    assert again.displays_ == ["Cat!", "ox 1"]
    assert again.unnamed == frozenset()
    assert np.array_equal(again.taught_keys, method.taught_keys)
    with pytest.raises(StreamError, match="name of class 7"):
        again.fit_task(task(1, {7: "dog"}))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("names_", ["cat", "cat"], r"names_ must be distinct, but got \s+cat\s+cat"),
        ("names_", ["cat", 5], "names_ must be a list of texts"),
        ("displays_", ["cat"], r"displays_ must be a list of texts, \(classes\) = \(2\)"),
        (
            "taught_",
            torch.zeros(1, 16, dtype=torch.uint8),
            r"taught_ must be uint8 of shape \(taught, 16\) = \(2, 16\)",
        ),
        ("origin_", "another", "a hash of the backbone .* must be as here: '.*', but got 'another'"),
    ],
)
def test_a_state_with_other_names_or_images_is_refused(
    key: str, value: object, told: str, method: SimpleCIL, vit: Backbone, store: FeatureStore
) -> None:
    state = method.fit_task(task(0, {7: "cat", 5: "ox"})).state_dict()
    with pytest.raises(CheckpointError, match=told):
        SimpleCIL(vit, store=store).load_state_dict({**state, key: value})


def test_names_for_people_come_from_the_alias_file(method: SimpleCIL, tmp_path: Path) -> None:
    data = fill_named(tmp_path / "data", {"emu_bird": 6, "n02085620-Chihuahua": 6, "ラマ": 6})
    (tmp_path / "names.csv").write_text("ラマ,Llama (ラマ)\n", encoding="utf-8")
    stream = load_stream(data, tasks=1, aliases=tmp_path / "names.csv")
    method.fit_task(stream[0])
    shown = {"emu_bird": "emu bird", "n02085620-Chihuahua": "Chihuahua", "ラマ": "Llama (ラマ)"}
    assert dict(zip(method.names_, method.displays_, strict=True)) == shown
    names = method.predict_names(stream.test(0))
    assert method.predict_names(stream.test(0), display=True) == [shown[name] for name in names]
    files = [stream.test(0).name(i) for i in range(3)]
    assert method.predict_names(files) == method.predict_names([Path(f) for f in files]) == names[:3]
    assert method.predict_names(files[0]) == names[:1]


def test_images_are_known_by_their_content_each_once(method: SimpleCIL) -> None:
    first = some([1, 2])
    twice = LabelledImages(first.source, np.array([1, 2, 1, 2]), np.array([1, 0, 1, 0]))
    assert method.taught_keys.shape == (0,)
    method.fit_task(Task(0, twice, (1, 2)))
    assert method.taught_keys.tolist() == first.keys[[1, 0]].tolist()
    assert (method.n_taught_, method.taught_.shape, method.taught_.dtype) == (2, (2, 16), torch.uint8)
    method.fit_task(Task(1, first.joined(some([3], seed=5)), (1, 2, 3)))
    assert method.n_taught_ == 3
    assert method.taught_keys[2] == some([3], seed=5).keys[0]


def test_a_key_that_ends_in_zeros_is_found_again(method: SimpleCIL) -> None:
    class Zeros:
        keys = np.array([b"a" * 15 + b"\0", b"b" * 3], dtype="S16")

        def __getattr__(self, name: str) -> Any:
            return getattr(some([1, 2]).source, name)

    method.fit_task(Task(0, LabelledImages(Zeros(), np.array([1, 2])), (1, 2)))
    assert method.taught_keys.tolist() == [b"a" * 15, b"b" * 3]
    method.fit_task(Task(1, LabelledImages(Zeros(), np.array([1, 2])), (1, 2)))
    assert method.n_taught_ == 2


@pytest.mark.parametrize("stop", [ValueError("no"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["_learn", "_count", "_lay_out"])
def test_a_task_that_stops_leaves_names_and_images_as_they_were(
    stop: BaseException, where: str, method: SimpleCIL, monkeypatch: pytest.MonkeyPatch
) -> None:
    method.fit_task(task(0, {7: "cat"}))
    before = method.state_dict()

    def stops(*args: object) -> None:
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(SimpleCIL, where, stops)
        with pytest.raises(type(stop)):
            method.fit_task(task(1, {8: "dog"}))
    assert all(method.state_dict()[key] is before[key] for key in before)
    assert method.fit_task(task(1, {8: "dog"})).names_ == ["cat", "dog"]


def test_a_plug_in_that_overrides_nothing_keeps_names(vit: Backbone, store: FeatureStore) -> None:
    class Mine(SimpleCIL):
        pass

    method: Method[Any] = Mine(vit, store=store).fit_task(task(0, {7: "cat"}))
    assert method.class_names == {7: "cat"}


def test_images_of_another_value_range_are_refused(method: SimpleCIL) -> None:
    def deep(index: int, value_range: tuple[float, float] | None) -> Task:
        images = some([index], index)
        images.source.reading = Reading(value_range)  # type: ignore[attr-defined]
        return Task(index, images, (index,))

    method.fit_task(deep(0, (0, 4095))).fit_task(Task(1, some([1], 1), (1,)))  # what is in memory is RGB already
    for other, told in (((0, 1023), r"\(0.*, 1023.*\)"), (None, "None")):
        with pytest.raises(StreamError, match=rf"task's images must be \(0.*, 4095.*\), as .*, but got {told}"):
            method.fit_task(deep(2, other))
        for ask in (method.predict, method.scores, lambda data: list(method.scores_of(data))):
            with pytest.raises(StreamError, match=rf"value_range of the images must be .*, but got {told}"):
                ask(deep(2, other).train)
    assert method.reading.value_range == (0, 4095)
    assert len(method.predict(deep(2, (0, 4095)).train)) == 1


def test_columns_of_ids_in_any_order(method: SimpleCIL) -> None:
    for each in small_stream():
        method.fit_task(each)
    assert method.columns(np.array([13, 100, 2**40, -7])).tolist() == [5, 0, 4, 1]
    assert method.names_ == [f"pattern {c}" for c in CLASS_IDS]


def test_a_class_may_be_given_another_name(method: SimpleCIL, store: FeatureStore, tmp_path: Path) -> None:
    data = fill(tmp_path / "data", emu=5, giant_panda=5)
    method.fit_task(load_stream(data, tasks=1)[0])
    tests, state = load_stream(data, tasks=1).test(0), method.state_dict()
    scores, ids = method.scores(tests), method.classes_
    (data / "emu").rename(data / "great_emu")
    with pytest.raises(SplitError, match=r"rename_class\(OLD, NEW\)"):
        load_stream(data, known=method)
    method.rename_class("emu", "great_emu")
    assert sorted(method.names_) == ["giant_panda", "great_emu"]
    assert sorted(method.displays_) == ["giant panda", "great emu"]
    assert method.classes_ == ids
    assert torch.equal(method.scores(tests), scores)
    assert state["names_"] != method.names_
    with pytest.raises(SplitError, match="does not know"):
        load_stream(data, known=method)
    with pytest.raises(UnknownNameError, match=r"a class's name, but got 'emu'\. Known: giant_panda, great_emu"):
        method.rename_class("emu", "ostrich")
    for new in ("giant_panda", ""):
        with pytest.raises(ConfigError, match=f"new must be a name that no class has yet, but got '{new}'"):
            method.rename_class("great_emu", new)
    method.rename_class("great_emu", "great_emu")


def test_names_for_people_are_taken_over_when_a_class_comes_again(
    method: SimpleCIL, store: FeatureStore, tmp_path: Path
) -> None:
    data = fill(tmp_path / "data", emu=5, okapi=5)
    method.fit_task(load_stream(data, tasks=1)[0])
    fill_named(data, {"emu": 5}, salt="more")
    (tmp_path / "names.csv").write_text("emu,Emu novaehollandiae\n", encoding="utf-8")
    more = {"known": method, "include_known": True}
    method.fit_task(load_stream(data, **more, aliases=tmp_path / "names.csv")[0])
    assert sorted(method.displays_) == ["Emu novaehollandiae", "okapi"]
    fill_named(data, {"emu": 5}, salt="again")
    method.fit_task(load_stream(data, **more)[0])
    assert sorted(method.displays_) == ["Emu novaehollandiae", "okapi"]


def test_what_is_no_task_or_no_backbone_is_named(vit: Backbone, store: FeatureStore) -> None:
    with pytest.raises(StreamError, match=r"fit_task: task must be one task of a stream, but got 'Stream'\. Fit the"):
        SimpleCIL(vit, store=store).fit_task(small_stream())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"SimpleCIL: backbone must be a perdure\.Backbone, but got 'default'"):
        SimpleCIL("default")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="but got 'VisionTransformer'"):
        SimpleCIL(vit.model)  # type: ignore[arg-type]
