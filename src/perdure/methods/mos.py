"""MOS: an adapter per task that stays near its predecessors, an aligned head, and adapters found by refining guesses.

Source: Sun, Zhou, Zhao, Gan, Zhan & Ye, "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning",
    AAAI 2025 (arXiv 2412.09441).
Deviations: the method as described, not as released; ``mos_release`` is the release, side effects included.
    - One pull towards the earlier adapters' mean per step (``merge_every``); stored adapters never change.
    - The head grows; rows of older classes are out of weight decay's reach while a task trains.
    - Gaussians are sampled through factors of float64 scatters; a class that comes again gets one more.
    - ``gaussian=centroids`` draws as many samples as without; clusters of one image give none, as released.
Use when: tasks differ, and one or two adapters per image are affordable, not one per task. Relations: EASE adds up all
    adapters; SLCA aligns heads in the same way, with a normalisation.
Cost: ``epochs`` training passes per image, one more for its Gaussian, one in A_0's space; a test image passes A_0 and
    the adapters its guesses visit. State: an adapter per task, a head, 16 d + 8 min(n_c, d) d bytes per class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from pydantic import Field
from torch import Tensor

from perdure.config import MethodConfig
from perdure.data import LabelledImages, Task
from perdure.methods.base import Method, Tags, methods
from perdure.modules.gaussians import Gaussians, add_class_counts, add_class_sums, clusters
from perdure.modules.heads import GrowingLinear, cosine_scores, linear_scores
from perdure.modules.losses import own_index_loss
from perdure.modules.merging import pull_
from perdure.modules.retrieval import refined
from perdure.train.adapting import TRAIN, AdapterPart, AdapterStack
from perdure.train.alignment import Alignment, Samples, align
from perdure.train.batches import Batch
from perdure.train.session import on_images

CENTROIDS = 10
Features = Callable[[int, Tensor], Tensor]  # (task, positions) -> features under that task's adapter
MOS_TRAIN = TRAIN.model_copy(update={"lr": 0.03})
DECAY = {"weight_decay": 0.005}


class MOSAlignment(Alignment):
    """Settings of the alignment of MOS's head."""

    epochs: int = Field(30, ge=1, description="with fresh samples each, and with as many steps as classes")
    lr: float = Field(0.005, gt=0, description="peak learning rate, SGD, falling by epoch")
    samples: int = Field(5, ge=1, description="per class and epoch, and per step, in units of a training batch")


def released(**train: Any) -> dict[str, Any]:
    """A published run: what differs in the training."""
    return {"adapter": {"train": train}}


class MOSConfig(MethodConfig):
    """Settings of MOS."""

    presets: ClassVar = {
        "official_cifar100": {},
        "official_imagenet_r": released(epochs=10, lr=0.05, batch_size=16, optimizer=DECAY),
        "official_cub": released(epochs=10, lr=0.01, batch_size=32),
        "official_imagenet_a": released(epochs=10, lr=0.05, batch_size=32, optimizer=DECAY) | {"gaussian": "variance"},
        "official_objectnet": released(epochs=10, lr=0.05, optimizer=DECAY),
        "official_omnibenchmark": released(epochs=10, batch_size=16, lr=0.01),
        "official_vtab": released(batch_size=32, optimizer=DECAY),
    }

    adapter: AdapterPart = Field(AdapterPart(rank=16, train=MOS_TRAIN), description="of every task, and its training")
    head_lr: float = Field(0.1, gt=0, description="the head's, in units of the adapter's")
    merge: float = Field(0.1, ge=0, lt=1, description="how far an adapter is pulled to its predecessors' mean (m)")
    merge_every: Literal["step", "epoch", "task_end"] = Field("step", description="when it is pulled")
    reg: float = Field(0.1, ge=0, description="weight of the loss that keeps features and old means apart")
    align: MOSAlignment | None = Field(MOSAlignment(), description="of the head, after every task but the first")
    gaussian: Literal["covariance", "variance", "centroids"] = Field(
        "covariance", description="of samples; centroids: ten means per class, and the variance (over n) around each"
    )
    ensemble: bool = Field(True, description="add the scores of class means in the first adapter's space")


@methods.register("mos")
class MOS(Method[MOSConfig]):
    """softmax(l) + softmax(T q): the head's logits under the adapter found, and cosines in A_0's space."""

    Config = MOSConfig
    tags: ClassVar = Tags(
        adapts=True,
        small={"adapter": {"rank": 2, "train": {"epochs": 1, "batch_size": 8}}, "align": {"epochs": 2}},
        learns={
            "adapter": {"train": {"epochs": 5, "augment": {"min_scale": 1.0, "flip": False}}},
            "align": {"epochs": 20, "lr": 0.05},
            "head_lr": 1.0,
        },
    )

    def setup(self) -> None:
        """No adapter and no class yet."""
        d = self.backbone.dim
        self.adapters_ = AdapterStack(self.backbone, self.config.adapter, self._initial, self._added)
        self.head_ = GrowingLinear(d).to(self.backbone.device)
        self.counts_ = torch.zeros(0, dtype=torch.long)
        self.sums_ = torch.zeros(0, d, dtype=torch.float64)  # in A_0's space, (classes, d)
        self._centroids = CENTROIDS if self.config.gaussian == "centroids" else 1  # per class
        self.gaussians_ = Gaussians(d, ddof=int(self._centroids == 1))  # under each class's own adapter
        self.slot_columns_: list[int] = []  # of each Gaussian; -1: the head is not aligned on it
        self.task_of_: list[int] = []  # of each column: when the class came first

    def _added(self, task: int) -> None:
        """Called when a task's adapter is there, in learning and in loading."""

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, columns, width = self.config, self.columns(task.train.labels), len(self.classes_)
        self.task_of_ = [*self.task_of_, *[task.index] * (width - len(self.task_of_))]
        self.adapters_.add(go_on=True)
        self.head_.grow(width, rng, "normal_0.02")
        self._train_adapter(task, columns, rng)
        self._add_statistics(task, columns)
        if task.index and c.align:
            n, decay = c.align.samples * c.adapter.train.batch_size, c.adapter.train.optimizer.weight_decay
            samples = Samples(
                self.gaussians_, self.slot_columns_, -(-n // self._centroids), n, width, c.align.ridge,
                diagonal=c.gaussian != "covariance",
            )  # fmt: skip
            align(self.head_, samples, c.align, rng, weight_decay=decay, progress=self.store.progress)

    def _train_adapter(self, task: Task, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        c, view, adapter, device = self.config, self.adapters_.views[-1], self.adapters_[-1], self.backbone.device
        current, own = torch.unique(columns, return_inverse=True)
        head = self.head_.rows(current)  # a softmax over the task's classes alone
        old, means = self.gaussians_.means.float().to(device), self._mean_adapter()

        def loss(batch: Batch) -> Tensor:
            features = batch.features(view)
            apart = own_index_loss(torch.cat([old, features]))
            return F.cross_entropy(head(features), batch.columns) + c.reg * apart

        def merge() -> None:
            every = {"step": 1, "epoch": session.per_epoch, "task_end": session.n_steps}[c.merge_every]
            if means and c.merge and session.step % every == 0:
                pull_(list(adapter.parameters()), means, c.merge)

        session = on_images(
            view, task.train, own, c.adapter.train, rng, self.store,
            fast=[adapter], slow=head.parameters(), slow_factor=c.head_lr,
        )  # fmt: skip
        session.run(loss, after_step=merge)
        self.head_.put(current, head)
        self.head_.requires_grad_(False)

    def _mean_adapter(self) -> list[Tensor]:
        """The mean of all earlier tasks' adapters; nothing in the first task."""
        earlier = [[p.data.double() for p in adapter.parameters()] for adapter in self.adapters_.parts[:-1]]
        return [torch.stack(same).mean(0).float() for same in zip(*earlier, strict=True)]

    def _add_statistics(self, task: Task, columns: Int[Tensor, " n"]) -> None:
        rows, width = self._embedded(task.index, task.train), len(self.classes_)
        for column in columns.unique().tolist():
            parts = clusters(rows[columns == column], self._centroids, self.seed)
            for part in parts:
                self.gaussians_.grow(len(self.gaussians_) + 1)
                self.gaussians_.add(len(self.gaussians_) - 1, part)
                alone = len(part) == 1 < max(map(len, parts))
                self.slot_columns_ = [*self.slot_columns_, -1 if alone else column]
        self.sums_ = add_class_sums(self.sums_, columns, self._embedded(0, task.train), width)
        self.counts_ = add_class_counts(self.counts_, columns, width)

    def _embedded(self, task: int, data: LabelledImages) -> Float[Tensor, "n d"]:
        """Training images under a task's adapter."""
        return self.store.features(self.adapters_.views[task], data, label="train features")[:]

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """As in :class:`Method`; an image passes the adapters that its guesses visit, each of them once ever."""
        self._require_fitted("scores_of")

        def features(task: int, positions: Tensor) -> Tensor:
            return self.store.features(
                self.adapters_.views[task], data.subset(positions.numpy()), label="test features"
            )[:]

        if len(data):
            yield self._ensemble(features, len(data))

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._ensemble(
            lambda task, positions: self.adapters_.views[task].features(images[positions]).cpu(), len(images)
        )

    def _ensemble(self, features: Features, n: int) -> Float[Tensor, "b classes"]:
        first = features(0, torch.arange(n))
        q, tasks = cosine_scores(first, self.sums_ / self.counts_[:, None]), torch.tensor(self.task_of_)

        def logits(task: int, positions: Tensor) -> Tensor:
            f = first[positions] if task == 0 else features(task, positions)
            return linear_scores(f.to(self.backbone.device), self.head_).cpu()

        found = refined(logits, tasks, tasks[q.argmax(1)]).softmax(1)
        return found + (self.tasks_seen_ * q).softmax(1) if self.config.ensemble else found
