"""RAPF: one linear map on frozen image embeddings, rehearsed on Gaussians, with like names kept apart, and fused.

Source: Huang, Cao, Lu & Liu, "Class-Incremental Learning with CLIP: Adaptive Representation Adjustment and Parameter
    Fusion", ECCV 2024 (arXiv 2407.14143), and its released code.
Use when: a CLIP is there, names are few words that say much, images must not be kept, and seconds are all there is.
Deviations:
- Released code: the map starts at random, without zero-shot ability (``init=random``, presets). Here: the identity.
- Released code: a step visits 2 to 10 old classes, by data set (``old_classes_per_step``). Here: all per epoch.
- Released code: moments of half-precision features. Here float64, and a factor in place of a covariance.
- Released code: a class of one image fails. Here too, with an error; ``one_image=ridge`` gives it the ridge alone.
- Released code: 0/0 in the fusion where nothing changed. Here nothing changes then.
- An extension: a class that comes again gets one more Gaussian; one image alone joins the class's last.
- An extension: equal names are no hard pair.
Relations: with lr -> 0 it is clip_zeroshot; SLCA's alignment rehearses a head on such samples.
Cost: F is a frozen forward pass. Any image: F once ever; a text once ever. A step: 6 d² per image and sample, and each
    hard pair has 20 beta samples. State: 4 d² bytes, and 8 min(n_c, d) d per class of n_c images.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.config import published
from perdure.data import Task
from perdure.data.templates import Templates
from perdure.errors import DataError
from perdure.learned import learned, learned_module
from perdure.memory import Features
from perdure.methods.base import Tags, methods
from perdure.methods.base_clip import ClipConfig, ClipMethod
from perdure.modules.gaussians import Gaussians
from perdure.modules.heads import cosine_scores, float64
from perdure.modules.losses import separation
from perdure.modules.map_fusion import fused
from perdure.train.rehearsal import Old, Rehearsed, RehearsedRows, add_by_class, near_names
from perdure.train.session import Session
from perdure.train.settings import Adam, Milestone, Training

TRAIN = Training(lr=1e-3, epochs=15, batch_size=64, optimizer=Adam(), schedule=Milestone(milestone=4, again=10))


class RAPFConfig(ClipConfig):
    """Settings of RAPF."""

    presets: ClassVar = published("rapf")

    templates: Templates | dict[str, Templates] = Field(
        ["a good photo of a {}."], description="templates with {} for the name, their list's name, or by data set"
    )
    init: Literal["identity", "random"] = Field("identity", description="of the map; random: U(±1/√d)")
    train: Training = Field(TRAIN, description="of the map, on cached image embeddings")
    beta: float = Field(1.0, ge=0, description="int(20 beta) samples a step per hard pair; see old_classes_per_step")
    old_classes_per_step: int | None = Field(
        None, ge=1, description="k, of int(10 beta) samples each; null: an epoch visits all, with old_samples in all"
    )
    old_samples: int = Field(2000, ge=1, description="samples per epoch in all, about, without old_classes_per_step")
    theta: float = Field(0.65, ge=0, description="pairs whose texts are nearer (0 to 2) are hard")
    margin: float = Field(0.1, ge=0, description="by which the cosine with a pair's own name is to be larger")
    fusion: float = Field(0.6, ge=0, description="b, the least share of the new map; 1 or more: no fusion")
    ridge: float = Field(1e-4, ge=0, description="added to all variances")
    shrink: bool = Field(False, description="shrink covariances, for classes of few images")
    one_image: Literal["refuse", "ridge"] = Field("refuse", description="a class of one image; ridge: ridge * I")


@methods.register("rapf")
class RAPF(ClipMethod[RAPFConfig]):
    """logit_scale * cos(A g, w_c), with the raw image embedding g.

    Raises:
        DataError: for a class of one image, with ``one_image=refuse``.
    """

    Config = RAPFConfig
    tags: ClassVar = Tags(
        backbone="towers", class_names=True, open_vocabulary=True,
        small={
            "train": {"epochs": 2, "batch_size": 8, "schedule": {"name": "constant"}}, "theta": 2.0,
            "old_samples": 16, "beta": 0.1, "one_image": "ridge",
        },
        learns={"train": {"epochs": 60, "lr": 0.01}, "theta": 0.0, "old_samples": 24},
    )  # fmt: skip

    map_: Tensor = learned("d, d", torch.float32, "A", merges="weights")
    gaussians_: Gaussians = learned_module(Gaussians.state("slots"), "of raw embeddings, per class and domain")
    slot_columns_: list[int] = learned("slots", int, "the class of each Gaussian", below="classes")
    hard_pairs_: list[int] = learned("tasks", int, "how many hard pairs each task had", merges="first")

    ties_: list[int] = learned("tasks", int, "singular values of the old map that were equal", merges="first")

    def setup(self) -> None:
        """A is the identity, or random."""
        d, rng = self.backbone.dim, self._initial()
        drawn = (2 * torch.rand(d, d, generator=rng) - 1) / d**0.5
        self.map_ = torch.eye(d) if self.config.init == "identity" else drawn
        self.gaussians_ = Gaussians(d)

    def learned_parameters(self) -> int:
        """Those of A."""
        return self.map_.numel()

    def _learn_names(self, task: Task) -> None:
        columns, counts = self.columns(task.train.labels).unique(return_counts=True)
        for column in columns[counts == 1].tolist():
            if self.config.one_image == "refuse" and column not in self.slot_columns_:
                hint = "Add images, leave the class out, or set method.one_image=ridge"
                name, must_be = f"images of class {self.names_[column]!r}", "2 or more, for a covariance"
                raise DataError("RAPF.fit_task", name, must_be, 1, hint)
        super()._learn_names(task)

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        old, rows = self.map_, features[:]
        slots, new = near_names(self.texts_, self.slot_columns_, columns.unique(), self.config.theta)
        self.hard_pairs_ = [*self.hard_pairs_, len(slots)]
        self._train(RehearsedRows(rows, columns, self.config.train, self._old(slots)), slots, new, rng)
        self.slot_columns_ = add_by_class(self.gaussians_, self.slot_columns_, rows, columns)
        self.map_, tied = fused(old, self.map_, self.config.fusion) if self.tasks_seen_ else (self.map_, 0)
        self.ties_ = [*self.ties_, tied]

    def _old(self, apart: Int[Tensor, " pairs"]) -> Old:
        c, columns = self.config, torch.tensor(self.slot_columns_, dtype=torch.long)
        normals = [self.gaussians_.normal(slot, ridge=c.ridge, shrink=c.shrink) for slot in range(len(columns))]
        return Old(normals, columns, c.old_classes_per_step, int(10 * c.beta), c.old_samples, apart, int(20 * c.beta))

    def _train(
        self, source: RehearsedRows, slots: Int[Tensor, " pairs"], new: Int[Tensor, " pairs"], rng: torch.Generator
    ) -> None:
        device, c = self.backbone.device, self.config
        a, texts = nn.Parameter(self.map_.to(device, copy=True)), self.texts_.to(device)
        own, other = texts[source.old.columns[slots]], texts[new]

        def loss(batch: Rehearsed) -> Tensor:
            logits = self.backbone.logits(F.linear(batch.rows.to(device), a), texts)
            value = F.cross_entropy(logits, batch.columns.to(device))
            return value + separation(F.linear(batch.apart.to(device), a), own, other, c.margin)

        Session(source, c.train, rng, fast=[a], stage="learning the map", progress=self.store.progress).run(loss)
        self.map_ = a.detach().cpu()

    def _scores_by_text(self, features: Float[Tensor, "b d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
        return self.backbone.logit_scale * cosine_scores(F.linear(float64(features), self.map_.double()), texts)

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self._scores_by_text(features, self.texts_)
