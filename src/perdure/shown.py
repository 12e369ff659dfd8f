"""What ``perdure ls`` and ``perdure show`` print: names with what they stand for, and one thing in full."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from perdure.backbone import Backbone, backbones
from perdure.backbone.default import WEIGHTS, read_weights
from perdure.config import Config, load
from perdure.data.datasets import datasets
from perdure.describe import (
    EMPTY,
    Line,
    described,
    docstring_lines,
    entry_lines,
    method_lines,
    notes,
    purpose,
    setting_lines,
)
from perdure.errors import ConfigError, UnknownNameError, did_you_mean
from perdure.methods import methods
from perdure.run.method_file import names_file, typed_method
from perdure.run.recipe import BackboneConfig, StreamConfig, override
from perdure.run.streams import STREAMS, stream_rows

What = Literal["all", "methods", "backbones", "data", "streams", "recipes"]


def names(what: What, width: int) -> list[Line]:
    """Every name of a kind and what it stands for.

    Args:
        what: the kind.
        width: of a line.
    """
    lines: list[Line] = []
    if what in ("all", "methods"):
        kinds = {name: methods.get(name) for name in methods.names()}
        told = {name: (purpose(described(kind)), notes(kind.tags)) for name, kind in kinds.items()}
        entries = [(name, f"{does} ({note})" if note else does) for name, (does, note) in told.items()]
        lines += _titled("Methods", entries, width)
    if what in ("all", "backbones"):
        loaders = {name: backbones.get(name) for name in backbones.names()}
        whose = {name: "offline" if f.__module__.startswith("perdure.") else "plug-in" for name, f in loaders.items()}
        named = [(name, f"{purpose(described(load))} ({whose[name]})") for name, load in loaders.items()]
        hub = "by its full tag, e.g. vit_base_patch16_224.augreg_in21k (weights from the hub or a file)"
        lines += _titled("Backbones", [*named, ("any timm model", hub)], width)
    if what in ("all", "data"):
        named = [(name, purpose(datasets.get(name))) for name in datasets.names()]
        folder = ("any folder", "root/{train,test}/<class>/, root/<class>/ or root/<domain>/<class>/")
        lines += _titled("Data sets", [*named, folder], width)
    if what in ("all", "streams"):
        lines += _streams(None, width)
    if what in ("all", "recipes"):
        lines += [("Recipes", " (perdure run FILE)")]
        lines += [("", f"  {path}") for path in sorted(Path("recipes").glob("**/*.yaml"))]
    return lines


def in_full(name: str, width: int, overrides: Sequence[str] = ()) -> list[Line]:
    """A method, data set or backbone with all its settings.

    Args:
        name: of it; or a method's file and class.
        width: of a line.
        overrides: a method's settings as they were typed, ``method.key=value``, to show in place of its defaults.

    Raises:
        UnknownNameError: with names that are spelt alike.
        ConfigError: if an override is not of the method's settings, or ``name`` is no method's.
        RecipeError: with every bad setting.
    """
    if names_file(name) or name in methods:
        kind = typed_method(name)[0]
        return method_lines(kind, width, _settings(kind.Config, overrides) if overrides else None)
    if name in datasets:
        refuse_settings(name, overrides)
        stream = setting_lines("stream", StreamConfig, width)
        return [*docstring_lines(datasets.get(name), width), EMPTY, *stream, EMPTY, *_streams(name, width)]
    if name in methods.broken():
        methods.get(name)  # says why it is not there
    if name in backbones or name in backbones.broken() or "." in name or "_" in name:
        refuse_settings(name, overrides)
        return _backbone(name, width)
    hint = did_you_mean(name, [*methods.names(), *datasets.names(), *backbones.names(), *STREAMS], methods.aliases())
    raise UnknownNameError("perdure show", "name", "a method, backbone, data set, stream or recipe", name, hint)


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


def _settings(config: type[Config], overrides: Sequence[str]) -> Config:
    values: dict[str, Any] = {}
    for text in overrides:
        override(values, text)
    for key in values:
        if key != "method" or not isinstance(values[key], dict):
            hint = "Write e.g. -s method.preset=NAME; other sections are of a recipe"
            raise ConfigError("perdure show", "-s", "method.KEY=VALUE, as a method is shown", key, hint)
    return load(config, values["method"], "method")


def _backbone(name: str, width: int) -> list[Line]:
    backbone = Backbone.load(name, pretrained=name in backbones)
    told = docstring_lines(described(backbones.get(name)), width) if name in backbones else [("", f"timm's {name}")]
    n = sum(p.numel() for p in backbone.parameters())
    facts = {key.replace("_", " "): str(value) for key, value in dc.asdict(backbone.preprocess).items()}
    facts |= read_weights(WEIGHTS)[1] if name == "default" else {}
    counted = ("", f"{n:,} parameters, {backbone.dim} features per image")
    settings = setting_lines("backbone", BackboneConfig, width)
    return [*told, EMPTY, counted, *entry_lines(list(facts.items()), width), EMPTY, *settings]


def _streams(data: str | None, width: int) -> list[Line]:
    rows = [(name, f"{of}, {told}") for name, of, told in stream_rows(data)]
    return _titled("Streams (-s stream.preset=NAME)", rows, width) if rows else []


def _titled(title: str, entries: Sequence[tuple[str, str]], width: int) -> list[Line]:
    return [(title, ""), *entry_lines([(f"  {name}", text) for name, text in entries], width), EMPTY]
