"""ClipCache: beside zero-shot CLIP, stored image embeddings vote for their classes by how near they are.

Source: Zhang, Zhang, Fang, Gao, Li, Dai, Qiao & Li, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot
    Classification", ECCV 2022 (arXiv 2207.09519).
Use when: a CLIP is there, images' embeddings may be kept, and there is no time to train.
Deviations:
- Paper: alpha = 1 and beta = 5.5 are fixed. The released scripts search both on validation or even test images.
- Paper: keys are the eval view's embeddings, not means over ten augmented views.
- Ours: ``per_class`` bounds the keys of a class, chosen by herding; ``vote=mean`` gives classes of many keys no more.
- The form whose keys are trained (Tip-Adapter-F) is left out.
Relations: with ``alpha=0`` it is clip_zeroshot. It is rehearsal of features: say so beside its numbers.
Cost: F is a frozen forward pass. Any image: F once ever; a test image d operations per key. State: 4 d + 8 bytes per
    key, 4 d per class. No gradient.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.backbone import normalised
from perdure.learned import learned
from perdure.memory import Features
from perdure.memory.exemplars import herding
from perdure.methods.base import Tags, methods
from perdure.methods.base_clip import ClipConfig, ClipMethod

KEYS_AT_ONCE = 4096


class ClipCacheConfig(ClipConfig):
    """Settings of the cache."""

    alpha: float = Field(1.0, ge=0, description="the weight of the votes beside the zero-shot scores")
    beta: float = Field(5.5, ge=0, description="how fast a vote falls with the distance")
    per_class: int | None = Field(None, ge=1, description="keys kept of each class, by herding; none: all")
    vote: Literal["sum", "mean"] = Field("sum", description="of a class's keys; sum is published")


@methods.register("clip_cache")
class ClipCache(ClipMethod[ClipCacheConfig]):
    """logit_scale * cos(f, w_c) + alpha * sum over keys k of class c of exp(-beta (1 - cos(f, k)))."""

    Config = ClipCacheConfig
    tags: ClassVar = Tags(backbone="towers", keeps_data=True, class_names=True, open_vocabulary=True)

    keys_: Tensor = learned("keys, d", torch.float32, "stored embeddings, of length 1")
    key_columns_: Tensor = learned("keys", torch.long, "their classes' columns", below="classes")

    def learned_parameters(self) -> int:
        """The keys' values."""
        return self.keys_.numel()

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        keys = torch.cat([self.keys_, *(normalised(chunk.double()).float() for chunk in features.batches())])
        owners, most = torch.cat([self.key_columns_, columns]), self.config.per_class
        if most is not None:
            of = [torch.nonzero(owners == c)[:, 0] for c in range(len(self.classes_))]
            kept = torch.cat([rows[herding(keys[rows], min(most, len(rows)))] for rows in of])
            keys, owners = keys[kept], owners[kept]
        self.keys_, self.key_columns_ = keys, owners

    def votes(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """The sum, or mean, over each class's keys, float64.

        Args:
            features: image embeddings, raw.
        """
        f, width = normalised(features.double()), len(self.classes_)
        found = f.new_zeros(len(f), width)
        for keys, owners in zip(self.keys_.split(KEYS_AT_ONCE), self.key_columns_.split(KEYS_AT_ONCE), strict=True):
            near = torch.exp(-self.config.beta * (1 - f @ keys.double().T))
            found += near @ F.one_hot(owners, width).double()
        if self.config.vote == "mean":
            found /= torch.bincount(self.key_columns_, minlength=width)
        return found

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        votes = self.config.alpha * self.votes(features)
        return (self._scores_by_text(features, self.texts_) + votes).float()
