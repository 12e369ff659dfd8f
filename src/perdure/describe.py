"""What the command line tells about methods, settings and data sets: rows of text, taken from the code itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from perdure.config import KINDS, sections
from perdure.tags import Tags

SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
Row = tuple[str, str, str, str]  # key, type, default, meaning and bounds


def setting_rows(config: type[BaseModel]) -> list[Row]:
    """Every setting of a configuration: its path, type, default, and meaning with bounds.

    Of a section of several kinds each kind's settings are listed; those of a kind that is not the default name it.

    Args:
        config: a configuration class.
    """
    merged: dict[tuple[str, str, str, str], list[str]] = {}
    for kind, row in _rows(config, None, ""):
        merged.setdefault(row, []).append(kind)
    return [
        (key if "" in kinds else f"{key} ({', '.join(dict.fromkeys(kinds))})", type_, default, meaning)
        for (key, type_, default, meaning), kinds in merged.items()
    ]


def _rows(model: type[BaseModel], values: BaseModel | None, prefix: str, kind: str = "") -> Iterator[tuple[str, Row]]:
    inner = sections(model)
    for name, field in model.model_fields.items():
        value = getattr(values, name) if values is not None else None if field.is_required() else field.default
        kinds = inner.get(name, [])
        if name in KINDS and kind_of(model):
            continue
        if not kinds:
            default = "required" if values is None and field.is_required() else _shown(value)
            yield kind, (prefix + name, _type_name(field.annotation), default, _meaning(field))
            continue
        if len(kinds) > 1 or value is None:
            none = ["none"] if type(None) in get_args(field.annotation) else []
            choices = " | ".join([*filter(None, map(kind_of, kinds)), *none]) or "a section, or none"
            default = "none" if value is None else kind_of(type(value))
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
    if get_origin(annotation) is Literal:
        return " | ".join(get_args(annotation))
    return annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("typing.", "")


def notes(tags: Tags) -> str:
    """What a method's tags say of it, in words."""
    told = {
        "any split, same result": tags.split_invariant,
        "trains the backbone": tags.trains_backbone,
        "trains parts inserted into the backbone": tags.adapts,
        "keeps data": tags.keeps_data,
        "depends on the test batch": tags.depends_on_test_batch,
    }
    return ", ".join(note for note, holds in told.items() if holds)


def described(thing: Any) -> Any:
    """What says what a registered class or function is: its module, or the thing itself where that says nothing."""
    module = inspect.getmodule(thing)
    return module if inspect.getdoc(module) else thing


def purpose(documented: Any) -> str:
    """A docstring's first line, without the markup and the name it may start with; nothing where there is none."""
    first = next(iter((inspect.getdoc(documented) or "").splitlines()), "").replace("``", "")
    return re.sub(r"^\w+: ", "", first)
