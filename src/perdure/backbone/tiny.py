"""Tiny backbones of random weights, one of every kind that a method may need, and no more than that."""

from __future__ import annotations

from typing import Any, Final

import timm
import torch
from timm.data import resolve_data_config
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from perdure.backbone.backbone import Backbone
from perdure.backbone.clip import tiny_clip
from perdure.data.preprocess import Preprocess, preprocess_from_config


def small_vit(name: str = "test_vit", side: int = 64) -> Backbone:
    """One of timm's tiny Vision Transformers for images of fewer pixels, with random weights.

    Args:
        name: timm's.
        side: of the square input, pixels: a multiple of the patches' side.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(name, num_classes=0, img_size=side)
    preprocess = preprocess_from_config(resolve_data_config({"img_size": side}, model=model))
    return Backbone(model, name=name, preprocess=preprocess, device="cpu")


def _efficientnet() -> Backbone:
    return Backbone.load("test_efficientnet", pretrained=False, device="cpu")


def _swin() -> Backbone:
    return _made(SwinTransformer, window_size=4, embed_dim=24, depths=(1, 1), num_heads=(2, 2))


def _vit() -> Backbone:
    return _made(VisionTransformer, patch_size=8, embed_dim=96, depth=7, num_heads=3)


def _made(kind: type[nn.Module], **sizes: Any) -> Backbone:
    """For images of 32 px, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(img_size=32, num_classes=0, **sizes)
    return Backbone(model, name=f"a tiny {kind.__name__}", preprocess=Preprocess(image_size=32), device="cpu")


TINY: Final = {"any": _efficientnet, "transformer": _swin, "vit": _vit, "towers": tiny_clip}
"""What makes one, by its kind in ``perdure.tags.BACKBONES``; the most common kind first."""
