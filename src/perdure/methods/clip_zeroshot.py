"""ClipZeroShot: an image goes to the class whose name's embedding is nearest; nothing is learned but names.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, section 3.1.
Use when: a class is to be known by its name alone, and as the line that every method on a CLIP has to beat.
Deviations:
- Names of classes to come are in no softmax: a class is a candidate from its task on.
- Published lists of templates by name (``templates``); one is the default: ``a photo of a {}.``
Relations: clip_prototypes mixes in class means, clip_cache votes of stored features; coop learns the template.
Cost: F is a frozen forward pass. Any image: F once ever; a text tower's pass per class and template, once ever.
    State: 4 d bytes per class. No gradient.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.memory import Features
from perdure.methods.base import Tags, methods
from perdure.methods.base_clip import ClipConfig, ClipMethod


@methods.register("clip_zeroshot", "clip")
class ClipZeroShot(ClipMethod[ClipConfig]):
    """logit_scale * cos(image, w_c)."""

    Config = ClipConfig
    tags: ClassVar = Tags(
        backbone="towers", split_invariant=True, class_names=True, open_vocabulary=True,
        expected_failures=dict.fromkeys(
            (
                "check_learns_an_easy_task",
                "check_tells_the_classes_of_every_task_apart", "check_every_image_and_label_matters",
            ),
            "its names alone decide, and nothing is learned from images",
        ),
    )  # fmt: skip

    def learned_parameters(self) -> int:
        """None: the names' embeddings are given."""
        return 0

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        """Images teach nothing."""

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self._scores_by_text(features, self.texts_)
