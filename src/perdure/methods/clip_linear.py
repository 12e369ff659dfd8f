"""ClipLinear: a linear probe on cached features, by exact ridge or by logistic regression of each task alone.

Source: ridge regression by accumulated statistics, as in RanPAC (McDonnell et al., NeurIPS 2023) without its random
    features; logistic regression on frozen features is the probe of Radford et al., "CLIP", ICML 2021, section 3.2.
Use when: features are good and images are many; the line for every method that trains on frozen features.
Deviations:
- Features have length 1, as CLIP compares them.
- The strength (lambda, or C) is chosen on images held out from the task itself: never on test images.
- ``head=logistic`` learns classes of one task against each other: two tasks' scores do not compare, one class has none.
Relations: RanPAC adds random features; joint trains a logistic probe on all images seen. It uses no class names.
Cost: F is a frozen forward pass. Any image: F once ever; a task d² operations per image and d³ per lambda. State: 4 d²
    + 8 d bytes per class; logistic 4 d per class.
"""

from __future__ import annotations

import warnings
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from perdure.backbone import normalised
from perdure.config import MethodConfig
from perdure.learned import Derived, Sizes, learned
from perdure.memory import Features
from perdure.memory.unit_rows import UnitRows
from perdure.methods.base import FeatureMethod, Tags, methods
from perdure.modules.heads import float64
from perdure.modules.random_features import RandomFeatures
from perdure.modules.ridge import packed_size, solve_ridge_upwards, unpack
from perdure.modules.ridge_choice import GRID, chosen_on_rows, held_out

STRENGTHS = tuple(10.0**k for k in range(-1, 6))  # C of the logistic regression


class ClipLinearConfig(MethodConfig):
    """Settings of the linear probe."""

    head: Literal["ridge", "logistic"] = Field("ridge", description="ridge is exact and knows no order of tasks")
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="of a task's images, held out to choose strength")
    first: float = Field(1.0, gt=0, description="lambda, or 1/C, while no task could choose")


@methods.register("clip_linear")
class ClipLinear(FeatureMethod[ClipLinearConfig]):
    """f W + b with f = n(features)."""

    Config = ClipLinearConfig
    tags: ClassVar = Tags()

    gram_: Tensor = learned("ridge packed", torch.float64, "G = Σ f fᵀ, packed", merges="added")
    sums_: Tensor = learned("d, ridge classes", torch.float64, "Q = Σ f yᵀ", merges="added")
    weight_: Tensor = learned("logistic classes, d", torch.float32, "W of the logistic head", merges="weights")
    bias_: Tensor = learned("logistic classes", torch.float32, "b of the logistic head", merges="weights")
    strengths_: list[float] = learned("tasks", float, "lambda, or 1/C, of each task", merges="first")

    def sizes(self) -> Sizes:
        """ridge, logistic: 1 for the head that it is; packed: d²/2 and some."""
        ridge = int(self.config.head == "ridge")
        return {"ridge": ridge, "logistic": 1 - ridge, "packed": packed_size(self.backbone.dim)}

    def setup(self) -> None:
        """W of the ridge, solved when first needed after a task."""
        self._solved = Derived[Tensor]()
        self._same = RandomFeatures.drawn(0, self.backbone.dim, 0, self.backbone.device)  # h = f

    def learned_parameters(self) -> int:
        """W, and b where there is one."""
        return self.backbone.dim * len(self.classes_) + self.bias_.numel()

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        rows, width = UnitRows(features), len(self.classes_)
        fit, val = held_out(len(columns), self.config.validation_fraction, rng)
        before = self.strengths_[-1] if self.strengths_ else self.config.first
        if self.config.head == "ridge":
            best = chosen_on_rows(self._same, rows, columns, fit, val) or before
            everything = torch.arange(len(columns))
            self.gram_, self.sums_ = self._same.added((self.gram_, self.sums_), rows, columns, everything, width)
        else:
            best = self._learn_logistic(rows[np.arange(len(columns))], columns, fit, val, before)
        self.strengths_ = [*self.strengths_, best]

    @property
    def weight(self) -> Float[Tensor, "d classes"]:
        """W of the ridge, float64."""
        ridges = [self.strengths_[-1], *(r for r in GRID if r > self.strengths_[-1])]
        d = self.backbone.dim
        return self._solved.of(
            self.sums_, lambda: solve_ridge_upwards(lambda: unpack(self.gram_, d), self.sums_, ridges)
        )

    def _learn_logistic(
        self,
        rows: Float[Tensor, "n d"],
        columns: Int[Tensor, " n"],
        fit: Int[Tensor, " fit"],
        val: Int[Tensor, " val"],
        before: float,
    ) -> float:
        """Columns of the task's classes, learned against each other; gives 1/C."""
        x, y, best = rows.double().numpy(), columns.numpy(), before
        classes = columns.unique()
        if len(val) and len(columns[fit].unique()) == len(classes) > 1:
            scores = [(_probe(x[fit], y[fit], c).score(x[val], y[val]), c) for c in STRENGTHS]
            best = 1 / max(scores, key=lambda found: found[0])[1]  # of equals the strongest
        more = len(self.classes_) - len(self.bias_)
        weight, bias = F.pad(self.weight_, (0, 0, 0, more)), F.pad(self.bias_, (0, more))
        if len(classes) > 1:
            probe = _probe(x, y, 1 / best)
            two = len(classes) == 2  # then there is one row, for the second class
            w, b = (
                torch.from_numpy(np.concatenate([-v, v]) / 2 if two else v) for v in (probe.coef_, probe.intercept_)
            )
            weight[classes], bias[classes] = w.float(), b.float()
        self.weight_, self.bias_ = weight, bias
        return best

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        f = normalised(float64(features))
        if self.config.head == "ridge":
            return (f @ self.weight.to(f)).float().cpu()
        return F.linear(f, self.weight_.double(), self.bias_.double()).float()


def _probe(x: np.ndarray, y: np.ndarray, c: float) -> LogisticRegression:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a weak strength converges slowly, and is good enough
        return LogisticRegression(C=c, max_iter=1000).fit(x, y)
