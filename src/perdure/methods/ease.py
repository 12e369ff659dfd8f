"""EASE: an adapter per task, class means in every adapter's subspace, those an adapter never saw completed from others.

Source: Zhou, Sun, Ye & Zhan, "Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental Learning",
    CVPR 2024, arXiv 2403.12030, and its released code where the two differ.
Use when: tasks differ, and T passes per test image are affordable.
Deviations:
- From the paper: a completion's weights sum to 1 over the newer classes, as in the code; the text has the older ones.
- From the paper: other subspaces weigh alpha / (T - 1), as in the code; ``reweight=paper`` is alpha.
- An extension: a class that comes again (a new domain) gets a further slot, and scores by its best.
Relations: APER is one adapter, from the first task; MOS picks one of many adapters instead of adding up all.
Cost: F is a frozen forward pass. Training image of task t = 0, 1, …: 2 F per epoch + (t + 1) F. Test image: T F in all.
    State: an adapter per task, and 8 T d bytes per class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor

from perdure.backbone import Backbone
from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.learned import Derived, Sizes, learned, learned_module
from perdure.methods.base import Method, Tags, methods
from perdure.modules.prototypes import add_class_chunks, best_of_slots, completed
from perdure.train.adapting import AdapterPart, AdapterStack


class EASEConfig(MethodConfig):
    """Settings of EASE."""

    presets: ClassVar = published("ease")

    adapter: AdapterPart = Field(AdapterPart(rank=16), description="of every task")
    alpha: float = Field(0.1, ge=0, description="weight of the subspaces of other tasks")
    beta: float = Field(0.0, ge=0, description="weight of the bare backbone's own cosine; 0: it is left out")
    reweight: Literal["code", "paper"] = Field("code", description="code divides alpha by T - 1")
    sim_temperature: float = Field(1.0, gt=0, description="of the softmax over similarities; published is 1")


@methods.register("ease")
class EASE(Method[EASEConfig]):
    """score_c(x) = cos(f_b, P_cb) + alpha / (T - 1) * sum over k != b of cos(f_k, P_ck), b the class's task."""

    Config = EASEConfig
    tags: ClassVar = Tags(
        backbone="transformer", adapts=True, small={"adapter": {"rank": 2, "train": {"epochs": 1, "batch_size": 8}}},
        learns={"adapter": {"train": {"epochs": 3, "augment": {"min_scale": 1.0, "flip": False}}}},
    )  # fmt: skip

    adapters_: AdapterStack = learned_module({}, "an adapter per task", rest="adapter", each="tasks")
    slot_columns_: list[int] = learned("slots", int, "column of each class of each task", below="classes")
    slot_tasks_: list[int] = learned("slots", int, "its task", below="tasks")
    counts_: Tensor = learned("slots", torch.long, "its images", merges="added")
    sums_: list[Tensor] = learned(
        "slots, d", torch.float64, "by subspace k; 0 for tasks before k", each="tasks", merges="added",
        under="adapters_",
    )  # fmt: skip
    frozen_sums_: Tensor = learned("beta slots, d", torch.float64, "of the bare backbone", merges="added")

    def sizes(self) -> Sizes:
        """beta: 1 where the setting beta is above 0, else 0."""
        return {"beta": int(self.config.beta > 0)}

    def setup(self) -> None:
        """No adapter yet."""
        self.adapters_ = AdapterStack(self.backbone, self.config.adapter, self._initial)
        self._completed: Derived[Tensor] = Derived()

    def learned_parameters(self) -> int:
        """The adapters, and the means that are real: those of a class of task t in subspaces 0 to t."""
        real = sum(task + 1 for task in self.slot_tasks_)
        return super().learned_parameters() + real * self.backbone.dim + self.frozen_sums_.numel()

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        columns = self.columns(task.train.labels)
        self.adapters_.adapt(task.train, columns, rng, self.store)
        mine, slots, n = columns.unique(return_inverse=True, return_counts=True)
        slots = slots + len(self.slot_columns_)
        self.slot_columns_ = [*self.slot_columns_, *mine.tolist()]
        self.slot_tasks_ = [*self.slot_tasks_, *[task.index] * len(mine)]
        self.counts_ = torch.cat([self.counts_, n])
        subspaces = zip([*self.sums_, self.frozen_sums_[:0]], self.adapters_.views, strict=True)
        self.sums_ = [self._with(sums, view, task.train, slots) for sums, view in subspaces]
        if self.config.beta:
            self.frozen_sums_ = self._with(self.frozen_sums_, self.backbone, task.train, slots)

    def _with(self, sums: Tensor, view: Backbone, data: LabelledImages, slots: Tensor) -> Tensor:
        features = self.store.features(view, data, label="train features")
        return add_class_chunks(sums, slots, features.batches(), len(self.slot_columns_))

    @property
    def prototypes(self) -> Float[Tensor, "subspaces slots d"]:
        """P[k, c], float64: class means where adapter k saw the class or an older adapter's task, else completed."""
        means, c = torch.stack(self.sums_) / self.counts_[None, :, None], self.config
        return self._completed.of(self.sums_, lambda: completed(means, self.slot_tasks_, c.sim_temperature))

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        for features in self.store.side_by_side(self._embedders, data, label="test features"):
            yield self._ensemble(torch.stack(features))

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._ensemble(torch.stack([view.features(images).cpu() for view in self._embedders]))

    @property
    def _embedders(self) -> list[Backbone]:
        return [*self.adapters_.views[: self.tasks_seen_], *[self.backbone] * (self.config.beta > 0)]

    def _ensemble(self, features: Float[Tensor, "subspaces b d"]) -> Float[Tensor, "b classes"]:
        c, n, f = self.config, len(self.sums_), F.normalize(features.double(), dim=2)
        cosines = f[:n] @ F.normalize(self.prototypes, dim=2).mT  # (subspaces, b, slots)
        own = F.one_hot(torch.tensor(self.slot_tasks_), n).T.double()  # (subspaces, slots)
        others = c.alpha / max(n - 1, 1) if c.reweight == "code" else c.alpha
        scores = (cosines * (own + others * (1 - own))[:, None]).sum(0)
        if c.beta:
            scores = scores + c.beta * (f[n] @ F.normalize(self.frozen_sums_, dim=1).T)
        return best_of_slots(scores, self.slot_columns_, len(self.classes_)).float()
