"""The folder check: every problem in one pass, and none where there is none."""

from __future__ import annotations

import dataclasses as dc
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from perdure.data import folders
from perdure.data.doctor import Finding, check_folder, summary
from perdure.errors import DataNotFoundError
from picture_files import tiff, without_heic  # noqa: F401

COLOURS: Iterator[int] = iter(range(2**24))


def fill(folder: Path, **classes: int) -> Path:
    """A folder with so many images of each class, no two alike in the whole test session."""
    for name, n in classes.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            Image.new("RGB", (6, 6), f"#{next(COLOURS):06x}").save(folder / name / f"{i}.png")
    return folder


def copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(source, target))


def kinds(root: Path) -> dict[str, int]:
    """How often each kind was found."""
    found = [f.kind for f in check_folder(root)]
    return {kind: found.count(kind) for kind in found}


def only(root: Path, kind: str) -> Finding:
    """The one finding, which must be of that kind."""
    (finding,) = check_folder(root)
    assert finding.kind == kind
    assert finding.message.endswith(".")
    return finding


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A clean folder of two classes in train and test."""
    fill(tmp_path / "split" / "train", cat=3, dog=3)
    fill(tmp_path / "split" / "test", cat=2, dog=2)
    return tmp_path / "split"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for images, apart from the cache."""
    return tmp_path / "root"


def test_clean_folders_have_no_findings(tmp_path: Path, split: Path) -> None:
    whole = fill(tmp_path / "whole", cat=2, dog=2)
    domains = fill(tmp_path / "domains" / "photo", cat=2).parent
    fill(domains / "sketch" / "train", cat=2)
    fill(domains / "sketch" / "test", cat=1)
    assert [check_folder(root) for root in (split, whole, domains)] == [[], [], []]
    assert summary(split) == {"train": (2, 6), "test": (2, 4)}
    assert summary(whole) == {"train": (2, 4)}
    assert summary(domains) == {"photo/train": (1, 2), "sketch/train": (1, 2), "sketch/test": (1, 1)}


def test_a_finding_cannot_be_changed(split: Path) -> None:
    (split / "train" / "cat" / "notes.txt").touch()
    with pytest.raises(dc.FrozenInstanceError):
        check_folder(split)[0].kind = "corrupt-file"  # type: ignore[misc]


@pytest.mark.parametrize("make", ["missing", "file", "empty"])
def test_a_missing_or_empty_root_is_an_error(tmp_path: Path, make: str) -> None:
    root = tmp_path / make
    if make == "file":
        root.touch()
    elif make == "empty":
        root.mkdir()
    for function in (check_folder, summary):
        with pytest.raises(DataNotFoundError) as caught:
            function(root)
        assert repr(str(root)) in str(caught.value)


def test_every_corrupt_file_is_found_with_its_reason(split: Path) -> None:
    bad = [split / "train" / "cat" / "bad.png", split / "test" / "dog" / "bad.jpg", split / "test" / "dog" / "bad2.jpg"]
    bad[0].write_text("text")
    bad[1].touch()
    bad[2].touch()  # the same content as the one before, but no duplicate: it is no image
    found = check_folder(split)
    assert [(f.kind, f.severity) for f in found] == [("corrupt-file", "error")] * 3
    assert {f.paths for f in found} == {(str(path),) for path in bad}
    assert all(f.paths[0] in f.message for f in found)
    assert sum("not an image" in f.message for f in found) == 1
    assert sum("empty file" in f.message for f in found) == 2


def test_empty_class_folders(root: Path) -> None:
    fill(root, cat=2, dog=0)
    assert only(root, "empty-folder").paths == (str(root / "dog"),)
    fill(root / "dog", puppy=2)
    finding = next(f for f in check_folder(root) if f.kind == "empty-folder")
    assert finding.severity == "error"
    assert "only folders" in finding.message


def test_parts_and_domains_without_classes(tmp_path: Path, split: Path) -> None:
    shutil.rmtree(split / "test")
    (split / "test").mkdir()
    assert kinds(split) == {"empty-folder": 1, "untested-class": 2}
    domains = fill(tmp_path / "domains" / "photo", cat=2).parent
    (domains / "sketch").mkdir()
    assert only(domains, "empty-folder").paths == (str(domains / "sketch"),)


def test_classes_on_one_side_only(split: Path) -> None:
    fill(split / "test", zebra=2, ant=0)
    fill(split / "train", yak=2)
    found = {f.kind: f for f in check_folder(split)}
    assert found.keys() == {"unseen-test-class", "empty-folder", "untested-class"}
    assert found["unseen-test-class"].severity == "error"
    assert found["unseen-test-class"].paths == (str(split / "test" / "zebra"),)
    assert "'zebra'" in found["unseen-test-class"].message
    assert found["untested-class"].severity == "warning"
    assert found["untested-class"].paths == (str(split / "train" / "yak"),)


def test_each_domain_is_compared_with_itself(root: Path) -> None:
    fill(root / "photo" / "train", cat=2, dog=2)
    fill(root / "photo" / "test", cat=2, dog=2)
    fill(root / "sketch" / "train", cat=2)
    fill(root / "sketch" / "test", cat=2, dog=2)
    assert only(root, "unseen-test-class").paths == (str(root / "sketch" / "test" / "dog"),)


def test_one_image_classes(tmp_path: Path, split: Path) -> None:
    whole = fill(tmp_path / "whole", lone=1, many=4)
    finding = only(whole, "one-image-class")
    assert finding.severity == "warning"
    assert "'lone'" in finding.message
    assert "none to test on" in finding.message
    fill(split / "train", lone=1)
    fill(split / "test", lone=1)
    assert only(split, "one-image-class").paths == (str(split / "train" / "lone"),)
    (split / "train" / "lone" / "bad.png").touch()
    assert kinds(split) == {"corrupt-file": 1, "one-image-class": 1}, "a corrupt file does not count"


def test_three_kinds_of_duplicates(split: Path) -> None:
    train, test = split / "train", split / "test"
    within = [train / "cat" / "0.png", *(copy(train / "cat" / "0.png", train / "cat" / f"copy{i}.png") for i in (1, 2))]
    classes = [train / "cat" / "1.png", copy(train / "cat" / "1.png", train / "dog" / "same.png")]
    parts = [train / "dog" / "0.png", copy(train / "dog" / "0.png", test / "dog" / "same.png")]
    found = {f.kind: f for f in check_folder(split)}
    assert {kind: set(f.paths) for kind, f in found.items()} == {
        "duplicate-in-class": {str(p) for p in within},
        "duplicate-across-classes": {str(p) for p in classes},
        "duplicate-across-parts": {str(p) for p in parts},
    }
    assert "3 times" in found["duplicate-in-class"].message
    assert "cat, dog" in found["duplicate-across-classes"].message
    assert [found[f"duplicate-{k}"].severity for k in ("in-class", "across-classes", "across-parts")] == [
        "info",
        "warning",
        "warning",
    ]


def test_a_duplicate_may_cross_both_borders(split: Path) -> None:
    copy(split / "train" / "cat" / "0.png", split / "test" / "dog" / "same.png")
    assert kinds(split) == {"duplicate-across-parts": 1, "duplicate-across-classes": 1}


def test_duplicates_in_a_class_weigh_more_where_the_folder_is_yet_to_be_split(root: Path) -> None:
    fill(root, cat=4)
    copy(root / "cat" / "0.png", root / "cat" / "copy.png")
    finding = only(root, "duplicate-in-class")
    assert finding.severity == "warning"
    assert "both learned and tested" in finding.message


@pytest.mark.parametrize(
    "names",
    [
        ("Car side", "car_side"),
        ("carSide", "car-side"),
        ("cat", "Cat"),
        ("cup", "cups"),
        ("box", "boxes"),
        ("cherry", "cherries"),
        ("bus", "buses"),
        ("glass", "glasses"),
        ("colour_wheel", "color_wheel"),
        ("item_01", "item_1"),
    ],
)
def test_near_identical_names_are_found(root: Path, names: tuple[str, str]) -> None:
    fill(root, **dict.fromkeys(names, 2))
    finding = only(root, "similar-class-names")
    assert finding.severity == "warning"
    assert set(finding.paths) == {str(root / name) for name in names}
    assert all(repr(name) in finding.message for name in names)


@pytest.mark.parametrize(
    ("names", "pairs"),
    [
        # sorted as folders are, capitals first: others stand between the two
        (["Car side", "Dog", "ant", "bee", "car_side"], [("Car side", "car_side")]),
        (["cherries", "cherrow", "cherry"], [("cherries", "cherry")]),
        (["Cups", "Dogs", "cup"], [("Cups", "cup")]),
        (["_cup", "cups", "dog"], [("_cup", "cups")]),
        (["cup", "cups_", "dog"], [("cup", "cups_")]),
        (["color_wheel", "coltsfoot", "colour_wheel"], [("color_wheel", "colour_wheel")]),
        (["Colour_wheel", "Zebra", "an ant", "color_wheel"], [("Colour_wheel", "color_wheel")]),
        (["Cat", "DOG", "cat", "dog"], [("Cat", "cat"), ("DOG", "dog")]),
        (["Cup", "Zoo", "cup", "cups"], [("Cup", "cup"), ("Cup", "cups"), ("cup", "cups")]),
        (["item_01", "item_02", "item_1"], [("item_01", "item_1")]),
        (["colour_wheel_a", "x", "zz", "Zz"], [("Zz", "zz")]),
    ],
)
def test_similar_names_need_not_be_neighbours(root: Path, names: list[str], pairs: list[tuple[str, str]]) -> None:
    fill(root, **dict.fromkeys(names, 2))
    found = [f for f in check_folder(root) if f.kind == "similar-class-names"]
    assert {f.paths for f in found} == {(str(root / one), str(root / other)) for one, other in pairs}
    assert len(found) == len(pairs)
    assert all(repr(Path(path).name) in f.message for f in found for path in f.paths)


@pytest.mark.parametrize(
    "names",
    [
        ("crocodile", "crocodile_head"),
        ("cougar_body", "cougar_face"),
        ("faces", "faces_easy"),
        ("pattern_100", "pattern_101"),
        ("n01440764", "n01440765"),
        ("defect_type_a", "defect_type_b"),
        ("as", "a"),
        ("chat", "cat"),
    ],
)
def test_different_names_are_left_alone(root: Path, names: tuple[str, str]) -> None:
    assert check_folder(fill(root, **dict.fromkeys(names, 2))) == []


def test_names_are_compared_across_parts(split: Path) -> None:
    fill(split / "test", Dog=2)
    found = {f.kind: f for f in check_folder(split)}
    assert set(found["similar-class-names"].paths) == {str(split / p) for p in ("test/Dog", "train/dog", "test/dog")}


def test_what_is_not_read_is_told(split: Path) -> None:
    stray = [split / "README.md", split / "test" / "x.png", split / "train" / "cat" / "notes.txt", split / "extra"]
    for path in stray[:3]:
        path.touch()
    (split / "train" / "cat" / ".DS_Store").touch()
    stray[3].mkdir()
    finding = only(split, "ignored-files")
    assert finding.severity == "info"
    assert set(finding.paths) == {str(path) for path in stray}


def test_everything_at_once_errors_first(split: Path) -> None:
    (split / "train" / "cat" / "notes.txt").touch()
    copy(split / "train" / "dog" / "0.png", split / "test" / "dog" / "same.png")
    (split / "train" / "cat" / "bad.png").touch()
    fill(split / "train", cow=0)
    severities = [f.severity for f in check_folder(split)]
    assert severities == ["error", "error", "warning", "info"]


def test_each_file_is_read_once(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: [read.append(self), real(self)][1])
    check_folder(split)
    images = [path for path in read if path.suffix == ".png"]
    assert sorted(images) == sorted(split.rglob("*.png"))


def test_content_that_a_run_decoded_is_not_decoded_again(split: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(split)
    monkeypatch.setattr(folders, "_decoding_problem", lambda data, how: "decoded again")
    assert check_folder(split) == []


@pytest.mark.usefixtures("without_heic")
def test_images_that_are_not_read_are_told_with_what_to_do(split: Path) -> None:
    photos = [split / "train" / "cat" / "1.heic", split / "test" / "dog" / "2.HEIC"]
    drawing, notes = split / "train" / "cat" / "drawing.svg", split / "train" / "cat" / "notes.txt"
    for path in (*photos, drawing, notes):
        path.touch()
    found = check_folder(split)
    assert [(f.kind, f.severity) for f in found] == [
        ("unread-files", "warning"),
        ("unread-files", "warning"),
        ("ignored-files", "info"),
    ]
    by_paths = {f.paths: f.message for f in found}
    assert by_paths[(str(drawing),)].startswith(
        "1 image file is not read and will be left out: .svg files are not read"
    )
    assert "pip install 'perdure[heic]'" in by_paths[tuple(map(str, photos))]
    assert by_paths[tuple(map(str, photos))].startswith("2 image files are not read")
    assert by_paths.keys() == {(str(drawing),), tuple(map(str, photos)), (str(notes),)}
    assert all(f.message.endswith(".") for f in found)


def test_a_range_is_heeded_as_a_run_would(split: Path) -> None:
    path = split / "train" / "cat" / "deep.tif"
    path.write_bytes(tiff(32, b"\xff\xff\xff\xff\x09\0\0\0", 2, kind=2))
    assert "Set stream.value_range" in only(split, "corrupt-file").message
    assert check_folder(split, value_range=(-1, 9)) == []
    assert only(split, "corrupt-file").paths == (str(path),), "it is still refused without one"
