"""What the house rules are made of: a parsed source file, and the list of rules.

A rule takes files and yields one line per violation, so that ``test_rules.py`` can run it over ``src/perdure`` and over
planted violations alike.
"""

from __future__ import annotations

import ast
import dataclasses as dc
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, wraps

Function = ast.FunctionDef | ast.AsyncFunctionDef
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dc.dataclass(frozen=True)
class File:
    """One source file, named by its path below ``src/perdure``."""

    path: str
    source: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.source)

    @cached_property
    def module(self) -> str:
        """``perdure.data.images`` for ``data/images.py``; ``perdure.data`` for its ``__init__``."""
        parts = ["perdure", *self.path.removesuffix(".py").split("/")]
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def is_method(self) -> bool:
        """Whether it is one method's own file."""
        return self.path.startswith("methods/") and not self.path.startswith(("methods/base", "methods/__init__"))

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Local name to what it stands for: ``np`` to ``numpy``, ``load`` to ``torch.load``."""
        names: dict[str, str] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for a in node.names:  # `import a.b` binds a, `import a.b as c` binds a.b
                    top = a.name.split(".")[0]
                    names[a.asname or top] = a.name if a.asname else top
            elif isinstance(node, ast.ImportFrom):
                names.update({a.asname or a.name: f"{node.module}.{a.name}" for a in node.names})
        return names

    def called(self, node: ast.AST) -> str:
        """The full dotted name of a name or attribute, ``""`` for anything else."""
        if isinstance(node, ast.Name):
            return self.aliases.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            owner = self.called(node.value)
            return owner and f"{owner}.{node.attr}"
        return ""

    def walk(self, *kinds: type) -> Iterator[ast.AST]:
        """All nodes of these kinds."""
        return (node for node in ast.walk(self.tree) if isinstance(node, kinds))


Rule = Callable[[Sequence[File]], Iterator[str]]
RULES: dict[str, Rule] = {}


def house_rule(rule: Rule) -> Rule:
    """Lists a rule that looks at all files together."""
    RULES[rule.__name__] = rule
    return rule


def file_rule(check: Callable[[File], Iterator[tuple[int, str]]]) -> Rule:
    """Lists a rule that looks at one file at a time and yields (line, what is wrong)."""

    @wraps(check)
    def rule(files: Sequence[File]) -> Iterator[str]:
        for file in files:
            yield from (f"{file.path}:{line}: {wrong}" for line, wrong in check(file))

    return house_rule(rule)
