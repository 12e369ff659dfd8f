"""RanPAC: adapt to the first task if wanted, then a random projection and a ridge head that is exact at every task.

Source: McDonnell, Gong, Parvaneh, Abbasnejad & van den Hengel, "RanPAC: Random Projections and Pre-trained Models for
    Continual Learning", NeurIPS 2023 (arXiv 2307.02251), Algorithm 1.
Deviations: statistics and solves are float64; the dual chooses lambda where it is cheaper, with the same result.
    - Phase 1 is APER's and off; the presets have it, for the paper chooses it by data set (``adapt``).
    - ``ridge=fixed`` and ``ridge=cumulative`` are extensions; ``per_task``, as published, sees the last task alone and
      may cost some points on tasks of two easy classes.
    - A lambda that is numerically zero beside G moves up its grid; a task of one class keeps the last one.
    - Preset ``pilot`` scores by cosine with the columns of W, as LAMDA-PILOT does.
Use when: a frozen backbone and no exemplars, especially with many classes. Relations: SimpleCIL is the same without
    decorrelation, APER without ridge; with projection_dim=0 this is ridge regression on the raw features.
Cost: one pass per image ever, and phase 1's; per task n M² + n d M operations and, at the first prediction, M³/3.
    State: 4 M² bytes of Gram matrix (twice for ``cumulative``) + 8 M per class + 4 d M; a solve holds 8 M² more.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.backbone import Backbone
from perdure.config import MethodConfig
from perdure.data import Task
from perdure.memory import Features
from perdure.methods.base import TRAINING, FeatureMethod, Tags, methods
from perdure.modules.gaussians import add_class_counts
from perdure.modules.heads import cosine_scores
from perdure.modules.ridge import (
    add_gram_,
    best_ridge,
    packed_gram,
    solve_ridge_upwards,
    summed_kernels,
    unpack,
    validation_losses_dual,
    validation_losses_primal,
)
from perdure.train.adapting import Adaptation, FirstSession

GRID = tuple(10.0**k for k in range(-8, 9))
ROWS = 512  # lifted rows held at once: 41 MB at M = 10 000


class RanPACConfig(MethodConfig):
    """Settings of RanPAC."""

    presets: ClassVar = {
        "paper": {"adapt": {"variant": "adapter"}},
        "paper_ssf": {"adapt": {"variant": "ssf"}},  # ImageNet-R, ImageNet-A, VTAB
        "paper_vpt": {"adapt": {"variant": "vpt_deep", "prompt_init": "zeros"}},  # OmniBenchmark, Cars
        "pilot": {"adapt": {"variant": "adapter"}, "head": "cosine"},
    }

    adapt: Adaptation | None = Field(
        None, discriminator="variant", description="what adapts to the first task (phase 1); none: nothing"
    )
    projection_dim: int = Field(10_000, ge=0, description="M, random features; 0: none, h = f")
    ridge: Literal["per_task", "fixed", "cumulative"] = Field("per_task", description="how lambda is set")
    ridge_value: float = Field(1e5, gt=0, description="lambda for ridge=fixed")
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="held out to choose lambda")
    head: Literal["linear", "cosine"] = Field("linear", description="linear is published; cosine is LAMDA-PILOT's")


@methods.register("ranpac")
class RanPAC(FeatureMethod[RanPACConfig]):
    """h = ReLU(f W_R); W_o = (G + λI)⁻¹ Q with G = Σ h hᵀ and Q = Σ h yᵀ.

    Raises:
        BackboneError: if the backbone has no seat for what is to adapt.
    """

    Config = RanPACConfig
    tags: ClassVar = Tags(small={"projection_dim": 64})

    def setup(self) -> None:
        """W_R, and no image yet."""
        c, d = self.config, self.backbone.dim
        self.first = FirstSession(self.backbone, c.adapt, self._initial())
        self.tuned_ = self.first.part
        self.m = c.projection_dim or d
        self.projection_ = torch.randn(
            d, c.projection_dim, generator=torch.Generator().manual_seed(self.seed)
        )  # (d, M)
        self.gram_ = packed_gram(self.m)  # G of all images
        self.sums_ = torch.zeros(self.m, 0, dtype=torch.float64)  # Q, (M, classes)
        self.counts_ = torch.zeros(0, dtype=torch.long)  # n_c, (classes,)
        self.ridges_: list[float] = []  # lambda after each task
        self.val_gram_ = packed_gram(self.m if c.ridge == "cumulative" else 0)
        self.val_sums_ = torch.zeros(self.m, 0, dtype=torch.float64)
        self.n_val_ = 0
        self._solved: tuple[Tensor, Tensor] | None = None  # (the sums it was solved for, W_o)

    @property
    def embedder(self) -> Backbone:
        """The backbone as it adapted."""
        return self.first.backbone

    def learned_parameters(self) -> int:
        """What adapted, and the head W_o; the random projection is not learned."""
        return super().learned_parameters() + self.sums_.numel()

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        self.first.adapt(task, self.columns(task.train.labels), self._generator(TRAINING), self.store)
        super()._learn(task, rng)

    def lift(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Random features h = ReLU(f W_R), float64; h = f for ``projection_dim=0``."""
        return self._lift(features, self.projection_ if self.config.projection_dim else None)

    def _lift(self, features: Tensor, projection: Tensor | None) -> Tensor:
        f = features.to(self._device, torch.float64)
        return f if projection is None else torch.relu(f @ projection.to(self._device, torch.float64))

    @property
    def weight(self) -> Float[Tensor, "m classes"]:
        """W_o, solved when first needed after a task, float64."""
        if self._solved is None or self._solved[0] is not self.sums_:
            self._solved = (self.sums_, self._solve())
        return self._solved[1]

    def _solve(self) -> Tensor:
        # a λ chosen on a small task may be numerically zero beside the G of all tasks: then take the next that is not
        more = [r for r in GRID if r > self.ridges_[-1] and self.config.ridge != "fixed"]
        gram = self.gram_.to(self._device)
        return solve_ridge_upwards(lambda: unpack(gram, self.m), self.sums_.to(self._device), [self.ridges_[-1], *more])

    @property
    def _device(self) -> torch.device:
        device = self.backbone.device
        return device if device.type == "cuda" else torch.device("cpu")  # MPS has no float64

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        h = self.lift(features)
        if self.config.head == "cosine":
            return cosine_scores(h, self.weight.T).cpu()
        return (h @ self.weight).float().cpu()

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        n, width = len(features), len(self.classes_)
        # a random split: in stored order the last images would be whole classes
        fit, val = torch.randperm(n, generator=rng).tensor_split([max(1, int((1 - self._held_out) * n))])
        everything = torch.arange(n)
        ridge = self.config.ridge_value
        if self.config.ridge == "per_task":
            ridge = self._choose_per_task(features, columns, fit, val)
        gram, sums = self._added(self.gram_, self.sums_, features, columns, everything, width)
        if self.config.ridge == "cumulative":
            self.val_gram_, self.val_sums_ = self._added(self.val_gram_, self.val_sums_, features, columns, val, width)
            self.n_val_ += len(val)
            ridge = self._choose(gram, sums, self.val_gram_, self.val_sums_, self.n_val_)
        self.gram_, self.sums_ = gram, sums
        self.counts_ = add_class_counts(self.counts_, columns, width)
        self.ridges_ = [*self.ridges_, ridge]

    @property
    def _held_out(self) -> float:
        return 0.0 if self.config.ridge == "fixed" else self.config.validation_fraction

    def _added(
        self, gram: Tensor, sums: Tensor, features: Features, columns: Tensor, rows: Tensor, width: int
    ) -> tuple[Tensor, Tensor]:
        """(G, Q) with the given rows added, in new tensors."""
        gram = gram.to(self._device, copy=True)
        grown = F.pad(sums, (0, width - sums.shape[1])).to(self._device)
        for chunk in rows.split(ROWS):
            h = self.lift(features[chunk.numpy()])
            add_gram_(gram, h)
            grown += h.T @ F.one_hot(columns[chunk], width).to(h)
        return gram.cpu(), grown.cpu()

    def _choose_per_task(self, features: Features, columns: Tensor, fit: Tensor, val: Tensor) -> float:
        """λ with the least squared error on held-out images of this task alone (the published choice)."""
        if not len(val) or len(columns.unique()) < 2:  # nothing to hold out or to tell apart: keep the last choice
            return self.ridges_[-1] if self.ridges_ else self.config.ridge_value
        _, targets = columns.unique(return_inverse=True)  # only this task's columns matter
        y = F.one_hot(targets).double().to(self._device)
        if len(fit) < self.m:
            f, v = features[fit.numpy()], features[val.numpy()]
            blocks = self.projection_.split(ROWS, dim=1) if self.config.projection_dim else (None,)
            kernel, cross = summed_kernels((self._lift(f, block), self._lift(v, block)) for block in blocks)
            return best_ridge(GRID, validation_losses_dual(kernel, cross, y[fit], y[val], GRID))
        none = packed_gram(self.m), torch.zeros(self.m, 0, dtype=torch.float64)
        held = self._added(*none, features, targets, val, y.shape[1])
        return self._choose(*self._added(*held, features, targets, fit, y.shape[1]), *held, len(val))

    def _choose(self, gram: Tensor, sums: Tensor, val_gram: Tensor, val_sums: Tensor, n_val: int) -> float:
        """λ with the least squared error on held-out rows, whose statistics are part of (``gram``, ``sums``)."""
        if not n_val:
            return self.config.ridge_value
        held, q_val = unpack(val_gram.to(self._device), self.m), val_sums.to(self._device)
        fit = unpack(gram.to(self._device), self.m) - held
        losses = validation_losses_primal(fit, sums.to(self._device) - q_val, held, q_val, n_val, GRID)
        return best_ridge(GRID, losses)
