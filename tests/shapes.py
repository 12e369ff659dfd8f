"""Holds functions to their jaxtyping shapes and nothing else, so that tests may put stubs in the place of classes."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any

from jaxtyping import AbstractArray


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """For ``jaxtyping.install_import_hook``, which gives it functions of the same signature, shapes in context."""
    signature = inspect.signature(function)
    shaped = {name: p.annotation for name, p in signature.parameters.items() if _told(p.annotation)}

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        values = signature.bind(*args, **kwargs).arguments
        for name in shaped.keys() & values.keys():
            if not _is(values[name], shaped[name]):
                raise TypeError(f"{name} is not {shaped[name]}")
        result = function(*args, **kwargs)
        if not _is(result, signature.return_annotation):
            raise TypeError(f"the result is not {signature.return_annotation}")
        return result

    return check


def _told(annotation: Any) -> bool:
    """Whether it speaks of shapes that can be looked at without using a value up."""
    if inspect.isclass(annotation) and issubclass(annotation, AbstractArray):
        return True
    kind = typing.get_origin(annotation)
    return kind in (tuple, list, typing.Union, types.UnionType) and any(map(_told, typing.get_args(annotation)))


def _is(value: Any, annotation: Any) -> bool:
    """Whether ``value`` has the shapes; what is not about shapes is taken on trust."""
    kind, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if not _told(annotation):
        return True
    if kind in (typing.Union, types.UnionType):
        return any(value is None if part is type(None) else _is(value, part) for part in parts)
    if kind is list:
        return isinstance(value, list) and all(_is(each, parts[0]) for each in value)
    if kind is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[1:] == (...,) else parts
        return len(parts) == len(value) and all(_is(each, part) for each, part in zip(value, parts, strict=True))
    return isinstance(value, annotation)
