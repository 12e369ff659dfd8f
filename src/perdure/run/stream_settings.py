"""A recipe's section ``stream``: which images, and how they are cut into tasks."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field, StrictInt, field_validator

from perdure.config import PRESET, Config, preset_names
from perdure.data.datasets import datasets
from perdure.data.names import on_disk, typed
from perdure.data.reading import Reading
from perdure.data.several import require_several
from perdure.errors import ConfigError, DataNotFoundError, UnknownNameError, did_you_mean
from perdure.run.streams import STREAMS

Place: TypeAlias = Annotated[str, BeforeValidator(lambda value: typed(value) if isinstance(value, str) else value)]
OF_ONE = ("sizes", "class_order", "scenario", "domain_order", "aliases")  # what can be asked of one data set alone


class StreamConfig(Config):
    """Which images, and how they are cut into tasks; see :func:`perdure.data.load_stream`."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = STREAMS

    preset: str | None = Field(None, description="a named stream to start from, e.g. cifar100-b0-inc10")
    data: Place | None = Field(None, description="a data set's name or an image folder")
    datasets: list[Place] | None = Field(
        None, description="several of these in place of data, one after another; what follows is then of each"
    )
    tasks: int | None = Field(None, ge=1, description="this many tasks, as even as possible")
    base: int | None = Field(None, ge=0, description="classes of the first task (0: increment)")
    increment: int | None = Field(None, ge=1, description="classes of every later task")
    sizes: list[int] | None = Field(None, description="classes of each task")
    order_seed: int | None = Field(1993, ge=0, le=2**32 - 1, description="class order; null: ascending ids")
    class_order: list[StrictInt | str] | None = Field(None, description="the order itself: ids, or names in quotes")
    scenario: Literal["class", "domain"] = Field("class", description="what a task brings")
    domain_order: list[str] | None = Field(None, description="the order of the domains, by name")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="held out where there is no test folder")
    split_seed: int = Field(0, ge=0, description="of that split and of the draws below")
    train_per_class: int | None = Field(None, ge=1, description="keep at most this many training images per class")
    test_per_class: int | None = Field(None, ge=1, description="keep at most this many test images per class")
    skip_corrupt: bool = Field(False, description="leave corrupt files out and record them")
    value_range: list[float] | None = Field(None, description="black and white of deep images, e.g. [0, 4095]")
    aliases: str | None = Field(None, description="a file of class names for people, by folder name")

    @field_validator("preset")
    @classmethod
    def _preset_is_known(cls, preset: str | None) -> str | None:
        if preset is not None and preset not in preset_names(cls):
            raise ValueError(PRESET)
        return preset

    @field_validator("value_range")
    @classmethod
    def _range_is_one(cls, given: list[float] | None) -> list[float] | None:
        try:
            Reading(given)  # type: ignore[arg-type]  # a list of any length: what it must be is checked there
        except ConfigError as error:
            raise ValueError(error.must_be) from None
        return given


def image_checks(stream: Mapping[str, Any]) -> Iterator[Callable[[], None]]:
    """What must hold of the data sets that a stream names; each check raises what is wrong.

    Args:
        stream: its values; those that are wrong in themselves may be among them.
    """
    data, several = stream.get("data"), stream.get("datasets")
    if data is None and several is None:
        yield functools.partial(_require_given, stream.get("preset"))
    elif several is None:
        yield functools.partial(_require_there, "data", str(data))
    elif isinstance(several, list):  # what is none has been refused
        places = [str(each) for each in several]
        yield functools.partial(require_several, data, places, **{key: stream.get(key) for key in OF_ONE})
        yield from (functools.partial(_require_there, "datasets", place) for place in places)


def _require_given(preset: object) -> None:
    """With a name, the data are the named stream's; a name that there is not is refused by itself."""
    if not preset:
        hint = "Add 'data: NAME' to the recipe or '-s stream.data=NAME'; or name several, '-s stream.datasets=[A, B]'"
        raise ConfigError("stream", "data", "given", None, hint)


def _require_there(key: str, data: str) -> None:
    if on_disk(data).exists() or data in datasets:
        return
    if "/" in data:
        hint = "Check the path; relative paths start at the current directory"
        raise DataNotFoundError("stream", key, "an existing folder", data, hint)
    hint = did_you_mean(data, datasets.names())
    raise UnknownNameError("stream", key, "a data set or an existing folder", data, hint)
