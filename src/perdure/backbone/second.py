"""A second backbone for the images of a first one: both see the same pixels, and their passes are counted together."""

from __future__ import annotations

import dataclasses as dc
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Num
from pydantic import Field, field_validator
from torch import Tensor

from perdure.backbone.backbone import Backbone
from perdure.backbone.kinds import require_kind
from perdure.config import Config
from perdure.errors import BackboneError, ConfigError, UnknownNameError

View = Literal["own", "shared"]


class SecondBackbone(Config):
    """Which pretrained Vision Transformer; see :meth:`perdure.Backbone.load`."""

    name: str = Field("default", description="default, a plug-in's name, or a full timm tag")
    weights: str | None = Field(None, description="a local safetensors file")
    pretrained: bool = Field(True, description="false: random weights")
    init_seed: int = Field(0, ge=0, description="of random weights")

    @field_validator("weights")
    @classmethod
    def _weights_are_found_from_anywhere(cls, given: str | None) -> str | None:
        return None if given is None else str(Path(given).expanduser().absolute())

    def beside(self, first: Backbone, view: View, who: str) -> Backbone:
        """Opens it for the images of another Vision Transformer, on that one's device and in its precision.

        Images are cut and resized once, as the first backbone wants them. If it was made for another size, its
        position embedding is resampled by timm's ``set_input_size``.

        Args:
            first: the one whose images it gets.
            view: ``own`` normalises the pixels as its own weights want, ``shared`` as the first backbone's do.
            who: the method that asks.

        Raises:
            BackboneError: if one of the two is no Vision Transformer that the block walk knows, or weights cannot be
                had.
            ConfigError: if it takes no images of the first backbone's size.
            UnknownNameError: for an unknown name.
        """
        first.vit  # noqa: B018  # says itself what is missing
        try:
            loaded = Backbone.load(**self.model_dump(), device=str(first.device), precision=first.precision)
            second = require_kind(loaded, "vit", who)
        except (BackboneError, UnknownNameError) as error:
            raise type(error)(who, f"booster: {error.name}", error.must_be, error.got, error.hint) from error
        own, size = second.preprocess, first.preprocess.image_size
        if own.image_size != size:
            _resample(second, size, who)
        by = own if view == "own" else first.preprocess
        second.preprocess = dc.replace(first.preprocess, mean=by.mean, std=by.std)
        second.passes = first.passes
        return second


def as_second_sees(second: Backbone, first: Backbone, images: Num[Tensor, "b 3 h w"]) -> Num[Tensor, "b 3 h w"]:
    """Images for the second backbone: pixels as they are, and what the first's mean and std made of them undone.

    Args:
        second: from :meth:`SecondBackbone.beside`.
        first: whose images they are.
        images: pixels, or floating point that is normalised for the first backbone.
    """
    if not images.is_floating_point():
        return images
    was, wanted = first.preprocess, second.preprocess

    def column(values: tuple[float, float, float]) -> Float[Tensor, "3 1 1"]:
        return torch.tensor(values, device=images.device).view(3, 1, 1)

    return (images.float() * column(was.std) + column(was.mean) - column(wanted.mean)) / column(wanted.std)


def _resample(backbone: Backbone, size: int, who: str) -> None:
    try:
        backbone.vit.set_input_size(img_size=(size, size))
    except Exception as error:  # whatever a model raises that cannot be cut into patches of its size
        hint = f"Take one whose patches fit {size} pixels, or another CLIP ({error})"
        must_be = f"one that takes images of {size} pixels, the CLIP's"
        raise ConfigError(who, "booster", must_be, backbone.name, hint) from error
