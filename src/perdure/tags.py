"""What a method promises and needs, for the common checks, the command line and the report."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Mapping
from typing import Any, Final

from perdure.errors import ConfigError, did_you_mean

BACKBONES: Final = {
    "any": "any backbone",
    "transformer": "a Vision Transformer or Swin",
    "vit": "a plain Vision Transformer",
    "towers": "a CLIP: an image tower beside a text tower",
}
"""What a method may need for a backbone, in words; :mod:`perdure.backbone.kinds` tells whether one is that."""


@dc.dataclass(frozen=True, slots=True)
class Tags:
    """What a method promises and needs. The common checks hold it to every one.

    Args:
        backbone: what it needs, one of ``BACKBONES``; with some settings it may need more.
        split_invariant: the final predictions do not depend on how the data are cut into tasks.
        trains_backbone: it sends images through a copy of the backbone whose weights it trained, anew whenever asked.
        adapts: it trains parts inserted into a view of the backbone, or a copy, whose features are kept afterwards.
        prompted: it sends images through the frozen backbone together with prompts, anew after every task.
        keeps_data: it stores training images, or something per training image (counted in its stored bytes), beside the
            16 bytes of each image's content hash that every method keeps.
        class_names: it uses its classes' names (their display names, as a text tower reads them).
        open_vocabulary: it scores classes by their names, those too that it was never taught: ``scores_among``.
        extra_data: what it learns from beside its tasks and the pretrained weights, in words; empty for nothing.
        depends_on_test_batch: an image's scores depend on the images tested with it; reported beside every number.
        small: configuration for the common checks, quick on a tiny random backbone.
        learns: changes to ``small`` where a check asks the method to learn an easy task well.
        expected_failures: check name to the reason why this method cannot pass it.

    Raises:
        ConfigError: for a backbone of no known kind, or an open vocabulary without class names.
    """

    backbone: str = "any"
    split_invariant: bool = False
    trains_backbone: bool = False
    adapts: bool = False
    prompted: bool = False
    keeps_data: bool = False
    class_names: bool = False
    open_vocabulary: bool = False
    extra_data: str = ""
    depends_on_test_batch: bool = False
    small: Mapping[str, Any] = dc.field(default_factory=dict)
    learns: Mapping[str, Any] = dc.field(default_factory=dict)
    expected_failures: Mapping[str, str] = dc.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.backbone not in BACKBONES:
            hint = did_you_mean(self.backbone, BACKBONES)
            raise ConfigError("Tags", "backbone", "a known kind", self.backbone, hint)
        if self.open_vocabulary and not self.class_names:
            hint = "Set class_names=True: that is what it scores classes by"
            raise ConfigError("Tags", "class_names", "True with open_vocabulary", self.class_names, hint)


def notes(tags: Tags) -> str:
    """What a method's tags say of it, in words."""
    told = {
        f"needs {BACKBONES[tags.backbone]}": tags.backbone != "any",
        "any split, same result": tags.split_invariant,
        "trains the backbone": tags.trains_backbone,
        "trains parts inserted into the backbone": tags.adapts,
        "keeps data": tags.keeps_data,
        "uses class names": tags.class_names and not tags.open_vocabulary,
        "scores classes by their names, taught or not": tags.open_vocabulary,
        f"learns from other data too: {tags.extra_data}": bool(tags.extra_data),
        "depends on the test batch": tags.depends_on_test_batch,
    }
    return ", ".join(note for note, holds in told.items() if holds)
