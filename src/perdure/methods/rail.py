"""RAIL: exact ridge regression on CLIP's embeddings, blended with zero-shot CLIP where that one names a taught class.

Source: Xu, Chen, Nie, Wang, Zhuang & Okumura, "Advancing Cross-domain Discriminability in Continual Learning of
    Vision-Language Models", NeurIPS 2024 (arXiv 2406.18868).
Use when: a CLIP is there, domains come one after another, and images of classes that were never taught come too.
Deviations:
- Released code: images are randomly cropped in training. Here they are seen as in tests, so that any order is exact.
- Released code: a recursion in float32. Here sums, or a kernel, and one solve in float64.
- Released code: M = 15 000, in presets. Here 4 096; ``projection_dim=0`` is the ridge on the embeddings themselves.
- Released code: cosines times 100. Here times the CLIP's own scale, which is 100 for published ones.
- ``form=dual`` keeps the embedding of every training image: it is rehearsal of features.
Relations: ``beta=0`` is clip_zeroshot, ``beta=1`` a ridge as in RanPAC, whose random layer is drawn otherwise. For lack
    of names that were not taught, the gate is always open: that is a plain blend.
Cost: F is a frozen forward pass. Any image: F once ever; a text once ever. Primal: n M² operations and M³/3 per solve;
    state as RanPAC's. Dual: n³/3 per solve; state 4 d + 8 bytes per image.
"""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.backbone import normalised
from perdure.config import published
from perdure.data import Candidate, LabelledImages
from perdure.learned import Sizes, learned_module
from perdure.memory import Features
from perdure.memory.unit_rows import UnitRows
from perdure.methods.base import Tags, methods
from perdure.methods.base_clip import ClipConfig, ClipMethod
from perdure.modules.heads import cosine_scores
from perdure.modules.ridge_forms import DualRidge, Primal, PrimalRidge, RidgeForm


class RAILConfig(ClipConfig):
    """Settings of RAIL."""

    presets: ClassVar = published("rail")

    form: RidgeForm = Field(Primal(), discriminator="name", description="of the ridge regression")
    beta: float = Field(0.8, ge=0, le=1, description="the ridge's share where zero-shot CLIP names a taught class")
    scale: float | None = Field(None, gt=0, description="of the cosines in the softmax; null: the CLIP's own")


@methods.register("rail")
class RAIL(ClipMethod[RAILConfig]):
    """(1 - beta) p_z + beta [s, 0] where zero-shot CLIP's p_z is highest for a taught class, and p_z elsewhere.

    Raises:
        ConfigError: for a projection, or a kernel, that this machine's memory cannot hold.
    """

    Config = RAILConfig
    tags: ClassVar = Tags(
        backbone="towers", split_invariant=True, class_names=True, open_vocabulary=True,
        small={"form": {"name": "primal", "projection_dim": 64}},
    )  # fmt: skip

    ridge_: PrimalRidge | DualRidge = learned_module(
        {**PrimalRidge.STATE, **DualRidge.STATE}, "the ridge regression on embeddings of length 1"
    )

    @property
    def promises(self) -> Tags:
        """The dual keeps every image's embedding."""
        return dc.replace(self.tags, keeps_data=self.config.form.name == "dual")

    def sizes(self) -> Sizes:
        """drawn: random features; M: features of the ridge; rows: images up to M/2; whole: then 1; keys: the dual's."""
        return self.config.form.sizes(self.backbone.dim)

    def setup(self) -> None:
        """A ridge regression of no images."""
        own = self.backbone.device
        device = own if own.type == "cuda" else torch.device("cpu")  # MPS has no float64
        self.ridge_ = self.config.form.made(self.backbone.dim, self._initial(), device)

    def learned_parameters(self) -> int:
        """The ridge's: M weights, or one for each image, per class."""
        return self.ridge_.n_weights * len(self.classes_)

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        self.ridge_.add(UnitRows(features), columns, len(self.classes_))

    def blended(
        self, features: Float[Tensor, "b d"], texts: Float[Tensor, "n d"], columns: Int[Tensor, " n"]
    ) -> Float[Tensor, "b n"]:
        """The scores of candidates.

        Args:
            features: image embeddings, raw.
            texts: of the candidates.
            columns: of each one that was taught; -1: it was not.
        """
        beta, scale = self.config.beta, self.config.scale or self.backbone.logit_scale
        p = (scale * cosine_scores(features, texts).cpu().double()).softmax(1)
        s = F.pad(self.ridge_(normalised(features.float())), (0, 1))[
            :, columns
        ]  # column -1, of zeros, for untaught ones
        if not len(columns):
            return p.float()
        known = (columns >= 0)[p.argmax(1)]
        return torch.where(known[:, None], (1 - beta) * p + beta * s, p).float()

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self.blended(features, self.texts_, torch.arange(len(self.classes_)))

    def _scores_among(
        self, data: LabelledImages, candidates: Sequence[Candidate]
    ) -> Iterator[Float[Tensor, "b candidates"]]:
        texts, columns = self.texts_among(candidates)
        for features in self.store.features(self.embedder, data, label="test features").batches():
            with torch.no_grad():
                yield self.blended(features, texts, columns)
