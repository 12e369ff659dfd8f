"""SLCA's two stages as parts of a method: a backbone that learns slowly, and heads aligned on samples of Gaussians.

A method that has the attributes of :class:`SlowLearner` calls them in the order of its paper. Two heads are kept: the
raw one, which the next task and the next alignment start from, and the aligned one, which tests use.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.config import MethodConfig
from perdure.data import Task
from perdure.memory import FeatureStore
from perdure.modules.gaussians import Gaussians
from perdure.modules.heads import GrowingLinear
from perdure.modules.losses import norm_scaled
from perdure.modules.merging import merged
from perdure.train.alignment import Samples, ScaledAlignment, align, shortened
from perdure.train.batches import Batch
from perdure.train.session import on_images
from perdure.train.settings import SGD, Augment, ImageTraining, Milestone

TRAIN = ImageTraining(
    lr=0.01, epochs=20, batch_size=128, optimizer=SGD(weight_decay=5e-4), schedule=Milestone(milestone=18),
    augment=Augment(min_scale=0.5),
)  # fmt: skip


class SlowLearning(MethodConfig):
    """Settings of both stages."""

    train: ImageTraining = Field(TRAIN, description="of each task; lr is the heads'")
    slow: float = Field(0.01, ge=0, le=1, description="the backbone's learning rate, in units of the heads'")
    reset_final_norm: bool = Field(False, description="forget the final norm's weights at first")
    align: ScaledAlignment | None = Field(ScaledAlignment(), description="of all heads, after every task but the first")


class SlowLearner(Protocol):
    """A method with these attributes; those that end in ``_`` are what it learns."""

    backbone: Backbone
    backbone_: Backbone  # a copy that learns
    head_: GrowingLinear  # aligned
    raw_head_: GrowingLinear
    slot_columns_: list[int]
    slot_tasks_: list[int]
    gaussians_: Gaussians
    task_of_: list[int]
    classes_: list[int]
    tasks_seen_: int
    store: FeatureStore

    @property
    def config(self) -> SlowLearning:
        """Its settings."""
        ...

    def columns(self, labels: np.ndarray) -> Int[Tensor, " n"]:
        """The score column of each label."""
        ...


def start(m: SlowLearner) -> None:
    """Makes its modules: a copy of the backbone, and no class yet.

    Args:
        m: the method, in its ``setup``.
    """
    m.backbone_ = m.backbone.thawed_copy()
    norm = getattr(m.backbone_.model, "norm", None)
    if m.config.reset_final_norm and isinstance(norm, nn.LayerNorm):
        norm.reset_parameters()
        norm.eps = 1e-5
    m.backbone_.requires_grad_(False)
    m.head_, m.raw_head_ = (GrowingLinear(m.backbone.dim).to(m.backbone.device) for _ in range(2))
    m.gaussians_ = Gaussians(m.backbone.dim)


def learn_slowly(m: SlowLearner, task: Task, rng: torch.Generator) -> None:
    """Stage 1: the backbone slowly, the task's own heads fast; older heads do not even decay.

    Args:
        m: the method.
        task: its classes have their columns already.
        rng: a CPU generator.
    """
    columns, c = m.columns(task.train.labels), m.config
    m.task_of_ = [*m.task_of_, *[m.tasks_seen_] * (len(m.classes_) - len(m.task_of_))]
    raw = copy.deepcopy(m.raw_head_)
    raw.grow(len(m.classes_), rng, "normal_0.02")
    with raw.apart(columns) as (head, own):

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(head(batch.features(m.backbone_)), batch.columns)

        on_images(
            m.backbone_, task.train, own, c.train, rng, m.store,
            fast=head.parameters(), slow=[m.backbone_.model], slow_factor=c.slow,
        ).run(loss)  # fmt: skip
    m.raw_head_ = raw


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    """A copy of the weights by name.

    Args:
        backbone: whose.
    """
    return {name: p.detach().clone() for name, p in backbone.model.named_parameters()}


def merge_backbone(
    m: SlowLearner,
    before: Mapping[str, Tensor],
    weight: float,
    *,
    fisher_old: Mapping[str, Tensor] | None = None,
    fisher_new: Mapping[str, Tensor] | None = None,
) -> None:
    """Merges the backbone with its weights before the task, in proportion to Fisher information if there is any.

    Args:
        m: the method.
        before: :func:`weights_of` the backbone as the task found it.
        weight: of the backbone as the task left it.
        fisher_old: the information of ``before``.
        fisher_new: that of the backbone as the task left it.
    """
    after = dict(m.backbone_.model.named_parameters())
    how: Literal["linear", "fisher"] = "linear" if fisher_new is None else "fisher"
    joined = merged(before, after, how=how, weight=weight, fisher_old=fisher_old, fisher_new=fisher_new)
    with torch.no_grad():
        for name, value in joined.items():
            after[name].copy_(value)


def add_gaussians(m: SlowLearner, task: Task) -> None:
    """One per class of the task, of features under the backbone as it is now; they are never updated.

    Args:
        m: the method.
        task: the present one.
    """
    images = task.train.batches(m.backbone.preprocess, m.backbone.batch_size)
    features = torch.cat([m.backbone_.features(batch).cpu() for _, batch in images])
    added = m.gaussians_.append_classes(features, m.columns(task.train.labels))
    m.slot_columns_ = [*m.slot_columns_, *added]
    m.slot_tasks_ = [*m.slot_tasks_, *[m.tasks_seen_] * len(added)]


def align_heads(m: SlowLearner, rng: torch.Generator) -> None:
    """Stage 2: all heads, from the raw ones on, on samples; in the first task they are the raw ones.

    Args:
        m: the method.
        rng: a CPU generator.
    """
    m.head_, c = copy.deepcopy(m.raw_head_), m.config.align
    if not m.tasks_seen_ or c is None:
        return
    _, block_of = torch.tensor(m.task_of_).unique(return_inverse=True)  # a task of known classes alone has no block
    blocks = F.one_hot(block_of).float().to(m.head_.weight.device)  # (classes, blocks)
    scales = [shortened(task, m.tasks_seen_ + 1, c.mean_decay) for task in m.slot_tasks_]
    align(
        m.head_,
        Samples(m.gaussians_, m.slot_columns_, c, c.samples, c.batch_size, scales), rng,
        weight_decay=m.config.train.optimizer.weight_decay, progress=m.store.progress,
        of_logits=lambda logits: norm_scaled(logits, blocks, c.tau) if c.tau else logits,
    )  # fmt: skip
