"""EASE: an adapter per task, class means in every adapter's subspace, those an adapter never saw completed from others.

Source: Zhou, Sun, Ye & Zhan, "Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental Learning",
    CVPR 2024 (arXiv 2403.12030), and its released code where the two differ.
Deviations: the weights of a completion sum to 1 over the newer classes (code; the text sums over the older ones), and
    the other subspaces weigh alpha / (T - 1) (code), or alpha (``reweight=paper``). Completion is always done anew for
    all tasks (the presets' ``recalc_sim``). A class that comes again (a new domain) gets a further slot, and scores by
    its best. Block 0, the same for all adapters, is not shared. The released OmniBenchmark preset is APER with
    adapters: run ``aper``. Defaults are the paper's text, r = 16; the presets are the released files for weights of
    ImageNet-21k.
Use when: tasks differ, and T passes per test image are affordable. Relations: APER is one adapter, from the first task;
    MOS picks one of many adapters instead of adding up all.
Cost: ``epochs`` training passes per image, then one pass per image and adapter ever: task t's training images pass
    t + 1 adapters, a test image T in all. State: an adapter per task, and 8 T d bytes per class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor

from perdure.backbone import Backbone
from perdure.config import MethodConfig
from perdure.data import LabelledImages, Task
from perdure.methods.base import Method, Tags, methods
from perdure.modules.gaussians import add_class_counts, add_class_sums
from perdure.train.adapting import AdapterPart, AdapterStack, adapt

FILES = {"rank": 64}


def train(lr: float, epochs: int = 20, batch_size: int = 48, weight_decay: float = 5e-4) -> dict[str, Any]:
    """What the presets set of the section ``adapter.train``."""
    return {"lr": lr, "epochs": epochs, "batch_size": batch_size, "optimizer": {"weight_decay": weight_decay}}


class EASEConfig(MethodConfig):
    """Settings of EASE."""

    presets: ClassVar = {
        "paper": {},
        "official_cifar100": {"adapter": {**FILES, "train": train(0.025)}},
        "official_imagenet_r": {"adapter": {**FILES, "train": train(0.05, batch_size=16, weight_decay=0.005)}},
        "official_cub": {"adapter": {**FILES, "train": train(0.008, batch_size=32)}, "alpha": 0.05},
        "official_imagenet_a": {"adapter": {**FILES, "train": train(0.05, batch_size=32, weight_decay=0.005)}},
        "official_objectnet": {"adapter": {**FILES, "train": train(0.05, 25, weight_decay=0.005)}, "alpha": 0.2},
        "official_vtab": {"adapter": {"train": train(0.03, 45, 16, 0.005)}},
    }

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
        adapts=True,
        small={"adapter": {"rank": 2, "train": {"epochs": 1, "batch_size": 8}}},
        learns={"adapter": {"train": {"epochs": 3, "augment": {"min_scale": 1.0, "flip": False}}}},
    )

    def setup(self) -> None:
        """No adapter and no class yet."""
        self.adapters_ = AdapterStack(self.backbone, self.config.adapter, self._initial)
        self.slot_columns_: list[int] = []  # of each class of each task
        self.slot_tasks_: list[int] = []
        self.counts_ = torch.zeros(0, dtype=torch.long)  # (slots,)
        self.sums_: list[Tensor] = []  # of each subspace k: (slots, d) float64, zero for slots of tasks before k
        self.frozen_sums_ = torch.zeros(0, self.backbone.dim, dtype=torch.float64)  # of the bare backbone, for beta > 0
        self._completed: tuple[object, Tensor] | None = None

    def learned_parameters(self) -> int:
        """The adapters, and the means that are real."""
        real = sum(len(self.slot_tasks_) - self._first(k) for k in range(len(self.sums_)))
        return super().learned_parameters() + real * self.backbone.dim + self.frozen_sums_.numel()

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        columns, c = self.columns(task.train.labels), self.config.adapter.train
        self.adapters_.add()
        adapt(self.adapters_.views[-1], self.adapters_[-1], task.train, columns, c, rng, self.store)
        mine, slots = columns.unique(return_inverse=True)
        slots, width = slots + len(self.slot_columns_), len(self.slot_columns_) + len(mine)
        self.slot_columns_ = [*self.slot_columns_, *mine.tolist()]
        self.slot_tasks_ = [*self.slot_tasks_, *[task.index] * len(mine)]
        self.counts_ = add_class_counts(self.counts_, slots, width)
        subspaces = zip([*self.sums_, self.frozen_sums_[:0]], self.adapters_.views, strict=True)
        self.sums_ = [self._with(sums, view, task.train, slots, width) for sums, view in subspaces]
        if self.config.beta:
            self.frozen_sums_ = self._with(self.frozen_sums_, self.backbone, task.train, slots, width)

    def _with(self, sums: Tensor, view: Backbone, data: LabelledImages, slots: Tensor, width: int) -> Tensor:
        done = 0
        for batch in self.store.features(view, data, label="train features").batches():
            sums = add_class_sums(sums, slots[done : done + len(batch)], batch, width)
            done += len(batch)
        return sums

    def _first(self, k: int) -> int:
        """The first slot whose prototype in subspace k is real."""
        return sum(task < k for task in self.slot_tasks_)

    @property
    def prototypes(self) -> Float[Tensor, "subspaces slots d"]:
        """P[k, c], float64: class means where adapter k saw the class or an older adapter's task, else completed."""
        if self._completed is None or self._completed[0] is not self.sums_:
            means = torch.stack(self.sums_) / self.counts_[None, :, None]
            self._completed = (self.sums_, completed(means, self.slot_tasks_, self.config.sim_temperature))
        return self._completed[1]

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """As in :class:`Method`: an image passes every adapter once, however many tasks follow."""
        self._require_fitted("scores_of")
        stored = [self.store.features(view, data, label="test features").batches() for view in self._embedders]
        for features in zip(*stored, strict=True):
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
        index = torch.tensor(self.slot_columns_).expand(len(scores), -1)
        best = scores.new_full((len(scores), len(self.classes_)), -torch.inf)
        return best.scatter_reduce(1, index, scores, "amax").float()


def completed(
    means: Float[Tensor, "subspaces slots d"], tasks: list[int], temperature: float = 1.0
) -> Float[Tensor, "subspaces slots d"]:
    """The means with those of old classes in newer subspaces filled in.

    For a class c of task b and k > b: the sum over classes j of tasks k and later of softmax_j(cos(P[b, c], P[b, j]))
    P[k, j]. All terms are real, so the order does not matter.

    Args:
        means: P[k, c], anything where ``tasks[c] < k``.
        tasks: ascending, of every slot.
        temperature: of the softmax.
    """
    of, filled = torch.tensor(tasks), means.clone()
    for b in range(len(means)):
        unit = F.normalize(means[b], dim=1)
        for k in range(b + 1, len(means)):
            similar = unit[of == b] @ unit[of >= k].T / temperature
            filled[k, of == b] = similar.softmax(1) @ means[k, of >= k]
    return filled
