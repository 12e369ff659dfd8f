"""Marks of figures that were made before a change which may move them: ``made_before`` in the result files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

MARKS = {"crops": "†", "batches": "‡"}
NOTES = {
    "†": "made before random crops followed torchvision's rule; larger crops than that were drawn.",
    "‡": "made before `mos_release` ran in the release's own batches, every adapter once per test batch.",
}


def mark(runs: Iterable[Mapping[str, Any]]) -> str:
    """What to write behind a figure that comes from ``runs``: nothing, or a space and the marks.

    Args:
        runs: as in the result files.
    """
    before = sorted({run["made_before"] for run in runs if "made_before" in run})
    return "".join(f" {MARKS[change]}" for change in before)


def explained(table: str) -> str:
    """A table with a line for every mark in it.

    Args:
        table: Markdown.
    """
    return "".join([table, *(f"\n\n{sign}: {note}" for sign, note in NOTES.items() if sign in table)])
