"""Names of folders and files: text that any file can hold, the way back to the disk, one name each, natural order."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from perdure.data import names
from perdure.data.names import in_natural_order, name_of, named, on_disk, shown, typed
from perdure.errors import DataError


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"cat", "cat"),
        ("猫".encode(), "猫"),
        (b"caf\xe9", r"caf\xe9"),
        (b"a\\b\xff", r"a\\b\xff"),
        (b"a\\b", r"a\b"),
        ("é\\".encode() + b"\x80", r"é\\\x80"),
    ],
)
def test_a_name_is_text_and_leads_back_to_its_folder(tmp_path: Path, raw: bytes, text: str) -> None:
    folder = tmp_path / os.fsdecode(raw)
    folder.mkdir()
    assert name_of(folder) == shown(folder.name) == typed(os.fsdecode(raw)) == text
    text.encode()
    assert on_disk(shown(folder)) == on_disk(folder) == folder


def test_what_is_there_as_it_stands_comes_first(tmp_path: Path) -> None:
    for raw in (rb"\xe9", b"\xe9"):
        (tmp_path / os.fsdecode(raw)).mkdir()
    assert on_disk(f"{tmp_path}/\\xe9") == tmp_path / "\\xe9"


def test_a_path_that_is_nowhere_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert on_disk("no/where\\xe9") == Path("no/where\\xe9")
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert on_disk("~/images") == Path("/home/of/mine/images")
    assert on_disk("~nobody-of-that-name/images") == Path("~nobody-of-that-name/images")


class Ascii:
    """``os`` on a machine that knows ASCII only, where other bytes are lone surrogates."""

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)

    def fsencode(self, path: str | Path) -> bytes:
        return str(path).encode("ascii", "surrogateescape")

    def fsdecode(self, raw: bytes) -> str:
        return raw.decode("ascii", "surrogateescape")


def test_a_machine_of_another_encoding_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "os", Ascii())
    there = "猫".encode().decode("ascii", "surrogateescape")
    assert shown(there) == typed(there) == name_of(Path(there)) == "猫"
    assert shown("猫") == typed("猫") == "猫"
    assert on_disk("猫") == Path(there)
    assert typed("caf\udce9") == r"caf\xe9"


def test_composed_and_decomposed_letters_are_one_name(tmp_path: Path) -> None:
    assert name_of(Path("cafe\u0301")) == name_of(Path("caf\xe9")) == "caf\xe9"
    folders = [tmp_path / "cafe\u0301", tmp_path / "caf\xe9"]
    with pytest.raises(DataError, match="called 'caf\xe9' must be one") as caught:
        named(folders)
    assert all(repr(os.fsencode(f.name)) in str(caught.value) for f in folders)


def test_two_folders_of_one_name_are_both_told(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        named([tmp_path / "\\xe9", tmp_path / "\udce9"])
    assert r"b'\\xe9'" in str(caught.value)
    assert r"b'\xe9'" in str(caught.value)


@pytest.mark.parametrize(
    "ordered",
    [
        ["1", "2", "10"],
        ["class_1", "class_2", "class_10"],
        ["day 2", "day 10", "night 1"],
        ["2a10", "2a11", "2b1", "10a1", "a1"],
        ["class_1", "class_10", "class_2", "other"],
        ["n01440764", "n01443537", "n15075141"],
        ["001.Albatross", "002.Auk", "200.Yellowthroat"],
        ["01", "1", "2"],
        ["B", "a", "b"],
        [],
    ],
)
def test_numbers_count_where_every_name_holds_one(ordered: list[str], tmp_path: Path) -> None:
    mixed = random.Random(5).sample(ordered, len(ordered))
    assert in_natural_order(mixed) == ordered
    assert list(named(tmp_path / name for name in mixed)) == ordered
