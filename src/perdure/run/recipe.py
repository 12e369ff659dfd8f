"""A recipe: everything that decides a run's numbers, as YAML or as overrides, checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from perdure.backbone import Backbone
from perdure.backbone.names import full_timm_name
from perdure.backbone.registered import means_registered
from perdure.config import KIND, Config, MethodConfig, load, parse_override
from perdure.data import Reference, Stream, load_stream
from perdure.data.names import typed
from perdure.errors import ConfigError, PerdureError, RecipeError, UnknownNameError, did_you_mean
from perdure.memory import FeatureStore
from perdure.methods import Method, methods
from perdure.run.method_file import Kind, registered_method, short_name, typed_method
from perdure.run.reference_settings import ReferenceSettings, reference_checks
from perdure.run.stream_settings import StreamConfig as StreamConfig
from perdure.run.stream_settings import image_checks
from perdure.run.streams import places, without_name

SECTIONS = ("stream", "backbone", "method", "seed", "reference")
WRITTEN = ("fingerprints", "found", "versions")  # what a run adds to its recipe.yaml, for those who repeat it
Find = Callable[[str], tuple[Kind, str | None]]  # a method's class by its name, and the hash of its file


class BackboneConfig(Config):
    """Which pretrained model; see :meth:`perdure.Backbone.load`."""

    name: str = Field("default", description="default, efficientnet_lite0, a plug-in's name, or a full timm tag")
    weights: str | None = Field(None, description="a local safetensors file")
    pretrained: bool = Field(True, description="false: random weights")
    preset: str | None = Field(None, description="a published preprocessing: lamda, ranpac_cifar")
    init_seed: int = Field(0, ge=0, description="of random weights")
    device: str = Field("auto", description="auto, cpu, cuda, mps, cuda:1, …")
    precision: Literal["float32", "bfloat16"] = Field("float32", description="of the passes")


class Recipe(Config):
    """A whole run.

    Args:
        stream: the data and tasks.
        backbone: the pretrained model.
        method_name: the method.
        kind: its class.
        code: the SHA-256 of the file that the class was taken from; None for a registered one.
        method: its settings.
        seed: of everything random in the method.
        reference: images and sentences beside the stream, for a method that learns from them; None without.
        found: what another run of it found in its data, if it is that run's ``recipe.yaml``; decides nothing.
    """

    stream: StreamConfig
    backbone: BackboneConfig
    method_name: str
    kind: Any  # a method's class
    code: str | None = None
    method: MethodConfig
    seed: int = Field(0, ge=0)
    reference: ReferenceSettings | None = None
    found: Any = None

    @classmethod
    def from_values(cls, values: Mapping[str, Any], *, method: Kind | None = None) -> Recipe:
        """Checks plain values, as read from YAML, all sections at once.

        Args:
            values: by section.
            method: the method's class, if its name in ``values`` is not to be looked up.

        Raises:
            RecipeError: with every problem found, as that a method's name is that of a file.
        """
        return cls._checked(values, registered_method if method is None else lambda name: (method, None))

    @classmethod
    def _checked(cls, values: Mapping[str, Any], find: Find) -> Recipe:
        problems: list[PerdureError] = [
            ConfigError("recipe", "section", "one of its sections", key, did_you_mean(key, SECTIONS))
            for key in values
            if key not in (*SECTIONS, *WRITTEN)
        ]
        sections = {name: _mapping(values, name, problems) for name in SECTIONS[:3]}
        stream = _section(StreamConfig, "stream", sections["stream"], problems)
        backbone = _section(BackboneConfig, "backbone", sections["backbone"], problems)
        seed = _section(_Seed, "recipe", {"seed": values["seed"]} if "seed" in values else {}, problems)
        name = str(sections["method"].pop("name", ""))
        kind, code, config = _method(name, sections["method"], problems, find)
        given = values.get("reference")
        beside = None if given is None else _mapping(values, "reference", problems)
        reference = _section(ReferenceSettings, "reference", given, problems) if isinstance(given, Mapping) else None
        for attempt in reference_checks(beside, reference, kind, config) if config is not None else ():
            _collect(problems, attempt)
        for attempt in image_checks(sections["stream"] if stream is None else stream.model_dump()):
            _collect(problems, attempt)
        if backbone is not None:
            full = _collect(problems, lambda: _full_name(backbone))
            backbone = backbone.model_copy(update={"name": full or backbone.name})
        if problems:
            raise RecipeError(problems)
        return cls.model_construct(
            stream=stream, backbone=backbone, method_name=short_name(name), kind=kind, code=code, method=config,
            seed=seed.seed if seed else 0, reference=reference, found=values.get("found"),
        )  # fmt: skip

    def values(self) -> dict[str, Any]:
        """Plain values with every default written out: ``from_values(r.values()) == r``."""
        return {
            "stream": self.stream.model_dump(),
            "backbone": self.backbone.model_dump(),
            "method": {"name": self.method_name, **self.method.model_dump()},
            "seed": self.seed,
            **({"reference": self.reference.model_dump()} if self.reference else {}),
        }

    def identity(self) -> dict[str, Any]:
        """What decides the numbers: :meth:`values` without the stream's name, whose values stand beside it."""
        return without_name(self.values())

    @property
    def label(self) -> str:
        """A short name for a run directory: data sets, method, and a hash of everything."""
        told = {**self.identity(), "code": self.code} if self.code else self.identity()
        digest = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=4).hexdigest()
        data = "+".join(Path(place).name for place in places(self.stream.model_dump()))
        return f"{data}-{self.method_name.rpartition(':')[2]}-{digest}"

    def load_stream(self) -> Stream:
        """The stream it describes; raises as :func:`perdure.data.load_stream` does."""
        return load_stream(**self.stream.model_dump(exclude={"preset"}))

    def load_backbone(self) -> Backbone:
        """The backbone it describes; raises as :meth:`perdure.Backbone.load` does."""
        return Backbone.load(**self.backbone.model_dump())

    def load_reference(self) -> Reference | None:
        """The reference data it describes, if any; raises as :meth:`perdure.data.Reference.load` does."""
        return Reference.load(**self.reference.model_dump()) if self.reference else None

    def make_method(self, backbone: Backbone, store: FeatureStore, reference: Reference | None = None) -> Method:
        """The untrained method it describes.

        Args:
            backbone: the pretrained model.
            store: of features.
            reference: the recipe's, for a method that learns from reference data.

        Raises:
            BackboneError: for a backbone that the method cannot use.
        """
        given = {"reference": reference} if reference else {}
        method: Method = self.kind(backbone, self.method, seed=self.seed, store=store, **given)
        return method


class _Seed(Config):
    seed: int = Field(0, ge=0)


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file, from overrides, or from a file changed by overrides.

    Args:
        path: the file; ``None`` for overrides alone.
        overrides: ``section.key=value`` texts, as a person typed them: here alone may ``method.name`` be
            ``FILE.py:Class``, whose code is run.

    Raises:
        RecipeError: with every problem found.
        UnknownNameError: if there is no such file.
        ConfigError: if the file is not a YAML mapping, or an override has no ``=``.
    """
    values = _read(path) if path is not None else {}
    typed: dict[str, Any] = {}
    for text in overrides:
        override(values, text)
        override(typed, text)
    method = typed.get("method")
    name = method.get("name") if isinstance(method, dict) else None
    return Recipe._checked(values, lambda each: typed_method(each) if each == name else registered_method(each))


def override(values: dict[str, Any], text: str) -> None:
    """Puts one typed value among the values of a recipe.

    Args:
        values: by section; changed.
        text: ``section.key=value``.

    Raises:
        ConfigError: if there is no ``=``, or the key is below one that is no section.
    """
    node, (keys, value) = values, parse_override(typed(text))
    for key in keys[:-1]:
        if isinstance(node.get(key), str) and node is not values and keys[0] == "method":  # a section's kind
            node[key] = {KIND: node[key]}
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            hint = f"Known sections: {', '.join(SECTIONS)}"
            raise ConfigError("-s", key, "a section, since keys follow it", node, hint)
    node[keys[-1]] = value


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = did_you_mean(str(path), siblings)
        raise UnknownNameError("perdure", "recipe", "an existing YAML file", str(path), hint)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        hint = "Correct the file" if isinstance(error, yaml.YAMLError) else "Save it as UTF-8"
        raise ConfigError("recipe", str(path), "valid YAML", str(error).splitlines()[0], hint) from None
    if not isinstance(values, dict):
        raise ConfigError("recipe", str(path), "a mapping of sections", values, f"Known: {', '.join(SECTIONS)}")
    return {k: dict(v) if isinstance(v, dict) else v for k, v in values.items()}


def _mapping(values: Mapping[str, Any], name: str, problems: list[PerdureError]) -> dict[str, Any]:
    section = values.get(name, {})
    if isinstance(section, Mapping):
        return dict(section)
    problems.append(ConfigError("recipe", name, "a mapping of keys", section, f"Write '{name}: {{...}}'"))
    return {}


def _section(model: type[Config], name: str, values: Mapping[str, Any], problems: list[PerdureError]) -> Any:
    return _collect(problems, lambda: load(model, values, name))


def _method(name: str, values: Mapping[str, Any], problems: list[PerdureError], find: Find) -> tuple[Any, Any, Any]:
    """Class, hash of its file, and settings."""
    if not name:
        problems.append(ConfigError("method", "name", "given", None, f"Known: {', '.join(methods.names())}"))
        return None, None, None
    kind, code = _collect(problems, lambda: find(name)) or (None, None)
    return kind, code, kind and _section(kind.Config, "method", values, problems)


def _full_name(backbone: BackboneConfig) -> str:
    own = backbone.pretrained and backbone.weights is None
    registered = means_registered(backbone.name, own_weights=own)
    return backbone.name if registered else full_timm_name(backbone.name, pretrained=own)


def _collect(problems: list[PerdureError], attempt: Any) -> Any:
    try:
        return attempt()
    except RecipeError as error:
        problems.extend(error.problems)
    except PerdureError as error:
        problems.append(error)
    return None
