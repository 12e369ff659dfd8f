"""What methods of a linear head and a trainable part start from, and those that keep images of earlier tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor, nn

from perdure.config import MethodConfig
from perdure.data import LabelledImages, Task
from perdure.learned import learned_module
from perdure.memory import Exemplars
from perdure.methods.base_method import Method
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.train.batches import Batch, Kept
from perdure.train.replay import Memory, keep, kept
from perdure.train.session import Session, on_images
from perdure.train.settings import Augment, ImageTraining
from perdure.train.trainable import Full, Head, Part, made

TRAIN = ImageTraining(lr=0.03, epochs=3, batch_size=16, clip_norm=1.0, augment=Augment(min_scale=1.0, flip=False))


class PartConfig(MethodConfig):
    """Settings of a part of the backbone that learns, and of its training."""

    part: Part = Field(Head(), discriminator="name", description="what learns of the backbone, beside the head")
    train: ImageTraining = Field(TRAIN, description="of the part and the head")


class ReplayConfig(PartConfig):
    """Settings of a method that keeps images."""

    memory: Memory = Field(Memory(), description="images kept of earlier tasks")


C = TypeVar("C", bound=PartConfig)
R = TypeVar("R", bound=ReplayConfig)


class PartMethod(Method[C]):
    """A part of the backbone learns under a linear head; images pass through ``view``.

    Raises:
        BackboneError: if the backbone has no seat for the part.
    """

    part_: nn.Module = learned_module({}, "what learns of the backbone", rest="part")
    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "the head")

    def setup(self) -> None:
        """The part as it starts, and a head without classes."""
        self.view, self.part_ = made(self.backbone, self.config.part, self._initial())
        self.head_ = GrowingLinear(self.backbone.dim)

    def _session(
        self, data: LabelledImages, rng: torch.Generator, kept: Kept | None = None, stage: str = "training"
    ) -> Session[Batch]:
        """A session on images, which come from the store where neither views nor the backbone change."""
        self.head_.grow(len(self.classes_), rng)
        self.head_.to(self.backbone.device)
        columns, learns = self.columns(data.labels), [self.part_, self.head_]
        return on_images(
            self.view, data, columns, self.config.train, rng, self.store, fast=learns, stage=stage, kept=kept
        )

    def _loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over all classes seen, one mean over all images of the batch."""
        return F.cross_entropy(self.head_(batch.features(self.view)), batch.columns)

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return linear_scores(self.view.features(images), self.head_).cpu()

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """From the store, but for a copy of all weights: its features change with every task and share nothing."""
        if isinstance(self.config.part, Full):
            yield from super()._scores_of(data)
            return
        for rows in self.store.features(self.view, data, label="test features").batches():
            with torch.no_grad():
                yield linear_scores(rows.to(self.backbone.device), self.head_).cpu()


class ReplayMethod(PartMethod[R]):
    """Such a method that keeps images of earlier tasks."""

    exemplars_: Exemplars = learned_module(Exemplars.STATE, "images of earlier tasks")

    def setup(self) -> None:
        """Nothing kept yet."""
        super().setup()
        self.exemplars_ = self.config.memory.make()

    def _session(
        self, data: LabelledImages, rng: torch.Generator, kept: Kept | None = None, stage: str = "training"
    ) -> Session[Batch]:
        self.exemplars_.require_room(len(self.classes_))
        return super()._session(data, rng, kept, stage)

    def _kept(self) -> Kept | None:
        """What every step takes besides; None at the first task."""
        return kept(self.exemplars_, self.columns, self.config.memory.per_step)

    def _keep(self, task: Task, rng: torch.Generator) -> None:
        """Chooses among a task's images, once it is learned."""
        keep(self.exemplars_, task.train, rng, self.backbone, self.store)
