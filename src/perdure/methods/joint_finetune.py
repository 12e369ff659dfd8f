"""JointFinetune: the pretrained weights trained on all images seen, together. The upper bound of papers' tables.

Source: "joint" or "upper bound" as the field's tables list it (Wang et al., "A Comprehensive Survey of Continual
    Learning", TPAMI 2024): one training on all tasks together, cross-entropy over all classes.
Use when: all images may be kept and there is time to start again; or to see what a sequence costs.
Deviations:
- From the tables: it starts again at every task. One task of all classes (``stream.tasks=1``) is their single training.
- From common practice: BatchNorm keeps its pretrained statistics, and gradients are clipped (``train.clip_norm``).
- Learning rate and epochs are those of ``finetune``, found on held-out training images; the rate falls to zero.
Relations: ``finetune`` sees one task's images at a time; ``er`` a few of the others; ``joint`` all, on frozen features.
Cost: F is a forward pass. The t-th of tasks of n images each: 3 F t n per epoch; T tasks take (T + 1) / 2 times as long
    as one training on everything. Test image: F after each task. State: a backbone, a head, and every image's file, in
    memory: 0.1 GB for 50 000 images of CIFAR, 3 GB for 30 000 photographs; twice that while a task is added.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from perdure.data import Task
from perdure.learned import learned_module
from perdure.memory import Exemplars
from perdure.methods.base import Tags, methods
from perdure.methods.base_replay import PartConfig, PartMethod
from perdure.modules.heads import GrowingLinear
from perdure.train.settings import SGD, Augment, ImageTraining
from perdure.train.trainable import Full, Part, made

TRAIN = ImageTraining(
    lr=0.03, epochs=5, batch_size=16, optimizer=SGD(weight_decay=5e-4), clip_norm=1.0, augment=Augment(min_scale=0.5)
)
ALL = 2**40  # images of a class


class JointFinetuneConfig(PartConfig):
    """Settings of joint fine-tuning."""

    part: Part = Field(Full(), discriminator="name", description="what learns of the backbone, beside the head")
    train: ImageTraining = Field(TRAIN, description="of the part and the head, on all images, at every task")


@methods.register("joint_finetune")
class JointFinetune(PartMethod[JointFinetuneConfig]):
    """One network, trained on everything, from the pretrained weights at every task."""

    Config = JointFinetuneConfig
    tags: ClassVar = Tags(
        trains_backbone=True,
        keeps_data=True,
        small={"train": {"epochs": 1, "batch_size": 8}},
        learns={"train": {"epochs": 8, "lr": 0.02}},
    )

    exemplars_: Exemplars = learned_module(Exemplars.STATE, "every image")

    def setup(self) -> None:
        """No image yet."""
        super().setup()
        self.exemplars_ = Exemplars("random", n_per_class=ALL)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        everything = task.train.joined(self.exemplars_.images())
        self.part_.load_state_dict(made(self.backbone, self.config.part, self._initial())[1].state_dict())
        self.head_ = GrowingLinear(self.backbone.dim)
        self._session(everything, rng, stage="joint fine-tuning").run(self._loss)
        self.exemplars_.add(task.train, rng)
