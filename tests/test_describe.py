"""What ``perdure show`` tells of settings: where they are, what they may be, what they are."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field, StrictInt

from perdure.config import Config, MethodConfig
from perdure.describe import method_lines, setting_lines, setting_rows, state_lines
from perdure.lines import Line, described
from perdure.methods import Method, methods


class Fast(Config):
    name: Literal["fast"] = "fast"
    rate: float = Field(1.0, gt=0, description="how fast")


class Slow(Config):
    name: Literal["slow"] = "slow"
    rate: float = Field(0.1, gt=0, description="how fast")
    patience: int = Field(ge=1, le=9, description="how long")


class Inner(Config):
    flag: bool = Field(True, description="whether")
    pace: Fast | Slow = Field(Fast(), discriminator="name", description="the pace")


class Settings(MethodConfig):
    train: Inner = Field(Inner(flag=False, pace=Fast(rate=7)), description="all of it")
    top: Fast | Slow | None = Field(None, discriminator="name", description="beside it")
    most: int | None = Field(None, description="so many")
    head: Literal["linear", "cosine"] = "linear"
    size: int


def test_every_setting_has_a_row_with_the_methods_own_default() -> None:
    assert setting_rows(Settings) == [
        ("preset", "str", "default", "a published variant to start from"),
        ("train", "section", "", "all of it"),
        ("train.flag", "bool", "false", "whether"),
        ("train.pace", "fast | slow", "fast", "the pace"),
        ("train.pace.rate", "float", "7.0", "how fast; > 0"),
        ("train.pace.rate (slow)", "float", "0.1", "how fast; > 0"),
        ("train.pace.patience (slow)", "int", "required", "how long; >= 1; <= 9"),
        ("top", "fast | slow | none", "none", "beside it"),
        ("top.rate (fast)", "float", "1.0", "how fast; > 0"),
        ("top.rate (slow)", "float", "0.1", "how fast; > 0"),
        ("top.patience (slow)", "int", "required", "how long; >= 1; <= 9"),
        ("most", "int | None", "none", "so many"),
        ("head", "linear | cosine", "linear", ""),
        ("size", "int", "required", ""),
    ]


class Twin(Fast):
    name: Literal["twin"] = "twin"


class Loose(MethodConfig):
    presets: ClassVar = {"one": {"must": {"name": "slow", "patience": 2}}, "two": {}}
    must: Fast | Slow = Field(discriminator="name")
    inner: Inner = Field(description="of the inner one")
    off: Inner | None = Field(None, description="not there")
    either: Fast | Twin | None = Field(None, discriminator="name")
    blocks: list[Annotated[int, Field(ge=0)]] = Field([0, 1], description="blocks that read a prefix")
    order: list[StrictInt | str] | None = Field(None, description="ids, or names")


def test_a_section_that_must_be_given_and_one_that_is_off_say_so() -> None:
    rows = {key: rest for key, *rest in setting_rows(Loose)}
    assert rows["must"] == ["fast | slow", "required", ""]
    assert rows["inner"] == ["section", "required", "of the inner one"]
    assert rows["off"] == ["section | none", "none", "not there"]
    assert rows["must.patience (slow)"][:2] == ["int", "required"]
    assert rows["either.rate"][:2] == ["float", "1.0"], "which both kinds have"
    assert rows["blocks"][:2] == ["list[int]", "[0, 1]"]
    assert rows["order"][:2] == ["list[int | str] | None", "none"]


def joined(lines: list[Line]) -> list[str]:
    return [strong + rest for strong, rest in lines]


def test_settings_are_lines_with_the_sections_further_in() -> None:
    assert joined(setting_lines("method", Loose, 36, ["one", "two"]))[:16] == [
        "Settings: -s method.KEY=VALUE",
        "Presets: one, two",
        "",
        "preset = default   str",
        "    a published variant to start",
        "    from",
        "must   fast | slow   required",
        "  must.rate = 1.0   float   (fast)",
        "      how fast; > 0",
        "  must.rate = 0.1   float   (slow)",
        "      how fast; > 0",
        "  must.patience   int   required",
        "        (slow)",
        "      how long; >= 1; <= 9",
        "inner   required",
        "    of the inner one",
    ]
    assert [strong for strong, _ in setting_lines("method", Settings, 80) if strong][:4] == [
        "Settings:", "preset", "train", "  train.flag",
    ]  # fmt: skip


@pytest.mark.parametrize("name", methods.names())
def test_a_method_is_shown_at_80_columns_with_every_word_and_setting(name: str) -> None:
    kind = methods.get(name)
    lines = joined(method_lines(kind, 80))
    assert max(map(len, lines)) <= 80
    assert lines == [line.rstrip() for line in lines]
    docstring = (inspect.getdoc(described(kind)) or "").replace("``", "`")
    shown = "\n".join(lines)
    assert shown.split()[: len(docstring.split())] == docstring.split(), "no word is cut, left out or moved"
    items = [line for line in docstring.splitlines() if line.startswith("- ")]
    assert [line[:40] for line in lines if line.startswith("- ")] == [item[:40] for item in items]
    for key, *_ in setting_rows(kind.Config):
        assert re.search(rf"^ *{re.escape(key.split()[0])}( = |   |$)", shown, re.M), key


def test_a_method_tells_what_it_keeps_and_how_it_grows() -> None:
    lines = joined(state_lines(methods.get("ease"), 80))
    assert lines[1:] == [
        "State: 16 taught + 8 slots + adapter tasks + 8 d slots tasks + 8 beta d slots",
        "    bytes of tensors",
        "d: features; classes, tasks, taught: classes, tasks, images so far. beta: 1",
        "    where the setting beta is above 0, else 0. slots, adapter: sizes in the",
        "    table below.",
        "",
        "classes_       (classes), list of ints, class ids by column, in order of arrival",
        "names_         (classes), list of texts, their names: folders'",
        "displays_      (classes), list of texts, their names for people; none where a",
        "               task gave no names",
        "value_range_   (2), list of floats, black and white of deep images; 0, 0: of",
        "               their type",
        "tasks_seen_    int, tasks learned",
        "n_taught_      int, different images taught",
        "taught_        (taught, 16), uint8, the hash of each one's content",
        "origin_        constant, a hash of the backbone it was given",
        "adapters_      tasks times adapter, as built, an adapter per task",
        "slot_columns_  (slots), list of ints, column of each class of each task",
        "slot_tasks_    (slots), list of ints, its task",
        "counts_        (slots), int64, its images",
        "sums_          tasks times (slots, d), float64, by subspace k; 0 for tasks",
        "               before k",
        "frozen_sums_   (beta slots, d), float64, of the bare backbone",
    ]
    assert "State: 16 taught + 8 classes + 8 classes d bytes of tensors" in joined(
        state_lines(methods.get("simplecil"), 80)
    )


def test_a_method_that_declares_nothing_tells_nothing() -> None:
    class Undeclared(Method[MethodConfig]):
        """Keeps nothing."""

    assert state_lines(Undeclared, 80) == []
