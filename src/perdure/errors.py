"""Every error perdure raises: who, what it must be, what it got, and one next step.

A message always reads ``{where}: {name} must be {constraint}, but got {value!r}. {next step}.``
The command line exits with the error's ``exit_code``: 2 when the request was wrong, 1 when the work failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar


class PerdureError(Exception):
    """Base of all errors raised on purpose.

    Args:
        where: the function or class that refuses, e.g. ``RanPACConfig``.
        name: the argument, field or thing at fault.
        must_be: the constraint, worded to follow "must be".
        got: the offending value, shown with ``repr``; a list of strings is shown one per line.
        hint: one next step, without the final full stop.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, where: str, name: str, must_be: str, got: object, hint: str) -> None:
        super().__init__(where, name, must_be, got, hint)
        self.where, self.name, self.must_be, self.got, self.hint = where, name, must_be, got, hint

    def __str__(self) -> str:
        return f"{self.where}: {self.name} must be {self.must_be}, but got {_shown(self.got)}. {self.hint}."


class UsageError(PerdureError):
    """The request itself is wrong; nothing was started."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(UsageError):
    """A name that no registry, folder or preset knows."""


class ConfigError(UsageError):
    """One bad value or key in a configuration."""


class SplitError(UsageError):
    """A data set cannot be cut into tasks as asked."""


class DataNotFoundError(UsageError):
    """A folder or data set that is missing or empty."""


class RunDirectoryError(UsageError):
    """A run directory that belongs to another recipe or is in use."""


class RecipeError(UsageError):
    """All problems of a recipe at once."""

    def __init__(self, problems: Sequence[PerdureError]) -> None:
        first = problems[0]
        super().__init__(first.where, first.name, first.must_be, first.got, first.hint)
        self.args = (problems,)
        self.problems = tuple(problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return str(self.problems[0])
        return f"{len(self.problems)} problems:\n" + "\n".join(f"  - {p}" for p in self.problems)


class DataError(PerdureError):
    """Images or labels that cannot be used."""


class StreamError(PerdureError):
    """A task that does not continue the stream."""


class NotFittedError(PerdureError):
    """A prediction was asked for before anything was learned."""


class ShapeError(PerdureError):
    """A tensor of the wrong shape or type."""


class BackboneError(PerdureError):
    """A backbone that cannot be loaded, or that produced values nobody can use."""


class NonFiniteError(BackboneError):
    """Features with NaN or infinity.

    Args:
        image: the image at fault: its position in the batch, or its name.
    """

    def __init__(self, image: int | str) -> None:
        hint = "Look at this image and at the weights, or use precision=float32"
        super().__init__("Backbone.features", f"features of image {image}", "finite", float("nan"), hint)
        self.args, self.image = (image,), image


class TrainingError(PerdureError):
    """A loss that left the finite numbers."""


class StorageError(PerdureError):
    """The disk, or the space granted on it, is too small."""


class CheckpointError(PerdureError):
    """A saved state that does not fit."""


def did_you_mean(word: str, known: Iterable[str], aliases: Mapping[str, str] | None = None) -> str:
    """One next step for an unknown name: close matches first, then what is known if that is a short list.

    Args:
        word: what was asked for.
        known: every name to tell.
        aliases: other accepted words, each with the known name it stands for: a word close to one points to that name.
    """
    names = sorted(known)
    means = {**(aliases or {}), **{name: name for name in names}}
    scored = sorted(((_likeness(word, n), n) for n in means), key=lambda pair: (-pair[0], len(pair[1]), pair[1]))
    least = 0.6 if len(word) > 3 else 0.5  # a slip in a name of two letters leaves one of them
    close = list(dict.fromkeys(repr(means[n]) for score, n in scored if score >= (least if len(n) < 3 else 0.6)))[:3]
    everything = f"Known: {', '.join(names)}" if len(names) <= 80 else f"{len(names)} names are known"
    return f"Did you mean {' or '.join(close)}? {everything}" if close else everything


def told(error: BaseException) -> str:
    """Anybody's error in one line: its kind, and the first line of what it says."""
    return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(": ")


def _likeness(word: str, name: str) -> float:
    """0 to 1: how alike two names are, or a name's beginning and a word, so that long names are found too."""
    word, name = word.lower(), name.lower()
    return max(difflib.SequenceMatcher(None, word, n).ratio() for n in {name, name[: len(word) + 1]})


def _shown(value: object) -> str:
    many = isinstance(value, list | tuple) and len(value) > 1 and all(isinstance(v, str) for v in value)
    return "\n    " + "\n    ".join(value) + "\n " if many else repr(value)  # type: ignore[arg-type]
