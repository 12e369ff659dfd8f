"""What the command line tells about methods, settings and data sets: lines of text, taken from the code itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perdure.config import KINDS, Config, sections
from perdure.learned import declarations, growth_formula, state_rows
from perdure.lines import EMPTY, Line, described, docstring_lines, entry_lines, filled, hanging
from perdure.methods import Method
from perdure.tags import BACKBONES

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
REQUIRED = "required"  # stands for the default of a setting that has none
SECTION = "section"  # stands for a section's type; it has no default of its own
Row = tuple[str, str, str, str]  # key, type, default, meaning and bounds


def setting_rows(config: type[BaseModel], values: BaseModel | None = None) -> list[Row]:
    """Every setting of a configuration: its path, type, default, and meaning with bounds.

    Of a section of several kinds each kind's settings are listed; those that only some kinds have, and not the default
    one, name these kinds.

    Args:
        config: a configuration class.
        values: those to tell in place of the defaults.
    """
    merged: dict[Row, list[str]] = {}
    for kind, row in _rows(config, values, ""):
        merged.setdefault(row, []).append(kind)
    choices = {key: {*type_.split(" | ")} - {"none"} for key, type_, _, _ in merged}

    def of(key: str, kinds: list[str]) -> str:
        sections_around = (key[: dot.start()] for dot in re.finditer(r"\.", key))
        every = "" in kinds or {*kinds} in [choices[section] for section in sections_around]
        return "" if every else f" ({', '.join(dict.fromkeys(kinds))})"

    return [(row[0] + of(row[0], kinds), *row[1:]) for row, kinds in merged.items()]


def _rows(model: type[BaseModel], values: BaseModel | None, prefix: str, kind: str = "") -> Iterator[tuple[str, Row]]:
    inner = sections(model)
    for name, field in model.model_fields.items():
        value = getattr(values, name) if values is not None else None if field.is_required() else field.default
        kinds = inner.get(name, [])
        if name in KINDS and kind_of(model):
            continue
        if not kinds:
            default = REQUIRED if values is None and field.is_required() else _shown(value)
            yield kind, (prefix + name, _type_name(field.annotation), default, _meaning(field))
            continue
        optional = type(None) in get_args(field.annotation)
        choices = " | ".join([*(map(kind_of, kinds) if len(kinds) > 1 else [SECTION]), *(["none"] if optional else [])])
        default = kind_of(type(value)) if isinstance(value, BaseModel) else "none" if optional else REQUIRED
        yield kind, (prefix + name, choices, default, _meaning(field))
        for each in kinds:
            own = isinstance(value, each)
            yield from _rows(each, value if own else None, f"{prefix}{name}.", kind if own else kind_of(each) or kind)


def kind_of(model: type[BaseModel]) -> str:
    """What a section of several kinds is called in a recipe; empty for another."""
    return next((str(model.model_fields[k].default) for k in KINDS if _is_tag(model.model_fields.get(k))), "")


def _is_tag(field: FieldInfo | None) -> bool:
    return field is not None and get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _meaning(field: FieldInfo) -> str:
    bounds = [f"{SIGNS[key]} {getattr(m, key)}" for m in field.metadata for key in SIGNS if hasattr(m, key)]
    return "; ".join([field.description or "", *bounds])


def _type_name(annotation: Any) -> str:
    kind, inner = get_origin(annotation), get_args(annotation)
    if kind is Literal:
        return " | ".join(map(str, inner))
    if kind is Annotated:
        return _type_name(inner[0])
    if kind is list:
        return f"list[{_type_name(inner[0])}]"
    if kind in (Union, UnionType):
        return " | ".join(map(_type_name, inner))
    if annotation is type(None):
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def method_lines(kind: Any, width: int, values: Config | None = None) -> list[Line]:
    """A method: what its author says of it, its settings, and what it learns.

    Args:
        kind: a method's class.
        width: characters in a line.
        values: settings to tell in place of the defaults.
    """
    needs = filled(f"Backbone: {BACKBONES[kind.tags.backbone]}", width)
    settings = setting_lines("method", kind.Config, width, list(kind.Config.presets), values)
    return [*docstring_lines(described(kind), width), *needs, EMPTY, *settings, *state_lines(kind, width)]


def state_lines(kind: Any, width: int) -> list[Line]:
    """What a method learns, as it declares it, and how many bytes that takes.

    Args:
        kind: a method's class.
        width: characters in a line.
    """
    own = set(declarations(kind)) - set(declarations(Method))
    if not own:
        return []
    names = inspect.getdoc(kind.sizes) if kind.sizes is not Method.sizes else ""
    formula = growth_formula(kind)
    told_of = set(re.findall(r"\w+", f"at most d classes tasks taught {names}"))
    others = ", ".join(dict.fromkeys(word for word in re.findall(r"[^\W\d]\w*", formula) if word not in told_of))
    texts = [
        "d: features; classes, tasks, taught: classes, tasks, images so far.",
        names or "", f"{others}: sizes in the table below." * bool(others),
    ]  # fmt: skip
    sizes = " ".join(filter(None, texts))
    told = [(name, [shape, type_, meaning]) for name, shape, type_, meaning in state_rows(kind)]
    entries = [(name, ", ".join(filter(None, texts))) for name, texts in told]
    title = filled(f"State: {formula} bytes of tensors", width)
    return [EMPTY, *title, *filled(sizes, width), EMPTY, *entry_lines(entries, width)]


def setting_lines(
    section: str, config: type[Config], width: int, presets: Sequence[str] = (), values: Config | None = None
) -> list[Line]:
    """Every setting as ``key = default   type``, its meaning below, the settings of a section further to the right.

    Args:
        section: where a recipe has these settings.
        config: their class.
        width: characters in a line.
        presets: names to tell.
        values: those to tell in place of the defaults.
    """
    told = f"\nPresets: {', '.join(presets)}" if presets else ""
    lines = [*filled(f"Settings: -s {section}.KEY=VALUE{told}", width), EMPTY]
    for key, type_, default, meaning in setting_rows(config, values):
        path, _, kinds = key.partition(" ")
        margin = "  " * path.count(".")
        value = f" = {default}" if default not in ("", REQUIRED) else ""
        parts = [type_ if type_ != SECTION else "", default if default == REQUIRED else "", kinds]
        head = "   ".join([f"{margin}{path}{value}", *filter(None, parts)])
        lines += hanging(head, width, margin, 6, strong=len(margin + path))
        lines += hanging(f"{margin}    {meaning}", width, margin, 4) if meaning else []
    return lines
