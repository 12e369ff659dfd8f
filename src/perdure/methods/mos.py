"""MOS: an adapter per task that stays near its predecessors, an aligned head, and adapters found by refining guesses.

Source: Sun, Zhou, Zhao, Gan, Zhan & Ye, "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning",
    AAAI 2025, arXiv 2412.09441. The method as described; ``mos_release`` is it as released, side effects included.
Use when: tasks differ, and one or two adapters per image are affordable, not one per task.
Deviations:
- From the released code: an adapter is pulled to its predecessors once per step (``merge_every``); tests pull nothing.
- From the released code: the head grows, and rows of older classes do not decay while a task trains.
- An extension: a class that comes again (a new domain) gets one more Gaussian.
Relations: EASE adds up all adapters; SLCA aligns heads in the same way, with a normalisation.
Cost: F is a frozen forward pass. Training image: 2 F per epoch + 2 F. Test image: F + F per adapter that it tries.
    State: an adapter per task, a head, and 16 d + 8 min(n_c, d) d bytes per class of n_c images.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from pydantic import Field
from torch import Tensor

from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.learned import learned, learned_module
from perdure.methods.base import Method, Tags, methods
from perdure.modules.gaussians import Gaussians, add_class_counts, add_class_sums
from perdure.modules.heads import GrowingLinear, cosine_scores
from perdure.modules.losses import own_index_loss
from perdure.modules.merging import mean_of, pull_
from perdure.modules.retrieval import logits_found
from perdure.train.adapting import TRAIN, AdapterPart, AdapterStack, Asked
from perdure.train.alignment import Alignment, Samples, align
from perdure.train.batches import Batch
from perdure.train.session import on_images


class MOSConfig(MethodConfig):
    """Settings of MOS."""

    presets: ClassVar = published("mos")

    adapter: AdapterPart = Field(AdapterPart(rank=16, train=TRAIN.but(lr=0.03)), description="of every task")
    head_lr: float = Field(0.1, gt=0, description="the head's, in units of the adapter's")
    merge: float = Field(0.1, ge=0, lt=1, description="how far an adapter is pulled to its predecessors' mean (m)")
    merge_every: Literal["step", "epoch", "task_end"] = Field("step", description="when it is pulled")
    reg: float = Field(0.1, ge=0, description="weight of the loss that keeps features and old means apart")
    align: Alignment | None = Field(
        Alignment(epochs=30, lr=0.005, samples=5),
        description="of the head, after every task but the first; samples, of a step too, in units of a training batch",
    )
    gaussian: Literal["covariance", "variance", "centroids"] = Field(
        "covariance", description="of samples; centroids: ten means per class, and the variance (over n) around each"
    )
    ensemble: bool = Field(True, description="add the scores of class means in the first adapter's space")


@methods.register("mos")
class MOS(Method[MOSConfig]):
    """softmax(l) + softmax(T q): the head's logits under the adapter found, and cosines in A_0's space."""

    Config = MOSConfig
    tags: ClassVar = Tags(
        backbone="transformer", adapts=True,
        small={"adapter": {"rank": 2, "train": {"epochs": 1, "batch_size": 8}}, "align": {"epochs": 2}},
        learns={
            "adapter": {"train": {"epochs": 5, "augment": {"min_scale": 1.0, "flip": False}}},
            "align": {"epochs": 20, "lr": 0.05}, "head_lr": 1.0,
        },
    )  # fmt: skip

    adapters_: AdapterStack = learned_module({}, "an adapter per task", rest="adapter", each="tasks")
    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "the head, for features under any adapter")
    counts_: Tensor = learned("classes", torch.long, "images of each class", merges="added")
    sums_: Tensor = learned("classes, d", torch.float64, "sums in A_0's space", merges="added", under="adapters_")
    slot_columns_: list[int] = learned("slots", int, "of each Gaussian; -1: unaligned", least=-1, below="classes")
    gaussians_: Gaussians = learned_module(Gaussians.state("slots"), "under each class's adapter", under="adapters_")
    task_of_: list[int] = learned("classes", int, "task in which each class came first", below="tasks")

    def setup(self) -> None:
        """No adapter and no class yet."""
        self.adapters_ = AdapterStack(self.backbone, self.config.adapter, self._initial, self._added)
        self.head_ = GrowingLinear(self.backbone.dim).to(self.backbone.device)
        self._centroids = 10 if self.config.gaussian == "centroids" else 1  # per class
        self.gaussians_ = Gaussians(self.backbone.dim, ddof=int(self._centroids == 1))

    def _added(self, task: int) -> None:
        """Called when a task's adapter is there, in learning and in loading."""

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, columns, width = self.config, self.columns(task.train.labels), len(self.classes_)
        self.task_of_ = [*self.task_of_, *[task.index] * (width - len(self.task_of_))]
        self.adapters_.add(go_on=True)
        self.head_.grow(width, rng, "normal_0.02")
        with self.head_.apart(columns) as (head, own):  # a softmax over the task's classes alone
            self._train_adapter(task, own, head, rng)
        self._add_statistics(task, columns)
        if task.index and c.align:
            n, decay = c.align.samples * c.adapter.train.batch_size, c.adapter.train.optimizer.weight_decay
            each, diagonal = -(-n // self._centroids), c.gaussian != "covariance"
            samples = Samples(self.gaussians_, self.slot_columns_, c.align, each, n, diagonal=diagonal)
            align(self.head_, samples, rng, weight_decay=decay, progress=self.store.progress)

    def _train_adapter(self, task: Task, own: Int[Tensor, " n"], head: GrowingLinear, rng: torch.Generator) -> None:
        c, view, adapter, device = self.config, self.adapters_.views[-1], self.adapters_[-1], self.backbone.device
        old, means = self.gaussians_.means.float().to(device), self._mean_adapter()

        def loss(batch: Batch) -> Tensor:
            features = batch.features(view)
            return F.cross_entropy(head(features), batch.columns) + c.reg * own_index_loss(torch.cat([old, features]))

        def merge() -> None:
            if means and c.merge and session.ends(c.merge_every):
                pull_(list(adapter.parameters()), means, c.merge)

        session = on_images(
            view, task.train, own, c.adapter.train, rng, self.store,
            fast=[adapter], slow=head.parameters(), slow_factor=c.head_lr,
        )  # fmt: skip
        session.run(loss, after_step=merge)

    def _mean_adapter(self) -> list[Tensor]:
        return mean_of(self.adapters_.parts[:-1])  # of earlier tasks; nothing in the first

    def _add_statistics(self, task: Task, columns: Int[Tensor, " n"]) -> None:
        rows, width = self._embedded(task.index, task.train), len(self.classes_)
        added = self.gaussians_.append_classes(rows, columns, self._centroids, self.seed)
        self.slot_columns_ = [*self.slot_columns_, *added]
        self.sums_ = add_class_sums(self.sums_, columns, self._embedded(0, task.train), width)
        self.counts_ = add_class_counts(self.counts_, columns, width)

    def _embedded(self, task: int, data: LabelledImages) -> Float[Tensor, "n d"]:
        return self.store.features(self.adapters_.views[task], data, label="train features")[:]

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """An image passes the adapters that its guesses visit, each of them once ever."""
        if len(data):
            yield self._ensemble(self.adapters_.stored(data, self.store, "test features"), len(data))

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._ensemble(self.adapters_.of(images), len(images))

    def _ensemble(self, features: Asked, n: int) -> Float[Tensor, "b classes"]:
        first, tasks = features(0, torch.arange(n)), torch.tensor(self.task_of_)
        q = cosine_scores(first, self.sums_ / self.counts_[:, None])
        found = logits_found(features, first, self.head_, tasks, tasks[q.argmax(1)]).softmax(1)
        return found + (self.tasks_seen_ * q).softmax(1) if self.config.ensemble else found
