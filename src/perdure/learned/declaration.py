"""What stands in the body of a method's class: numbers, modules and constants that it learns."""

from __future__ import annotations

import dataclasses as dc
import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch

from perdure.errors import CheckpointError
from perdure.learned.entry import HINT, WHERE, Declaration, Entry, Line, Merges, Sizes, told


@dc.dataclass(frozen=True)
class _Module(Declaration):
    what: ClassVar[str] = "a module"

    entries: Mapping[str, Entry]
    meaning: str
    rest: str
    each: str
    merges: Merges
    under: str

    def leaves(self, name: str, mine: Any, sizes: Sizes) -> Iterator[tuple[str, Entry]]:
        here = flat(mine.one() if self.each else mine.state_dict())
        for key, entry in self.entries.items():
            if not key.endswith("?") or key[:-1] in here:
                yield from ((f"{name}.{path}", entry) for path in _paths(key.removesuffix("?"), sizes))
        declared = [re.sub(r"<\w+>", r"\\d+", re.escape(key.removesuffix("?"))) for key in self.entries]
        fixed = {k: v for k, v in here.items() if not any(re.fullmatch(pattern, k) for pattern in declared)}
        sizes[self.rest] = sum(v.nbytes for v in fixed.values())
        for where in [f"{name}.parts.{i}" for i in range(sizes[self.each])] if self.each else [name]:
            for k, v in fixed.items():
                yield f"{where}.{k}", Entry(tuple(map(str, v.shape)), v.dtype, least=None)

    def check(self, name: str, value: Any, mine: Any, sizes: Sizes) -> None:
        if not isinstance(value, Mapping):
            raise CheckpointError(WHERE, name, "the entries of a module", told(value), HINT)
        given = flat(value, f"{name}.")
        for key, entry in self.leaves(name, mine, sizes):
            entry.check(key, given.pop(key, None), None, sizes)
        if given:
            raise CheckpointError(WHERE, name, "without other entries", sorted(given), HINT)

    def lines(self, name: str) -> Iterator[Line]:
        for key, entry in self.entries.items():
            yield Line(f"{name}.{key}", tuple(re.findall(r"<(\w+)>", key)), entry)
        if self.rest:
            yield Line(name, tuple(filter(None, [self.each, self.rest])), None)


@dc.dataclass(frozen=True)
class _Constant(Declaration):
    what: ClassVar[str] = "a constant"

    meaning: str
    of: str = ""
    merges: Merges = ""
    under: str = ""

    def check(self, name: str, value: Any, mine: Any, sizes: Sizes) -> None:
        if value != mine:
            raise CheckpointError(WHERE, f"{name} ({self.meaning})", f"as here: {mine!r}", value, HINT)

    def lines(self, name: str) -> Iterator[Line]:
        yield Line(name, (), None)


def learned(
    shape: str, kind: torch.dtype | type[int] | type[float] | type[str], meaning: str = "", *, each: str = "",
    least: int | None = 0, below: str = "", distinct: bool = False, finite: bool = True, tells: str = "",
    merges: Merges = "", under: str = "",
) -> Any:  # fmt: skip
    """Declares numbers, in the body of a method's class or among the entries of a module.

    Args:
        shape: see the module; empty: one number.
        kind: a tensor's dtype; ``int``, ``float`` or ``str``: a list of such values, or one.
        meaning: what they are, in few words.
        each: there is a list of as many such values as this size says.
        least: the least whole number; None: any. Other numbers have no bound.
        below: the size that all numbers are smaller than: those that index something.
        distinct: whether no number of a list comes twice.
        finite: whether NaN and infinity are refused.
        tells: the size that this number is.
        merges: what becomes of two methods' numbers when the methods are merged (:mod:`perdure.run.merger`): ``added``;
            merged as ``weights``; ``pooled`` by the method's own ``_pooled``; the ``first`` method's are taken; they
            are the ``fisher`` information of the weights of the module ``under``, in a row. Empty: they must be equal.
        under: of statistics of features: the module that makes them, which must then be equal in both methods.
    """
    dims = tuple(filter(None, shape.split(", ")))
    return Entry(dims, kind, meaning, each, least, below, distinct, finite, tells, merges, under)


def learned_module(
    entries: Mapping[str, Entry], meaning: str, *, rest: str = "", each: str = "", merges: Merges = "weights",
    under: str = "",
) -> Any:  # fmt: skip
    """Declares a module, in the body of a method's class; ``setup`` makes it.

    Args:
        entries: those of its state that grow. ``<size>`` in a name stands for as many entries, from 0 on. A name with a
            question mark behind it is only looked for where the present module has it.
        meaning: what it is, in few words.
        rest: what the bytes of all other entries are called; they must be exactly as the present module's.
        each: the module is a list ``parts`` of as many as this size says, and its ``one()`` is the state of one.
        merges: as for :func:`learned`; a part of the module that says ``merges_itself`` has a method ``merge(other)``.
        under: as for :func:`learned`.
    """
    return _Module(dict(entries), meaning, rest, each, merges, under)


def learned_constant(meaning: str, *, of: str = "") -> Any:
    """Declares a plain value that a state must share with the method that takes it over.

    Args:
        meaning: what it is, in few words.
        of: of a hash: what it is of. A run keeps it among its fingerprints, by this name.
    """
    return _Constant(meaning, of)


def hashes(kind: type) -> dict[str, str]:
    """What the hashes are of that a class declares as constants, and the attribute of each.

    Args:
        kind: a method's class.
    """
    return {thing.of: name for name, thing in declarations(kind).items() if isinstance(thing, _Constant) and thing.of}


def declarations(kind: type) -> dict[str, Declaration]:
    """What a class and those it inherits from declare, in that order."""
    parts = [part for base in reversed(kind.__mro__) for part in vars(base).items()]
    return {name: thing for name, thing in parts if isinstance(thing, Declaration)}


def flat(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping in one level, its keys joined by points.

    Args:
        state: a module's.
        prefix: before every key.
    """
    nested = [flat(v, f"{prefix}{k}.") if isinstance(v, Mapping) else {prefix + k: v} for k, v in state.items()]
    return {key: value for part in nested for key, value in part.items()}


def _paths(key: str, sizes: Sizes) -> Iterator[str]:
    names = re.findall(r"<(\w+)>", key)
    for numbers in itertools.product(*(range(sizes[name]) for name in names)):
        path = key
        for name, number in zip(names, numbers, strict=True):
            path = path.replace(f"<{name}>", str(number))
        yield path
