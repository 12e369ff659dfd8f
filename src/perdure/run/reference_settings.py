"""A recipe's section ``reference``: images without labels and sentences, for a method that learns from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import Field

from perdure.config import Config, MethodConfig
from perdure.data.reference import require_places
from perdure.errors import ConfigError
from perdure.methods.base_reference import NEEDED, ReferenceConfig, ReferenceMethod
from perdure.run.method_file import Kind
from perdure.run.stream_settings import Place


class ReferenceSettings(Config):
    """Which images and sentences; see :meth:`perdure.data.Reference.load`."""

    images: Place = Field(description="a folder, in which images lie anywhere; nothing is taken from their names")
    sentences: Place = Field(description="a text file of one sentence per line; imagenet: its names and definitions")


def takes_reference(kind: Kind) -> bool:
    """Whether a method learns from reference data, with some settings at least.

    Args:
        kind: its class.
    """
    return issubclass(kind, ReferenceMethod)


def reference_checks(
    given: Mapping[str, Any] | None, section: ReferenceSettings | None, kind: Kind, config: MethodConfig
) -> Iterator[Callable[[], None]]:
    """What must hold of a recipe's reference data; each check raises what is wrong.

    Args:
        given: the section as it stands in the recipe; None where there is none.
        section: the same, checked; None where it is wrong in itself.
        kind: the method's class.
        config: its settings.
    """
    if given is not None and not takes_reference(kind):
        yield partial(
            _refuse, f"left out: {kind.__name__} learns from no reference data", given, "Take the section out"
        )
    elif given is None and isinstance(config, ReferenceConfig) and config.uses_reference:
        yield partial(_refuse, f"given: {kind.__name__} learns from it", None, NEEDED)
    elif section is not None:
        yield partial(require_places, section.images, section.sentences)


def _refuse(must_be: str, got: object, hint: str) -> None:
    raise ConfigError("recipe", "reference", must_be, got, hint)
