"""A recipe: everything that decides a run's numbers, as YAML or as overrides, checked before anything starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from perdure.backbone import BUILT_IN, Backbone
from perdure.backbone.names import full_timm_name
from perdure.config import Config, MethodConfig, load, parse_override
from perdure.data import Stream, load_stream
from perdure.data.datasets import datasets
from perdure.errors import ConfigError, DataNotFoundError, PerdureError, RecipeError, UnknownNameError, did_you_mean
from perdure.memory import FeatureStore
from perdure.methods import Method, methods

SECTIONS = ("stream", "backbone", "method", "seed")


class StreamConfig(Config):
    """Which images, and how they are cut into tasks; see :func:`perdure.data.load_stream`."""

    data: str = Field(description="a data set's name or an image folder")
    tasks: int | None = Field(None, ge=1, description="this many tasks, as even as possible")
    base: int | None = Field(None, ge=0, description="classes of the first task (0: increment)")
    increment: int | None = Field(None, ge=1, description="classes of every later task")
    sizes: list[int] | None = Field(None, description="classes of each task")
    order_seed: int | None = Field(1993, ge=0, le=2**32 - 1, description="class order; null: ascending ids")
    class_order: list[int | str] | None = Field(None, description="the order itself, ids or names")
    scenario: Literal["class", "domain"] = Field("class", description="what a task brings")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="held out where there is no test folder")
    split_seed: int = Field(0, ge=0, description="of that split and of the draws below")
    train_per_class: int | None = Field(None, ge=1, description="keep at most this many training images per class")
    test_per_class: int | None = Field(None, ge=1, description="keep at most this many test images per class")
    skip_corrupt: bool = Field(False, description="leave corrupt files out and record them")


class BackboneConfig(Config):
    """Which pretrained model; see :meth:`perdure.Backbone.load`."""

    name: str = Field("default", description="a built-in name (default, efficientnet_lite0) or a full timm tag")
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
        method: its settings.
        seed: of everything random in the method.
    """

    stream: StreamConfig
    backbone: BackboneConfig
    method_name: str
    method: MethodConfig
    seed: int = Field(0, ge=0)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Recipe:
        """Checks plain values, as read from YAML, all sections at once.

        Raises:
            RecipeError: with every problem found.
        """
        problems: list[PerdureError] = [
            ConfigError("recipe", "section", "one of its sections", key, did_you_mean(key, SECTIONS))
            for key in values
            if key not in SECTIONS
        ]
        sections = {name: _mapping(values, name, problems) for name in SECTIONS[:3]}
        stream = _section(StreamConfig, "stream", sections["stream"], problems)
        backbone = _section(BackboneConfig, "backbone", sections["backbone"], problems)
        seed = _section(_Seed, "recipe", {"seed": values["seed"]} if "seed" in values else {}, problems)
        name = str(sections["method"].pop("name", ""))
        config = _method_config(name, sections["method"], problems)
        if "data" in sections["stream"]:
            _collect(problems, lambda: _require_data(str(sections["stream"]["data"])))
        if backbone is not None and (backbone.name not in BUILT_IN or not backbone.pretrained):
            hub = backbone.pretrained and backbone.weights is None
            full = _collect(problems, lambda: full_timm_name(backbone.name, pretrained=hub))
            backbone = backbone.model_copy(update={"name": full or backbone.name})
        if problems:
            raise RecipeError(problems)
        return cls.model_construct(
            stream=stream, backbone=backbone, method_name=name, method=config, seed=seed.seed if seed else 0
        )

    def values(self) -> dict[str, Any]:
        """Plain values with every default written out: ``from_values(r.values()) == r``."""
        return {
            "stream": self.stream.model_dump(),
            "backbone": self.backbone.model_dump(),
            "method": {"name": self.method_name, **self.method.model_dump()},
            "seed": self.seed,
        }

    @property
    def label(self) -> str:
        """A short name for a run directory: data, method, and a hash of everything."""
        digest = hashlib.blake2b(json.dumps(self.values(), sort_keys=True).encode(), digest_size=4).hexdigest()
        return f"{Path(self.stream.data).name}-{self.method_name}-{digest}"

    def load_stream(self) -> Stream:
        """The stream it describes; raises as :func:`perdure.data.load_stream` does."""
        return load_stream(**self.stream.model_dump())

    def load_backbone(self) -> Backbone:
        """The backbone it describes; raises as :meth:`perdure.Backbone.load` does."""
        return Backbone.load(**self.backbone.model_dump())

    def make_method(self, backbone: Backbone, store: FeatureStore) -> Method:
        """The untrained method it describes."""
        method: Method = methods.get(self.method_name)(backbone, self.method, seed=self.seed, store=store)
        return method


class _Seed(Config):
    seed: int = Field(0, ge=0)


def load_recipe(path: Path | None, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from a YAML file, from overrides, or from a file changed by overrides.

    Args:
        path: the file; ``None`` for overrides alone.
        overrides: ``section.key=value`` texts.

    Raises:
        RecipeError: with every problem found.
        UnknownNameError: if there is no such file.
        ConfigError: if the file is not a YAML mapping, or an override has no ``=``.
    """
    values = _read(path) if path is not None else {}
    for text in overrides:
        keys, value = parse_override(text)
        node = values
        for key in keys[:-1]:
            node = node.setdefault(key, {})
            if not isinstance(node, dict):
                hint = f"Known sections: {', '.join(SECTIONS)}"
                raise ConfigError("-s", key, "a section, since keys follow it", node, hint)
        node[keys[-1]] = value
    return Recipe.from_values(values)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        siblings = [str(p) for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        hint = did_you_mean(str(path), siblings)
        raise UnknownNameError("perdure", "recipe", "an existing YAML file", str(path), hint)
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError("recipe", str(path), "valid YAML", str(error).splitlines()[0], "Correct the file") from None
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


def _method_config(name: str, values: Mapping[str, Any], problems: list[PerdureError]) -> Any:
    if not name:
        problems.append(ConfigError("method", "name", "given", None, f"Known: {', '.join(methods.names())}"))
        return None
    method = _collect(problems, lambda: methods.get(name))
    return method and _section(method.Config, "method", values, problems)


def _require_data(data: str) -> None:
    if Path(data).expanduser().exists() or data in datasets:
        return
    if "/" in data:
        hint = "Check the path; relative paths start at the current directory"
        raise DataNotFoundError("stream", "data", "an existing folder", data, hint)
    hint = did_you_mean(data, datasets.names())
    raise UnknownNameError("stream", "data", "a data set or an existing folder", data, hint)


def _collect(problems: list[PerdureError], attempt: Any) -> Any:
    try:
        return attempt()
    except RecipeError as error:
        problems.extend(error.problems)
    except PerdureError as error:
        problems.append(error)
    return None
