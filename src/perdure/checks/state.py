"""Common checks of what a method learned: it is declared, it is what is declared, and nothing else is taken over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from perdure.checks.course import attended
from perdure.checks.subject import Subject, equal, frozen_state
from perdure.errors import CheckpointError
from perdure.learned import Entry, Sizes, declarations, growth_formula, is_bound, state_bytes
from perdure.learned.entry import AT_MOST, extent
from perdure.methods import Method
from perdure.run.checkpoint import tensor_bytes

DECLARED_MODULE = "learned_module({...}, 'what it is', rest='the size of all else')"
DECLARED_NUMBERS = "learned('classes, d', torch.float64, 'what it is')"


def check_state_is_declared(s: Subject) -> None:
    """Every learned attribute is declared, and after every task the state is as declared, to the byte.

    A method that declares nothing of its own is left alone.
    """
    declared, course = declarations(s.kind), attended(s)
    if not _declares(s.kind):
        return
    for step in course.steps:
        more = sorted(step.state.keys() ^ declared.keys())
        if more:
            is_module = isinstance(getattr(course.method, more[0], None), nn.Module)
            hint = f"Write e.g. {more[0]} = {DECLARED_MODULE if is_module else DECLARED_NUMBERS} into the class"
            raise s.fail("state_dict", "of attributes that are declared, all of them", more, hint)
        try:
            sizes = course.method.sizes_in(step.state)
        except CheckpointError as error:
            raise s.fail("state_dict", "as declared", str(error), "Correct the declaration, or the method") from error
        told, real = state_bytes(s.kind, sizes), tensor_bytes(step.state)
        if real > told or (real < told and not is_bound(s.kind)):
            must_be = f"of {growth_formula(s.kind)} = {told} bytes"
            raise s.fail("state_dict", must_be, real, "Declare every entry of a module, or its rest")


def check_refused_state_changes_nothing(s: Subject) -> None:
    """A state with an entry missing, added or spoiled is refused, and leaves a fitted method as it was.

    Spoiled is an entry of another kind or dtype, with a row or an item too few or too many, with axes swapped, with
    NaN, or with an index out of its range. A method that declares nothing of its own is held to the kinds alone.
    """
    course = attended(s)
    m = course.method
    scores, before = m.scores(course.images), frozen_state(m)
    for what, state in _spoiled_states(m, before):
        with suppress(CheckpointError):
            m.load_state_dict(state)
            raise s.fail("load_state_dict", f"unwilling to take nonsense ({what})", "accepted", "Check it first")
        if not equal(before, m.state_dict()):
            got = f"changed by a state that it refused ({what})"
            raise s.fail("load_state_dict", "as before after a refused state", got, "Check all of it before any of it")
    if not m.promises.depends_on_test_batch and not torch.equal(scores, m.scores(course.images)):
        hint = "Something outside the state was lost: make _snapshot hold it"
        raise s.fail("scores", "as before after a refused state", "other scores", hint)


def _declares(kind: type) -> bool:
    """Whether it declares anything but what every method does."""
    return len(declarations(kind)) > len(declarations(Method))


def _spoiled_states(m: Method[Any], state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for key in state:
        nonsense = 0 if type(getattr(m, key)) is dict else {"nonsense": torch.zeros(1)}
        yield key, {**state, key: nonsense}
    yield "an entry too many", {**state, "nonsense_": 0}
    yield "an entry too few", dict(list(state.items())[1:])
    sizes = m.sizes_in(state)
    for name, declared in declarations(type(m)).items() if _declares(type(m)) else ():
        leaves = list(declared.leaves(name, getattr(m, name), sizes))
        for path, entry in leaves if len(leaves) < 9 else [leaves[0], leaves[-1]]:  # all alike: weights of a network
            for what, bad in _spoiled(entry, _at(state, path), sizes):
                yield f"{path} {what}", _replaced(state, path, bad)


def _spoiled(entry: Entry, value: Any, sizes: Sizes) -> Iterator[tuple[str, Any]]:
    """Values that are not as declared, and what is wrong with each."""
    if isinstance(value, Tensor):
        yield "of another dtype", value.to(torch.float32 if value.dtype == torch.float64 else torch.float64)
        if value.ndim and len(value):
            most = (extent(entry.shape[0], sizes) or 0) if entry.shape[0].startswith(AT_MOST) else len(value)
            yield "with a row too many", torch.cat([value] * (most // len(value) + 1))[: most + 1]
            if not entry.shape[0].startswith(AT_MOST):
                yield "with a row too few", value[:-1]
        if value.ndim > 1 and value.shape[0] != value.shape[-1]:
            yield "with its axes swapped", value.transpose(0, -1)
        if value.is_floating_point() and value.numel() and entry.finite:
            yield "with NaN", torch.cat([value.flatten()[:-1], value.new_tensor([torch.nan])]).view_as(value)
        for what, bad in _out_of_range(entry, sizes) if value.numel() and value.dtype == torch.long else ():
            yield what, torch.cat([value.flatten()[:-1], value.new_tensor([bad])]).view_as(value)
    elif isinstance(value, list | tuple):
        if len(value):
            yield "of another kind", [0 if entry.kind is str else "text"] * len(value)
            yield "with an item too few", value[:-1]
            yield "with an item too many", [*value, value[-1]]
            for what, bad in _out_of_range(entry, sizes):
                yield what, [*value[:-1], bad]
    else:
        yield "of another kind", 0 if entry.kind is str else "text"
        yield from _out_of_range(entry, sizes)


def _out_of_range(entry: Entry, sizes: Sizes) -> Iterator[tuple[str, Any]]:
    if entry.each:
        return
    if entry.is_whole and entry.least is not None:
        yield "with an index too small", entry.least - 1
    if entry.below:
        yield "with an index too large", sizes[entry.below]


def _at(state: Any, path: str) -> Any:
    """What stands in a nested state at a path of keys, which may hold points themselves."""
    for key in state if path else ():
        if path == key or path.startswith(f"{key}."):
            return _at(state[key], path[len(key) + 1 :])
    return state


def _replaced(state: Mapping[str, Any], path: str, value: Any) -> Any:
    if not path:
        return value
    within = [key for key in state if path == key or path.startswith(f"{key}.")][-1:]
    return {**state, **{key: _replaced(state[key], path[len(key) + 1 :], value) for key in within}}
