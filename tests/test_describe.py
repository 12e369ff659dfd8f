"""What ``perdure show`` tells of settings: where they are, what they may be, what they are."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import Field

from perdure.config import Config, MethodConfig
from perdure.describe import described, notes, purpose, setting_rows
from perdure.methods import Tags


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


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        (Tags(), ""),
        (Tags(split_invariant=True, adapts=True), "any split, same result, trains parts inserted into the backbone"),
        (Tags(keeps_data=True, depends_on_test_batch=True), "keeps data, depends on the test batch"),
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
