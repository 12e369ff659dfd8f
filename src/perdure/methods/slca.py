"""SLCA: a slowly learned backbone, and heads aligned on samples from one Gaussian per class.

Source: Zhang, Wang, Kang, Chen & Wei, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a
    Pre-trained Model", ICCV 2023, arXiv 2303.05118.
Use when: the backbone itself should adapt, there is time to train all of it, and images must not be kept.
Deviations:
- From the released code: the task of a class is remembered, not computed from equal task sizes.
- From the released code: BatchNorm keeps its pretrained statistics.
- From the released code: the final norm keeps its weights; ``reset_final_norm=true``, in presets, forgets them.
- From the released code: crops are cut from the eval view, are bilinear, and keep half of it (``train.augment``).
- From the released code: CUB and Cars get windows of whole images by ``train.augment.resize=300`` (presets) alone.
- From the released code: no brightness jitter, which it has on CIFAR.
- An extension: a class that comes again (a new domain) gets one more Gaussian, and its head goes on learning.
- Left out: SLCA++, and the longer runs on MoCo-v3 weights.
Relations: ``finetune`` without the slow rate and the alignment forgets; MOS aligns heads in the same way on adapters.
Cost: F is a forward pass. Training image: 3 F per epoch + F. Test image: F per task.
    State: a backbone, two heads, and 8 min(n_c, d) d bytes per class of n_c images.
"""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.config import MethodConfig, published
from perdure.data import Task
from perdure.learned import learned, learned_module
from perdure.methods.base import Method, Tags, methods
from perdure.modules.gaussians import Gaussians
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.modules.losses import norm_scaled
from perdure.train.alignment import Samples, ScaledAlignment, align, shortened
from perdure.train.batches import Batch
from perdure.train.session import on_images
from perdure.train.settings import SGD, Augment, ImageTraining, Milestone

TRAIN = ImageTraining(
    lr=0.01, epochs=20, batch_size=128, optimizer=SGD(weight_decay=5e-4), schedule=Milestone(milestone=18),
    augment=Augment(min_scale=0.5),
)  # fmt: skip


class SLCAConfig(MethodConfig):
    """Settings of SLCA."""

    presets: ClassVar = published("slca")

    train: ImageTraining = Field(TRAIN, description="of each task; lr is the heads'")
    slow: float = Field(0.01, ge=0, le=1, description="the backbone's learning rate, in units of the heads'")
    reset_final_norm: bool = Field(False, description="forget the final norm's weights at first")
    align: ScaledAlignment | None = Field(ScaledAlignment(), description="of all heads, after every task but the first")


@methods.register("slca")
class SLCA(Method[SLCAConfig]):
    """argmax over the aligned heads' scores of features that moved slowly."""

    Config = SLCAConfig
    tags: ClassVar = Tags(
        trains_backbone=True,
        small={
            "train": {"epochs": 2, "schedule": {"name": "milestone", "milestone": 1}, "batch_size": 8},
            "align": {"epochs": 1, "samples": 8, "batch_size": 8},
        },
        learns={
            "train": {
                "epochs": 6, "schedule": {"name": "milestone", "milestone": 5}, "lr": 0.1,
                "augment": {"min_scale": 1.0, "flip": False},
            },
            "align": {"lr": 0.1, "epochs": 40, "samples": 64, "batch_size": 64}, "slow": 0.001,
        },
    )  # fmt: skip

    backbone_: Backbone = learned_module({}, "a copy that learns", rest="backbone")
    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "aligned: what tests use")
    raw_head_: GrowingLinear = learned_module(GrowingLinear.STATE, "what the next task and alignment start from")
    slot_columns_: list[int] = learned("slots", int, "column of each Gaussian", below="classes")
    slot_tasks_: list[int] = learned("slots", int, "task of each Gaussian", below="tasks")
    gaussians_: Gaussians = learned_module(Gaussians.state("slots"), "one per class and task")
    task_of_: list[int] = learned("classes", int, "task in which each class came first", below="tasks")

    def setup(self) -> None:
        """A copy of the backbone, and no class yet."""
        self.backbone_ = self.backbone.thawed_copy()
        norm = getattr(self.backbone_.model, "norm", None)
        if self.config.reset_final_norm and isinstance(norm, nn.LayerNorm):
            norm.reset_parameters()
            norm.eps = 1e-5
        self.backbone_.requires_grad_(False)
        dim = self.backbone.dim
        self.head_, self.raw_head_ = (GrowingLinear(dim).to(self.backbone.device) for _ in range(2))
        self.gaussians_ = Gaussians(dim)

    def learned_parameters(self) -> int:
        """The backbone and the aligned heads."""
        return sum(p.numel() for m in (self.backbone_, self.head_) for p in m.parameters())

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        columns = self.columns(task.train.labels)
        self.task_of_ = [*self.task_of_, *[self.tasks_seen_] * (len(self.classes_) - len(self.task_of_))]
        raw = copy.deepcopy(self.raw_head_)
        raw.grow(len(self.classes_), rng, "normal_0.02")
        with raw.apart(columns) as (head, own):  # older heads are out of weight decay's reach
            self._learn_slowly(task, own, head, rng)
        self.raw_head_ = raw
        self._add_gaussians(task, columns)
        self.head_ = copy.deepcopy(raw)
        if self.tasks_seen_ and self.config.align:
            self._align(self.config.align, self.head_, rng)

    def _learn_slowly(self, task: Task, own: Int[Tensor, " n"], head: GrowingLinear, rng: torch.Generator) -> None:
        """Stage 1: the backbone slowly, the task's own heads fast."""

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(head(batch.features(self.backbone_)), batch.columns)

        on_images(
            self.backbone_, task.train, own, self.config.train, rng, self.store,
            fast=head.parameters(), slow=[self.backbone_.model], slow_factor=self.config.slow,
        ).run(loss)  # fmt: skip

    def _add_gaussians(self, task: Task, columns: Int[Tensor, " n"]) -> None:
        """One per class of the task, of features under the backbone as it is now; they are never updated."""
        images = task.train.batches(self.backbone.preprocess, self.backbone.batch_size)
        features = torch.cat([self.backbone_.features(batch).cpu() for _, batch in images])
        added = self.gaussians_.append_classes(features, columns)
        self.slot_columns_ = [*self.slot_columns_, *added]
        self.slot_tasks_ = [*self.slot_tasks_, *[self.tasks_seen_] * len(added)]

    def _align(self, c: ScaledAlignment, head: GrowingLinear, rng: torch.Generator) -> None:
        """Stage 2: all heads, on samples."""
        blocks = F.one_hot(torch.tensor(self.task_of_)).float().to(head.weight.device)  # (classes, tasks)
        scales = [shortened(task, self.tasks_seen_ + 1, c.mean_decay) for task in self.slot_tasks_]
        align(
            head,
            Samples(self.gaussians_, self.slot_columns_, c, c.samples, c.batch_size, scales), rng,
            weight_decay=self.config.train.optimizer.weight_decay, progress=self.store.progress,
            of_logits=lambda logits: norm_scaled(logits, blocks, c.tau) if c.tau else logits,
        )  # fmt: skip

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return linear_scores(self.backbone_.features(images), self.head_).cpu()
