"""What there is by name, and what each name stands for: ``perdure ls``.

Importing all methods takes seconds, so what the package itself registers is read from its sources. Plug-ins can only be
imported: where there are any of a kind, the registry is asked.
"""

from __future__ import annotations

import ast
import dataclasses as dc
import inspect
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import perdure
from perdure.errors import ConfigError
from perdure.lines import EMPTY, Line, described, entry_lines, purpose
from perdure.run.streams import stream_rows
from perdure.tags import Tags, notes

if TYPE_CHECKING:
    import perdure.backbone
    import perdure.data.datasets
    from perdure.registry import Registry

What = Literal["all", "methods", "backbones", "data", "streams", "recipes"]
Kind = Literal["methods", "backbones", "datasets"]
PACKAGES: Final[dict[Kind, str]] = {"methods": "methods", "backbones": "backbone", "datasets": "data"}
OFFLINE, FROM_HUB = "offline", "weights from the hub or a file"


@dc.dataclass(frozen=True)
class Entry:
    """A registered name.

    Args:
        name: without aliases.
        aliases: what else it is found by.
        purpose: a sentence.
        note: what is worth knowing before it is chosen; may be empty.
    """

    name: str
    aliases: tuple[str, ...]
    purpose: str
    note: str


def names(what: What, width: int) -> list[Line]:
    """Every name of a kind and what it stands for.

    Args:
        what: the kind.
        width: of a line.
    """
    lines: list[Line] = []
    if what in ("all", "methods"):
        lines += _titled("Methods", _told("methods"), width)
    if what in ("all", "backbones"):
        hub = f"by its full tag, e.g. vit_base_patch16_224.augreg_in21k ({FROM_HUB})"
        lines += _titled("Backbones", [*_told("backbones"), ("any timm model", hub)], width)
    if what in ("all", "data"):
        folder = ("any folder", "root/{train,test}/<class>/, root/<class>/ or root/<domain>/<class>/")
        lines += _titled("Data sets", [*_told("datasets"), folder], width)
    if what in ("all", "streams"):
        lines += stream_lines(None, width)
    if what in ("all", "recipes"):
        lines += [("Recipes", " (perdure run FILE)")]
        lines += [("", f"  {path}") for path in sorted(Path("recipes").glob("**/*.yaml"))]
    return lines


def stream_lines(data: str | None, width: int) -> list[Line]:
    """The named streams; nothing where there is none.

    Args:
        data: only those of this data set.
        width: of a line.
    """
    rows = [(name, f"{of}, {told}") for name, of, told in stream_rows(data)]
    return _titled("Streams (-s stream.preset=NAME)", rows, width) if rows else []


def refuse_settings(what: str, overrides: Sequence[str]) -> None:
    """Does nothing where nothing was typed.

    Args:
        what: what is shown, and has no settings to give.
        overrides: as they were typed.

    Raises:
        ConfigError: if there are any.
    """
    for text in overrides:
        hint = "Leave it out, or name a method or a recipe file"
        raise ConfigError("perdure show", "-s", f"left out for {what}", text, hint)


def registered(kind: Kind) -> list[Entry]:
    """What the registry of a kind has, plug-ins among it; imports all of it.

    Args:
        kind: which registry.
    """
    registries: dict[Kind, Registry[Any]] = {
        "methods": perdure.methods.methods,
        "backbones": perdure.backbone.backbones,
        "datasets": perdure.data.datasets.datasets,
    }
    registry, found = registries[kind], []
    for name in registry.names():
        thing = registry.get(name)
        says = inspect.getdoc(thing if kind == "datasets" else described(thing)) or ""
        whose = _whence(name) if thing.__module__.startswith("perdure.") else "plug-in"
        note = notes(thing.tags) if kind == "methods" else whose if kind == "backbones" else ""
        aliases = tuple(alias for alias, of in registry.aliases().items() if of == name)
        found.append(Entry(name, aliases, purpose(says), note))
    return found


def written(kind: Kind) -> list[Entry]:
    """What the sources of the package register, read without importing them.

    Args:
        kind: of the registry.
    """
    files = (Path(__file__).parent / PACKAGES[kind]).glob("*.py")
    sources = (file.read_text(encoding="utf-8") for file in files)
    found = [entry for source in sources if f"@{kind}.register(" in source for entry in _written(kind, source)]
    return sorted(found, key=lambda entry: entry.name)


def _written(kind: Kind, source: str) -> Iterator[Entry]:
    tree = ast.parse(source)
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef):
            continue
        for call in node.decorator_list:
            if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{kind}.register":
                name, *aliases = map(ast.literal_eval, call.args)
                own = ast.get_docstring(node) or ""
                says = own if kind == "datasets" else ast.get_docstring(tree) or own
                note = notes(_tags(node)) if kind == "methods" else _whence(name) if kind == "backbones" else ""
                yield Entry(name, tuple(aliases), purpose(says), note)


def _whence(backbone: str) -> str:
    """Where the weights of one of perdure's own backbones come from; a family's name ends in a slash."""
    return FROM_HUB if backbone.endswith("/") else OFFLINE


def _tags(method: ast.ClassDef | ast.FunctionDef) -> Tags:
    """Those that are plain values; the others say nothing here."""
    calls = [s.value for s in method.body if isinstance(s, ast.AnnAssign) and ast.unparse(s.target) == "tags"]
    keywords = [keyword for call in calls if isinstance(call, ast.Call) for keyword in call.keywords]
    values: dict[str, Any] = {str(k.arg): k.value.value for k in keywords if isinstance(k.value, ast.Constant)}
    return Tags(**values)


def _told(kind: Kind) -> list[tuple[str, str]]:
    entries = registered(kind) if entry_points(group=f"perdure.{kind}") else written(kind)
    return [(e.name, f"{e.purpose} ({e.note})" if e.note else e.purpose) for e in entries]


def _titled(title: str, entries: Sequence[tuple[str, str]], width: int) -> list[Line]:
    return [(title, ""), *entry_lines([(f"  {name}", text) for name, text in entries], width), EMPTY]
