"""Which image sizes a model takes, found out before any image is there."""

from __future__ import annotations

import copy

import torch
from torch import nn

from perdure.errors import ConfigError


def require_size(model: nn.Module, size: int, name: str) -> None:
    """Refuses an image size that a model cannot compute with.

    A model is tried only where the size is not its own: on PyTorch's ``meta`` device, which computes shapes alone.

    Args:
        model: a model of timm's kind.
        size: side of the square images, pixels.
        name: the model's name.

    Raises:
        ConfigError: if it takes images of its own size, but not of this one.
    """
    own = _own_size(model)
    if own is None or own == size:
        return
    shapes = copy.deepcopy(model).eval().to("meta")
    if not _takes(shapes, size) and _takes(shapes, own):
        hint = f"Leave out the preset, to use {own} pixels, or take a model for images of {size} pixels"
        raise ConfigError("Backbone", "image size", f"one that {name} takes, such as its own {own}", size, hint)


def _own_size(model: nn.Module) -> int | None:
    """The side of the images for which a model was made, as far as it tells."""
    built = getattr(getattr(model, "patch_embed", None), "img_size", None)
    given = getattr(model, "pretrained_cfg", None) or {}
    sides = built or given.get("input_size")
    return None if sides is None else int(sides[-1])


def _takes(model: nn.Module, size: int) -> bool:
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size, device="meta"))
    except Exception:  # whatever a model raises: it is tried at its own size too, so that the size alone is to blame
        return False
    return True
