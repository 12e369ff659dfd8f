"""The common checks pass for every registered method, and catch every planted fault."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import broken
import broken_learning
import broken_tags
import pytest
import torch
from broken import (
    BatchVote,
    DeclaredMeans,
    ForgetsEverything,
    GlobalTorchRng,
    InPlaceOldRows,
    KeepsExemplars,
    Means,
    MutatingPredict,
    SwallowsErrors,
    UnsavedAttribute,
)
from broken_learning import FixedRidge, KeepsAnOldAnswer, KeepsTheFirstAnswer, StuckAfterAFailure, WithHead
from broken_tags import ByName, Nudged

from perdure.backbone import Backbone
from perdure.backbone.tiny import TINY
from perdure.checks import CHECKS, CheckFailedError, CheckResult, Subject, check_method, own_frames, runner
from perdure.checks.course import attended, retaken
from perdure.checks.subject import FITTING, equal, frozen_state, global_rngs, pixels, scrambled_global_rngs
from perdure.errors import BackboneError, UnknownNameError
from perdure.methods import Method, Tags, methods
from tiny_vit import tiny

FAULTS = broken.FAULTS | broken_learning.FAULTS | broken_tags.FAULTS
STUMBLES = {
    broken.ThawedBackbone,
    broken.NeedsSixtyFour,
    broken.NeverMade,
    broken_learning.StuckAfterAFailure,
    broken_tags.RefusesInRiddles,
}  # with errors of others
SHARING = [name for name, check in CHECKS.items() if {"attended", "retaken"} & {*check.__code__.co_names}]
MOST_PASSES, MOST_STEPS = 2500, 1000
"""Images through the tiny backbones, and steps of training, in all checks of one method; the tests' time is theirs."""

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.parametrize("name", methods.names())
def test_every_method_keeps_every_promise_at_a_bounded_cost(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, made, steps, backward = methods.get(name), [], [], torch.Tensor.backward

    def make() -> Backbone:
        made.append(FITTING[kind.tags.backbone]())
        return made[-1]

    monkeypatch.setattr(torch.Tensor, "backward", lambda *args, **rest: steps.append(1) or backward(*args, **rest))
    results = check_method(kind, make_backbone=make)
    assert [(r.name, r.note) for r in results if not r.ok] == []
    assert [r.name for r in results] == list(CHECKS)
    assert sum(backbone.passes.images for backbone in made) <= MOST_PASSES, "make tags.small or tags.learns smaller"
    assert len(steps) <= MOST_STEPS, "make tags.small or tags.learns smaller"


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
    names = [*SHARING, *{FAULTS[kind]}.difference(SHARING)]  # a check that shares nothing is alone anyway
    together = [r.name for r in check_method(kind, only=names, make_backbone=tiny) if not r.ok]
    alone = [name for name in names if not check_method(kind, only=[name], make_backbone=tiny)[0].ok]
    assert together == alone
    assert len(SHARING) >= 15
    assert FAULTS[kind] in alone


class MutatesInPlace(Means):
    """Writes into its sums when asked."""

    def _scores_from_features(self, features: Any) -> Any:
        self.sums_ += 1e-3
        return super()._scores_from_features(features)


class NeverGoesBack(MutatingPredict):
    """Refuses every state once it has learned something."""

    def load_state_dict(self, state: Any) -> Any:
        raise RuntimeError("never")


@pytest.mark.parametrize("kind", [Means, MutatingPredict, MutatesInPlace, NeverGoesBack])
def test_what_a_question_has_changed_of_a_shared_fit_is_put_back_or_learned_anew(
    kind: type[Method[Any]], tmp_path: Path
) -> None:
    subject = Subject(kind, tmp_path, tiny)
    course = attended(subject)
    assert attended(subject) is course
    known = frozen_state(course.method)
    for _ in range(2):
        course.method.scores(pixels(course.method, course.stream.test(0)))
        assert equal(known, course.method.state_dict()) == (kind is Means)
        assert (attended(subject) is course) == (kind is not NeverGoesBack)
        course = attended(subject)
        assert equal(known, course.method.state_dict())


@pytest.mark.parametrize(
    "kind", [GlobalTorchRng, KeepsTheFirstAnswer, InPlaceOldRows, SwallowsErrors, StuckAfterAFailure]
)
def test_a_course_retaken_shows_whatever_its_checks_look_for(kind: type[Method[Any]], tmp_path: Path) -> None:
    assert not retaken(Subject(kind, tmp_path, tiny))
    assert retaken(Subject(Means, tmp_path / "sound", tiny))


def test_checks_of_a_sound_method_share_one_retaken_course(monkeypatch: pytest.MonkeyPatch) -> None:
    fits = []
    learn = Means.fit_task
    monkeypatch.setattr(Means, "fit_task", lambda self, task: fits.append(task.index) or learn(self, task))
    names = ["check_same_seed_same_bits", "check_resumed_equals_straight", "check_failed_task_changes_nothing"]
    assert all(r.ok for r in check_method(Means, only=names, make_backbone=tiny))
    assert fits == [0, 1, 2, 0, 1, 2, 2]  # straight; and again, where the last task fails first


@pytest.mark.parametrize("kind", [ByName, DeclaredMeans, FixedRidge, KeepsExemplars, Nudged, WithHead])
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


def test_a_failed_check_keeps_what_was_raised_and_where() -> None:
    (result,) = check_method(broken.NeedsSixtyFour, only=["check_works_on_another_backbone"])
    assert isinstance(result.error, RuntimeError)
    assert result.note == f"RuntimeError: {result.error}"
    (last,) = own_frames(result.error, broken.NeedsSixtyFour, most=1)
    assert re.fullmatch(r".*broken\.py:\d+ in \w+: .*@ F\.normalize\(self\.sums_.*", last)
    assert len(own_frames(result.error, broken.NeedsSixtyFour)) == 2
    with pytest.raises(CheckFailedError, match="check_works_on_another_backbone must be kept") as caught:
        result.require()
    assert caught.value.__cause__ is result.error


def test_the_error_that_a_check_tells_in_its_own_words_is_kept_too() -> None:
    class NotInThreads(Means):
        def _scores_from_features(self, features: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                raise ValueError("not here")
            return super()._scores_from_features(features)

    (result,) = check_method(NotInThreads, only=["check_threads_do_not_matter"])
    assert isinstance(result.error, CheckFailedError)
    assert isinstance(result.error.__cause__, ValueError)
    assert own_frames(result.error, NotInThreads)[-1].endswith('in _scores_from_features: raise ValueError("not here")')


def test_a_check_that_is_kept_requires_nothing() -> None:
    (result,) = check_method(Means, only=["check_constructor_learns_nothing"])
    assert result.error is None
    result.require()


def test_a_failure_to_fail_comes_from_no_error() -> None:
    with pytest.raises(CheckFailedError, match=r"'passes, though .*Look at the method's tags"):
        CheckResult("check_x", False, "passes, though …", 0.0).require()


def test_the_seconds_of_a_check_are_those_it_took(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 12.5, 20.0, 20.25])
    monkeypatch.setattr(runner.time, "perf_counter", lambda: next(clock))
    results = check_method(Means, only=["check_docstring_names_its_source", "check_config_rejects_bad_numbers"])
    assert [r.seconds for r in results] == [2.5, 0.25]


def test_a_missing_docstring_section_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broken, "__doc__", "Source: x. Deviations: x. Use when: x. Cost: x.")
    (result,) = check_method(Means, only=["check_docstring_names_its_source"])
    assert not result.ok
    assert "but got 'without Relations:'. Write" in result.note


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


class HeadUndeclared(DeclaredMeans):
    """Declares its sums alone."""

    def setup(self) -> None:
        super().setup()
        self.head_ = torch.nn.Linear(2, 2)


PLAIN = "larger by 2048 (bytes of tensors, and other values)"
SETTINGS = "The settings are tags.small with tags.learns laid over them"
TOLD = [
    (broken.UndeclaredAttribute, "Write e.g. n_tasks_ = learned('classes, d', torch.float64, 'what it is') into the"),
    (HeadUndeclared, "Write e.g. head_ = learned_module({...}, 'what it is', rest='the size of all else') into the"),
    (
        broken.NeverMade,
        "NeverMade.setup: head_ must be made there (declared as a module), but got None. setup must",
    ),
    (broken.NoGradientHere, "self.store, for tests in _scores_of(data); if images must pass anew through trained weig"),
    (broken.KeepsFeaturesUntold, f"keeps no training images, with a state that is {PLAIN} after 69 images of a class"),
    (broken.KeepsExemplarsUntold, "keeps 4 training images, with a state that is smaller by "),
    (
        broken.SaysItKeeps,
        "no training images, with a state that is no larger after 6 images of a class than after 2",
    ),
    (broken.IdsForColumns, SETTINGS),
    (ForgetsEverything, SETTINGS),
    (broken_tags.NeedsLessThanAVit, "in need of what it asks for (vit), but got 'a fit on a tiny Swin"),
]


@pytest.mark.parametrize(("kind", "told"), TOLD, ids=lambda part: getattr(part, "__name__", ""))
def test_a_failed_check_says_in_plain_words_what_to_do(kind: type[Method[Any]], told: str) -> None:
    (result,) = check_method(kind, only=[FAULTS.get(kind, "check_state_is_declared")])
    assert told in result.note


def test_a_method_leaves_the_refusal_of_a_backbone_to_its_tag() -> None:
    class NeedsPositions(Means):
        """Stumbles where no position is embedded, and says nothing itself."""

        tags = Tags(split_invariant=True, backbone="vit")

        def setup(self) -> None:
            super().setup()
            assert self.backbone.model.pos_embed is not None

    (result,) = check_method(NeedsPositions, only=["check_works_on_another_backbone"])
    assert result.ok, result.note
    with pytest.raises(BackboneError, match=r"backbone must be a"):
        NeedsPositions(TINY["transformer"]())
