"""Finetune: all weights trained on each task in turn, nothing done against forgetting. The lower bound.

Source: sequential fine-tuning as the field's tables list it ("Finetune" in Zhou et al., "Continual Learning with
    Pre-Trained Models: A Survey", IJCAI 2024): cross-entropy over all classes seen, images of the present task only.
Use when: never, but to see what forgetting costs.
Deviations:
- From common practice: BatchNorm keeps its pretrained statistics, which a few images must not redefine.
- From common practice: gradients are clipped (``train.clip_norm``), or the first one of a task damages the network.
- Learning rate and epochs are of no paper: ``benchmarks/search_baselines.py`` found them on held-out training images.
Relations: SLCA is what becomes of it with a slow backbone and aligned heads; ``joint`` is the upper reference.
Cost: F is a forward pass. Training image: 3 F per epoch. Test image: F after each task. State: a whole backbone and a
    head.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor

from perdure.backbone import Backbone
from perdure.config import MethodConfig
from perdure.data import Task
from perdure.learned import learned_module
from perdure.methods.base import Method, Tags, methods
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.train.batches import Batch
from perdure.train.session import on_images
from perdure.train.settings import SGD, Augment, ImageTraining

TRAIN = ImageTraining(
    lr=0.03, epochs=5, batch_size=16, optimizer=SGD(weight_decay=5e-4), clip_norm=1.0, augment=Augment(min_scale=0.5)
)


class FinetuneConfig(MethodConfig):
    """Settings of sequential fine-tuning."""

    train: ImageTraining = Field(TRAIN, description="of all weights and the head")


@methods.register("finetune")
class Finetune(Method[FinetuneConfig]):
    """One network, trained on whatever comes."""

    Config = FinetuneConfig
    tags: ClassVar = Tags(
        trains_backbone=True,
        small={"train": {"epochs": 1, "batch_size": 8}},
        learns={"train": {"epochs": 8, "lr": 0.02}},
        expected_failures=dict.fromkeys(
            ("check_remembers_every_task", "check_tells_the_classes_of_every_task_apart"),
            "forgetting is what this lower bound is there to show",
        ),
    )

    backbone_: Backbone = learned_module({}, "a copy that learns", rest="backbone")
    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "the head")

    def setup(self) -> None:
        """A copy of the backbone, and a head."""
        self.backbone_ = self.backbone.thawed_copy()
        self.head_ = GrowingLinear(self.backbone.dim).to(self.backbone.device)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        self.head_.grow(len(self.classes_), rng)

        def loss(batch: Batch) -> Tensor:
            return F.cross_entropy(self.head_(batch.features(self.backbone_)), batch.columns)

        learns = [*self.backbone_.parameters(), *self.head_.parameters()]
        columns, c = self.columns(task.train.labels), self.config.train
        on_images(self.backbone_, task.train, columns, c, rng, self.store, fast=learns, stage="fine-tuning").run(loss)

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return linear_scores(self.backbone_.features(images), self.head_).cpu()
