"""One learned tensor, list or number: its shape in sizes, its kind and its bounds."""

from __future__ import annotations

import abc
import dataclasses as dc
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from perdure.errors import CheckpointError

AT_MOST, WHERE = "<=", "load_state_dict"
HINT = "Load what state_dict gave, into a method with the same settings and backbone"

Sizes = dict[str, int]  # what the names in shapes stand for
Merges = Literal["", "added", "weights", "pooled", "first", "fisher"]  # see learned()


@dc.dataclass(frozen=True)
class Line:
    """One line of what there is to read of a declaration.

    Args:
        name: the attribute, or the pattern of its entries.
        times: the sizes that say how often it is there; of fixed parts their bytes too.
        entry: what it is; None: nothing of its own that grows.
    """

    name: str
    times: tuple[str, ...]
    entry: Entry | None


class Declaration(abc.ABC):
    """What is known of one learned attribute."""

    meaning: str
    merges: Merges
    under: str
    what: ClassVar[str] = "numbers"

    @abc.abstractmethod
    def check(self, name: str, value: Any, mine: Any, sizes: Sizes) -> None:
        """Refuses a value that is not as declared.

        Args:
            name: the attribute, or the path of the entry.
            value: what a state has for it.
            mine: the attribute's present value.
            sizes: known so far; what this attribute tells of them is added.

        Raises:
            CheckpointError: naming the entry, what is wanted and what was given.
        """

    @abc.abstractmethod
    def lines(self, name: str) -> Iterator[Line]:
        """What there is to read of it.

        Args:
            name: the attribute.
        """

    def initial(self, sizes: Sizes) -> Any:
        """The value before ``setup``; None where ``setup`` must give it.

        Args:
            sizes: those that are not zero.
        """
        return None

    def leaves(self, name: str, mine: Any, sizes: Sizes) -> Iterator[tuple[str, Entry]]:
        """The entries that a state must have, by their path. A later one may need a size that an earlier one tells.

        Args:
            name: the attribute.
            mine: its present value.
            sizes: known so far; the bytes of fixed parts are added.
        """
        return iter(())


@dc.dataclass(frozen=True)
class Entry(Declaration):
    """Numbers: a tensor, a list of plain numbers, or one. Its fields are those of :func:`learned`."""

    shape: tuple[str, ...]
    kind: torch.dtype | type
    meaning: str = ""
    each: str = ""
    least: int | None = 0
    below: str = ""
    distinct: bool = False
    finite: bool = True
    tells: str = ""
    merges: Merges = ""
    under: str = ""

    def initial(self, sizes: Sizes) -> Any:
        """Zeros; no rows where a size is not known."""
        extents = [0 if dim.startswith(AT_MOST) else extent(dim, sizes) or 0 for dim in self.shape]
        if self.each:
            return []
        if isinstance(self.kind, torch.dtype):
            return torch.zeros(extents, dtype=self.kind)
        return [self.kind()] * extents[0] if extents else self.kind()

    def leaves(self, name: str, mine: Any, sizes: Sizes) -> Iterator[tuple[str, Entry]]:
        """Itself."""
        yield name, self

    def check(self, name: str, value: Any, mine: Any, sizes: Sizes) -> None:
        """Kind and shape first, then the values.

        Raises:
            CheckpointError: naming the entry, what is wanted and what was given.
        """
        if self.each:
            if not isinstance(value, list | tuple) or len(value) != sizes[self.each]:
                must_be = f"a list of {self.each} = {sizes[self.each]} parts"
                raise CheckpointError(WHERE, name, must_be, told(value), HINT)
            for i, part in enumerate(value):
                dc.replace(self, each="").check(f"{name}.{i}", part, None, sizes)
            return
        shape = self._shape_of(value)
        if (
            shape is None
            or len(shape) != len(self.shape)
            or not all(_fits(*both, sizes) for both in zip(self.shape, shape, strict=True))
        ):
            raise CheckpointError(WHERE, name, self._wanted(sizes), told(value), HINT)
        sizes.update({dim: n for dim, n in zip(self.shape, shape, strict=True) if extent(dim, sizes) is None})
        if self.tells:
            sizes[self.tells] = int(value)
        for must_be, got in self._odd(value, sizes):
            raise CheckpointError(WHERE, name, must_be, got, HINT)

    def lines(self, name: str) -> Iterator[Line]:
        """One."""
        yield Line(name, tuple(filter(None, [self.each])), self)

    def _shape_of(self, value: Any) -> tuple[int, ...] | None:
        """None where ``value`` is of another kind."""
        if isinstance(self.kind, torch.dtype):
            return tuple(value.shape) if isinstance(value, Tensor) and value.dtype == self.kind else None
        if isinstance(value, list | tuple):
            return (len(value),) if all(type(v) is self.kind for v in value) else None
        return () if type(value) is self.kind else None

    def _wanted(self, sizes: Sizes) -> str:
        numbers = ", ".join("any" if (n := extent(dim, sizes)) is None else str(n) for dim in self.shape)
        names = ", ".join(self.shape)
        both = f"({numbers})" if names == numbers else f"({names}) = ({numbers})"
        if isinstance(self.kind, torch.dtype):
            return f"{name_of(self.kind)} of shape {both}"
        return f"a list of {name_of(self.kind)}s, {both}" if self.shape else f"one {name_of(self.kind)}"

    def _odd(self, value: Any, sizes: Sizes) -> Iterator[tuple[str, object]]:
        """What is wrong with values of the right kind and shape."""
        ends = _ends(value) if self.kind is not str else []
        if self.finite:
            yield from (("finite", end) for end in ends if not math.isfinite(end))
        if self.distinct and len(set(value)) < len(value):
            yield "distinct", value
        if self.is_whole and self.least is not None:
            yield from ((f"at least {self.least}", end) for end in ends if end < self.least)
        if self.below:
            yield from ((f"below {self.below} = {sizes[self.below]}", end) for end in ends if end >= sizes[self.below])

    @property
    def is_whole(self) -> bool:
        """Whether the numbers are whole ones."""
        return not self.kind.is_floating_point if isinstance(self.kind, torch.dtype) else self.kind is int


def extent(dim: str, sizes: Mapping[str, int]) -> int | None:
    """How long a dimension is, or is at most; None where a name is not known.

    Args:
        dim: as in a shape.
        sizes: what names stand for.
    """
    factors = [int(f) if f.isdigit() else sizes.get(f) for f in dim.removeprefix(AT_MOST).split()]
    known = [f for f in factors if f is not None]
    return math.prod(known) if len(known) == len(factors) else None


def _fits(dim: str, n: int, sizes: Sizes) -> bool:
    wanted = extent(dim, sizes)
    return wanted is None or n == wanted or (dim.startswith(AT_MOST) and n < wanted)


def _ends(value: Any) -> list[Any]:
    """The least and the largest number; NaN if there is one."""
    if isinstance(value, Tensor):
        return [end.item() for end in torch.aminmax(value)] if value.numel() else []
    numbers = list(value) if isinstance(value, list | tuple) else [value]
    odd = [v for v in numbers if not math.isfinite(v)]
    return odd[:1] or ([min(numbers), max(numbers)] if numbers else [])


def name_of(kind: torch.dtype | type) -> str:
    """In words, e.g. float64 or int.

    Args:
        kind: of numbers.
    """
    if isinstance(kind, torch.dtype):
        return str(kind).removeprefix("torch.")
    return "text" if kind is str else kind.__name__


def told(value: Any) -> object:
    """What an error message shows of a value: kind and size of a large one, a small one itself.

    Args:
        value: of a state.
    """
    if isinstance(value, Tensor):
        return f"{name_of(value.dtype)} of shape {tuple(value.shape)}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)} ({', '.join(sorted({type(v).__name__ for v in value})) or 'nothing'})"
    return f"a mapping with {', '.join(map(str, list(value)[:4]))}" if isinstance(value, Mapping) else value
