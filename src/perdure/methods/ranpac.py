"""RanPAC: ridge regression on random features of a frozen backbone, exact at every task.

Features f are lifted to h = ReLU(f W_R), and what a task adds to G = Σ h hᵀ and Q = Σ h yᵀ is all that is kept of it.
Of G it is a factor while there are n < M / 2 images. The head is W_o = (G + λI)⁻¹ Q; phase 1 may adapt the backbone.

Source: McDonnell, Gong, Parvaneh, Abbasnejad & van den Hengel, "RanPAC: Random Projections and Pre-trained Models for
    Continual Learning", NeurIPS 2023 (arXiv 2307.02251), Algorithm 1.
Use when: the backbone is good as it is, no images may be kept, and there are many classes.
Deviations:
- Paper: phase 1 is off unless asked for, since the paper chooses it by data set; the presets have it: ``adapt``.
- Paper: λ may also be fixed, or chosen on held-out images of all tasks, which may gain some points: ``ridge``.
- Paper: a λ that is numerically zero beside G moves up its grid, and a task of one class keeps the last λ: ``ridge``.
- Code: sums and solves are float64; λ is chosen in the dual where that is cheaper, with the same result.
- LAMDA-PILOT's code scores by the cosine with the columns of W_o: ``head=cosine``, in ``preset=pilot``.
Relations: SimpleCIL is the same without decorrelation, APER without the ridge; with ``projection_dim=0`` h = f.
Cost: one pass per image ever, and phase 1's; a task of k images takes about 4 n (k + 64) M operations, and n² M + n³/3
    at the first prediction; from n = M/2 on k M², and M³/3. State: 8 n (M + classes) bytes, then 4 M² (twice for
    ``ridge=cumulative``) + 8 M per class. Memory: 4 d M of W_R, which is drawn again where a state is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.config import MethodConfig, published
from perdure.data import Task
from perdure.learned import Derived, Sizes, learned, learned_module
from perdure.memory import Features
from perdure.methods.base import TRAINING, FeatureMethod, Tags, methods
from perdure.modules.gaussians import add_class_counts
from perdure.modules.heads import cosine_scores
from perdure.modules.random_features import RandomFeatures
from perdure.modules.ridge import packed_size
from perdure.modules.ridge_choice import RidgeChoice, RidgePerTask
from perdure.modules.ridge_sums import RidgeSums, joined
from perdure.train.adapting import Adaptation, FirstSession


class RanPACConfig(MethodConfig):
    """Settings of RanPAC."""

    presets: ClassVar = published("ranpac")

    adapt: Adaptation | None = Field(None, discriminator="variant", description="what phase 1 adapts, if anything")
    projection_dim: int = Field(10_000, ge=0, description="M, random features; 0: none, h = f")
    ridge: RidgeChoice = Field(RidgePerTask(), discriminator="name", description="how lambda is set")
    head: Literal["linear", "cosine"] = Field("linear", description="linear is published; cosine is LAMDA-PILOT's")


@methods.register("ranpac")
class RanPAC(FeatureMethod[RanPACConfig]):
    """h = ReLU(f W_R); W_o = (G + λI)⁻¹ Q with G = Σ h hᵀ and Q = Σ h yᵀ.

    Raises:
        BackboneError: if the backbone has no seat for what is to adapt.
    """

    Config = RanPACConfig
    tags: ClassVar = Tags(small={"projection_dim": 64})

    tuned_: nn.Module = learned_module({}, "what adapts to the first task", rest="part")
    projection_seed_: int = learned("", int, "draws W_R")
    projection_sums_: Tensor = learned("d", torch.float64, "of |W_R| in each row: it must be drawn again alike")
    whole_: int = learned("", int, "1 once G itself is kept, 0 before", tells="whole", merges="pooled")
    factor_: Tensor = learned("rows, M", torch.float64, "R, G = RᵀR; the last rows are held out", merges="pooled")
    targets_: Tensor = learned("rows, classes", torch.float64, "Z, Q = RᵀZ", merges="pooled", under="tuned_")
    gram_: Tensor = learned("whole packed", torch.float64, "G of all images, packed", merges="pooled")
    sums_: Tensor = learned("M, whole classes", torch.float64, "Q of all images", merges="pooled", under="tuned_")
    counts_: Tensor = learned("classes", torch.long, "n_c: images of each class", merges="added")
    ridges_: list[float] = learned("tasks", float, "lambda after each task", merges="pooled")
    val_gram_: Tensor = learned("held whole packed", torch.float64, "G of held-out images", merges="pooled")
    val_sums_: Tensor = learned("M, held whole classes", torch.float64, "Q of held-out images", merges="pooled")
    n_val_: int = learned("", int, "held-out images", merges="pooled")

    @property
    def m(self) -> int:
        """M, random features."""
        return self.config.projection_dim or self.backbone.dim

    def sizes(self) -> Sizes:
        """M: random features; packed: M²/2 and some; rows: images up to M/2, then whole: 1; held: 1 if cumulative."""
        held = int(self.config.ridge.name == "cumulative")
        return {"M": self.m, "packed": packed_size(self.m), "held": held}

    def setup(self) -> None:
        """What adapts, and W_R."""
        self.first = FirstSession(self.backbone, self.config.adapt, self._initial())
        self.tuned_, self.projection_seed_ = self.first.part, self.seed
        self._lift, self._solved = Derived[RandomFeatures](), Derived[Tensor]()
        self.projection_sums_ = self.lift.totals

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """As every method, and if it is another W_R that is drawn here, CheckpointError is raised too."""
        self.sizes_in(state)
        self._drawn(state["projection_seed_"]).require_totals(state["projection_sums_"])
        return super().load_state_dict(state)

    @property
    def embedder(self) -> Backbone:
        """The backbone as it adapted."""
        return self.first.backbone

    @property
    def lift(self) -> RandomFeatures:
        """Features f to random features h, float64."""
        return self._drawn(self.projection_seed_)

    def _drawn(self, seed: int) -> RandomFeatures:
        args = seed, self.backbone.dim, self.config.projection_dim, self.backbone.device
        return self._lift.of(seed, lambda: RandomFeatures.drawn(*args))

    def learned_parameters(self) -> int:
        """What adapted, and the head W_o; the random projection is not learned."""
        return super().learned_parameters() + self.m * len(self.classes_)

    def _adapt(self, task: Task) -> None:
        self.first.adapt(task, self.columns(task.train.labels), self._generator(TRAINING), self.store)

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        where = self.lift, features, columns, len(self.classes_)
        kept, ridge = self.kept.taught(self.config.ridge, self.ridges_, *where, rng)
        vars(self).update(kept.entries())
        self.counts_, self.ridges_ = add_class_counts(self.counts_, columns, where[-1]), [*self.ridges_, ridge]

    def _pooled(self, other: Self) -> dict[str, Any]:
        kept, ridges = joined(self.config.ridge, self.kept, self.ridges_, other.kept, other.ridges_, self.lift.device)
        return {**super()._pooled(other), **kept.entries(), "ridges_": ridges}

    @property
    def kept(self) -> RidgeSums:
        """Of all images; its ``statistics`` are what :func:`~perdure.modules.ridge.merge_ridge` takes."""
        tensors = self.factor_, self.targets_, self.gram_, self.sums_, self.val_gram_, self.val_sums_
        return RidgeSums(*tensors, int(self.counts_.sum()), self.n_val_)

    @property
    def weight(self) -> Float[Tensor, "m classes"]:
        """W_o, solved when first needed after a task, float64."""
        source, how = self.sums_ if self.whole_ else self.targets_, self.config.ridge
        return self._solved.of(source, lambda: self.kept.weight(how, self.ridges_[-1], self.lift.device))

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        h = self.lift(features)
        return (cosine_scores(h, self.weight.T) if self.config.head == "cosine" else (h @ self.weight).float()).cpu()
