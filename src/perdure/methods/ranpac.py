"""RanPAC: ridge regression on random features of a frozen backbone, exact at every task.

Features f are lifted to h = ReLU(f W_R), and what a task adds to G = Σ h hᵀ and Q = Σ h yᵀ is all that is kept of it.
The head is W_o = (G + λI)⁻¹ Q; the backbone may adapt to the first task before (phase 1).

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
Cost: one pass per image ever, and phase 1's; per task n M² + n d M operations, and M³/3 at the first prediction.
    State: 4 M² bytes of G (twice for ``ridge=cumulative``) + 8 M per class + 4 d M; a solve holds 8 M² more.
"""

from __future__ import annotations

from typing import ClassVar, Literal

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
from perdure.modules.ridge import packed_size, solve_ridge_upwards, unpack
from perdure.modules.ridge_choice import GRID, RidgeChoice, RidgePerTask, chosen_on_rows, chosen_on_statistics, held_out
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
    projection_: Tensor = learned("d, columns", torch.float32, "W_R")
    gram_: Tensor = learned("packed", torch.float64, "G of all images, packed")
    sums_: Tensor = learned("M, classes", torch.float64, "Q of all images")
    counts_: Tensor = learned("classes", torch.long, "n_c: images of each class")
    ridges_: list[float] = learned("tasks", float, "lambda after each task")
    val_gram_: Tensor = learned("held packed", torch.float64, "G of held-out images")
    val_sums_: Tensor = learned("M, held classes", torch.float64, "Q of held-out images")
    n_val_: int = learned("", int, "held-out images")

    @property
    def m(self) -> int:
        """M, random features."""
        return self.config.projection_dim or self.backbone.dim

    def sizes(self) -> Sizes:
        """M: random features; packed: M²/2 and a little more; columns: of W_R; held: 1 for ridge=cumulative, else 0."""
        c, held = self.config, int(self.config.ridge.name == "cumulative")
        return {"M": self.m, "packed": packed_size(self.m), "columns": c.projection_dim, "held": held}

    def setup(self) -> None:
        """W_R."""
        c, d = self.config, self.backbone.dim
        self.first = FirstSession(self.backbone, c.adapt, self._initial())
        self.tuned_ = self.first.part
        rng = torch.Generator().manual_seed(self.seed)
        self.projection_ = torch.randn(d, c.projection_dim, generator=rng)
        self._solved: Derived[Tensor] = Derived()

    @property
    def embedder(self) -> Backbone:
        """The backbone as it adapted."""
        return self.first.backbone

    @property
    def lift(self) -> RandomFeatures:
        """Features f to random features h, float64."""
        device = self.backbone.device
        return RandomFeatures(self.projection_, device if device.type == "cuda" else torch.device("cpu"))  # not MPS

    def learned_parameters(self) -> int:
        """What adapted, and the head W_o; the random projection is not learned."""
        return super().learned_parameters() + self.sums_.numel()

    def _adapt(self, task: Task) -> None:
        self.first.adapt(task, self.columns(task.train.labels), self._generator(TRAINING), self.store)

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        how, lift, width = self.config.ridge, self.lift, len(self.classes_)
        if how.name == "fixed":
            ridge = how.value
        else:
            ridge = self.ridges_[-1] if self.ridges_ else how.first
            fit, val = held_out(len(features), how.validation_fraction, rng)
        if how.name == "per_task":
            ridge = chosen_on_rows(lift, features, columns, fit, val) or ridge
        everything = torch.arange(len(features))
        self.gram_, self.sums_ = lift.added((self.gram_, self.sums_), features, columns, everything, width)
        if how.name == "cumulative":
            held = lift.added((self.val_gram_, self.val_sums_), features, columns, val, width)
            self.val_gram_, self.val_sums_ = held
            self.n_val_ += len(val)
            if self.n_val_:
                ridge = chosen_on_statistics((self.gram_, self.sums_), held, self.n_val_, lift.device)
        self.counts_ = add_class_counts(self.counts_, columns, width)
        self.ridges_ = [*self.ridges_, ridge]

    @property
    def weight(self) -> Float[Tensor, "m classes"]:
        """W_o, solved when first needed after a task, float64."""
        return self._solved.of(self.sums_, self._solve)

    def _solve(self) -> Tensor:
        # a λ chosen on a small task may be numerically zero beside the G of all tasks: then take the next that is not
        more = [r for r in GRID if r > self.ridges_[-1] and self.config.ridge.name != "fixed"]
        gram, sums = self.gram_.to(self.lift.device), self.sums_.to(self.lift.device)
        return solve_ridge_upwards(lambda: unpack(gram, self.m), sums, [self.ridges_[-1], *more])

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        h = self.lift(features)
        if self.config.head == "cosine":
            return cosine_scores(h, self.weight.T).cpu()
        return (h @ self.weight).float().cpu()
