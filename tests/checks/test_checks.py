"""The common checks pass for every registered method, and catch every planted fault."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken
import broken_learning
import pytest
from broken import BatchVote, ForgetsEverything, KeepsExemplars, Means, MutatingPredict, UnsavedAttribute
from broken_learning import FixedRidge, KeepsAnOldAnswer, WithHead

from perdure.checks import CHECKS, Subject, check_method, runner
from perdure.checks.course import attended
from perdure.checks.subject import global_rngs, pixels, scrambled_global_rngs
from perdure.errors import UnknownNameError
from perdure.methods import Method, Tags, methods

FAULTS = broken.FAULTS | broken_learning.FAULTS
STUMBLES = {broken.ThawedBackbone, broken.NeedsSixtyFour, broken_learning.StuckAfterAFailure}  # with errors of others
README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", methods.names())
def test_every_method_keeps_every_promise(name: str) -> None:
    results = check_method(methods.get(name))
    assert [(r.name, r.note) for r in results if not r.ok] == []
    assert [r.name for r in results] == list(CHECKS)


@pytest.mark.parametrize("kind", FAULTS, ids=lambda kind: kind.__name__)
def test_a_planted_fault_is_caught(kind: type[Method[Any]]) -> None:
    (result,) = check_method(kind, only=[FAULTS[kind]])
    assert not result.ok
    assert "CheckFailedError: " in result.note or kind in STUMBLES


def test_a_number_below_zero_is_fine_where_a_bound_says_so() -> None:
    (result,) = check_method(broken.BelowZero, only=["check_config_rejects_bad_numbers"])
    assert result.ok


@pytest.mark.parametrize("kind", [BatchVote, KeepsAnOldAnswer, MutatingPredict, UnsavedAttribute])
def test_checks_that_share_a_fit_catch_what_they_catch_alone(kind: type[Method[Any]]) -> None:
    together = [r.name for r in check_method(kind) if not r.ok]
    alone = [name for name in CHECKS if not check_method(kind, only=[name])[0].ok]
    assert together == alone
    assert FAULTS[kind] in alone


@pytest.mark.parametrize("kind", [Means, MutatingPredict])
def test_a_shared_fit_is_made_anew_once_a_question_has_changed_it(kind: type[Method[Any]], tmp_path: Path) -> None:
    subject = Subject(kind, tmp_path)
    course = attended(subject)
    assert attended(subject) is course
    course.method.scores(pixels(course.method, course.stream.test(0)))
    assert (attended(subject) is course) == (kind is Means)


@pytest.mark.parametrize("kind", [FixedRidge, KeepsExemplars, Means, WithHead])
def test_the_sound_methods_behind_the_faults_pass_everything(kind: type[Method[Any]]) -> None:
    bad = [r for r in check_method(kind) if not r.ok]
    assert bad == []


def test_every_check_catches_something() -> None:
    assert set(CHECKS) - set(FAULTS.values()) == {"check_docstring_names_its_source"}


def test_the_readme_counts_the_checks() -> None:
    (count,) = re.findall(r"holds every method to (\d+) such promises", README.read_text())
    assert int(count) == len(CHECKS)


@pytest.fixture
def own_global_generators() -> Iterator[None]:
    """In a state that no test before this one has left."""
    with scrambled_global_rngs(12345):
        yield


@pytest.mark.usefixtures("own_global_generators")
def test_scrambled_generators_are_restored() -> None:
    before = global_rngs()
    for seed in (1, 2):
        with scrambled_global_rngs(seed):
            inside = global_rngs()
        assert all(inside[name] != before[name] for name in before)
        assert global_rngs() == before
    with pytest.raises(ZeroDivisionError), scrambled_global_rngs(3):
        _ = 1 / 0
    assert global_rngs() == before


def test_the_seconds_of_a_check_are_those_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr(runner.time, "perf_counter", lambda: next(clock))
    results = check_method(Means, only=["check_docstring_names_its_source", "check_config_rejects_bad_numbers"])
    assert [r.seconds for r in results] == [2.5, 0.25]


def test_a_missing_docstring_section_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
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
        tags = Tags(expected_failures={"check_remembers_every_task": "it is meant to forget"})

    (result,) = check_method(Forgetful, only=["check_remembers_every_task"])
    assert result.ok
    assert "fails as expected: it is meant to forget" in result.note


def test_unknown_checks_are_refused_with_close_matches() -> None:
    with pytest.raises(UnknownNameError, match="check_learns_an_easy_task"):
        check_method(Means, only=["check_learns_an_easy_tsk"])

    class Misspelt(Means):
        tags = Tags(expected_failures={"check_no_such_thing": "?"})

    with pytest.raises(UnknownNameError, match="check_no_such_thing"):
        check_method(Misspelt)
