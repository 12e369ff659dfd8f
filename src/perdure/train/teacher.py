"""A training with reference images beside a task's: so many steps, each with some of both."""

from __future__ import annotations

import contextlib
import dataclasses as dc
from collections.abc import Callable, Iterator
from typing import Annotated, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int, UInt8
from pydantic import Field
from torch import Tensor

from perdure.backbone import TwoTowers
from perdure.backbone.sentences import readable_sentences
from perdure.config import Config
from perdure.data import Reference
from perdure.memory import Features, FeatureStore
from perdure.modules.losses import distillation
from perdure.train.batches import NO_IMAGES, Batch, TaskImages
from perdure.train.settings import Constant, Cosine, ImageTraining

KEPT_BYTES = 1 << 31
"""Reference images that a training draws are decoded once and kept, if their pixels take no more; else step by step."""


class CosineToZero(Cosine):
    """The same, one step faster: the last step is at zero, and moves nothing."""

    name: Literal["cosine_to_zero"] = "cosine_to_zero"  # type: ignore[assignment]

    def factor(self, step: int, n_steps: int, epoch: int, n_epochs: int) -> float:
        """At ``step`` of ``n_steps``, in ``epoch`` of ``n_epochs``; both count from 0."""
        return super().factor(step, n_steps - 1, epoch, n_epochs)


StepSchedule: TypeAlias = Annotated[Constant | Cosine | CosineToZero, Field(discriminator="name")]


class Distillation(Config):
    """What a student keeps of its teacher: how reference images and sentences are alike."""

    batch_size: int = Field(64, ge=1, description="reference images per step (B_r)")
    temperature: float = Field(2.0, gt=0, description="of both softmaxes (T)")
    images: float = Field(1.0, ge=0, description="weight of the loss whose rows are images over all sentences (w_img)")
    texts: float = Field(1.0, ge=0, description="weight of that whose rows are sentences over the images (w_txt)")
    texts_by: Literal["transpose", "symmetric"] = Field(
        "transpose", description="in the second: the student's images, or its sentences, of which each step draws B_r"
    )


class StepTraining(ImageTraining):
    """How something is trained on images, for so many steps."""

    iterations: int | None = Field(None, ge=1, description="steps of every task; null: as many as its epochs have")
    inclusive_last: bool = Field(False, description="one step more, as the released code counts from 0 to N")
    schedule: StepSchedule = Field(Cosine(), description="of the learning rate, by step")
    accumulate: Literal[1] = Field(1, description="a step's images pass together: they are compared with one another")

    @property
    def as_one_epoch(self) -> StepTraining:
        """The same for a session whose only epoch has all steps."""
        return self.model_copy(update={"epochs": 1})


class Plan(NamedTuple):
    """What one step takes."""

    own: Int[Tensor, " b"]  # positions of the task's images
    images: Int[Tensor, " r"]  # of reference images
    sentences: Int[Tensor, " s"]  # of reference sentences


@dc.dataclass(frozen=True, slots=True, eq=False)
class ReferenceBatch:
    """Reference data of one step; none where nothing is distilled."""

    images: UInt8[Tensor, "r 3 s s"]  # in test view, on the backbone's device
    teacher: Float[Tensor, "r d"]  # the teacher's raw embeddings of them
    sentences: Int[Tensor, " m"]  # positions


class Teacher:
    """A frozen CLIP, by which a student that moves holds: reference images and sentences are to stay as alike.

    Args:
        backbone: the CLIP; what it says of an image or a sentence is computed once ever.
        reference: images and sentences.
        how: the student is held.
        store: of the teacher's embeddings.

    Raises:
        BackboneError: for a sentence of too many tokens, with its line.
    """

    def __init__(self, backbone: TwoTowers, reference: Reference, how: Distillation, store: FeatureStore) -> None:
        self.backbone, self.images, self.how = backbone, reference.images, how
        texts = readable_sentences(backbone.text, reference)
        self.sentences = store.texts(backbone, texts, label="reference sentences").to(backbone.device)  # (n, d), raw
        self.ids = backbone.text.tokens(texts if how.texts_by == "symmetric" else [])  # of those that a student reads

    def loss(
        self, v: Float[Tensor, "r d"], batch: ReferenceBatch, read: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, ""]:
        """w_img L_img + w_txt L_txt.

        Args:
            v: the student's raw embeddings of the batch's images, with gradient.
            batch: reference data of one step.
            read: the student's raw embeddings of tokens, with gradient; ``symmetric`` alone asks for them.
        """
        how, logits = self.how, self.backbone.logits
        teacher, student = logits(batch.teacher, self.sentences), logits(v, self.sentences)
        by_images = distillation(teacher, student, how.temperature)
        if how.texts_by == "symmetric":
            teacher = teacher[:, batch.sentences]
            student = logits(batch.teacher, read(self.ids[batch.sentences]))
        return how.images * by_images + how.texts * distillation(teacher.T, student.T, how.temperature)


class StepsBeside:
    """The batches of all steps of a training, as one epoch: a task's images, and reference images beside them.

    Args:
        task: the task's images.
        config: how many steps.
        store: of the teacher's embeddings.
        teacher: with the reference images; None for a training without.
    """

    def __init__(self, task: TaskImages, config: StepTraining, store: FeatureStore, teacher: Teacher | None) -> None:
        self.task, self.config, self.store, self.teacher = task, config, store, teacher
        self._drawn, self._pixels = torch.zeros(0, dtype=torch.long), NO_IMAGES
        self._embedded: Features | None = None

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The task's images are decoded while it is entered, and those reference images that are drawn."""
        with self.task.open():
            yield
        self._pixels = NO_IMAGES

    def plan(self, rng: torch.Generator) -> list[Plan]:
        """All steps; the teacher embeds the reference images in them that it has not seen."""
        own = self._own(rng)
        none = [torch.zeros(0, dtype=torch.long)] * len(own)
        if (t := self.teacher) is None:
            return [Plan(*each) for each in zip(own, none, none, strict=True)]
        images = batches_of(len(t.images), t.how.batch_size, len(own), rng)
        sentences = batches_of(len(t.ids), t.how.batch_size, len(own), rng) if len(t.ids) else none
        self._draw(t, torch.cat(images).unique())
        return [Plan(*each) for each in zip(own, images, sentences, strict=True)]

    def batch(self, plan: Plan, rng: torch.Generator) -> tuple[Batch, ReferenceBatch | None]:
        """One step's images."""
        own = self.task.batch(plan.own, rng)
        if self.teacher is None or self._embedded is None:
            return own, None
        device, at = self.task.backbone.device, torch.searchsorted(self._drawn, plan.images)
        images = self._pixels[at] if len(self._pixels) else self._decoded(self.teacher, plan.images)
        return own, ReferenceBatch(images.to(device), self._embedded[at.numpy()].to(device), plan.sentences)

    def _own(self, rng: torch.Generator) -> list[Tensor]:
        c, plans = self.config, list[Tensor]()
        if c.iterations is None:
            plans += [plan for _ in range(c.epochs) for plan in self.task.plan(rng)]
        n = (c.iterations or len(plans)) + c.inclusive_last
        while len(plans) < n:
            plans += self.task.plan(rng)
        return plans[:n]

    def _draw(self, teacher: Teacher, positions: Int[Tensor, " n"]) -> None:
        part, side = teacher.images.subset(positions.numpy()), self.task.backbone.preprocess.image_size
        self._drawn = positions
        self._embedded = self.store.features(teacher.backbone, part, label="reference features")
        if 3 * side * side * len(positions) <= KEPT_BYTES:
            self._pixels = self._decoded(teacher, positions)

    def _decoded(self, teacher: Teacher, positions: Int[Tensor, " n"]) -> UInt8[Tensor, "n 3 s s"]:
        view, part = self.task.backbone.preprocess, teacher.images.subset(positions.numpy())
        found = torch.empty(len(part), 3, view.image_size, view.image_size, dtype=torch.uint8)
        for at, images in part.batches(view, 64):
            found[torch.from_numpy(at)] = images
        return found


def batches_of(n: int, size: int, steps: int, rng: torch.Generator) -> list[Tensor]:
    """Positions for so many steps, from epoch to epoch in another order; the last batch of an epoch may be smaller.

    Args:
        n: positions there are.
        size: of a batch.
        steps: batches wanted.
        rng: a CPU generator.
    """
    found: list[Tensor] = []
    while len(found) < steps:
        found += torch.randperm(n, generator=rng).split(size)
    return found[:steps]
