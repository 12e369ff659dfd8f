"""EfficientNet-Lite0 beside a sentence encoder: a small CLIP with no network, the better of the two at zero-shot.

Source: ``backbone/small_clip.py``; the model card is docs/small_clips.md.
Use when: class names are to be tried offline. It is no Vision Transformer: for prompts take ``clip_default``.
"""

from __future__ import annotations

from perdure.backbone.registered import Stock, backbones
from perdure.backbone.small_clip import load_clip_lite0, with_minilm


@backbones.register("clip_lite0")
def clip_lite0() -> Stock:
    """EfficientNet-Lite0's own classifier weighs MiniLM's texts of ImageNet's classes.

    Raises:
        BackboneError: if the extra ``clip`` is not installed, or a file is damaged.
    """
    return with_minilm(load_clip_lite0, "classifier")
