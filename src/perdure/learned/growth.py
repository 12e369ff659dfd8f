"""A method's declarations to be read: the table of what it learns, and a formula of the bytes that its tensors take."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from perdure.learned.declaration import declarations
from perdure.learned.entry import AT_MOST, Entry, name_of

Row = tuple[str, str, str, str]  # attribute or entry, shape, type, meaning


def state_bytes(kind: type, sizes: Mapping[str, int]) -> int:
    """What the formula comes to.

    Args:
        kind: a method's class.
        sizes: what all names in it stand for, e.g. from :meth:`perdure.methods.Method.sizes_in`.
    """
    return sum(number * math.prod(sizes[name] for name in names) for names, number in _terms(kind).items())


def growth_formula(kind: type) -> str:
    """The bytes of a method's tensors as a sum, what grows least first. Plain numbers are not counted.

    Args:
        kind: a method's class.
    """
    terms = sorted(_terms(kind).items(), key=lambda term: len(term[0]))
    text = " + ".join(" ".join([*([str(n)] if n > 1 or not names else []), *names]) for names, n in terms) or "0"
    return f"at most {text}" if is_bound(kind) else text


def is_bound(kind: type) -> bool:
    """Whether the formula is an upper bound: a dimension is at most so long, or an entry need not be there.

    Args:
        kind: a method's class.
    """
    return any(AT_MOST in shape or name.endswith("?") for name, shape, _, _ in state_rows(kind))


def state_rows(kind: type) -> list[Row]:
    """What a method learns: attribute, shape, type and meaning.

    Args:
        kind: a method's class.
    """
    rows = []
    for name, thing in declarations(kind).items():
        for i, line in enumerate(thing.lines(name)):
            shape, type_, meaning = (
                _described(line.entry) if line.entry else ("", "as built" if line.times else "constant", "")
            )
            meaning = meaning or ("" if i else thing.meaning)
            rows.append((line.name, " times ".join(filter(None, [*line.times, shape])), type_, meaning))
    return rows


def _described(entry: Entry) -> tuple[str, str, str]:
    shape = f"({', '.join(entry.shape)})"
    if isinstance(entry.kind, torch.dtype):
        return shape, name_of(entry.kind), entry.meaning
    return (
        (shape, f"list of {name_of(entry.kind)}s", entry.meaning)
        if entry.shape
        else ("", name_of(entry.kind), entry.meaning)
    )


def _terms(kind: type) -> dict[tuple[str, ...], int]:
    """Products of sizes, and the bytes that each is multiplied by."""
    terms: dict[tuple[str, ...], int] = {}
    for thing in declarations(kind).values():
        for line in thing.lines(""):
            factors, number = list(line.times), 1
            if line.entry is not None:
                number = line.entry.kind.itemsize if isinstance(line.entry.kind, torch.dtype) else 0
                factors += [f for dim in line.entry.shape for f in dim.removeprefix(AT_MOST).split()]
            names = tuple(sorted(f for f in factors if not f.isdigit()))
            number *= math.prod(int(f) for f in factors if f.isdigit())
            if number and (names or line.entry is not None):
                terms[names] = terms.get(names, 0) + number
    return terms
