"""Listing and checking folders: every bad file is named, and no content is decoded twice."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from perdure.data import folders, load_dataset
from perdure.data.folders import KnownGood, check_files, images_in, keys_of, refuse_corrupt, unread_in
from perdure.data.layout import class_files
from perdure.data.reading import Reading
from perdure.errors import DataError, DataNotFoundError
from picture_files import png, tiff, without_heic  # noqa: F401


def picture(path: Path, seed: int = 0, side: int = 40) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)).save(path)
    return path


def spoil(folder: Path) -> dict[Path, str]:
    """Four files that no decoder takes, and a word of the reason each must be given."""
    cut = picture(folder / "cut.jpg", 1)
    cut.write_bytes(cut.read_bytes()[:-400])
    text, empty, torn = folder / "text.png", folder / "empty.jpg", picture(folder / "torn.png", 2)
    text.write_text("no image at all")
    empty.touch()
    torn.write_bytes(torn.read_bytes()[:200])
    return {cut: "truncated", text: "not an image", empty: "empty file", torn: "truncated"}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The contents that were decoded so far."""
    seen: list[bytes] = []
    decode = folders._decoding_problem
    monkeypatch.setattr(folders, "_decoding_problem", lambda data, how: [seen.append(data), decode(data, how)][1])
    return seen


def test_lists_visible_images_by_class_sorted(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "b/1.png", "a/x.png", "a/.hidden.png", ".git/y.png"):
        picture(tmp_path / name)
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / "folder.png").mkdir()
    assert class_files(tmp_path) == {
        "a": [tmp_path / "a" / "x.png"],
        "b": [tmp_path / "b" / "1.png", tmp_path / "b" / "2.JPG"],
    }


@pytest.mark.parametrize("make", ["missing", "file", "empty"])
def test_a_missing_or_empty_folder_is_named(tmp_path: Path, make: str) -> None:
    root = tmp_path / make
    if make == "file":
        root.touch()
    elif make == "empty":
        root.mkdir()
    with pytest.raises(DataNotFoundError) as caught:
        class_files(root)
    assert repr(str(root)) in str(caught.value)


def test_every_empty_class_is_named(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png")
    for name in ("b", "c"):
        (tmp_path / name).mkdir()
    with pytest.raises(DataNotFoundError, match="Fill or remove") as caught:
        class_files(tmp_path)
    assert all(str(tmp_path / name) in str(caught.value) for name in ("b", "c"))


def test_a_folder_of_domains_is_recognised(tmp_path: Path) -> None:
    picture(tmp_path / "photo" / "cat" / "x.png")
    with pytest.raises(DataNotFoundError, match="scenario=domain") as caught:
        class_files(tmp_path)
    assert str(tmp_path / "photo") in str(caught.value)


def test_corrupt_files_are_all_named_before_anything_starts(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "good.png")
    reasons = spoil(tmp_path / "a")
    message = r"data: each of 5 image files must be readable \(4 are not\), but got"
    with pytest.raises(DataError, match=message) as caught:
        load_dataset(tmp_path)
    lines = str(caught.value).splitlines()
    for path, reason in reasons.items():
        assert any(f"{path}: " in line and reason in line for line in lines), (path, lines)
    assert "good.png" not in str(caught.value)
    assert " object at 0x" not in str(caught.value)


@pytest.mark.parametrize(("n_good", "told"), [(0, "the image file"), (1, "each of 2 image files")])
def test_one_corrupt_file_is_named_too(tmp_path: Path, n_good: int, told: str) -> None:
    bad = tmp_path / "bad.png"
    bad.touch()
    good = [picture(tmp_path / "good.png")][:n_good]
    with pytest.raises(DataError) as caught:
        refuse_corrupt(check_files([*good, bad]))
    assert f"data: {told} must be readable (1 is not), but got '{bad}: empty file'" in str(caught.value)


def test_a_file_that_cannot_be_read_has_a_problem(tmp_path: Path) -> None:
    assert check_files([tmp_path / "gone.png"])[0].problem == "No such file or directory"


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "pgm", "png", "ppm", "tif", "webp"])
def test_good_files_of_every_format_pass(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(np.zeros((9, 7), np.uint8)).save(path)
    assert images_in(tmp_path) == [path]
    assert check_files([path])[0].problem is None


def test_skip_corrupt_leaves_them_out_and_records_them(tmp_path: Path) -> None:
    for i in range(5):
        picture(tmp_path / "a" / f"{i}.png", i)
    reasons = spoil(tmp_path / "a")
    data = load_dataset(tmp_path, skip_corrupt=True)
    assert len(data.train) + len(data.test) == 5
    assert len(data.quarantined) == len(reasons)
    for path, reason in reasons.items():
        assert any(q.startswith(f"{path}: ") and reason in q for q in data.quarantined)


def test_a_second_load_decodes_nothing(tmp_path: Path, decoded: list[bytes]) -> None:
    for i in range(4):
        picture(tmp_path / "data" / "a" / f"{i}.png", i)
    first = load_dataset(tmp_path / "data")
    assert len(decoded) == 4
    decoded.clear()
    assert load_dataset(tmp_path / "data").train.fingerprint == first.train.fingerprint
    assert decoded == []
    new = picture(tmp_path / "data" / "a" / "new.png", 9)
    load_dataset(tmp_path / "data")
    assert decoded == [new.read_bytes()]


def test_corrupt_content_is_never_remembered_as_good(tmp_path: Path, decoded: list[bytes]) -> None:
    spoil(tmp_path)
    memo = KnownGood(tmp_path / "keys")
    for _ in range(2):
        assert all(f.problem for f in check_files(images_in(tmp_path), memo))
    assert len(decoded) == 8


def test_the_memo_survives_a_torn_write(tmp_path: Path) -> None:
    file, keys = tmp_path / "keys", [bytes([i]) * 16 for i in range(3)]
    KnownGood(file).add(keys[:1])
    file.write_bytes(file.read_bytes() + b"torn")
    KnownGood(file).add(keys[1:])
    memo = KnownGood(file)
    assert all(key in memo for key in keys)


def test_a_memo_that_cannot_be_written_only_forgets(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    memo = KnownGood(tmp_path / "file" / "keys")  # its folder cannot be made
    memo.add([b"k" * 16])
    assert b"k" * 16 in memo
    assert b"k" * 16 not in KnownGood(tmp_path / "file" / "keys")


def test_more_files_than_are_checked_at_once_stay_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(2050)]
    for i, path in enumerate(paths[1020:1030] + paths[2046:]):
        path.write_bytes(bytes([i]))
    checked = check_files(paths)
    assert [f.path for f in checked] == paths
    there = [f.problem == "not an image of a known format" for f in checked]
    assert np.flatnonzero(there).tolist() == [*range(1020, 1030), *range(2046, 2050)]
    assert len({f.key for f in checked}) == 15


def test_keys_follow_the_files_order(tmp_path: Path) -> None:
    paths = [picture(tmp_path / f"{i}.png", i) for i in range(6)]
    forward, backward = check_files(paths), check_files(paths[::-1])
    assert [f.path for f in backward] == paths[::-1]
    assert keys_of(forward).tolist() == keys_of(backward)[::-1].tolist()


def twelve_bits(path: Path) -> Path:
    """Values of 0 to 4095, each a 32-bit integer; the first is below zero."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tiff(32, np.array([-1, 2000, 4095], "<i4").tobytes(), 3, kind=2))
    return path


def test_a_file_that_the_rule_refuses_is_named_at_the_door(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "x.png")
    bad = twelve_bits(tmp_path / "a" / "deep.tif")
    with pytest.raises(DataError, match="each of 2 image files must be readable") as caught:
        load_dataset(tmp_path)
    assert f"{bad}: the values of the image must be within 0 to 65535, but got -1 to 4095" in str(caught.value)
    assert "Set stream.value_range" in str(caught.value)


def test_what_is_good_under_one_reading_is_not_known_good_under_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(tmp_path / "data" / "a" / "x.png")
    bad = twelve_bits(tmp_path / "data" / "a" / "deep.tif")
    assert len(load_dataset(tmp_path / "data", value_range=(-1, 4095)).train) == 2
    for given in (None, (0, 4095)):
        with pytest.raises(DataError, match="within 0 to") as caught:
            load_dataset(tmp_path / "data", value_range=given)
        assert str(bad) in str(caught.value)
    seen: list[bytes] = []
    monkeypatch.setattr(folders, "_decoding_problem", lambda data, how: seen.append(data))
    load_dataset(tmp_path / "data", value_range=(-1, 4095))
    assert seen == []
    monkeypatch.setattr(folders, "READING", "another")
    load_dataset(tmp_path / "data", value_range=(-1, 4095))
    assert len(seen) == 2, "another rule: nothing is known"


def test_a_reading_decides_the_keys(tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png")
    keys = {check_files([path], reading=how)[0].key for how in (None, Reading(), Reading((0, 1)), Reading((0, 2)))}
    assert len(keys) == 3


def test_an_eps_file_called_jpg_is_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.jpg"
    Image.new("RGB", (8, 8)).save(path, "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", pytest.fail)
    assert check_files([path])[0].problem == "not an image of a known format"


def test_a_decoder_that_fails_is_a_problem_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (RuntimeError("no decoder for this codec"), EOFError("no more data")):
        monkeypatch.setattr(folders, "open_image", Mock(side_effect=error))
        assert check_files([picture(tmp_path / "x.png")])[0].problem == str(error)


def test_the_whole_of_a_heic_file_is_checked(tmp_path: Path) -> None:
    """Not only a thumbnail in it."""
    path = tmp_path / "x.heic"
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8))
    pytest.importorskip("pillow_heif").from_pillow(image).save(path)
    assert images_in(tmp_path) == [path]
    assert check_files([path])[0].problem is None
    path.write_bytes(path.read_bytes()[:-900])
    assert "Unexpected end of file" in str(check_files([path])[0].problem)


@pytest.mark.usefixtures("without_heic")
def test_a_heic_file_called_jpg_is_told_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(HEIC)
    assert "pip install 'perdure[heic]'" in str(check_files([path])[0].problem)


HEIC = b"\0\0\0\x1cftypheic" + b"\0" * 16  # the start of one


@pytest.mark.usefixtures("without_heic")
def test_files_that_look_like_images_but_are_not_read_are_listed(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "0.jpg")
    (tmp_path / "a" / "1.heic").write_bytes(HEIC)
    (tmp_path / "a" / "2.svg").write_text("<svg/>")
    (tmp_path / "a" / "3.jpg.part").write_bytes(png(8, 0, b"\0", 1))
    for name in ("notes.txt", ".hidden.svg"):
        (tmp_path / "a" / name).touch()
    (tmp_path / "a" / "4.svg").mkdir()
    told = unread_in(tmp_path / "a")
    assert [path.name for path in told] == ["1.heic", "2.svg", "3.jpg.part"]
    data = load_dataset(tmp_path)
    assert data.unread == tuple(f"{path}: {reason}" for path, reason in told.items())
    assert (len(data.train), data.quarantined) == (1, ())


@pytest.mark.parametrize("n", [1, 10, 11, 25])
@pytest.mark.usefixtures("without_heic")
def test_a_class_of_nothing_that_can_be_read_is_refused_with_what_to_install(tmp_path: Path, n: int) -> None:
    picture(tmp_path / "a" / "x.png")
    (tmp_path / "b").mkdir()
    for i in range(n):
        (tmp_path / "b" / f"{i:02d}.heic").write_bytes(HEIC)
    with pytest.raises(DataNotFoundError, match="at least one image that can be read") as caught:
        load_dataset(tmp_path)
    told = str(caught.value)
    assert "pip install 'perdure[heic]'" in told
    assert told.count(".heic: ") == min(n, 10)
    assert ("more" in told) == (n > 10)
    assert n <= 10 or f"and {n - 10} more" in told
