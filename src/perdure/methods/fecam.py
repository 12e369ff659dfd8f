"""FeCAM: Mahalanobis distance to class means, with a shrunk and normalised covariance per class.

Source: Goswami, Liu, Twardowski & van de Weijer, "FeCAM: Exploiting the Heterogeneity of Class Distributions in
    Exemplar-Free Continual Learning", NeurIPS 2023 (arXiv 2309.14062); its ViT scripts for the defaults.
Deviations: moments are float64 and merge exactly, so a class that comes again has the covariance of all its images
    (``returning=half``: the released CORe50 script's average). A class of one image, or of equal ones, takes R = I.
    Distances come from a Cholesky factor, or from the Woodbury identity where a class has fewer images than
    dimensions, not from pseudo-inverses. V2 is the plain mean of off-diagonal entries. The double shrinkage of the
    released CNN code is its equivalent, (3, 3) once. ``covariance=common`` is the pooled within-class covariance,
    which classifies linearly; ``common_released`` is the released code's: all of a task's images around one mean, old
    and new mixed by numbers of classes, shrunk from the second task on. Preset ``pilot`` correlates the rows of S, as
    LAMDA-PILOT does, which is singular, and adds 100 to all variances. Left out: training a CNN on the first task from
    scratch, and its Euclidean distances there.
Use when: features of a frozen backbone are good but classes spread differently. With far fewer images than dimensions
    raise both shrinkages (10, 10). Relations: SimpleCIL is R = I and a cosine; RanPAC decorrelates all classes at once.
Cost: one pass per image ever; per class d³/3 once and 2 d² per test image, or 4 d n_c with n_c < d images. State: at
    most 8 min(n_c, d) d bytes per class.
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
from perdure.errors import ConfigError
from perdure.memory import Features
from perdure.methods.base import TRAINING, FeatureMethod, Tags, methods
from perdure.modules.gaussians import Gaussians, add_class_sums, tukey
from perdure.modules.mahalanobis import JITTER, Dense, LowRank, Metric, shrinkage
from perdure.train.adapting import Adaptation, FirstSession

PILOT_RIDGE = 100.0


class FeCAMConfig(MethodConfig):
    """Settings of FeCAM."""

    presets: ClassVar = {
        "paper": {},
        "paper_imagenet_r": {"shrink_diagonal": 10.0, "shrink_off_diagonal": 10.0},
        "paper_core50": {"returning": "half"},
        "paper_cnn": {"features": "tukey", "shrink_diagonal": 3.0, "shrink_off_diagonal": 3.0},
        "pilot": {"features": "raw", "normalise": "pilot", "adapt": {"variant": "adapter"}},
    }

    features: Literal["unit", "raw", "tukey"] = Field(
        "unit", description="of what moments are taken: unit vectors, raw features, or powers of features >= 0"
    )
    power: float = Field(0.5, ge=0, le=1, description="Tukey's exponent (beta); 0: the logarithm")
    shrink_diagonal: float = Field(1.0, ge=0, description="times the mean variance, added to the diagonal (gamma_1)")
    shrink_off_diagonal: float = Field(0.0, ge=0, description="times the mean covariance, added elsewhere (gamma_2)")
    normalise: Literal["correlation", "none", "pilot"] = Field(
        "correlation", description="unit diagonal, so that classes compare; pilot is LAMDA-PILOT's singular matrix"
    )
    covariance: Literal["class", "common", "common_released"] = Field(
        "class", description="one per class, one pooled within classes, or one of all images, tasks mixed by classes"
    )
    returning: Literal["pooled", "half"] = Field(
        "pooled",
        description="the covariance of a class that comes again: of all its images, or the old one and that "
        "of the new images, half each (the released CORe50 script's, in which old domains fade)",
    )
    log_determinant: bool = Field(False, description="add it to distances: with normalise=none, a Gaussian classifier")
    adapt: Adaptation | None = Field(
        None, discriminator="variant", description="what adapts to the first task; none: nothing"
    )


@methods.register("fecam")
class FeCAM(FeatureMethod[FeCAMConfig]):
    """score_c(x) = -(x~ - m~_c)ᵀ R_c⁻¹ (x~ - m~_c).

    Raises:
        ConfigError: if the shrinkage could make a covariance indefinite.
        BackboneError: if the backbone has no seat for what is to adapt.
    """

    Config = FeCAMConfig
    tags: ClassVar = Tags(split_invariant=True)

    def setup(self) -> None:
        """No class yet.

        Raises:
            ConfigError: if the shrinkage could make a covariance indefinite.
        """
        c, d = self.config, self.backbone.dim
        if c.shrink_diagonal < c.shrink_off_diagonal:
            got, hint = c.shrink_off_diagonal, "Raise method.shrink_diagonal"
            must_be = f"at most shrink_diagonal = {c.shrink_diagonal}"
            raise ConfigError("FeCAM", "shrink_off_diagonal", must_be, got, hint)
        self.first = FirstSession(self.backbone, c.adapt, self._initial())
        self.tuned_ = self.first.part
        self.gaussians_ = Gaussians(d)  # of t(phi)
        self.raw_sums_ = torch.zeros(0, d, dtype=torch.float64)  # of tukey: t(m_c) is of the raw mean
        self.mixed_ = torch.zeros(0, d, dtype=torch.float64)  # Z with ZᵀZ the mix of common_released, (k, d)
        self._metrics: dict[int, tuple[Tensor, Metric]] = {}  # column -> (the tensor it was made from, R_c⁻¹)

    @property
    def embedder(self) -> Backbone:
        """The backbone as it adapted."""
        return self.first.backbone

    def learned_parameters(self) -> int:
        """What adapted, the means and the factors of the scatters."""
        g = self.gaussians_
        return super().learned_parameters() + g.means.numel() + sum(f.numel() for f in [*g.factors, self.mixed_])

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        self.first.adapt(task, self.columns(task.train.labels), self._generator(TRAINING), self.store)
        super()._learn(task, rng)

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        width = len(self.classes_)
        if self.config.covariance == "common_released":
            self._mix(features, len(self.gaussians_) / width)
        self.gaussians_.grow(width)
        if self.config.features == "tukey":
            self.raw_sums_ = F.pad(self.raw_sums_, (0, 0, 0, width - len(self.raw_sums_)))
        for column in columns.unique().tolist():
            rows = features[(columns == column).nonzero()[:, 0].numpy()]
            self.gaussians_.add(column, self._transformed(rows), halve=self.config.returning == "half")
            if self.config.features == "tukey":
                here = torch.full((len(rows),), column)
                self.raw_sums_ = add_class_sums(self.raw_sums_, here, rows, width)

    def _mix(self, features: Features, old: float) -> None:
        """The covariance of all of a task's images; ``old``: the share of what was known."""
        whole = Gaussians(self.backbone.dim)
        whole.grow(1)
        for rows in features.batches():
            whole.add(0, self._transformed(rows))
        z = torch.cat([old**0.5 * self.mixed_, (1 - old) ** 0.5 * whole.deviation(0)])
        self.mixed_ = torch.linalg.qr(z, mode="r").R

    def _transformed(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """t(phi), float64."""
        if self.config.features == "tukey":
            return tukey(features, self.config.power)
        return F.normalize(features.double(), dim=1) if self.config.features == "unit" else features.double()

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        x, means = self._transformed(features), self.gaussians_.means
        if self.config.features == "tukey":
            means = tukey(self.raw_sums_ / self.gaussians_.counts[:, None].clamp(min=1), self.config.power)
        if self.config.features != "unit" and self.config.normalise != "none":
            x, means = F.normalize(x, dim=1), F.normalize(means, dim=1)
        distances = [self._metric(column).distances(x - means[column]) for column in range(len(means))]
        return -torch.stack(distances, dim=1).float()

    def _metric(self, column: int) -> Metric:
        """R_c⁻¹ in a form that is quick to apply, made anew when images were added."""
        g, kind, shrink = self.gaussians_, self.config.covariance, True
        column, made_from = (column, g.factors[column]) if kind == "class" else (-1, g.counts)  # replaced by changes
        known = self._metrics.get(column)
        if known is None or known[0] is not made_from:
            if kind == "common_released":
                z, shrink = self.mixed_, self.tasks_seen_ > 1
            else:
                z = g.deviation(column) if kind == "class" else g.pooled_deviation()
            known = self._metrics[column] = (made_from, self._make(z, shrink))
        return known[1]

    def _make(self, z: Float[Tensor, "k d"], shrink: bool = True) -> Metric:
        """From Z with Σ = ZᵀZ."""
        c, d = self.config, z.shape[1]
        if c.normalise == "pilot":
            s = z.T @ z + PILOT_RIDGE * torch.eye(d, dtype=torch.float64)
            inverse = torch.linalg.pinv(torch.corrcoef(s), rtol=1e-6, hermitian=True)
            return Dense.of_inverse(inverse)
        a, b = shrinkage(z, c.shrink_diagonal, c.shrink_off_diagonal) if shrink else (0.0, 0.0)
        if b < 0:
            a *= 1 + JITTER  # with equal shrinkages and V2 < 0, S may be singular to rounding
        kind = LowRank if len(z) + 1 < d and a > 0 else Dense
        return kind(z, a, b, normalise=c.normalise == "correlation", log_determinant=c.log_determinant)
