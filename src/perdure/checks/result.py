"""How a check went, and where a method went wrong."""

from __future__ import annotations

import dataclasses as dc
import sys
import traceback
from collections.abc import Iterator

from perdure.checks.subject import CheckFailedError


@dc.dataclass(frozen=True, slots=True)
class CheckResult:
    """How one check went.

    Args:
        name: the check.
        ok: it passed, or failed as the method's tags say it must.
        note: the failure's message, or the reason of an expected failure.
        seconds: how long it took; a fit that checks share counts for the first of them.
        error: what was raised, with its traceback; None if nothing was.
    """

    name: str
    ok: bool
    note: str
    seconds: float
    error: Exception | None = dc.field(default=None, compare=False, repr=False)

    def require(self) -> None:
        """Does nothing if all is well; for tests, which then show the error with its traceback.

        Raises:
            CheckFailedError: if it is not, from what was raised.
        """
        if not self.ok:
            hint = "Look at the error it comes from" if self.error else "Look at the method's tags"
            raise CheckFailedError("check_method", self.name, "kept by the method", self.note, hint) from self.error


def own_frames(error: BaseException, kind: type, most: int = 3) -> list[str]:
    """The last lines of a class's own file that an error came through, oldest first: place, function, code.

    Args:
        error: what was raised.
        kind: the class.
        most: so many lines.
    """
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    frames = [f for each in _origins(error) for f in traceback.extract_tb(each.__traceback__) if f.filename == file]
    return [f"{f.filename}:{f.lineno} in {f.name}: {f.line}" for f in frames[-most:]]


def _origins(error: BaseException | None) -> Iterator[BaseException]:
    """An error behind the one that it comes from."""
    if error is not None:
        yield error
        yield from _origins(error.__cause__)
