"""Templates by name, file, list and data set."""

from __future__ import annotations

from pathlib import Path

import pytest

from perdure.data.templates import TEMPLATES, filled, templates_of, written_out
from perdure.errors import ConfigError, DataNotFoundError, UnknownNameError

PUBLISHED = {
    "aircraft": 2, "birds": 1, "caltech101": 34, "cars": 8, "cifar": 18, "flowers": 1, "food": 1, "imagenet7": 7,
    "pets": 1, "sun397": 2, "ucf101": 48,
}  # fmt: skip


def test_the_published_lists_are_whole() -> None:
    assert {name: len(TEMPLATES[name]) for name in PUBLISHED} == PUBLISHED
    for name, templates in TEMPLATES.items():
        assert len(set(templates)) == len(templates), name
        assert templates_of(name) == templates
    assert TEMPLATES["cifar"][7] == "a photo of a small {}."
    assert TEMPLATES["caltech101"][-1] == "a doodle of the {}."
    assert "a video of the person practicing {}." in TEMPLATES["ucf101"]


def test_they_may_be_given_in_a_list_a_file_or_by_data_set(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one {}\n\ntwo {}\n", encoding="utf-8")
    assert templates_of(["a {}"]) == ("a {}",)
    assert templates_of(str(file)) == ("one {}", "two {}")
    by_set = {"cifar10": "cifar", "": "bare"}
    assert templates_of(by_set, "cifar10") == TEMPLATES["cifar"]
    assert templates_of(by_set, "other") == templates_of(by_set) == ("{}",)
    assert filled("a {} here", "{} {0}") == "a {} {0} here"


def test_what_is_no_template_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"but got 'foto'\. Did you mean 'food' or 'photo'"):
        templates_of("foto")
    with pytest.raises(DataNotFoundError, match=r"but got 'gone\.txt'"):
        templates_of("gone.txt")
    for bad in ("a photo", "a {} of {}"):
        with pytest.raises(ConfigError, match=f"a sentence with one {{}}, but got '{bad}'"):
            templates_of([bad])
    with pytest.raises(ConfigError, match=r"a list or file of at least one, but got \[\]"):
        templates_of([])
    with pytest.raises(UnknownNameError, match="data set must be one that has templates, but got 'cifar10'"):
        templates_of({"caltech101": "photo"}, "cifar10")
    with pytest.raises(ConfigError, match=r"for data without a set's name, but got \['caltech101'\]\. Without stream"):
        templates_of({"caltech101": "photo"})
    (tmp_path / "other.txt").write_bytes("ein Foto für {}".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"in UTF-8 that can be read, but got '.*other\.txt'"):
        templates_of(str(tmp_path / "other.txt"))


def test_a_files_templates_are_written_out(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("one {}\ntwo {}\n", encoding="utf-8")
    assert written_out(str(file)) == ["one {}", "two {}"]
    assert written_out("cifar") == "cifar"
    assert written_out(["a {}"]) == ["a {}"]
