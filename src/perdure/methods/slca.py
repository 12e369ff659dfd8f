"""SLCA: a slowly learned backbone, and heads aligned on samples from one Gaussian per class.

Source: Zhang, Wang, Kang, Chen & Wei, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a
    Pre-trained Model", ICCV 2023 (arXiv 2303.05118).
Deviations: Gaussians are kept as factors of float64 scatters and sampled through them: the same distribution, no
    Cholesky decomposition, less memory where a class has fewer images than dimensions. The task of a class is
    remembered, not computed from equal task sizes. BatchNorm keeps its pretrained statistics. Crops are cut from the
    eval view, by default of half of it or more, and resized bilinearly, not from the image and bicubically; there is no
    brightness jitter, which the released code has on CIFAR. On CUB and Cars it cuts 224 pixels out of 300: ``resize``,
    in ``paper_cub`` and ``paper_cars``. It resets the final norm: ``reset_final_norm``, in the presets ``paper``. A
    class that comes again (a new domain) gets one more Gaussian, and its head goes on learning. Left out: SLCA++, and
    the longer runs on MoCo-v3 weights.
Use when: the backbone itself should adapt, there is time to train all of it, and images must not be kept. Relations:
    ``finetune`` without the slow rate and the alignment forgets; MOS aligns heads in the same way on adapters.
Cost: ``epochs`` training passes per image, one more for its Gaussian, and a new pass over every test image after every
    task; state is a backbone, two heads and 8 min(n_c, d) d bytes per class.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from pydantic import Field
from torch import Tensor, nn

from perdure.config import MethodConfig
from perdure.data import Task
from perdure.methods.base import Method, Tags, methods
from perdure.modules.gaussians import Gaussians
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.modules.losses import norm_scaled
from perdure.train.alignment import Alignment, Samples, align
from perdure.train.batches import Batch
from perdure.train.session import on_images
from perdure.train.settings import SGD, Augment, ImageTraining, Milestone

TRAIN = ImageTraining(
    lr=0.01, epochs=20, batch_size=128, optimizer=SGD(weight_decay=5e-4), schedule=Milestone(milestone=18),
    augment=Augment(min_scale=0.5),
)  # fmt: skip
LONG = {"epochs": 50, "schedule": {"milestone": 40}}


class SLCAAlignment(Alignment):
    """Settings of the alignment of SLCA's heads."""

    epochs: int = Field(5, ge=1, description="with fresh samples each, and with as many steps as classes")
    lr: float = Field(0.01, gt=0, description="peak learning rate, SGD, falling by epoch")
    batch_size: int = Field(256, ge=1, description="samples per step")
    samples: int = Field(256, ge=1, description="samples per class and epoch")
    tau: float = Field(0.1, ge=0, description="temperature of the normalised logits; 0: plain logits")
    mean_decay: float = Field(0.1, ge=0, le=1, description="the mean of the oldest task is shortened by this at most")


def paper(augment: dict[str, Any], **train: Any) -> dict[str, Any]:
    """A published run: random crops by ``augment``, and what differs in the training."""
    return {"reset_final_norm": True, "train": {"augment": augment, **train}}


class SLCAConfig(MethodConfig):
    """Settings of SLCA."""

    presets: ClassVar = {
        "paper": paper({"min_scale": 0.08}),
        "paper_imagenet_r": paper({"min_scale": 0.08}, **LONG),
        "paper_cub": paper({"min_scale": 0.08, "resize": 300}, **LONG),
        "paper_cars": {**paper({"min_scale": 0.08, "resize": 300}, **LONG), "align": {"tau": 0.05}},
        "pilot": {"train": {"augment": {"min_scale": 0.05}, "batch_size": 64}, "align": {"epochs": 3}},
        "pilot_imagenet_r": {
            "train": {"augment": {"min_scale": 0.05}, "batch_size": 64, "epochs": 5, "schedule": {"milestone": 40}},
            "align": {"epochs": 3},
        },
    }

    train: ImageTraining = Field(TRAIN, description="of each task; lr is the heads'")
    slow: float = Field(0.01, ge=0, le=1, description="the backbone's learning rate, in units of the heads'")
    reset_final_norm: bool = Field(False, description="forget the final norm's weights at first")
    align: SLCAAlignment | None = Field(SLCAAlignment(), description="of all heads, after every task but the first")


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
                "epochs": 6,
                "schedule": {"name": "milestone", "milestone": 5},
                "lr": 0.1,
                "augment": {"min_scale": 1.0, "flip": False},
            },
            "align": {"lr": 0.1, "epochs": 40, "samples": 64, "batch_size": 64},
            "slow": 0.001,
        },
    )

    def setup(self) -> None:
        """A copy of the backbone, and no class yet."""
        self.backbone_ = self.backbone.thawed_copy()
        norm = getattr(self.backbone_.model, "norm", None)
        if self.config.reset_final_norm and isinstance(norm, nn.LayerNorm):
            norm.reset_parameters()
            norm.eps = 1e-5
        self.backbone_.requires_grad_(False)
        dim = self.backbone.dim
        self.head_ = GrowingLinear(dim).to(self.backbone.device)  # aligned: what tests use
        self.raw_head_ = GrowingLinear(dim).to(self.backbone.device)  # what the next task and alignment start from
        self.gaussians_ = Gaussians(dim)  # one per class and task
        self.slot_columns_: list[int] = []  # of each Gaussian
        self.slot_tasks_: list[int] = []
        self.task_of_: list[int] = []  # of each column: when the class came first

    def learned_parameters(self) -> int:
        """The backbone and the aligned heads."""
        return sum(p.numel() for m in (self.backbone_, self.head_) for p in m.parameters())

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        columns = self.columns(task.train.labels)
        self.task_of_ = [*self.task_of_, *[self.tasks_seen_] * (len(self.classes_) - len(self.task_of_))]
        raw = copy.deepcopy(self.raw_head_)
        raw.grow(len(self.classes_), rng, "normal_0.02")
        self._learn_slowly(task, columns, raw, rng)
        self.raw_head_ = raw.requires_grad_(False)
        self._add_gaussians(task, columns)
        self.head_ = copy.deepcopy(raw)
        if self.tasks_seen_ and self.config.align:
            self._align(self.config.align, self.head_, rng)

    # --- stage 1: the backbone slowly, the task's own heads fast

    def _learn_slowly(self, task: Task, columns: Int[Tensor, " n"], raw: GrowingLinear, rng: torch.Generator) -> None:
        c, (current, own) = self.config, torch.unique(columns, return_inverse=True)
        head = raw.rows(current)  # older heads are out of weight decay's reach

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(head(batch.features(self.backbone_)), batch.columns)

        on_images(
            self.backbone_, task.train, own, c.train, rng, self.store,
            fast=head.parameters(), slow=[self.backbone_.model], slow_factor=c.slow,
        ).run(loss)  # fmt: skip
        raw.put(current, head)

    def _add_gaussians(self, task: Task, columns: Int[Tensor, " n"]) -> None:
        """One per class of the task, of features under the backbone as it is now; they are never updated."""
        images = task.train.batches(self.backbone.preprocess, self.backbone.batch_size)
        features = torch.cat([self.backbone_.features(batch).cpu() for _, batch in images])
        gaussians = copy.deepcopy(self.gaussians_)
        for column in columns.unique().tolist():
            gaussians.grow(len(gaussians) + 1)
            gaussians.add(len(gaussians) - 1, features[columns == column])
            self.slot_columns_ = [*self.slot_columns_, column]
            self.slot_tasks_ = [*self.slot_tasks_, self.tasks_seen_]
        self.gaussians_ = gaussians

    # --- stage 2: all heads, on samples

    def _align(self, c: SLCAAlignment, head: GrowingLinear, rng: torch.Generator) -> None:
        blocks = F.one_hot(torch.tensor(self.task_of_)).float().to(head.weight.device)  # (classes, tasks)
        scales = [shortened(task, self.tasks_seen_ + 1, c.mean_decay) for task in self.slot_tasks_]
        align(
            head,
            Samples(self.gaussians_, self.slot_columns_, c.samples, c.batch_size, len(head.bias), c.ridge, scales),
            c, rng, weight_decay=self.config.train.optimizer.weight_decay, progress=self.store.progress,
            of_logits=lambda logits: norm_scaled(logits, blocks, c.tau) if c.tau else logits,
        )  # fmt: skip

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return linear_scores(self.backbone_.features(images), self.head_).cpu()


def shortened(task: int, n_tasks: int, decay: float) -> float:
    """What the mean of a class of ``task`` (from 0) is multiplied by after ``n_tasks``: 1 for the newest.

    Args:
        task: from 0.
        n_tasks: so far.
        decay: 0.1: no less than 0.9.
    """
    return 1 - decay + decay * (task + 1) / n_tasks
