"""Data numbered as a method that has been taught numbers them: known names keep their ids, new ones take free ids."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Mapping

import numpy as np
import pytest

from perdure.data import ArraySource, Dataset, LabelledImages
from perdure.data.continuing import continuing, renamed
from perdure.data.reading import Reading

PIXELS = np.random.default_rng(0).integers(0, 256, (40, 4, 4, 3), dtype=np.uint8)
SOURCE = ArraySource(PIXELS, "rows")


@dc.dataclass
class Taught:
    """What is asked of a method."""

    class_names: dict[int, str]
    rows: tuple[int, ...] = ()
    tasks_seen_: int = 1
    reading: Reading = dc.field(default_factory=Reading)
    unnamed: frozenset[int] = frozenset()

    @property
    def taught_keys(self) -> np.ndarray:
        return SOURCE.keys[list(self.rows)]


def images(rows: Mapping[int, list[int]]) -> LabelledImages:
    """Rows of the source by class id."""
    labels = np.array([c for c, those in rows.items() for _ in those], dtype=np.int64)
    return LabelledImages(SOURCE, labels, np.array([r for those in rows.values() for r in those], dtype=np.int64))


def dataset(train: dict[int, list[int]], test: dict[int, list[int]], *names: str) -> Dataset:
    shown = {c: name.upper() for c, name in enumerate(names)}
    return Dataset("rows", images(train), images(test), dict(enumerate(names)), display_names=shown)


def rows(data: LabelledImages) -> dict[int, list[int]]:
    return {c: data.of_classes([c]).rows.tolist() for c in data.classes}


@pytest.mark.parametrize(
    ("known", "ids"),
    [
        ({0: "emu"}, [1, 2]),
        ({5: "emu"}, [6, 7]),
        ({-7: "emu"}, [0, 1]),
        ({100: "other", -2: "emu", 2**40: "more"}, [2**40 + 1, 2**40 + 2]),
        ({}, [0, 2]),
    ],
)
def test_new_classes_take_the_next_free_ids_in_their_order(known: dict[int, str], ids: list[int]) -> None:
    found = continuing(dataset({0: [0], 1: [1], 2: [2]}, {2: [3]}, "ant", "emu", "zebu"), Taught(known), False)
    wanted = dict(zip(ids, ("ant", "zebu"), strict=True)) | ({} if known else {1: "emu"})
    assert found.class_names == wanted
    assert found.display_names == {c: name.upper() for c, name in wanted.items()}
    assert rows(found.train) == {c: [{"ant": 0, "emu": 1, "zebu": 2}[name]] for c, name in sorted(wanted.items())}
    assert rows(found.test) == {ids[1]: [3]}


def test_known_classes_are_left_out_or_bring_what_is_new() -> None:
    data = dataset({0: [0, 1], 1: [2, 3, 4]}, {0: [5], 1: [6, 7]}, "ant", "emu")
    known = Taught({9: "emu"}, rows=(2, 4, 6))
    alone = continuing(data, known, False)
    assert (rows(alone.train), rows(alone.test)) == ({10: [0, 1]}, {10: [5]})
    assert alone.class_names == {10: "ant"}
    both = continuing(data, known, True)
    assert (rows(both.train), rows(both.test)) == ({9: [3], 10: [0, 1]}, {9: [7], 10: [5]})
    assert both.class_names == {10: "ant", 9: "emu"}


def test_a_known_class_without_a_new_training_image_has_no_test_either() -> None:
    found = continuing(dataset({0: [0]}, {0: [1]}, "ant"), Taught({3: "ant"}, rows=(0,)), True)
    assert (len(found.train), len(found.test), found.class_names, found.display_names) == (0, 0, {}, {})


def test_a_new_class_keeps_images_that_were_taught_as_another_but_not_in_its_test() -> None:
    data = dataset({0: [0, 1, 4]}, {0: [2, 3]}, "ant")
    known = Taught({0: "emu"}, rows=(1, 2))
    for include_known in (False, True):
        found = continuing(data, known, include_known)
        assert (rows(found.train), rows(found.test)) == ({1: [0, 1, 4]}, {1: [3]})
        assert renamed([found], known) == []


@pytest.mark.parametrize(("taught", "found"), [((0, 1, 2, 3), True), ((2, 3), True), ((3,), False), ((), False)])
def test_a_class_of_which_half_was_taught_is_taken_for_renamed(taught: tuple[int, ...], found: bool) -> None:
    data = dataset({0: [4, 5], 1: [0, 1, 2, 3], 2: [6, 7]}, {}, "emu", "ostrich", "zebu")
    known = Taught({0: "emu", 1: "bird"}, rows=(4, 5, *taught))
    assert renamed([continuing(data, known, True)], known) == [f"ostrich ({len(taught)} of 4)"] * found


def test_images_of_all_parts_count_when_a_class_is_taken_for_renamed() -> None:
    known = Taught({1: "bird"}, rows=(2, 3))
    parts = [dataset({0: [2, 3]}, {}, "ostrich"), dataset({0: [4, 5, 6]}, {}, "ostrich")]
    for order in (parts, parts[::-1]):
        assert renamed([continuing(d, known, False) for d in order], known) == []
    assert renamed([continuing(parts[0], known, False)] * 2, known) == ["ostrich (4 of 4)"]


def test_labels_without_images_are_no_trouble() -> None:
    found = continuing(dataset({}, {}, "ant", "emu"), Taught({}), True)
    assert (len(found.train), len(found.test), found.class_names) == (0, 0, {})


def test_a_class_that_was_taught_without_a_name_is_no_folder() -> None:
    data, names = dataset({0: [0], 1: [1]}, {}, "0", "1"), {0: "0", 1: "1"}
    assert continuing(data, Taught(names, unnamed=frozenset(names)), False).class_names == {2: "0", 3: "1"}
    assert continuing(data, Taught(names), False).class_names == {}
