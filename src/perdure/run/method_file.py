"""A method's class from a file of one's own, named where a person types: ``-s method.name=./my_method.py:MyMethod``.

To load it is to run its code. So only the command line may name a file; what came from elsewhere, a recipe, a run
directory or a saved state, may not. The file is one module: it imports what is installed, not what lies beside it.
"""

from __future__ import annotations

import hashlib
import inspect
import re
import sys
from importlib.abc import SourceLoader
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from perdure.errors import ConfigError, UnknownNameError, did_you_mean, told
from perdure.methods import Method, methods

Kind = type[Method[Any]]


def names_file(name: str) -> bool:
    """Whether a method's name is that of a file, and not a registered one.

    Args:
        name: any.
    """
    return name.endswith(".py") or ".py:" in name


def registered_method(name: str) -> tuple[Kind, None]:
    """The method of a name that may come from anywhere.

    Args:
        name: a registered name.

    Raises:
        ConfigError: for the name of a file.
        UnknownNameError: if there is none of that name.
    """
    if names_file(name):
        hint = (
            "A file runs code, so only a -s typed on the command line may name one: -s method.name=FILE.py:Class; "
            "in Python give the class itself, as in load(run, method=Class)"
        )
        raise ConfigError("method", "name", "a registered one", name, hint)
    return methods.get(name), None


def typed_method(name: str) -> tuple[Kind, str | None]:
    """The method of a name that a person has typed, and the SHA-256 of its file if that is what it names.

    Args:
        name: a registered name, or ``FILE.py:Class``, whose file is run.

    Raises:
        ConfigError: for a file that cannot be run, or a class that is no whole method.
        UnknownNameError: if there is no such method, file or class.
    """
    if not names_file(name):
        return methods.get(name), None
    path, _, wanted = name.rpartition(":")
    if not path.endswith(".py"):
        raise ConfigError("method", "name", "FILE.py:Class", name, "Name the class in the file, behind a colon")
    file = Path(path).expanduser()
    try:
        source = file.read_bytes()
    except OSError as error:
        hint = f"Check the path; relative paths start at the current directory ({told(error)})"
        raise UnknownNameError("method", "file", "a readable Python file", path, hint) from None
    digest = hashlib.sha256(source).hexdigest()
    module_name = f"{re.sub(r'[^0-9a-zA-Z]', '_', file.stem)}_{digest[:12]}"
    module = sys.modules.get(module_name) or _run(module_name, file, source)
    return _method_class(module, wanted, path), digest


def short_name(name: str) -> str:
    """A method's name without the folder of its file, which is another on every machine.

    Args:
        name: any.
    """
    return Path(name).name if names_file(name) else name


class _Source(SourceLoader):
    """Of the very bytes whose digest is told; no byte code beside the file, which may be older than it."""

    def __init__(self, file: Path, source: bytes) -> None:
        self.file, self.source = str(file.resolve()), source

    def get_filename(self, fullname: str) -> str:
        return self.file

    def get_data(self, path: str | bytes) -> bytes:
        return self.source


def _run(name: str, file: Path, source: bytes) -> ModuleType:
    loader = _Source(file, source)
    module = sys.modules[name] = module_from_spec(ModuleSpec(name, loader, origin=loader.file))
    module.__file__ = loader.file
    methods.leave_out(name)  # it is found by its file, and may be a copy of an installed plug-in
    try:
        loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, Exception | SystemExit):  # whatever a file does
            hint = f"Correct it ({told(error)})"
            raise ConfigError("method", "file", "one that can be imported", str(file), hint) from error
        raise
    return module


def _method_class(module: ModuleType, wanted: str, path: str) -> Kind:
    own = [k for k, v in vars(module).items() if _is_method(v) and v.__module__ == module.__name__]
    hint = did_you_mean(wanted, own) if own else "Write a subclass of perdure.Method there"
    if not hasattr(module, wanted):
        raise UnknownNameError("method", f"class in {path}", "one of its methods", wanted, hint)
    kind = getattr(module, wanted)
    if not _is_method(kind):
        raise ConfigError("method", f"{wanted} in {path}", "a subclass of perdure.Method", kind, hint)
    lacking = sorted(kind.__abstractmethods__) + ([] if hasattr(kind, "Config") else ["Config"])
    if lacking:
        raise ConfigError("method", f"{wanted} in {path}", "a whole method", f"one without {lacking}", "Write them")
    return kind


def _is_method(thing: Any) -> bool:
    return inspect.isclass(thing) and issubclass(thing, Method)
