"""What ``perdure show`` prints: a method, data set or backbone in full."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Sequence
from typing import Any

from perdure.backbone import Backbone, backbones
from perdure.backbone.default import WEIGHTS, read_weights
from perdure.catalog import refuse_settings, stream_lines
from perdure.config import Config, load
from perdure.data.datasets import datasets
from perdure.describe import method_lines, setting_lines
from perdure.errors import ConfigError, UnknownNameError, did_you_mean
from perdure.lines import EMPTY, Line, described, docstring_lines, entry_lines
from perdure.methods import methods
from perdure.run.method_file import names_file, typed_method
from perdure.run.recipe import BackboneConfig, StreamConfig, override
from perdure.run.reference_settings import ReferenceSettings, takes_reference
from perdure.run.streams import STREAMS


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
        lines = method_lines(kind, width, _settings(kind.Config, overrides) if overrides else None)
        beside = [EMPTY, *setting_lines("reference", ReferenceSettings, width)] if takes_reference(kind) else []
        return [*lines, *beside]
    if name in datasets:
        refuse_settings(name, overrides)
        stream = setting_lines("stream", StreamConfig, width)
        return [*docstring_lines(datasets.get(name), width), EMPTY, *stream, EMPTY, *stream_lines(name, width)]
    if name in methods.broken():
        methods.get(name)  # says why it is not there
    if name in backbones or name in backbones.broken() or "." in name or "_" in name:
        refuse_settings(name, overrides)
        return _backbone(name, width)
    hint = did_you_mean(name, [*methods.names(), *datasets.names(), *backbones.names(), *STREAMS], methods.aliases())
    raise UnknownNameError("perdure show", "name", "a method, backbone, data set, stream or recipe", name, hint)


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
