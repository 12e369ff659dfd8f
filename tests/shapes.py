"""Holds functions to their jaxtyping shapes and nothing else, so that tests may put stubs in the place of classes.

jaxtyping's own import hook wraps every function and looks at every argument twice, which took a quarter of the tests'
time; this one leaves functions without shapes alone. Functions inside of functions are not held to theirs.
"""

from __future__ import annotations

import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any

from jaxtyping import AbstractArray, TypeCheckError, config, jaxtyped


def hold(package: str) -> None:
    """Every module of ``package`` that is imported from now on keeps to the shapes its signatures tell."""
    sys.meta_path.insert(0, _Finder(package))


class _Finder(MetaPathFinder):
    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: Sequence[str] | None, target: object = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name.partition(".")[0] == self.package else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: types.ModuleType) -> None:
        super().exec_module(module)
        own = {k: v for k, v in vars(module).items() if getattr(v, "__module__", None) == module.__name__}
        for owner, members in ((module, own), *((v, dict(vars(v))) for v in own.values() if inspect.isclass(v))):
            for name, value in members.items():
                if (held := _held(value)) is not value:
                    setattr(owner, name, held)


def _held(value: Any) -> Any:
    """A function, method or property that checks; anything else as it is."""
    if isinstance(value, types.FunctionType):
        return checked(value)
    if isinstance(value, (classmethod, staticmethod)):
        held = checked(value.__func__)
        return value if held is value.__func__ else type(value)(held)
    if isinstance(value, property) and value.fget is not None:
        held = checked(value.fget)
        return value if held is value.fget else property(held, value.fset, value.fdel, value.__doc__)
    return value


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a check of its arguments and its result, or itself where its signature tells no shapes."""
    signature, names = inspect.signature(function), inspect.unwrap(function).__globals__
    shaped = {name: _meant(p.annotation, names) for name, p in signature.parameters.items()}
    shaped, returns = {k: v for k, v in shaped.items() if _told(v)}, _meant(signature.return_annotation, names)
    if not shaped and not _told(returns):
        return function

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        if config.jaxtyping_disable:
            return function(*args, **kwargs)
        given = signature.bind(*args, **kwargs).arguments
        for name, annotation in shaped.items():
            if name in given:
                _require(given[name], annotation, f"{function.__qualname__}: {name}")
        result = function(*args, **kwargs)
        _require(result, returns, f"{function.__qualname__}: the result")
        return result

    return jaxtyped(check, typechecker=None)  # in which "n" is one number, and "{width}" an argument's value


def _meant(annotation: Any, names: dict[str, Any]) -> Any:
    """An annotation that may be written as text; None where it speaks of what is imported for type checkers only."""
    try:
        return eval(annotation, names) if isinstance(annotation, str) else annotation
    except NameError:
        return None


def _require(value: Any, annotation: Any, name: str) -> None:
    if not _is(value, annotation):
        got = getattr(value, "shape", value)
        raise TypeCheckError(f"{name} must be {annotation}, but got {got!r}. Correct the code or its signature.")


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
