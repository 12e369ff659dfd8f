"""Which folders are parts, classes or domains; the run, the check and the summary see the same; the rest is shown."""

from __future__ import annotations

import itertools
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from perdure.data import load_dataset, load_stream
from perdure.data.datasets import domain_datasets
from perdure.data.doctor import check_folder, summary
from perdure.data.layout import TREE_LINES, layout, tree
from perdure.errors import DataError, DataNotFoundError, PerdureError

COLOURS = itertools.count()


def put(root: Path, *folders: str, n: int = 2) -> Path:
    """A folder with images in these sub-folders, no two alike in the whole test session."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("RGB", (6, 6), f"#{next(COLOURS):06x}").save(root / folder / f"{i}.png")
    return root


def parts(root: Path) -> dict[str, str]:
    return {part: folder.name for part, folder in layout(root).parts.items()}


def refusal(root: Path, **asked: Any) -> str:
    """What a run is told, which for scenario=class must be what the check and the summary tell."""
    with pytest.raises(PerdureError) as caught:
        load_stream(root, **({"tasks": 1} | asked if asked.get("scenario") != "domain" else asked))
    return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for images, apart from the cache."""
    return tmp_path / "root"


@pytest.mark.parametrize("train", ["train", "training", "Train", "TRAINING"])
@pytest.mark.parametrize("test", ["test", "testing", "eval", "val", "valid", "validation", "VAL", "Test"])
def test_parts_go_by_many_names_in_any_case(root: Path, train: str, test: str) -> None:
    put(root, f"{train}/cat", n=3)
    put(root, f"{test}/cat")
    data = load_dataset(root)
    assert (len(data.train), len(data.test), data.notes) == (3, 2, ())
    assert parts(root) == {"train": train, "test": test}
    assert summary(root) == {"train": (1, 3), "test": (1, 2)}
    assert check_folder(root) == []
    assert "no parts of one data set" in refusal(root, scenario="domain")


@pytest.mark.parametrize("first", range(5))
def test_the_first_of_several_test_parts_is_used_and_the_others_are_told(root: Path, first: int) -> None:
    tests = ["test", "testing", "eval", "val", "valid", "validation"][first:]
    put(root, "train/cat", *(f"{test}/cat" for test in tests))
    assert parts(root)["test"] == tests[0]
    assert load_dataset(root).notes == tuple(
        f"{root / test} is not used, because {root / tests[0]} is the test part." for test in tests[1:]
    )


def test_a_labelled_val_beside_a_flat_test_is_used_and_said(root: Path) -> None:
    put(root, "train/cat", "val/cat", "test")
    said = f"{root / 'val'} is the test part, because {root / 'test'} holds no class folders."
    assert load_dataset(root).notes == load_stream(root, tasks=1).notes == (said,)
    finding = next(f for f in check_folder(root) if f.kind == "unused-part")
    assert (finding.severity, finding.message, finding.paths) == ("info", said, (str(root / "test"),))
    assert summary(root) == {"train": (1, 2), "test": (1, 2)}
    put(root, "valid")
    assert load_dataset(root).notes[1] == f"{root / 'valid'} is not used, because {root / 'val'} is the test part."


def test_each_domain_tells_its_own(root: Path) -> None:
    put(root, "day/train/cat", "day/val/cat", "day/test", "night/cat")
    stream = load_stream(root, scenario="domain")
    assert stream.notes == (f"{root}/day/val is the test part, because {root}/day/test holds no class folders.",)
    assert [f.message for f in check_folder(root) if f.kind == "unused-part"] == list(stream.notes)


@pytest.mark.parametrize(
    ("twins", "part"), [(("train", "Training"), "train"), (("Test", "test"), "test"), (("VAL", "val"), "val")]
)
def test_one_part_under_two_names_is_refused(root: Path, twins: tuple[str, str], part: str) -> None:
    put(root, "train/cat", "test/cat", *(f"{twin}/cat" for twin in twins))
    for function in (load_dataset, check_folder, summary):
        with pytest.raises(DataError, match=f"the {part} part must be one folder") as caught:
            function(root)
        assert all(str(root / twin) in str(caught.value) for twin in twins)


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (["train/cat"], "Give {root}/train itself, of which a share is held out"),
        (["train"], "Give {root}/train itself"),
        (["test/cat", "val/cat"], "Add the images to learn from as {root}/train/<class>/"),
        (["train/cat", "test"], "{root}/test/<class>/; or give {root}/train alone"),
        (["train", "test"], "a folder of their own: {root}/train/<class>/"),
        (["train/pets/cat", "test/pets/cat"], "so that they lie directly in {root}/train/<class>/"),
        (["day/train/cat", "day/val/cat", "night/train/cat", "night/val/cat"], "own train and test, set stream.scen"),
        (["day/cat", "night/cat"], "share their classes, set stream.scenario=domain; for groups of classes, move"),
        (["photos/cat"], "Give {root}/photos itself; or, if it is a domain, set stream.scenario=domain"),
        (["a/b/c", "d/e/f"], "so that they lie directly in {root}/<class>/"),
        ([""], "a sub-folder named after the class: {root}/<class>/"),
    ],
)
def test_what_is_not_understood_is_shown_with_what_is_and_what_to_do(root: Path, folders: list[str], told: str) -> None:
    put(root, *folders)
    message = refusal(root)
    assert f"{told.format(root=root)}" in message
    part = root / "train" if "pets" in str(folders) else root
    assert "must be root/<class>/, root/{train,test}/<class>/ or, with stream.scenario=domain, root/<domain>" in message
    assert f"but got \n    {part}/  " in message
    assert message.count("\n") <= TREE_LINES + 1
    if "train" in str(folders) and "pets" not in str(folders):
        assert "stream.scenario=domain; " not in message


@pytest.mark.parametrize("folders", [["train/cat"], ["test/cat", "val/cat"], ["train/cat", "val/cat", "extra/cat"]])
def test_parts_are_never_learned_as_domains(root: Path, folders: list[str]) -> None:
    message = refusal(put(root, *folders), scenario="domain")
    assert "data: domains must be folders that are no parts of one data set, but got \n" in message
    assert f"{folders[0].split('/')[0]}/  0 images" in message or f"{folders[0].split('/')[0]}/  1 folder" in message
    assert "the images for testing would be learned: leave out stream.scenario=domain" in message


def test_the_check_refuses_parts_that_a_run_refuses(root: Path) -> None:
    put(root, "train/cat")
    message = refusal(root)
    for function in (check_folder, summary):
        with pytest.raises(DataNotFoundError) as caught:
            function(root)
        assert str(caught.value) == message


def test_a_class_may_be_called_as_a_part_is(root: Path) -> None:
    put(root, "bus", "train", "test", "car")
    assert list(load_dataset(root).class_names.values()) == ["bus", "car", "test", "train"]
    assert summary(root) == {"train": (4, 8)}


def test_other_folders_beside_parts_change_nothing(root: Path) -> None:
    put(root, "train/cat", "test/cat", "extra", "more/cat")
    assert parts(root) == {"train": "train", "test": "test"}
    put(root / "b", "train/cat", "cat")
    assert parts(root / "b") == {"train": "b"}, "there is nothing to test on: a class of this name"


def test_class_folders_that_hold_folders_are_told_apart(root: Path) -> None:
    put(root, "cat", "dog/small", "bird")
    (root / "emu").mkdir()
    message = refusal(root)
    assert f"but got \n    {root}/dog\n    {root}/emu\n" in message
    assert "Some hold folders, which are not searched. Move the images up" in message


@pytest.mark.parametrize("name", ["photos.zip", "photos.TGZ", "photos.jpg"])
def test_a_file_is_no_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    for function in (load_dataset, check_folder):
        with pytest.raises(DataNotFoundError) as caught:
            function(tmp_path / name)
        assert repr(str(tmp_path / name)) in str(caught.value)
        assert ("Give the folder in which it lies" if name.endswith("jpg") else "Unpack it") in str(caught.value)


def test_a_packed_folder_is_known_by_what_is_in_it(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos", "w") as file:
        file.writestr("cat/1.png", b"")
    with pytest.raises(DataNotFoundError, match="Unpack it"):
        load_dataset(tmp_path / "photos")


def test_a_tree_is_short_and_counts(root: Path) -> None:
    put(root, *(f"{i}/{name}" for i in range(9) for name in "abc"), n=1)
    (root / "labels.csv").touch()
    (root / ".hidden").mkdir()
    lines = tree(root)
    assert lines[:3] == [f"{root}/  9 folders, 1 other file", "  0/  3 folders", "    a/  1 image"]
    assert lines[-1] == "  … 5 more"
    assert len(lines) == 10 <= TREE_LINES
    put(root / "8" / "a", "", n=5)
    assert tree(root / "8" / "a") == [f"{root}/8/a/  5 images", "  0.png", "  1.png", "  2.png"]
    (root / "9").mkdir()
    assert tree(root / "9") == [f"{root}/9/  empty"]


def test_a_folder_of_other_files_only_is_named(root: Path) -> None:
    root.mkdir()
    (root / "labels.csv").touch()
    assert repr(str(root)) in refusal(root)


def test_classes_and_domains_are_numbered_in_natural_order(root: Path) -> None:
    put(root, *(f"day {d}/class_{c}" for d in (10, 2) for c in (10, 1, 2)))
    domains = domain_datasets(root)
    assert list(domains) == ["day 2", "day 10"]
    assert domains["day 2"].class_names == {0: "class_1", 1: "class_2", 2: "class_10"}
    assert load_dataset(root / "day 2").class_names == domains["day 10"].class_names


def test_names_that_are_not_utf_8_are_text_from_the_door_on(tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"r\xe9")
    put(root, os.fsdecode(b"caf\xe9"), "cat")
    (root / "cat" / "1.png").rename(root / "cat" / os.fsdecode(b"\xff.png"))
    (root / "cat" / os.fsdecode(b"\xfe.png")).touch()
    (root / os.fsdecode(b"\xfd")).touch()
    written = f"{tmp_path}/r\\xe9"
    data = load_dataset(written, skip_corrupt=True)
    assert data.name == written
    assert data.class_names == {0: r"caf\xe9", 1: "cat"}
    assert data.quarantined == (f"{written}/cat/\\xfe.png: empty file",)
    assert data.train.name(len(data.train) - 1) == f"{written}/cat/\\xff.png"
    assert data.train.source.read(len(data.train) - 1).size == (6, 6)
    with pytest.raises(DataError, match=r"cat/\\\\xfe.png: empty file") as caught:
        load_dataset(root)
    str(caught.value).encode()
    found = check_folder(root)
    assert {f.kind for f in found} == {"corrupt-file", "ignored-files"}
    for finding in found:
        "".join([finding.message, *finding.paths]).encode()
