"""Typed configuration: frozen pydantic models made of sections, presets, and all errors at once.

A field whose default is itself a :class:`Config` is a section. Values for it are laid key by key over that default, and
explicit values key by key over a preset's, so that ``train: {lr: 0.1}`` changes one number. A section of several kinds
says which by its first key (``name`` or ``variant``): another kind starts from its own defaults. A kind alone may be
written as text, ``optimizer: adam``, and an optional section may be switched off with ``none``.

Relations: a method's ``Config`` and every section of a recipe derive from :class:`Config`; it and ``load`` turn
pydantic's report into perdure's error format with close matches for misspelt keys.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from perdure.errors import ConfigError, RecipeError, did_you_mean

PRESET = "the name of a preset"  # what a field of presets must be
KINDS = ("name", "variant")  # the keys that tell which kind a section is
KIND = "\0"  # stands for that key where a section's kind was given as text and other keys of it follow
# settings of before there were sections: where they are, in those classes that have such a place
MOVED = {
    "align_batch": ["align.batch_size"], "amsgrad": ["train.optimizer"], "beta1": ["train.optimizer"],
    "beta2": ["train.optimizer"], "components_per_task": ["components.each"], "eval_batch": ["vote.batch_size"],
    "eval_order": ["vote.order"], "init": ["components.ortho"], "key_update": ["keys"], "returning": ["covariance"],
    "select_eval": ["vote"], "select_train": ["train_prompts.vote"], "train_logits": ["logits", "mode"],
    "train_prompt": ["train_prompts"], "train_vote_group": ["train_prompts.vote"],
}  # fmt: skip


class Config(BaseModel):
    """Base of all configurations: immutable, no unknown keys, no NaN or infinity.

    ``presets`` maps a published variant's name to the values it changes; ``Config(preset="paper")`` starts from
    those values and explicit ones win.

    Raises:
        RecipeError: with one ``ConfigError`` per bad key or value, as :func:`load` does.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __init__(self, /, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise _refusal(error, type(self), type(self).__name__) from None

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # sections are validated without it

    @model_validator(mode="before")
    @classmethod
    def _start_from_defaults_and_preset(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        preset = values.get("preset", "default")
        under = cls.presets[preset] if isinstance(preset, str) and preset in cls.presets else {}
        given = {name: cls.model_fields[name] for name in (*under, *values) if name in cls.model_fields}
        start = {name: field.default for name, field in given.items() if isinstance(field.default, Config)}
        changed = laid_over(laid_over(start, under), values)
        return {name: _of_section(given[name], value) if name in given else value for name, value in changed.items()}

    def but(self, **changes: Any) -> Self:
        """The same with some values changed; those of sections key by key.

        Args:
            changes: values by name.

        Raises:
            RecipeError: with one ``ConfigError`` per bad key or value.
        """
        return load(type(self), laid_over(self.model_dump(), changes))


class MethodConfig(Config):
    """Base of every method's ``Config``."""

    preset: str = Field("default", description="a published variant to start from")

    @field_validator("preset")
    @classmethod
    def _preset_is_known(cls, preset: str) -> str:
        if preset not in preset_names(cls):
            raise ValueError(PRESET)
        return preset


C = TypeVar("C", bound=Config)


def published(name: str) -> Mapping[str, Mapping[str, Any]]:
    """The presets in ``perdure/presets/NAME.yaml``: what each published variant changes.

    Args:
        name: of the method.
    """
    text = importlib.resources.files("perdure").joinpath("presets", f"{name}.yaml").read_text(encoding="utf-8")
    presets: Mapping[str, Mapping[str, Any]] = yaml.safe_load(text)
    return presets


def preset_names(model: type[Config]) -> list[str]:
    """What the field ``preset`` of a configuration may be, besides nothing where nothing is its default.

    Args:
        model: the configuration.
    """
    own = model.model_fields["preset"].default
    return [*([own] if own else []), *model.presets]


def laid_over(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``under`` with the values of ``over``, key by key inside sections too; a section of another kind starts anew.

    Args:
        under: values, sections among them as mappings or as :class:`Config`.
        over: values that win.
    """
    merged = dict(under)
    for key, value in over.items():
        below: Any = merged.get(key)
        below = below.model_dump() if isinstance(below, Config) else below
        value = _named(value, below) if isinstance(below, Mapping) else value
        both = isinstance(value, Mapping) and isinstance(below, Mapping)
        other_kind = both and any(k in value and k in below and value[k] != below[k] for k in KINDS)
        merged[key] = laid_over(below, value) if both and not other_kind else value
    return merged


def _of_section(field: FieldInfo, value: Any) -> Any:
    """A value for a field: ``none`` switches an optional section off, and a section may be given by its kind alone."""
    if isinstance(value, str) and value == "none" and type(None) in get_args(field.annotation):
        return None
    return _of_kind(value, field.discriminator if isinstance(field.discriminator, str) else None)


def _named(value: Any, below: Mapping[str, Any]) -> Any:
    """A section given by its kind, as a mapping."""
    return _of_kind(value, next((k for k in KINDS if k in below), None)) if value != "none" else value


def _of_kind(value: Any, key: str | None) -> Any:
    if key and isinstance(value, str):
        return {key: value}
    if isinstance(value, Mapping) and KIND in value:
        return {key or KINDS[0]: value[KIND], **{k: v for k, v in value.items() if k != KIND}}
    return value


def sections(model: type[BaseModel]) -> dict[str, list[type[BaseModel]]]:
    """The fields of ``model`` that are sections, and the kinds each may be."""
    found = {name: list(_models(field.annotation)) for name, field in model.model_fields.items()}
    return {name: kinds for name, kinds in found.items() if kinds}


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting below ``model`` with its path, sections taken apart; equal paths of several kinds come repeatedly.

    Args:
        model: a configuration class.
        prefix: put before every path.
    """
    inner = sections(model)
    for name, field in model.model_fields.items():
        if name not in inner:
            yield prefix + name, field
        for kind in inner.get(name, []):
            yield from settings(kind, f"{prefix}{name}.")


def section_paths(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """The path of every section below ``model``.

    Args:
        model: a configuration class.
        prefix: put before every path.
    """
    for name, kinds in sections(model).items():
        yield prefix + name
        for kind in kinds:
            yield from section_paths(kind, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_args(annotation):
        for part in get_args(annotation):
            yield from _models(part)


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
        raise _refusal(error, model, where or model.__name__) from None


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


def _refusal(error: ValidationError, model: type[Config], where: str) -> RecipeError:
    errors = error.errors()
    if any(_is_unknown_preset(e) for e in errors):  # which might have given what is missing
        errors = [e for e in errors if e["type"] != "missing"]
    return RecipeError([_problem(e, model, where) for e in errors])


def _problem(error: ErrorDetails, model: type[Config], where: str) -> ConfigError:
    path, kinds = _place(error["loc"], model)
    if error["type"] == "extra_forbidden":
        return ConfigError(where, "key", "one of its fields", path, _where_it_belongs(path, model, kinds))
    if error["type"] in ("missing", "union_tag_not_found"):
        key = path if error["type"] == "missing" else f"{path}.{error['ctx']['discriminator'].strip(chr(39))}"
        return ConfigError(where, key, "given", None, f"Add '{key}: ...' to the recipe or '-s ...{key}=...'")
    if error["type"] == "union_tag_invalid":
        key, known = error["ctx"]["discriminator"].strip("'"), error["ctx"]["expected_tags"]
        got = error["ctx"]["tag"]
        return ConfigError(
            where, f"{path}.{key}", f"one of {known}", got, did_you_mean(got, known.replace("'", "").split(", "))
        )
    constraint = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    hint = "See 'perdure show' for every field and its bounds"
    if _is_unknown_preset(error):
        hint = did_you_mean(error["input"], preset_names(model))
    return ConfigError(where, path, constraint, error["input"], hint)


def _is_unknown_preset(error: ErrorDetails) -> bool:
    return error["type"] == "value_error" and error["msg"].endswith(PRESET)


def _place(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, list[type[BaseModel]]]:
    """A setting's path as it is written, without pydantic's names of kinds, and the section that it is in."""
    path, here = [], [model]
    for key in loc:
        if len(here) > 1:  # of several kinds, the next name tells which
            here = [m for m in here if any(m.model_fields[k].default == key for k in KINDS if k in m.model_fields)]
            continue
        path.append(str(key))
        fields = [m.model_fields[str(key)] for m in here if key in m.model_fields]
        here = [kind for field in fields for kind in _models(field.annotation)] or here
    return ".".join(path), here


def _where_it_belongs(path: str, model: type[BaseModel], kinds: list[type[BaseModel]]) -> str:
    """Where an unknown key's setting is: in another section, or one that is spelt alike."""
    key, known = path.rpartition(".")[2], {name for kind in kinds for name in kind.model_fields}
    every = sorted({*(p for p, _ in settings(model)), *section_paths(model)})
    if path in every:
        return f"Another kind of {path.rpartition('.')[0]} has it. {did_you_mean(key, known)}"
    elsewhere = [p for p in every if key in (p.rpartition(".")[2], p.replace(".", "_"))]
    elsewhere = [p for p in elsewhere if "train." in p] or elsewhere
    elsewhere = elsewhere or [place for place in MOVED.get(key, []) if any(p.startswith(place) for p in every)]
    return f"Write it as {' or '.join(elsewhere)}" if elsewhere and "." not in path else did_you_mean(key, known)
