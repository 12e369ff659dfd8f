"""Typed configuration: frozen pydantic models, presets, and all errors at once.

Relations: a method's ``Config`` and every section of a recipe derive from :class:`Config`; ``load`` turns pydantic's
report into perdure's error format with close matches for misspelt keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from perdure.errors import ConfigError, RecipeError, did_you_mean


class Config(BaseModel):
    """Base of all configurations: immutable, no unknown keys, no NaN or infinity.

    ``presets`` maps a published variant's name to the values it changes; ``Config(preset="paper")`` starts from
    those values and explicit ones win.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _start_from_preset(cls, values: Any) -> Any:
        preset = values.get("preset", "default") if isinstance(values, Mapping) else "default"
        return {**cls.presets[preset], **values} if isinstance(preset, str) and preset in cls.presets else values


class MethodConfig(Config):
    """Base of every method's ``Config``."""

    preset: str = Field("default", description="a published variant to start from")

    @field_validator("preset")
    @classmethod
    def _preset_is_known(cls, preset: str) -> str:
        if preset not in {"default", *cls.presets}:
            raise ValueError(f"one of {sorted({'default', *cls.presets})}")
        return preset


C = TypeVar("C", bound=Config)


def load(model: type[C], values: Mapping[str, Any], where: str | None = None) -> C:
    """Builds ``model`` from plain values.

    Args:
        model: the configuration class.
        values: keys and values, as read from YAML or from ``-s`` overrides; text is read by the field's own type.
        where: the name errors start with; the class's name by default.

    Raises:
        RecipeError: with one ``ConfigError`` per bad key or value.
    """
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        name = where or model.__name__
        raise RecipeError([_problem(e, model, name) for e in error.errors()]) from None


def parse_override(text: str) -> tuple[list[str], Any]:
    """Reads one ``-s section.key=value``.

    Args:
        text: the override; ``[..]``, ``{..}`` and ``null`` are read as YAML, anything else stays text for the field
            to interpret.

    Returns:
        The path of keys and the value.

    Raises:
        ConfigError: if there is no ``=`` or no key.
    """
    path, equals, value = text.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise ConfigError("-s", "override", "key=value, e.g. method.lr=0.01", text, "Write the key, '=', the value")
    is_yaml = value.startswith(("[", "{")) or value in {"null", "~"}
    try:
        parsed = yaml.safe_load(value) if is_yaml else value
    except yaml.YAMLError:
        raise ConfigError("-s", path, "valid YAML after '='", value, "Close the bracket or quote") from None
    return path.strip().split("."), parsed


def _problem(error: ErrorDetails, model: type[BaseModel], where: str) -> ConfigError:
    path = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        known = set(model.model_fields)
        return ConfigError(where, "key", "one of its fields", path, did_you_mean(path, known))
    if error["type"] == "missing":
        return ConfigError(where, path, "given", None, f"Add '{path}: ...' to the recipe or '-s ...{path}=...'")
    constraint = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return ConfigError(where, path, constraint, error["input"], "See 'perdure show' for every field and its bounds")
