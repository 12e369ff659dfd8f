"""The built-in Vision Transformer beside a sentence encoder: a small CLIP with no network, for prompts and fine-tuning.

Source: ``backbone/small_clip.py``; the model card is docs/small_clips.md.
Use when: a method on a CLIP wants a Vision Transformer, offline.
"""

from __future__ import annotations

from perdure.backbone.registered import Stock, backbones
from perdure.backbone.small_clip import load_clip_default, with_minilm


@backbones.register("clip_default")
def clip_default() -> Stock:
    """A linear classifier on the built-in model's features weighs MiniLM's texts of ImageNet's classes.

    Raises:
        BackboneError: if the extra ``clip`` is not installed, or a file is damaged.
    """
    return with_minilm(load_clip_default, "head")
