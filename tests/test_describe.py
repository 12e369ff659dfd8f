"""What ``perdure show`` tells of settings: where they are, what they may be, what they are."""

from __future__ import annotations

import inspect
import re
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from perdure.config import Config, MethodConfig
from perdure.describe import (
    Line,
    described,
    docstring_lines,
    entry_lines,
    method_lines,
    notes,
    purpose,
    setting_lines,
    setting_rows,
    state_lines,
)
from perdure.methods import Method, Tags, methods


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


def test_a_section_that_must_be_given_and_one_that_is_off_say_so() -> None:
    rows = {key: rest for key, *rest in setting_rows(Loose)}
    assert rows["must"] == ["fast | slow", "required", ""]
    assert rows["inner"] == ["section", "required", "of the inner one"]
    assert rows["off"] == ["section | none", "none", "not there"]
    assert rows["must.patience (slow)"][:2] == ["int", "required"]
    assert rows["either.rate"][:2] == ["float", "1.0"], "which both kinds have"
    assert rows["blocks"][:2] == ["list[int]", "[0, 1]"]


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
        "State: 8 slots + adapter tasks + 8 d slots tasks + 8 beta d slots bytes of",
        "    tensors",
        "d: features; classes and tasks: seen so far. beta: 1 where the setting beta is",
        "    above 0, else 0.",
        "",
        "classes_       (classes), list of ints, class ids by column, in order of arrival",
        "tasks_seen_    int, tasks learned",
        "adapters_      tasks times adapter, as built, an adapter per task",
        "slot_columns_  (slots), list of ints, column of each class of each task",
        "slot_tasks_    (slots), list of ints, its task",
        "counts_        (slots), int64, its images",
        "sums_          tasks times (slots, d), float64, by subspace k; 0 for tasks",
        "               before k",
        "frozen_sums_   (beta slots, d), float64, of the bare backbone",
    ]
    assert "State: 8 classes + 8 classes d bytes of tensors" in joined(state_lines(methods.get("simplecil"), 80))


def test_a_method_that_declares_nothing_tells_nothing() -> None:
    class Undeclared(Method[MethodConfig]):
        """Keeps nothing."""

    assert state_lines(Undeclared, 80) == []


def test_a_docstring_keeps_its_sections_lists_arguments_and_examples_apart() -> None:
    def documented() -> None:
        """Means: one per class,
        and no more.

        Of :class:`~perdure.Backbone` features.
        Source: a paper with a title that is
            longer than one line.
        Deviations:
        - From the paper: none that would be
          worth a line.
        - From ``code``: none.
        After the list.

        Args:
            first: what comes
                first.
            second: what comes second.
        >>> documented("a very long line is left alone")
        """

    assert joined(docstring_lines(documented, 30)) == [
        "Means: one per class, and no",
        "    more.",
        "",
        "Of `perdure.Backbone`",
        "features.",
        "Source: a paper with a title",
        "    that is longer than one",
        "    line.",
        "Deviations:",
        "- From the paper: none that",
        "  would be worth a line.",
        "- From `code`: none.",
        "After the list.",
        "",
        "Args:",
        "    first: what comes first.",
        "    second: what comes second.",
        '>>> documented("a very long line is left alone")',
    ]
    strong = [strong for strong, _ in docstring_lines(documented, 30) if strong]
    assert strong == ["Means:", "Source:", "Deviations:", "Args:", "    first:", "    second:"]


def test_a_docstring_may_be_missing_or_be_one_line() -> None:
    assert docstring_lines(type("Silent", (), {"__doc__": None}), 80) == []
    named = type("Named", (), {"__doc__": "coda-prompt: mixed."})
    assert docstring_lines(named, 80) == [("coda-prompt:", " mixed.")]
    assert purpose(named) == "mixed."


def test_entries_stand_beside_their_names_and_no_word_is_cut() -> None:
    assert joined(entry_lines([("one", "of the entries here"), ("longer", "x"), ("none", "")], 20)) == [
        "one     of the",
        "        entries here",
        "longer  x",
        "none",
    ]
    assert joined(entry_lines([("a_long_name", "y"), ("b", "an" + "other" * 3)], 20)) == [
        "a_long_name  y",
        "b  another" + "other" * 2,
    ]
    assert joined(entry_lines([("a", "x" * 30)], 20)) == ["a", "x" * 30]
    assert entry_lines([], 80) == []


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        (Tags(), ""),
        (Tags(split_invariant=True, adapts=True), "any split, same result, trains parts inserted into the backbone"),
        (Tags(keeps_data=True, depends_on_test_batch=True), "keeps data, depends on the test batch"),
        (
            Tags(backbone="transformer", adapts=True),
            "needs a Vision Transformer or Swin, trains parts inserted into the backbone",
        ),
        (Tags(trains_backbone=True), "trains the backbone"),
    ],
)
def test_tags_are_told_in_words(tags: Tags, told: str) -> None:
    assert notes(tags) == told


def test_a_purpose_is_the_first_line_without_its_name_and_markup() -> None:
    class Documented:
        """SLCA: a ``slow`` learner.

        More.
        """

    assert purpose(Documented) == "a slow learner."


def test_what_says_nothing_has_no_purpose_and_a_module_without_a_docstring_is_not_asked() -> None:
    silent = type("Silent", (), {"__module__": "collections_of_nothing", "__doc__": None})
    assert described(silent) is silent
    assert purpose(silent) == ""
    assert purpose(described(purpose)).startswith("What the command line tells")
