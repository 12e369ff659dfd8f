"""The common checks pass for every registered method, and catch every planted fault."""

from __future__ import annotations

from typing import Any

import pytest
from broken import FAULTS, ForgetsEverything, Means

from perdure.checks import CHECKS, check_method
from perdure.errors import UnknownNameError
from perdure.methods import Method, Tags, methods


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", methods.names())
def test_every_method_keeps_every_promise(name: str, check: str) -> None:
    (result,) = check_method(methods.get(name), only=[check])
    assert result.ok, result.note


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_planted_fault_is_caught(kind: type[Method[Any]]) -> None:
    (result,) = check_method(kind, only=[FAULTS[kind]])
    assert not result.ok
    assert result.note


def test_the_sound_method_behind_the_faults_passes_everything() -> None:
    bad = [r for r in check_method(Means) if not r.ok]
    assert bad == []


def test_every_check_catches_something() -> None:
    assert set(CHECKS) - set(FAULTS.values()) == {"check_docstring_names_its_source"}


def test_a_missing_docstring_section_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    import broken

    monkeypatch.setattr(broken, "__doc__", "Source: x. Deviations: x. Use when: x. Cost: x.")
    (result,) = check_method(Means, only=["check_docstring_names_its_source"])
    assert not result.ok
    assert "Relations:" in result.note


def test_expected_failures_are_strict_and_need_a_reason() -> None:
    class Modest(Means):
        tags = Tags(expected_failures={"check_learns_an_easy_task": "I am modest"})

    (result,) = check_method(Modest, only=["check_learns_an_easy_task"])
    assert not result.ok
    assert "Remove the entry" in result.note

    class Forgetful(ForgetsEverything):
        tags = Tags(expected_failures={"check_remembers_first_task": "it is meant to forget"})

    (result,) = check_method(Forgetful, only=["check_remembers_first_task"])
    assert result.ok
    assert "fails as expected: it is meant to forget" in result.note


def test_unknown_checks_are_refused_with_close_matches() -> None:
    with pytest.raises(UnknownNameError, match="check_learns_an_easy_task"):
        check_method(Means, only=["check_learns_an_easy_tsk"])

    class Misspelt(Means):
        tags = Tags(expected_failures={"check_no_such_thing": "?"})

    with pytest.raises(UnknownNameError, match="check_no_such_thing"):
        check_method(Misspelt)
