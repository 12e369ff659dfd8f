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
from perdure.checks import contract, invariants, learning, state, tagged
from perdure.checks.result import CheckResult
from perdure.checks.subject import FITTING, Subject
from perdure.errors import UnknownNameError, did_you_mean
from perdure.methods import Method


def _checks_of(module: ModuleType) -> dict[str, Callable[[Subject], None]]:
    return {name: thing for name, thing in vars(module).items() if name.startswith("check_")}


CHECKS: Mapping[str, Callable[[Subject], None]] = {
    **_checks_of(contract),
    **_checks_of(learning),
    **_checks_of(invariants),
    **_checks_of(tagged),
    **_checks_of(state),
}
"""Every common check by name, in the order they run."""


def check_method(
    kind: type[Method[Any]],
    *,
    only: Iterable[str] | None = None,
    make_backbone: Callable[[], Backbone] | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> list[CheckResult]:
    """Holds a method class to every common promise, offline, on a tiny random backbone.

    Args:
        kind: the class.
        only: names of the checks to run; all by default.
        make_backbone: makes the backbone to check on; by default a tiny one of the kind that ``tags.backbone`` needs.
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
        subject = Subject(kind, Path(folder), make_backbone or FITTING[kind.tags.backbone])
        for name in names:
            results.append(_run(name, dc.replace(subject, folder=Path(folder, name))))
            if on_result:
                on_result(results[-1])
    return results


def _run(name: str, subject: Subject) -> CheckResult:
    start, failure = time.perf_counter(), None
    try:
        CHECKS[name](subject)
    except Exception as error:  # a broken method may raise anything; the check's result tells it
        failure = error
    seconds, reason = time.perf_counter() - start, subject.kind.tags.expected_failures.get(name)
    if failure is None:
        note = f"passes, though tags.expected_failures says: {reason}. Remove the entry."
        return CheckResult(name, reason is None, "" if reason is None else note, seconds)
    note = f"{type(failure).__name__}: {failure}" if reason is None else f"fails as expected: {reason}"
    return CheckResult(name, reason is not None, note, seconds, failure)
