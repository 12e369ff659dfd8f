"""Runs the common checks on a method class."""

from __future__ import annotations

import dataclasses as dc
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from perdure.backbone import Backbone
from perdure.checks import contract, invariants, learning
from perdure.checks.subject import Subject, tiny_backbone
from perdure.errors import UnknownNameError, did_you_mean
from perdure.methods import Method


def _checks_of(module: ModuleType) -> dict[str, Callable[[Subject], None]]:
    return {name: thing for name, thing in vars(module).items() if name.startswith("check_")}


CHECKS: Mapping[str, Callable[[Subject], None]] = {
    **_checks_of(contract),
    **_checks_of(learning),
    **_checks_of(invariants),
}
"""Every common check by name, in the order they run."""


@dc.dataclass(frozen=True, slots=True)
class CheckResult:
    """How one check went.

    Args:
        name: the check.
        ok: it passed, or failed as the method's tags say it must.
        note: the failure's message, or the reason of an expected failure.
        seconds: how long it took; a fit that checks share counts for the first of them.
    """

    name: str
    ok: bool
    note: str
    seconds: float


def check_method(
    kind: type[Method[Any]],
    *,
    only: Iterable[str] | None = None,
    make_backbone: Callable[[], Backbone] = tiny_backbone,
    on_result: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Holds a method class to every common promise, offline, on a tiny random backbone.

    Args:
        kind: the class.
        only: names of the checks to run; all by default.
        make_backbone: makes the backbone to check on.
        on_result: called after each check.

    Raises:
        UnknownNameError: if ``only`` names a check there is not.
    """
    names = list(CHECKS) if only is None else list(only)
    for name in (*names, *kind.tags.expected_failures):
        if name not in CHECKS:
            raise UnknownNameError("check_method", "check", "a common check", name, did_you_mean(name, CHECKS))
    results = []
    with tempfile.TemporaryDirectory() as folder:
        subject = Subject(kind, Path(folder), make_backbone)
        for name in names:
            results.append(_run(name, dc.replace(subject, folder=Path(folder, name))))
            if on_result:
                on_result(results[-1])
    return results


def _run(name: str, subject: Subject) -> CheckResult:
    start, failure = time.perf_counter(), ""
    try:
        CHECKS[name](subject)
    except Exception as error:  # a broken method may raise anything; the check's result tells it
        failure = f"{type(error).__name__}: {error}"
    seconds, reason = time.perf_counter() - start, subject.kind.tags.expected_failures.get(name)
    if reason is None:
        return CheckResult(name, not failure, failure, seconds)
    if failure:
        return CheckResult(name, True, f"fails as expected: {reason}", seconds)
    return CheckResult(name, False, f"passes, though tags.expected_failures says: {reason}. Remove the entry.", seconds)
