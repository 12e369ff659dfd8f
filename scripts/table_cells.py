"""Pieces of a Markdown table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any


def head_of(first: str, others: Sequence[str]) -> list[str]:
    """The two lines above the rows; all columns but the first are numbers.

    Args:
        first: title of the first column.
        others: of the others.
    """
    return [f"| {first} | " + " | ".join(others) + " |", "|---|" + "---:|" * len(others)]


def row_of(first: str, cells: Sequence[str]) -> str:
    """One line.

    Args:
        first: the first cell.
        cells: the others.
    """
    return f"| {first} | " + " | ".join(cells) + " |"


def mean_of(values: Sequence[Any]) -> str:
    """In percent, with the standard deviation where there are several; a dash for none.

    Args:
        values: fractions.
    """
    if not values:
        return "–"
    mean = f"{100 * statistics.mean(values):.1f}"
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"
