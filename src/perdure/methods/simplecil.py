"""SimpleCIL: one mean feature per class on a frozen backbone, classified by cosine.

Source: Zhou, Cai, Ye, Zhan & Liu, "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability
    and Adaptivity are All You Need", IJCV 2024, arXiv 2303.07338.
Use when: there are few images, or no time to train, or the cut into tasks must not matter.
Deviations:
- From the paper: sums add up in float64, so a class that comes again (a new domain) gets the mean of all its images.
- From the paper: the constant scale sigma = 1 is left out; it changes no decision.
Relations: RanPAC decorrelates features before comparing and is usually better; FeCAM adds covariances.
Cost: F is a frozen forward pass. Any image: F once ever. State: 8 d + 8 bytes per class. No gradient.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.config import MethodConfig
from perdure.learned import learned
from perdure.memory import Features
from perdure.methods.base import FeatureMethod, Tags, methods
from perdure.modules.gaussians import add_class_counts
from perdure.modules.heads import cosine_scores
from perdure.modules.prototypes import add_class_chunks


class SimpleCILConfig(MethodConfig):
    """SimpleCIL has nothing to set."""


@methods.register("simplecil")
class SimpleCIL(FeatureMethod[SimpleCILConfig]):
    """Cosine nearest class mean of raw features."""

    Config = SimpleCILConfig
    tags: ClassVar = Tags(split_invariant=True)

    counts_: Tensor = learned("classes", torch.long, "n_c: images of each class", merges="added")
    sums_: Tensor = learned("classes, d", torch.float64, "s_c: sums of features", merges="added")

    @property
    def prototypes(self) -> Float[Tensor, "classes d"]:
        """P_c = s_c / n_c: each class's mean feature, float64."""
        return self.sums_ / self.counts_[:, None]

    def learned_parameters(self) -> int:
        """The prototypes' values."""
        return self.sums_.numel()

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        width = len(self.classes_)
        self.sums_ = add_class_chunks(self.sums_, columns, features.batches(), width)
        self.counts_ = add_class_counts(self.counts_, columns, width)

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return cosine_scores(features, self.prototypes)
