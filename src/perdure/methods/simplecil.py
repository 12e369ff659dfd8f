"""SimpleCIL: one mean feature per class on a frozen backbone, classified by cosine.

Source: Zhou, Cai, Ye, Zhan & Liu, "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability
    and Adaptivity are All You Need", IJCV 2024 (arXiv 2303.07338).
Deviations: sums are kept in float64 and added, never overwritten, so a class that comes again (a new domain) gets the
    mean of all its images. The constant scale sigma = 1 is left out; it does not change any decision.
Use when: there are few images, or no time to train, or the cut into tasks must not matter. Relations: RanPAC
    decorrelates features before comparing and is usually better; FeCAM adds covariances.
Cost: one pass per image ever; state is 8 d + 8 bytes per class; no gradient.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.config import MethodConfig
from perdure.memory import Features
from perdure.methods.base import FeatureMethod, Tags, methods
from perdure.modules.gaussians import add_class_counts, add_class_sums
from perdure.modules.heads import cosine_scores


class SimpleCILConfig(MethodConfig):
    """SimpleCIL has nothing to set."""


@methods.register("simplecil")
class SimpleCIL(FeatureMethod[SimpleCILConfig]):
    """Cosine nearest class mean of raw features."""

    Config = SimpleCILConfig
    tags: ClassVar = Tags(split_invariant=True)

    def setup(self) -> None:
        """No class yet."""
        self.counts_ = torch.zeros(0, dtype=torch.long)  # n_c, (classes,)
        self.sums_ = torch.zeros(0, self.backbone.dim, dtype=torch.float64)  # s_c, (classes, d)

    @property
    def prototypes(self) -> Float[Tensor, "classes d"]:
        """P_c = s_c / n_c: each class's mean feature, float64."""
        return self.sums_ / self.counts_[:, None]

    def learned_parameters(self) -> int:
        """The prototypes' values."""
        return self.sums_.numel()

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        width, done = len(self.classes_), 0
        for batch in features.batches():
            here = columns[done : done + len(batch)]
            self.sums_ = add_class_sums(self.sums_, here, batch, width)
            self.counts_ = add_class_counts(self.counts_, here, width)
            done += len(batch)

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return cosine_scores(features, self.prototypes)
