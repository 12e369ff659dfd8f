"""MOS: an adapter per task that stays near its predecessors, an aligned head, and adapters found by refining guesses.

Source: Sun, Zhou, Zhao, Gan, Zhan & Ye, "MOS: Model Surgery for Pre-Trained Model-Based Class-Incremental Learning",
    AAAI 2025 (arXiv 2412.09441).
Deviations: the method as described, not as released. There, the pull towards the mean of earlier adapters runs in every
    forward pass once per block, changes stored adapters in tests (so that predictions depend on what was tested
    before), and moves the statistics; prototypes of later tasks have dropout. Here it is one pull per step
    (``merge_every``), and stored adapters never change; expect other figures than the released logs, which
    ``mos_release`` is for. The head grows; rows of older classes are out of weight decay's reach while a task trains.
    Gaussians are sampled through factors of float64 scatters. A class that comes again gets one more and keeps its
    first task. ``gaussian=centroids`` draws no more samples than without (the release ten times as many, most unused);
    clusters of one image give none, as released, unless the class has no other.
Use when: tasks differ, and one or two adapters per image are affordable, not one per task. Relations: EASE adds up all
    adapters; SLCA aligns heads in the same way, with a normalisation.
Cost: ``epochs`` training passes per image, one more for its Gaussian and one in A_0's space; a test image passes A_0
    and the adapters its guesses visit, four at most after each task. State: an adapter per task, a head, and
    16 d + 8 min(n_c, d) d bytes per class.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from pydantic import Field
from torch import Tensor

from perdure.backbone import Backbone
from perdure.data import LabelledImages, Task
from perdure.memory import FeatureStore
from perdure.methods.base import Tags, methods
from perdure.methods.base_adapters import AdapterMethod
from perdure.modules.gaussians import Gaussians, add_class_counts, add_class_sums, clusters
from perdure.modules.heads import GrowingLinear, cosine_scores, linear_scores
from perdure.modules.losses import own_index_loss
from perdure.modules.merging import pull_
from perdure.modules.retrieval import refined
from perdure.train.alignment import align
from perdure.train.loop import train
from perdure.train.tuning import ImageBatch, TuningConfig, image_epochs, learning

CENTROIDS = 10
Features = Callable[[int, Tensor], Tensor]  # (task, positions) -> features under that task's adapter


class MOSConfig(TuningConfig):
    """Settings of MOS."""

    presets: ClassVar = {
        "official_cifar100": {},
        "official_imagenet_r": {"epochs": 10, "lr": 0.05, "batch_size": 16, "weight_decay": 0.005},
        "official_cub": {"epochs": 10, "lr": 0.01, "batch_size": 32},
        "official_imagenet_a": {
            "epochs": 10, "lr": 0.05, "batch_size": 32, "weight_decay": 0.005, "gaussian": "variance"
        },
        "official_objectnet": {"epochs": 10, "lr": 0.05, "weight_decay": 0.005},
        "official_omnibenchmark": {"epochs": 10, "batch_size": 16, "lr": 0.01},
        "official_vtab": {"batch_size": 32, "weight_decay": 0.005},
    }  # fmt: skip

    lr: float = Field(0.03, gt=0, description="peak learning rate of the adapter")
    head_lr: float = Field(0.1, gt=0, description="the head's, in units of the adapter's")
    rank: int = Field(16, ge=1, description="width of an adapter's bottleneck (r)")
    merge: float = Field(0.1, ge=0, lt=1, description="how far an adapter is pulled to its predecessors' mean (m)")
    merge_every: Literal["step", "epoch", "task_end"] = Field("step", description="when it is pulled")
    reg: float = Field(0.1, ge=0, description="weight of the loss that keeps features and old means apart")
    align_epochs: int = Field(30, ge=0, description="epochs of the head's alignment, of as many steps as classes")
    align_lr: float = Field(0.005, gt=0, description="its peak learning rate, SGD, falling by epoch")
    samples: int = Field(5, ge=1, description="per class and epoch, and per step, in units of batch_size")
    gaussian: Literal["covariance", "variance", "centroids"] = Field(
        "covariance", description="of samples; centroids: ten means per class, and the variance (over n) around each"
    )
    ridge: float = Field(1e-4, ge=0, description="added to all variances")
    ensemble: bool = Field(True, description="add the scores of class means in the first adapter's space")


@methods.register("mos")
class MOS(AdapterMethod[MOSConfig]):
    """softmax(l) + softmax(T q): the head's logits under the adapter found, and cosines in A_0's space."""

    Config = MOSConfig
    tags: ClassVar = Tags(
        adapts=True,
        small={"epochs": 1, "batch_size": 8, "rank": 2, "align_epochs": 2},
        learns={"epochs": 5, "min_scale": 1.0, "flip": False, "align_epochs": 20, "align_lr": 0.05, "head_lr": 1.0},
    )

    def __init__(
        self,
        backbone: Backbone,
        config: MOSConfig | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        self.head_ = GrowingLinear(backbone.dim).to(backbone.device)
        self.counts_ = torch.zeros(0, dtype=torch.long)
        self.sums_ = torch.zeros(0, backbone.dim, dtype=torch.float64)  # in A_0's space, (classes, d)
        self._centroids = CENTROIDS if self.config.gaussian == "centroids" else 1  # per class
        self.gaussians_ = Gaussians(backbone.dim, ddof=int(self._centroids == 1))  # under each class's own adapter
        self.slot_columns_: list[int] = []  # of each Gaussian; -1: the head is not aligned on it
        self.task_of_: list[int] = []  # of each column: when the class came first

    def _add_adapter(self, task: int) -> None:
        super()._add_adapter(task)
        if task:  # training goes on from the last one
            self.adapters_[-1].load_state_dict(self.adapters_[-2].state_dict())

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        columns, width = self.columns(task.train.labels), len(self.classes_)
        self.task_of_ = [*self.task_of_, *[task.index] * (width - len(self.task_of_))]
        self._add_adapter(task.index)
        self.head_.grow(width, rng, "normal_0.02")
        self._train_adapter(task, columns, rng)
        self._add_statistics(task, columns)
        c, n = self.config, self.config.samples * self.config.batch_size
        if task.index and c.align_epochs:
            align(
                self.head_, self.gaussians_, self.slot_columns_, rng, epochs=c.align_epochs, lr=c.align_lr,
                weight_decay=c.weight_decay, samples=-(-n // self._centroids), batch_size=n, ridge=c.ridge,
                diagonal=c.gaussian != "covariance",
            )  # fmt: skip

    def _train_adapter(self, task: Task, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        c, view, adapter, device = self.config, self.views[-1], self.adapters_[-1], self.backbone.device
        current, own = torch.unique(columns, return_inverse=True)
        head = self.head_.rows(current)  # a softmax over the task's classes alone
        old, means = self.gaussians_.means.float().to(device), self._mean_adapter()
        per_epoch, steps = -(-len(own) // c.batch_size), [0]

        def loss(batch: ImageBatch) -> Tensor:
            features = batch.features(view)
            apart = own_index_loss(torch.cat([old, features]))
            return F.cross_entropy(head(features), batch.columns) + c.reg * apart

        def merge() -> None:
            steps[0] += 1
            every = {"step": 1, "epoch": per_epoch, "task_end": per_epoch * c.epochs}[c.merge_every]
            if means and c.merge and steps[0] % every == 0:
                pull_(list(adapter.parameters()), means, c.merge)

        patches = self.store.training_patches(view, task.train, c.augments)
        batches = image_epochs(view, task.train, own, c, rng, patches=patches, progress=self.store.progress)
        with learning(adapter, rng) as parameters, batches as epochs:
            train(
                loss, parameters, epochs, n_steps=c.epochs * per_epoch, n_epochs=c.epochs, lr=c.lr,
                slow=head.parameters(), slow_factor=c.head_lr, optimizer=c.optimizer, schedule=c.schedule,
                milestone=c.milestone, weight_decay=c.weight_decay, clip_norm=c.clip_norm, after_step=merge,
            )  # fmt: skip
        self.head_.put(current, head)
        self.head_.requires_grad_(False)

    def _mean_adapter(self) -> list[Tensor]:
        """The mean of all earlier tasks' adapters; nothing in the first task."""
        earlier = [[p.data.double() for p in adapter.parameters()] for adapter in self.adapters_[:-1]]
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
        return self.store.features(self.views[task], data, label="train features")[:]

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """As in :class:`Method`; an image passes the adapters that its guesses visit, each of them once ever."""
        self._require_fitted("scores_of")

        def features(task: int, positions: Tensor) -> Tensor:
            return self.store.features(self.views[task], data.subset(positions.numpy()), label="test features")[:]

        if len(data):
            yield self._ensemble(features, len(data))

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._ensemble(lambda task, positions: self.views[task].features(images[positions]).cpu(), len(images))

    def _ensemble(self, features: Features, n: int) -> Float[Tensor, "b classes"]:
        first = features(0, torch.arange(n))
        q, tasks = cosine_scores(first, self.sums_ / self.counts_[:, None]), torch.tensor(self.task_of_)

        def logits(task: int, positions: Tensor) -> Tensor:
            f = first[positions] if task == 0 else features(task, positions)
            return linear_scores(f.to(self.backbone.device), self.head_).cpu()

        found = refined(logits, tasks, tasks[q.argmax(1)]).softmax(1)
        return found + (self.tasks_seen_ * q).softmax(1) if self.config.ensemble else found
