"""How pixels become a backbone's input: the deterministic eval view, taken from the weights' own configuration.

Source: timm's data configuration and its eval transform (``timm.data.create_transform``), used as they are.
"""

from __future__ import annotations

import dataclasses as dc
import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Num
from PIL import Image
from timm.data import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
    create_transform,
)
from torch import Tensor

from perdure.errors import ShapeError, UnknownNameError, did_you_mean

_UNIT_RANGE: Final[Mapping[str, Any]] = {
    "image_size": 224,
    "interpolation": "bicubic",
    "crop_mode": "center",
    "mean": (0.0, 0.0, 0.0),
    "std": (1.0, 1.0, 1.0),
}

PREPROCESS_PRESETS: Final[Mapping[str, Mapping[str, Any]]] = {
    # RevisitingCIL, LAMDA-PILOT: short side 256, centre crop 224, inputs left in [0, 1]
    "lamda": {**_UNIT_RANGE, "crop_pct": 0.875},
    # LAE: the same, by bilinear interpolation
    "lae": {**_UNIT_RANGE, "crop_pct": 0.875, "interpolation": "bilinear"},
    # RanPAC on CIFAR: the whole image resized to 224, inputs left in [0, 1]
    "ranpac_cifar": {**_UNIT_RANGE, "crop_pct": 1.0},
    # FeCAM on CIFAR: the same, by bilinear interpolation
    "fecam_cifar": {**_UNIT_RANGE, "crop_pct": 1.0, "interpolation": "bilinear"},
    # PROOF: the whole image resized to a square, whatever its shape, with CLIP's mean and deviation
    "proof": {
        "image_size": 224,
        "interpolation": "bicubic",
        "crop_mode": "squash",
        "crop_pct": 1.0,
        "mean": OPENAI_CLIP_MEAN,
        "std": OPENAI_CLIP_STD,
    },
    # SLCA: short side 256, centre crop 224, ImageNet's mean and deviation
    "slca": {**_UNIT_RANGE, "crop_pct": 0.875, "mean": IMAGENET_DEFAULT_MEAN, "std": IMAGENET_DEFAULT_STD},
    # SLCA on CIFAR: the same, with CIFAR-100's own mean and deviation
    "slca_cifar": {
        **_UNIT_RANGE,
        "crop_pct": 0.875,
        "mean": (0.5071, 0.4867, 0.4408),
        "std": (0.2675, 0.2565, 0.2761),
    },
}


@dc.dataclass(frozen=True, slots=True)
class Preprocess:
    """Resize, crop and normalisation of one set of weights.

    Args:
        image_size: side of the square input, pixels.
        interpolation: ``bicubic``, ``bilinear``, … as timm names them.
        crop_pct: the short side is resized to ``image_size / crop_pct`` before the centre crop.
        crop_mode: ``center``, ``squash`` or ``border``, as timm defines them.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """

    image_size: int
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    def with_preset(self, name: str | None) -> Preprocess:
        """This preprocessing changed by a named published variant; ``None`` keeps the weights' own.

        Raises:
            UnknownNameError: if no such preset exists.
        """
        if name is None:
            return self
        if name not in PREPROCESS_PRESETS:
            hint = did_you_mean(name, PREPROCESS_PRESETS)
            raise UnknownNameError("Backbone", "preset", "a preprocessing preset", name, hint)
        return dc.replace(self, **PREPROCESS_PRESETS[name])

    def pixels(self, image: Image.Image) -> np.ndarray:
        """The eval view of one RGB image: (3, image_size, image_size) uint8."""
        # by its version, timm gives an array or a tensor
        return np.asarray(_eval_transform(self)(image))

    def normalise(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """uint8 pixels to the backbone's input range; floating-point images are taken as already normalised.

        Raises:
            ShapeError: if ``images`` is not a batch of three-channel images, uint8 or floating point.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            got = tuple(images.shape)
            raise ShapeError("Backbone", "images", "of shape (batch, 3, height, width)", got, "Stack RGB images")
        if images.is_floating_point():
            return images.float()
        if images.dtype != torch.uint8:
            got_type = str(images.dtype)
            raise ShapeError("Backbone", "images", "uint8 pixels or floating point", got_type, "Convert the dtype")
        # one multiply-add per pixel: (x/255 - mean)/std = x * scale + shift
        std = torch.tensor(self.std, device=images.device)
        shift = -torch.tensor(self.mean, device=images.device) / std
        return torch.addcmul(shift.view(3, 1, 1), images.float(), (1 / (255 * std)).view(3, 1, 1))


def preprocess_from_config(config: Mapping[str, Any]) -> Preprocess:
    """The preprocessing a timm ``pretrained_cfg`` asks for.

    Args:
        config: the result of timm's ``resolve_data_config``.
    """
    return Preprocess(
        image_size=config["input_size"][1],
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
        crop_mode=config["crop_mode"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


@functools.lru_cache(maxsize=16)
def _eval_transform(p: Preprocess) -> Callable[[Image.Image], Any]:
    # use_prefetcher: stop at uint8 CHW pixels; normalising whole batches on the device is faster
    transform: Callable[[Image.Image], Any] = create_transform(
        (3, p.image_size, p.image_size),
        is_training=False,
        use_prefetcher=True,
        interpolation=p.interpolation,
        mean=p.mean,
        std=p.std,
        crop_pct=p.crop_pct,
        crop_mode=p.crop_mode,
    )
    return transform
