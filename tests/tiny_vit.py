"""The smallest stock Vision Transformer that golden tests can follow by hand."""

from __future__ import annotations

import functools
from typing import Any

import torch
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from perdure import Backbone
from perdure.backbone.tiny import small_vit
from perdure.checks import CHECKS, learning
from perdure.data import Preprocess

ON_ANOTHER_VIT = (
    *(name for name, check in CHECKS.items() if check.__module__ == learning.__name__),
    "check_scores_cover_the_seen_classes",
    "check_predicting_changes_nothing",
    "check_backbone_untouched",
    "check_batch_does_not_matter",
    "check_whole_data_equals_batches",
    "check_state_round_trip",
    "check_resumed_equals_straight",
    "check_threads_do_not_matter",
    "check_features_come_from_where_the_tags_say",
    "check_state_is_declared",
)
"""The common checks of what a method learns and answers; those of its settings and refusals need no second model."""


def second_vit() -> Backbone:
    """timm's ``test_vit2`` of random weights, its layer scales at 1: at their 1e-5 no prompt can be seen in a score."""
    backbone = small_vit("test_vit2")
    for name, scale in backbone.model.named_parameters():
        if name.endswith("gamma"):
            scale.fill_(1.0)
    return backbone


def tiny(**options: Any) -> Backbone:
    """Two blocks of width 8 on images of 8 px; all weights shaken, so that no norm or bias is the identity."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
    model = VisionTransformer(num_classes=0, **(sizes | options)).requires_grad_(False)
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p))
    return Backbone(model, name="tiny", preprocess=Preprocess(image_size=8), device="cpu")


def behind(stem: nn.Module) -> Backbone:
    """Two blocks of width 8 on images of 8 px, four patches behind ``stem``, which halves the side."""
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 2, "embed_dim": 8, "depth": 2, "num_heads": 2}
    model = VisionTransformer(num_classes=0, **sizes, embed_layer=functools.partial(HybridEmbed, backbone=stem))
    return Backbone(model, name="hybrid", preprocess=Preprocess(image_size=8), device="cpu")
