"""Tasks and streams: orders, sizes, what a task must not show, and fingerprints."""

from __future__ import annotations

import dataclasses as dc
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perdure.data import ArraySource, Dataset, LabelledImages, Stream, Task, load_stream
from perdure.data.doctor import check_folder
from perdure.data.order import order_classes
from perdure.data.stream import class_incremental, domain_incremental, task_sizes
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import ConfigError, DataNotFoundError, SplitError, StreamError

HUNDRED = {i: f"class {i}" for i in range(100)}


def fill(folder: Path, **classes: int) -> Path:
    """A folder with so many images of each class, no two alike."""
    for name, n in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (8, 8), (ord(name[0]), ord(name[1]), i)).save(folder / name / f"{i:02}.png")
    return folder


def files(images: LabelledImages, class_id: int) -> list[str]:
    """The file names of one class."""
    of_class = images.of_classes([class_id])
    return [Path(of_class.name(i)).name for i in range(len(of_class))]


def images_of(labels: Sequence[int]) -> LabelledImages:
    pixels = np.arange(len(labels), dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return LabelledImages(ArraySource(pixels, "flat"), np.array(labels, dtype=np.int64))


def cut(dataset: Dataset, order: Sequence[int], sizes: Sequence[int] = (1, 2)) -> Stream:
    return class_incremental(dataset, sizes, order)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for images, apart from the cache."""
    return tmp_path / "root"


def test_seed_1993_is_the_fields_order() -> None:
    order = order_classes(HUNDRED, seed=1993)
    np.random.seed(1993)
    assert order == np.random.permutation(100).tolist()
    assert order[:5] == [68, 56, 78, 8, 23]


@pytest.mark.parametrize("seed", [0, 1, 1993])
def test_a_seeded_order_has_every_class_once(seed: int) -> None:
    ids = {-5: "a", 2**50: "b", 3: "c", 0: "d"}
    assert sorted(order_classes(ids, seed=seed)) == sorted(ids)


def test_no_seed_keeps_ascending_ids() -> None:
    assert order_classes({7: "a", -1: "b", 3: "c"}) == [-1, 3, 7]


def test_a_given_order_takes_ids_and_names_and_wins() -> None:
    known = {-1: "cat", 5: "dog", 2**40: "emu"}
    assert order_classes(known, seed=0, given=["emu", -1, "dog"]) == [2**40, -1, 5]
    assert order_classes(known, given=list(np.array([5, -1, 2**40]))) == [5, -1, 2**40]


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (["dgo", "cat"], "'dgo'.*Did you mean 'dog'"),
        (["1", "dog"], "'1'. Leave out the quotes to mean the class of id 1, 'cat'"),
        ([1, 99], "but got 99.*Known: 1, 2, cat, dog"),
        (["cat"], r"'missing': \['dog'\], 'twice': \[\]"),
        (["cat", 1, "dog"], r"'missing': \[\], 'twice': \['cat'\]"),
    ],
)
def test_a_given_order_must_be_a_permutation(given: list[int | str], shown: str) -> None:
    with pytest.raises(SplitError, match=shown):
        order_classes({1: "cat", 2: "dog"}, given=given)


def test_text_is_a_name_and_a_number_an_id() -> None:
    odd = {0: "3", 1: "5", 2: "7"}
    assert order_classes(odd, given=["7", 0, "5"]) == [2, 0, 1]
    with pytest.raises(SplitError, match=r"but got 7\. Write '7' in quotes: a number is an id, text is a name"):
        order_classes(odd, given=[7, 3, 5])
    same = {0: "0", 1: "1", 2: "2"}
    assert order_classes(same, given=[2, "0", 1]) == [2, 0, 1]
    shifted = {0: "1", 1: "2", 2: "emu"}
    with pytest.raises(SplitError, match="clear: this is one class's id and another's name, but got 1") as caught:
        order_classes(shifted, given=["emu", 1, 0])
    assert "Write '1' in quotes for the class of this name; for id 1 write its name, '2'." in str(caught.value)
    assert order_classes(shifted, given=["2", "1", "emu"]) == [1, 0, 2]


def test_a_name_may_be_written_decomposed() -> None:
    assert order_classes({0: "caf\xe9", 1: "cat"}, given=["cat", "cafe\u0301"]) == [1, 0]


@pytest.mark.parametrize(
    ("n", "asked", "sizes"),
    [
        (100, {"tasks": 10}, [10] * 10),
        (101, {"tasks": 10}, [11] + [10] * 9),
        (7, {"tasks": 7}, [1] * 7),
        (100, {"base": 0, "increment": 10}, [10] * 10),
        (100, {"increment": 10}, [10] * 10),
        (100, {"base": 50, "increment": 10}, [50] + [10] * 5),
        (10, {"base": 4, "increment": 4}, [4, 4, 2]),
        (5, {"base": 5, "increment": 3}, [5]),
        (6, {"sizes": [1, 2, 3]}, [1, 2, 3]),
    ],
)
def test_task_sizes(n: int, asked: dict, sizes: list[int]) -> None:
    assert task_sizes(n, **asked) == sizes


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        ({}, "exactly one way.*'tasks': None"),
        ({"tasks": 2, "increment": 2}, "exactly one way.*'tasks': 2.*'increment': 2"),
        ({"tasks": 6}, r"tasks must be between 1 and the number of classes \(5\), but got 6"),
        ({"tasks": 0}, "tasks must be .*but got 0"),
        ({"sizes": [2, 2]}, r"sum to 5 classes, but got \[2, 2\]"),
        ({"sizes": [6, -1]}, r"but got \[6, -1\]"),
        ({"sizes": []}, r"but got \[\]"),
        ({"base": 2}, "increment must be at least 1, but got None"),
        ({"base": 2, "increment": 0}, "increment must be at least 1, but got 0"),
        ({"base": 6, "increment": 1}, "base must be .* 5 classes there are, but got 6"),
        ({"base": -1, "increment": 1}, "base must be .*but got -1"),
    ],
)
def test_impossible_task_sizes_are_refused(asked: dict, shown: str) -> None:
    with pytest.raises(SplitError, match=shown):
        task_sizes(5, **asked)


def test_a_task_shows_its_own_training_images_and_nothing_else() -> None:
    assert {field.name for field in dc.fields(Task)} == {
        "index", "train", "classes", "domain", "class_names", "display_names", "dataset",
    }  # fmt: skip
    stream = load_stream("synthetic", tasks=3)
    for task in stream:
        assert not hasattr(task, "__dict__")
        assert set(task.train.labels.tolist()) == set(task.classes) == task.class_names.keys()
        # the rows of other tasks are in the same source, but no public attribute leads to their labels
        assert len(task.train.labels) == len(task.train.keys) == len(task.train) == 16


def test_a_task_cannot_be_changed() -> None:
    task = load_stream("synthetic", tasks=2)[0]
    with pytest.raises(dc.FrozenInstanceError):
        task.index = 5  # type: ignore[misc]


def test_a_task_without_images_is_refused() -> None:
    with pytest.raises(StreamError, match="at least one image, but got 0"):
        Task(0, images_of([]), ())


@pytest.mark.parametrize("classes", [(1,), (1, 2, 3), (1, 2, 2)])
def test_a_tasks_classes_are_its_labels_classes(classes: tuple[int, ...]) -> None:
    with pytest.raises(StreamError, match=r"\(1, 2\), each once") as caught:
        Task(0, images_of([1, 2, 2]), classes)
    assert repr(classes) in str(caught.value)


def test_class_ids_are_never_renumbered() -> None:
    ids = [5, -(2**45), 2**50]
    stream = cut(synthetic_dataset(ids), [2**50, 5, -(2**45)])
    assert [t.classes for t in stream] == [(2**50,), (5, -(2**45))]
    assert [t.index for t in stream] == [0, 1]
    assert stream[1].train.classes == stream.test(1).classes == (-(2**45), 5)
    assert stream.class_names == {c: f"pattern {c}" for c in ids}


def test_tasks_share_out_all_images() -> None:
    data = synthetic_dataset(range(6))
    stream = cut(data, order_classes(data.class_names, seed=1993), [2, 3, 1])
    for whole, parts in (
        (data.train, [t.train for t in stream]),
        (data.test, [stream.test(i) for i in range(len(stream))]),
    ):
        assert sorted(np.concatenate([p.rows for p in parts]).tolist()) == whole.rows.tolist()


def test_a_stream_is_an_immutable_sequence() -> None:
    tasks = list(load_stream("synthetic", tasks=3))
    stream = Stream(tasks, [t.train for t in tasks], {}, {})
    tasks.pop()
    assert len(stream) == len(list(stream)) == 3
    assert [t.index for t in stream[1:]] == [1, 2]
    assert stream[-1].index == 2
    with pytest.raises(TypeError):
        stream[0] = tasks[0]  # type: ignore[index]


def test_fingerprint_tells_data_labels_order_and_cut() -> None:
    data, order = synthetic_dataset(range(3)), [0, 1, 2]
    relabelled = dc.replace(data, train=LabelledImages(data.train.source, 2 - data.train.labels))
    fewer = dc.replace(data, test=data.test.subset(np.arange(len(data.test) - 1)))
    prints = [
        cut(data, order).fingerprint,
        cut(synthetic_dataset(range(3), seed=1), order).fingerprint,
        cut(relabelled, order).fingerprint,
        cut(fewer, order).fingerprint,
        cut(data, [0, 2, 1]).fingerprint,
        cut(data, order, (2, 1)).fingerprint,
        domain_incremental({"only": data}).fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert cut(synthetic_dataset(range(3)), order).fingerprint == prints[0]


def test_load_stream_takes_the_seed_and_the_order() -> None:
    orders = [
        [c for t in load_stream("synthetic", tasks=2, **asked) for c in t.classes]
        for asked in ({}, {"order_seed": 1993}, {"order_seed": None}, {"class_order": [5, 4, 3, 2, 1, 0]})
    ]
    np.random.seed(1993)
    assert orders[0] == orders[1] == np.random.permutation(6).tolist()
    assert orders[2:] == [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]


def test_draws_are_seeded_and_bounded(root: Path) -> None:
    fill(root / "train", cat=9, dog=2)
    fill(root / "test", cat=9, dog=9)

    def drawn(seed: int) -> Stream:
        return load_stream(root, tasks=1, train_per_class=4, test_per_class=3, split_seed=seed)

    one, again, other = drawn(0), drawn(0), drawn(1)
    assert [len(files(one[0].train, c)) for c in (0, 1)] == [4, 2]
    assert [len(files(one.test(0), c)) for c in (0, 1)] == [3, 3]
    assert one.fingerprint == again.fingerprint
    assert one.fingerprint != other.fingerprint


@pytest.mark.parametrize(
    ("seed", "train", "test"),
    [(0, [[0, 2, 6], [1, 3, 4]], [[3, 5, 8], [0, 6, 7]]), (3, [[0, 4, 7], [0, 4, 5]], [[4, 7, 8], [0, 2, 6]])],
)
def test_the_draws_are_those_that_published_numbers_stand_on(
    seed: int, train: list[list[int]], test: list[list[int]], root: Path
) -> None:
    fill(root / "train", cat=9, dog=9)
    fill(root / "test", cat=9, dog=9)
    stream = load_stream(root, tasks=1, train_per_class=3, test_per_class=3, split_seed=seed)
    for images, drawn in ((stream[0].train, train), (stream.test(0), test)):
        assert [files(images, c) for c in (0, 1)] == [[f"{i:02}.png" for i in kept] for kept in drawn]


def test_a_new_class_leaves_the_others_draws_alone(root: Path) -> None:
    options = {"tasks": 1, "train_per_class": 5, "test_per_class": 2}
    fill(root, cat=20, dog=20)
    before = load_stream(root, **options)
    fill(root, ant=20)
    after = load_stream(root, **options)
    for old, new in ((0, 1), (1, 2)):
        assert files(before[0].train, old) == files(after[0].train, new)
        assert files(before.test(0), old) == files(after.test(0), new)


@pytest.mark.parametrize("key", ["train_per_class", "test_per_class"])
def test_drawing_less_than_one_is_refused(key: str) -> None:
    with pytest.raises(SplitError, match=f"{key} must be at least 1, but got -1"):
        load_stream("synthetic", tasks=2, **{key: -1})


def test_draws_need_no_test_images(root: Path) -> None:
    fill(root, cat=1, dog=1)
    stream = load_stream(root, tasks=2, test_per_class=3)
    assert [len(stream.test(i)) for i in range(2)] == [0, 0]


def test_domain_folders_bring_the_same_classes_again(root: Path) -> None:
    fill(root / "photo", cat=5, dog=5)
    fill(root / "sketch", ant=5, dog=5)
    stream = load_stream(root, scenario="domain", train_per_class=3)
    assert [(t.index, t.domain, t.classes) for t in stream] == [(0, "photo", (1, 2)), (1, "sketch", (0, 2))]
    assert stream.class_names == {0: "ant", 1: "cat", 2: "dog"}
    assert [len(t.train) for t in stream] == [6, 6]
    assert [stream.test(i).classes for i in range(2)] == [(1, 2), (0, 2)]


def test_domains_come_in_the_order_asked_for(root: Path) -> None:
    for name in ("caf\xe9", "day 2", "day 10"):
        fill(root / name, cat=2)
    given = ["day 10", "cafe\u0301", "day 2"]
    assert [t.domain for t in load_stream(root, scenario="domain", domain_order=given)] == [
        *("day 10", "caf\xe9", "day 2")
    ]
    for wrong in (["day 2"], [*given, "day 2"], ["day 10", "night", "day 2"]):
        with pytest.raises(SplitError, match="domain_order must be the names of all 3 domains") as caught:
            load_stream(root, scenario="domain", domain_order=wrong)
        assert str(wrong[0]) in str(caught.value)
        assert "Name each once: caf\xe9, day 10, day 2" in str(caught.value)
    with pytest.raises(SplitError, match=r"absent for scenario=class, but got \['day 2'\]"):
        load_stream(root, tasks=1, domain_order=["day 2"])


@pytest.mark.parametrize("asked", [{"tasks": 3}, {"sizes": [1], "class_order": [0]}])
def test_domains_are_not_cut(root: Path, asked: dict) -> None:
    with pytest.raises(SplitError, match="absent for scenario=domain") as caught:
        load_stream(root, scenario="domain", **asked)
    assert all(key in str(caught.value) for key in asked)


def test_a_name_is_no_folder_of_domains() -> None:
    with pytest.raises(DataNotFoundError, match="'synthetic'"):
        load_stream("synthetic", scenario="domain")


def test_quarantined_files_are_recorded(root: Path) -> None:
    for domain in ("photo", "sketch"):
        fill(root / domain, cat=5)
        (root / domain / "cat" / "bad.png").touch()
    stream = load_stream(root, scenario="domain", skip_corrupt=True)
    assert stream.quarantined == tuple(f"{root / d / 'cat' / 'bad.png'}: empty file" for d in ("photo", "sketch"))
    photo = load_stream(root / "photo", tasks=1, skip_corrupt=True)
    assert photo.quarantined == stream.quarantined[:1]


def test_caltech101_in_ten_tasks(shared_data: Path) -> None:
    stream = load_stream(shared_data / "caltech101", tasks=10)
    assert [len(t.classes) for t in stream] == [11] + [10] * 9
    assert len(stream.class_names) == len({c for t in stream for c in t.classes}) == 101
    assert all(set(t.classes) == set(stream.test(t.index).classes) for t in stream)
    findings = check_folder(shared_data / "caltech101")
    assert not [f for f in findings if f.severity == "error"]
    assert not [f for f in findings if f.kind == "similar-class-names"]


@pytest.mark.parametrize("bad", [{"order_seed": -1}, {"split_seed": 2**32}, {"scenario": "domains"}])
def test_bad_seeds_and_scenarios_are_named(bad: dict) -> None:
    (value,) = bad.values()
    with pytest.raises(SplitError, match=re.escape(repr(value))):
        load_stream("synthetic", tasks=2, **bad)


def test_files_that_are_not_read_are_recorded(root: Path) -> None:
    for domain in ("photo", "sketch"):
        fill(root / domain, cat=5)
        (root / domain / "cat" / "drawing.svg").touch()
    stream = load_stream(root, scenario="domain")
    assert [told.split(": ")[0] for told in stream.unread] == [
        str(root / domain / "cat" / "drawing.svg") for domain in ("photo", "sketch")
    ]
    assert load_stream(root / "photo", tasks=1).unread == stream.unread[:1]
    assert load_stream("synthetic", tasks=2).unread == ()


def test_a_range_of_values_makes_another_stream(root: Path) -> None:
    fill(root / "photo", cat=5)
    streams = [
        load_stream(folder, **cut, value_range=given)
        for folder, cut in ((root / "photo", {"tasks": 1}), (root, {"scenario": "domain"}))
        for given in (None, (0, 9))
    ]
    assert len({s.fingerprint for s in streams}) == 4
    assert [s[0].train.reading.value_range for s in streams] == [None, (0, 9)] * 2
    assert [s.test(0).reading.value_range for s in streams] == [None, (0, 9)] * 2
    for cut in ({"tasks": 1}, {"scenario": "domain"}):
        with pytest.raises(ConfigError, match="value_range must be two finite numbers") as caught:
            load_stream(root, **cut, value_range=(9, 0))
        assert "(9, 0)" in str(caught.value)


@pytest.mark.parametrize("what", ["class_names", "display_names"])
@pytest.mark.parametrize(
    "names", [{1: "ant"}, {1: "ant", 2: "bee", 3: "cow"}, {1: "ant", 3: "cow"}], ids=["some", "more", "others"]
)
def test_a_task_names_its_own_classes_and_no_others(what: str, names: dict[int, str]) -> None:
    with pytest.raises(StreamError, match=rf"{what} must be of the classes \(2, 1\), but got \{{1: 'ant'") as error:
        Task(0, images_of([1, 2]), (2, 1), **{what: names})  # type: ignore[arg-type]
    assert "it knows of no others" in str(error.value)


def test_names_are_no_class_ids() -> None:
    with pytest.raises(StreamError, match=r"the labels' classes \(1,\), each once, but got \('ant',\)"):
        Task(0, images_of([1]), ("ant",))  # type: ignore[arg-type]


def test_two_classes_of_a_task_have_two_names() -> None:
    with pytest.raises(StreamError, match=r"class_names must be distinct, but got \{1: 'ant', 2: 'ant'\}"):
        Task(0, images_of([1, 2]), (2, 1), class_names={1: "ant", 2: "ant"})
    same = {1: "crane", 2: "crane"}
    assert Task(0, images_of([1, 2]), (2, 1), display_names=same).display_names == same


def test_a_task_may_have_no_names_and_keeps_those_it_was_given() -> None:
    assert Task(0, images_of([1, 2]), (2, 1)).class_names == Task(0, images_of([1]), (1,)).display_names == {}
    given = {np.int64(1): np.str_("猫"), 2: "bee"}
    task = Task(0, images_of([1, 2]), tuple(np.array([2, 1])), class_names=given)
    given[3] = "cow"
    assert task.class_names == {1: "猫", 2: "bee"}
    assert [type(c) for c in (*task.classes, *task.class_names)] == [int] * 4
    assert {type(name) for name in task.class_names.values()} == {str}


@pytest.mark.parametrize("indices", [(0, 2), (1, 0), (3, 3), (0, 1, 3)])
def test_the_tasks_of_a_stream_follow_one_another(indices: tuple[int, ...]) -> None:
    tasks = [Task(i, images_of([c]), (c,)) for c, i in enumerate(indices)]
    told = f"indices of the tasks must be one after another, but got {list(indices)}"
    with pytest.raises(StreamError, match=re.escape(told)):
        Stream(tasks, [images_of([])] * len(tasks), {}, {})


def test_a_stream_may_begin_anywhere_and_tests_go_by_index() -> None:
    data = synthetic_dataset(range(3))
    stream = class_incremental(data, (1, 2), range(3), first=4)
    assert (stream.first, [task.index for task in stream], stream[0].index) == (4, [4, 5], 4)
    assert [stream.test(i).classes for i in (4, 5)] == [(0,), (1, 2)]
    for bad in (3, 6, 0, -1):
        with pytest.raises(StreamError, match=rf"Stream\.test: index must be between 4 and 5, but got {bad}"):
            stream.test(bad)
    assert [t.index for t in domain_incremental({"a": data, "b": data}, first=7)] == [7, 8]
    assert Stream([], [], {}, {}).first == 0
