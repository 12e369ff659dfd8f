"""Display names from folder names, and alias files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from perdure.data.display import display_name, display_names, read_aliases, require_known
from perdure.errors import ConfigError, DataNotFoundError, UnknownNameError


@pytest.mark.parametrize(
    ("folder", "shown"),
    [
        ("great_white_shark", "great white shark"),
        ("_great__white   shark_", "great white shark"),
        ("RedPanda", "RedPanda"),  # the case of letters stays
        ("touring-bike", "touring-bike"),
        ("猫_と_犬", "猫 と 犬"),
        ("n01440764", "tench"),  # the first of `tench, Tinca tinca`
        ("n00017222", "plant"),  # in ImageNet's 21 844, not in its 1000
        ("n02012849", "crane"),
        ("n03126707", "crane"),  # the machine: equal display names are allowed
        ("n99999999", "n99999999"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("n02085782-Japanese_spaniel", "Japanese spaniel"),
        ("n01440764_tench", "tench"),
        ("n01440764 tench", "tench"),
        ("n99999999-Nessie", "Nessie"),
        ("n02085620Chihuahua", "n02085620Chihuahua"),
        ("in_n02085620-Chihuahua", "in n02085620-Chihuahua"),
        ("001.Black_footed_Albatross", "Black footed Albatross"),
        ("250.zebra", "zebra"),
        ("3.5_inch_disk", "3.5 inch disk"),
        ("1._FC_Köln", "1. FC Köln"),
        ("18_wheeler", "18 wheeler"),
        ("007", "007"),
        ("area_51.north", "area 51.north"),
        # what would become empty stays as it is
        ("___", "___"),
        ("n02085620-", "n02085620-"),
        ("n02085620__", "n02085620__"),
        ("12.", "12."),
    ],
)
def test_a_folder_name_as_people_write_it(folder: str, shown: str) -> None:
    assert display_name(folder) == shown


def test_an_alias_wins_and_no_class_depends_on_another() -> None:
    names = {7: "n02012849", 3: "n03126707", 9: "red_panda"}
    assert display_names(names) == {7: "crane", 3: "crane", 9: "red panda"}
    assert display_names(names, {"n03126707": "building crane"}) == {7: "crane", 3: "building crane", 9: "red panda"}
    assert list(display_names(names)) == [7, 3, 9]
    for class_id, name in names.items():  # alone or among others
        assert display_names({class_id: name}) == {class_id: display_names(names)[class_id]}


def written(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_text(text, encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "no: Norway\n007: 'James  Bond'\nb_c: Katze 猫\n"),
        ("a.yml", "{no: Norway, '007': James Bond, b_c: Katze 猫}"),
        ("a.yaml", "# people see this\nno: Norway\n\n007: |\n  James\n  Bond\nb_c: Katze 猫\n"),
        ("a.json", '{\n\t"no": "Norway",\n\t"007": "James Bond",\n\t"b_c": "Katze 猫"\n}'),
        ("A.CSV", 'no,Norway\n"007","James Bond"\n\n b_c , Katze 猫\n'),
        ("a.tsv", "no\tNorway\n007 \tJames Bond\nb_c\tKatze 猫\n"),
        ("a.txt", "no Norway\n\n007 James Bond\n  b_c   Katze 猫  \n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_every_kind_of_alias_file(tmp_path: Path, name: str, text: str, encoding: str) -> None:
    aliases = read_aliases(written(tmp_path, name, text, encoding))
    assert aliases == {"no": "Norway", "007": "James Bond", "b_c": "Katze 猫"}


def test_what_stands_between_folder_and_name(tmp_path: Path) -> None:
    assert read_aliases(written(tmp_path, "a.txt", "n01440764 tench, Tinca")) == {"n01440764": "tench, Tinca"}
    assert read_aliases(written(tmp_path, "b.txt", "red panda\tRed panda")) == {"red panda": "Red panda"}
    assert read_aliases(written(tmp_path, "c.csv", 'n01440764,"tench, Tinca"')) == {"n01440764": "tench, Tinca"}
    assert read_aliases(written(tmp_path, "d.yaml", "{}")) == read_aliases(written(tmp_path, "e.json", "{}")) == {}


def test_a_missing_alias_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"an existing file, but got .*names\.yaml'\. .*No such file"):
        read_aliases(tmp_path / "names.yaml")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataNotFoundError, match=r"an existing file, but got .*folder\.csv'\. .*Is a directory"):
        read_aliases(tmp_path / "folder.csv")


def test_an_alias_file_is_found_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    written(tmp_path, "names.yaml", "a: b")
    assert read_aliases(Path("~/names.yaml")) == {"a": "b"}


def test_an_alias_file_is_found_by_the_name_that_is_shown(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"caf\xe9.yaml")).write_text("a: b", encoding="utf-8")
    assert read_aliases(tmp_path / "caf\\xe9.yaml") == {"a": "b"}
    with pytest.raises(DataNotFoundError, match=r"got '.*th\\\\xe9\.yaml'"):
        read_aliases(tmp_path / os.fsdecode(b"th\xe9.yaml"))


@pytest.mark.parametrize("name", ["names.yaml", "names.json", "names.csv", "names.txt"])
def test_a_folder_in_an_alias_file_is_called_as_its_class(tmp_path: Path, name: str) -> None:
    """Composed, however the file writes it: macOS writes e and an accent."""
    file, it = tmp_path / name, "cafe\u0301"
    kinds = {".yaml": f"{it}: Bar", ".json": f'{{"{it}": "Bar"}}', ".csv": f"{it},Bar", ".txt": f"{it} Bar"}
    file.write_text(kinds[file.suffix], encoding="utf-8")
    assert read_aliases(file) == {"caf\u00e9": "Bar"}


def test_another_kind_of_alias_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"one of \.yaml, .*\.txt, but got .*names\.xlsx'\. Rename or convert it\."):
        read_aliases(tmp_path / "names.xlsx")
    path = written(tmp_path, "latin.csv", "a,Käse", "latin-1")
    with pytest.raises(ConfigError, match=r"UTF-8 text, but got .*latin\.csv'\. Save it as UTF-8 \("):
        read_aliases(path)


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("a.yaml", "", "'one word or nothing'"),
        ("a.yaml", "- cat", "'a list'"),
        ("a.yaml", "cat", "'one word or nothing'"),
        ("a.yaml", "cat: Cat\ndog: [Dog, Hound]", "'a list or mapping in line 2'"),
        ("a.yaml", "? [cat]\n: Cat", "'a list or mapping in line 1'"),
        ("a.yaml", "cat: {a: b}", "'a list or mapping in line 1'"),
        ("a.yaml", "cat: 'Cat", "'while scanning a quoted scalar in .* line 1"),
        ("a.json", "", "'Expecting value: line 1 column 1"),
        ("a.json", '[["cat", "Cat"]]', "'a list'"),
        ("a.json", '{"cat": 3}', r"\('cat', 3\)"),
        ("a.json", '{"cat": {"a": "b"}}', r"\('cat', \(\('a', 'b'\),\)\)"),
        ("a.csv", "cat,Cat\ndog,Dog,Hound", "'dog Dog Hound'"),
        ("a.csv", "cat", "'cat'"),
        ("a.tsv", "cat\tCat\tKatze", "'cat Cat Katze'"),
        ("a.txt", "cat Cat\ndog", "'dog'"),
    ],
)
def test_what_is_no_pairs_is_refused(tmp_path: Path, name: str, text: str, shown: str) -> None:
    path = written(tmp_path, name, text)
    told = rf"alias file must be pairs of a folder and its display name, but got {shown}.*\. Correct {path}\."
    with pytest.raises(ConfigError, match=told):
        read_aliases(path)


@pytest.mark.parametrize(
    ("name", "text", "shown"),
    [
        ("a.yaml", "cat: Cat\ndog:", "dog: "),
        ("a.json", '{"dog": "  "}', "dog:   "),
        ("a.csv", "cat,Cat\ndog,", "dog: "),
        ("a.csv", ",Cat", ": Cat"),
    ],
)
def test_an_empty_name_is_refused(tmp_path: Path, name: str, text: str, shown: str) -> None:
    path = written(tmp_path, name, text)
    told = f"folder and display name must be not empty, but got '{shown}'. Complete or remove this line of {path}."
    with pytest.raises(ConfigError) as caught:
        read_aliases(path)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "cat: Cat\ndog: Dog\ncat: Katze"),
        ("a.json", '{"cat": "Cat", "cat": "Katze"}'),
        ("a.tsv", "cat\tCat\ncat\tKatze"),
    ],
)
def test_a_folder_given_twice_is_refused(tmp_path: Path, name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=r"folder name must be given once, but got 'cat'\. Keep one of its lines in "):
        read_aliases(written(tmp_path, name, text))


def test_an_alias_for_no_folder_is_refused() -> None:
    require_known({"red_panda": "Red panda"}, ["llama", "red_panda"])
    require_known({}, [])
    told = r"folder name must be a class's folder, but got 'red_pnada'\. Did you mean 'red_panda'\?"
    with pytest.raises(UnknownNameError, match=told):
        require_known({"llama": "Llama", "red_pnada": "Red panda"}, iter(["llama", "red_panda"]))
