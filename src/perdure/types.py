"""Names for the few types that cross module borders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

ClassId: TypeAlias = int
"""A class's own integer: any value, stable for ever; never a column of a score matrix."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with (what is being done, how many are done, how many there are)."""


def no_progress(what: str, done: int, total: int) -> None:
    """The silent ``Progress``."""
