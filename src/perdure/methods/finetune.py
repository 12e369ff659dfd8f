"""Finetune: all weights trained on each task in turn, nothing done against forgetting. The lower bound.

Source: sequential fine-tuning as the field's tables list it ("Finetune" in Zhou et al., "Continual Learning with
    Pre-Trained Models: A Survey", IJCAI 2024): cross-entropy over all classes seen, images of the present task only.
Deviations: BatchNorm keeps its pretrained statistics (a few images must not redefine them). Gradients are clipped:
    at the start of a task the old classes' scores make a first gradient ten times as long as later ones, and unclipped
    it damaged the network so much that the new task was not learned either. Learning rate and epochs come from the
    search in ``benchmarks/search_baselines.py``, on held-out training images.
Use when: never, but to see what forgetting costs. Relations: SLCA is what becomes of it with a slow backbone and
    aligned heads; ``joint`` is the upper reference.
Cost: ``epochs`` training passes per image (about three forward passes each), and a new pass over every test image
    after every task, since features change; state is a whole backbone.
"""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor

from perdure.backbone import Backbone
from perdure.config import MethodConfig
from perdure.data import Task
from perdure.memory import FeatureStore
from perdure.methods.base import Method, Tags, methods
from perdure.modules.augment import random_crop_flip
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.train.loop import train
from perdure.types import Event


class FinetuneConfig(MethodConfig):
    """Settings of sequential fine-tuning."""

    lr: float = Field(0.03, gt=0, description="peak learning rate of SGD with momentum 0.9")
    epochs: int = Field(5, ge=1, description="passes over each task")
    batch_size: int = Field(16, ge=1, description="images per step")
    weight_decay: float = Field(5e-4, ge=0, description="of all parameters")
    clip_norm: float = Field(1.0, gt=0, description="largest gradient norm")
    min_scale: float = Field(0.5, gt=0, le=1, description="smallest area a random crop keeps")


@dc.dataclass(frozen=True, slots=True)
class _Batch:
    images: Tensor  # (b, 3, h, w) uint8, augmented
    columns: Tensor  # (b,)


@methods.register("finetune")
class Finetune(Method[FinetuneConfig]):
    """One network, trained on whatever comes."""

    Config = FinetuneConfig
    tags: ClassVar = Tags(
        trains_backbone=True,
        small={"epochs": 1, "batch_size": 8},
        learns={"epochs": 8, "lr": 0.02},
        expected_failures=dict.fromkeys(
            ("check_remembers_every_task", "check_tells_the_classes_of_every_task_apart"),
            "forgetting is what this lower bound is there to show",
        ),
    )

    def __init__(
        self,
        backbone: Backbone,
        config: FinetuneConfig | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        self.backbone_ = backbone.thawed_copy()
        self.head_ = GrowingLinear(backbone.dim).to(backbone.device)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c = self.config
        self.head_.grow(len(self.classes_), rng)
        n_steps = c.epochs * -(-len(task.train) // c.batch_size)
        epochs = (self._epoch(task, rng, e) for e in range(c.epochs))
        learning = [*self.backbone_.parameters(), *self.head_.parameters()]
        train(
            self._loss, learning, epochs,
            n_steps=n_steps, lr=c.lr, weight_decay=c.weight_decay, clip_norm=c.clip_norm,
        )  # fmt: skip

    def _epoch(self, task: Task, rng: torch.Generator, epoch: int) -> Iterator[_Batch]:
        c, done = self.config, epoch * len(task.train)
        order = torch.randperm(len(task.train), generator=rng).numpy()
        for positions, images in task.train.batches(self.backbone.preprocess, c.batch_size, order):
            done += len(positions)
            self.store.progress(Event("fine-tuning", done, c.epochs * len(task.train)))
            augmented = random_crop_flip(images, rng, min_scale=c.min_scale)
            yield _Batch(augmented, self.columns(task.train.labels[positions]))

    def _loss(self, batch: _Batch) -> Tensor:
        logits = self.head_(self.backbone_.embed(batch.images))
        return F.cross_entropy(logits, batch.columns.to(logits.device))

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return linear_scores(self.backbone_.features(images), self.head_).cpu()
