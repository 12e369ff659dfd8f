"""What is made from learned numbers and is no state itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Derived(Generic[T]):
    """Values that are made when first needed, and anew when what they were made from has been replaced.

    A learned tensor or list is never changed in place, so that the same object stands for the same numbers.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[object, T]] = {}  # key -> (what it was made from, the value)

    def of(self, source: object, make: Callable[[], T], key: Hashable = None) -> T:
        """The value.

        Args:
            source: the learned object that it depends on.
            make: makes it.
            key: tells several values apart.
        """
        known = self._known.get(key)
        if known is None or known[0] is not source:
            known = self._known[key] = (source, make())
        return known[1]
