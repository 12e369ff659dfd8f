"""ZSCL: both towers of a CLIP learn every task, held near the CLIP they were by reference data and by averaging.

Source: Zheng, Ma, Wang, Qin, Yue & You, "Preventing Zero-Shot Transfer Degradation in Continual Learning of
    Vision-Language Models", ICCV 2023 (arXiv 2303.06628).
Use when: all weights of a CLIP may learn, and it shall still answer about names that it is never taught.
Deviations:
- From the released code: N steps, not N + 1; the cosine's zero comes behind the last (``train.inclusive_last``).
- From the released code: what the frozen teacher says is computed once ever; test images are not cropped at random.
- Released code: no distillation reaches the text tower. The default does the same; ``distill.texts_by=symmetric``.
- Paper: Conceptual Captions. Any sentences do; ImageNet's names and definitions need no file.
- Left out: WiSE-FT, pulls of the student itself, earlier or random names in the softmax.
Relations: ``preset=finetune`` is plain fine-tuning of both towers, without reference data. clip_zeroshot is the start.
Cost: F is a frozen forward pass of an image. A task's image, at each step: 3 F, 3 F for a reference image beside it,
    and the texts of the task's names forward and back. A reference image or sentence: once ever. Test image: F after
    each task. State: a CLIP, and 4 d bytes per class; in training also its mean and its start.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.backbone import TwoTowers
from perdure.config import published
from perdure.data import Candidate, Task
from perdure.learned import learned, learned_module
from perdure.memory import Features
from perdure.methods.base import Tags, methods
from perdure.methods.base_reference import ReferenceConfig, ReferenceMethod
from perdure.modules.weight_mean import WeightMean, add_pull_
from perdure.train.batches import Batch, TaskImages
from perdure.train.session import Session
from perdure.train.settings import AdamW, Augment, Cosine
from perdure.train.teacher import Distillation, ReferenceBatch, StepsBeside, StepTraining, Teacher

TRAIN = StepTraining(
    lr=1e-5, iterations=1000, epochs=1, batch_size=64, optimizer=AdamW(), schedule=Cosine(warmup=100),
    augment=Augment(min_scale=0.9, flip=False),
)  # fmt: skip


class ZSCLConfig(ReferenceConfig):
    """Settings of ZSCL."""

    presets: ClassVar = published("zscl")

    train: StepTraining = Field(TRAIN, description="of both towers")
    smoothing: float = Field(0.2, ge=0, lt=1, description="of the labels")
    distill: Distillation | None = Field(Distillation(), description="from the first CLIP; none: no reference data")
    pull: float = Field(1.0, ge=0, description="weight of the squared way from the task's start, summed (lambda)")
    ensemble: int | None = Field(100, ge=1, description="steps from one weight of the mean to the next (I); null: none")

    @property
    def uses_reference(self) -> bool:
        """Whether anything is distilled."""
        return self.distill is not None and (self.distill.images > 0 or self.distill.texts > 0)


@methods.register("zscl")
class ZSCL(ReferenceMethod[ZSCLConfig]):
    """logit_scale * cos(f(x), g(text_c)), both towers as they are after the last task."""

    Config = ZSCLConfig
    tags: ClassVar = Tags(
        backbone="towers", adapts=True, class_names=True, open_vocabulary=True,
        extra_data="unlabelled images and sentences",
        small={"train": {"iterations": 3, "batch_size": 8, "lr": 1e-3, "schedule": {"warmup": 1}},
               "distill": {"batch_size": 4}, "ensemble": 2},
        learns={"train": {"iterations": 25, "lr": 2e-3}, "pull": 0.1},
        expected_failures=dict.fromkeys(
            ("check_remembers_every_task", "check_tells_the_classes_of_every_task_apart"),
            "it keeps what the first CLIP knew: that of the checks has random weights and knows nothing",
        ),
    )  # fmt: skip

    student_: TwoTowers = learned_module({}, "both towers, trained (theta)", rest="backbone")
    sets_: list[str] = learned("classes", str, "the data set that each class came from, where there are several")

    def setup(self) -> None:
        """A copy of both towers."""
        self.student_ = self.backbone.thawed_copy(text=True).requires_grad_(False)

    @property
    def embedder(self) -> TwoTowers:
        """The student: another after every task."""
        return self.student_

    def learned_parameters(self) -> int:
        """Those of both towers."""
        return sum(p.numel() for p in self.student_.parameters())

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, student, weights = self.config, self.student_, list(self.student_.parameters())
        self.new_names()  # refuses those that it cannot tell apart
        self.sets_ = [*self.sets_, *[task.dataset or ""] * (len(self.classes_) - len(self.sets_))]
        columns, targets = self.columns(task.train.labels).unique(return_inverse=True)
        ids = student.text.tokens([self.sentences(self.displays_[i], task.dataset)[0] for i in columns.tolist()])
        images = TaskImages(student, task.train, targets, c.train, self.store, weights)
        source = StepsBeside(images, c.train, self.store, teacher := self._teacher())
        session = Session(source, c.train.as_one_epoch, rng, fast=[student], progress=self.store.progress)
        mean = WeightMean(weights) if c.ensemble else None
        start = [p.detach().clone() for p in weights] if c.pull else []

        def loss(step: tuple[Batch, ReferenceBatch | None]) -> Tensor:
            own, reference = step
            if teacher is None or reference is None:
                return self._task_loss(student.embed(own.images), own.columns, ids)
            n, seen = len(own.images), student.embed(torch.cat([own.images, reference.images]))
            return self._task_loss(seen[:n], own.columns, ids) + teacher.loss(seen[n:], reference, self._read)

        def pull() -> None:
            if c.pull:
                add_pull_(weights, start, c.pull)

        def average() -> None:
            if mean and c.ensemble and (session.step - 1) % c.ensemble == 0:  # the first step counts
                mean.add()

        session.run(loss, after_backward=pull, after_step=average)
        if mean:
            mean.take()
        named = zip(self.names_, self.displays_, self.sets_, strict=True)
        self.texts_ = self._embedded([Candidate(name, text, of or None) for name, text, of in named])

    def _task_loss(self, u: Float[Tensor, "b d"], targets: Int[Tensor, " b"], ids: Int[Tensor, "n l"]) -> Tensor:
        """L_ce of the student's image embeddings, over the task's classes alone; ``ids``: the tokens of their texts."""
        logits = self.backbone.logits(u, self._read(ids))
        return F.cross_entropy(logits, targets, label_smoothing=self.config.smoothing)

    def _read(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """The student's text embeddings, with gradient."""
        return self.student_.text_embeddings_of(self.student_.text.vectors(ids), ids)

    def _teacher(self) -> Teacher | None:
        if self.config.distill is None or not self.uses_reference:
            return None
        data = self.known_reference("fit_task")
        self.reference_ = data.fingerprint
        return Teacher(self.backbone, data, self.config.distill, self.store)

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        """Images teach while the towers move, and not from features."""

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self._scores_by_text(features, self.texts_)
