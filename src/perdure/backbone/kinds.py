"""Kinds of backbones: whether one is what a method needs."""

from __future__ import annotations

from torch import nn

from perdure.backbone.backbone import Backbone
from perdure.backbone.sites import has_seat
from perdure.backbone.two_towers import TwoTowers
from perdure.errors import BackboneError, ConfigError
from perdure.tags import BACKBONES


def require_kind(backbone: Backbone, need: str, who: str) -> Backbone:
    """The backbone that a method works on: of a CLIP, the image tower alone if it needs a plain Vision Transformer.

    Args:
        backbone: any.
        need: one of ``perdure.tags.BACKBONES``.
        who: the method's name.

    Raises:
        BackboneError: if it is not.
        ConfigError: if it is no backbone at all.
    """
    if isinstance(backbone, str | nn.Module) and not isinstance(backbone, Backbone):
        hint = "Write Backbone.load(NAME); a timm model of your own: Backbone(model, name=..., preprocess=...)"
        got = backbone if isinstance(backbone, str) else type(backbone).__name__
        raise ConfigError(who, "backbone", "a perdure.Backbone", got, hint)
    if need == "vit":
        backbone.vit  # noqa: B018  # says itself what is missing
        return backbone.image_tower() if isinstance(backbone, TwoTowers) else backbone
    if need == "towers" and not isinstance(backbone, TwoTowers):
        got = f"{backbone.name}, which reads no texts"
        hint = "Use clip_default or clip_lite0, which are built in, or open_clip/ARCHITECTURE/WEIGHTS"
        raise BackboneError(who, "backbone", BACKBONES[need], got, hint)
    if need == "transformer" and not has_seat(backbone.model, "mlp"):
        got, hint = (
            f"{backbone.name} ({type(backbone.model).__name__})",
            "Use the built-in 'default', or a ViT of timm's",
        )
        raise BackboneError(who, "backbone", f"{BACKBONES[need]}, with a seat beside every MLP", got, hint)
    return backbone
