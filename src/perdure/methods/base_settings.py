"""A method's settings, however they are given in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from perdure.config import C, laid_over, load
from perdure.errors import ConfigError


def made(model: type[C], config: C | Mapping[str, Any] | None, settings: Mapping[str, Any], where: str) -> C:
    """Settings as they are given in Python: as a configuration, as plain values, by keyword, or mixed.

    Args:
        model: the configuration class.
        config: one of it, or values by key; None: the defaults.
        settings: values that win.
        where: the name errors start with.

    Raises:
        ConfigError: for a configuration of another class, or what is none.
        RecipeError: with one ``ConfigError`` per bad key or value.
    """
    if isinstance(config, model):
        return load(model, laid_over(config.model_dump(), settings), where) if settings else config
    if config is not None and not isinstance(config, Mapping):
        hint = f"Give {where}.Config(...), a dict, or the settings by keyword"
        raise ConfigError(where, "config", f"a {model.__name__} or values by key", config, hint)
    return load(model, laid_over(config or {}, settings), where)
