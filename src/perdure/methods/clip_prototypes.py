"""ClipPrototypes: each class is a mix of its name's embedding and the mean of its images' embeddings.

Source: Zhou, Cai, Ye, Zhan & Liu, "Revisiting Class-Incremental Learning with Pre-Trained Models", IJCV 2024
    (class means, here of image embeddings); the name's embedding is that of Radford et al., "CLIP", ICML 2021.
Use when: a CLIP is there and there is no time to train; names carry classes of few images.
Deviations:
- The mix is ours: s_c = n(a w_c + (1 - a) n(p_c)), with a = 0.5 and without a search.
- Peers' code takes the mean of raw embeddings, ``mean=raw``; ``mean=unit`` takes that of embeddings of length 1.
- Sums add up in float64, so a class that comes again gets the mean of all its images.
Relations: ``text=1`` is clip_zeroshot; ``text=0`` is SimpleCIL on the image tower: names decide nothing.
Cost: F is a frozen forward pass. Any image: F once ever; a text once ever. State: 12 d + 8 bytes per class. No
    gradient.
"""

from __future__ import annotations

import dataclasses as dc
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.backbone import normalised
from perdure.learned import learned
from perdure.memory import Features
from perdure.methods.base import Tags, methods
from perdure.methods.base_clip import ClipConfig, ClipMethod
from perdure.modules.gaussians import add_class_counts
from perdure.modules.prototypes import add_class_chunks


class ClipPrototypesConfig(ClipConfig):
    """Settings of the prototypes."""

    text: float = Field(0.5, ge=0, le=1, description="a, the name's share of a prototype; 0: images alone")
    mean: Literal["raw", "unit"] = Field("raw", description="of embeddings as they are, or of length 1 each")


@methods.register("clip_prototypes")
class ClipPrototypes(ClipMethod[ClipPrototypesConfig]):
    """logit_scale * cos(image, s_c) with s_c = n(a w_c + (1 - a) n(p_c))."""

    Config = ClipPrototypesConfig
    tags: ClassVar = Tags(backbone="towers", split_invariant=True, class_names=True, open_vocabulary=True)

    counts_: Tensor = learned("classes", torch.long, "n_c: images of each class", merges="added")
    sums_: Tensor = learned("classes, d", torch.float64, "sums of embeddings", merges="added")

    @property
    def promises(self) -> Tags:
        """Names are used, and may be new, where they have a share."""
        used = self.config.text > 0
        return dc.replace(self.tags, class_names=used, open_vocabulary=used)

    @property
    def prototypes(self) -> Float[Tensor, "classes d"]:
        """s_c, float64."""
        a, p = self.config.text, normalised(self.sums_ / self.counts_[:, None])
        return normalised(a * self.texts_.double() + (1 - a) * p)

    def learned_parameters(self) -> int:
        """The prototypes' values."""
        return self.sums_.numel()

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        width, unit = len(self.classes_), self.config.mean == "unit"
        rows = (normalised(chunk.double()) if unit else chunk for chunk in features.batches())
        self.sums_ = add_class_chunks(self.sums_, columns, rows, width)
        self.counts_ = add_class_counts(self.counts_, columns, width)

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self._scores_by_text(features, self.prototypes)
