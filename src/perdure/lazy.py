"""A package's names without the cost of its imports: each is imported when it is first asked for.

What a package offers stands in its ``__init__`` as ordinary imports under ``if TYPE_CHECKING:``, for type checkers and
editors. The package reads the same lines when it runs, so that nothing is said twice::

    if TYPE_CHECKING:
        from perdure.memory import FeatureStore
    else:
        __getattr__, __dir__ = on_demand(__name__)
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def on_demand(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """A package's ``__getattr__`` and ``__dir__``: what it imports for type checkers, and its modules.

    Args:
        package: its full name; it is being imported.

    Raises:
        AttributeError: later, for a name that the package does not have.
        ImportError: later, where what has the name breaks with an ``AttributeError`` of its own when it is imported.
    """
    module = sys.modules[package]

    @functools.cache
    def homes() -> dict[str, tuple[str, str]]:
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        blocks = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
        lines = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
        return {each.asname or each.name: (str(line.module), each.name) for line in lines for each in line.names}

    def get(name: str) -> Any:
        home, theirs = homes().get(name, (package, name))
        is_module = home == package
        if is_module and importlib.util.find_spec(f"{package}.{theirs}") is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=module)
        try:
            found = importlib.import_module(f"{home}.{theirs}" if is_module else home)
            found = found if is_module else getattr(found, theirs)
        except AttributeError as error:  # Python would say that there is no such name
            raise ImportError(f"{package}.{name} could not be imported ({error})", name=package) from error
        setattr(module, name, found)
        return found

    return get, lambda: sorted({*vars(module), *homes()})


def optional(name: str) -> Any:
    """A library that an extra installs, imported when it is first needed.

    Args:
        name: the module's.

    Raises:
        ImportError: if it is not installed, or breaks when it is imported.
    """
    return importlib.import_module(name)
