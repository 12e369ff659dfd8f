"""GEM: gradient episodic memory. No step may raise the loss on kept images of any earlier task, to first order.

Source: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, arXiv 1706.08840.
Use when: kept images may hold steps back, but not teach. Else ``er`` is as good with new classes, and costs less.
Deviations:
- From the paper: one softmax over all classes seen, of the batch and of kept images; the task is never told.
- From the paper: several epochs (``train.epochs=1`` is its single pass) of a pretrained backbone's head (``part``).
- From the paper: no margin (``projection.margin``, γ). Where there is one, it bounds v, as in the released code.
- From the code: the ridge is relative to each gradient's norm; 0.001 as it is would halve corrections of small ones.
- From the code: images are herded when a task ends; ``memory.policy=random``, in presets, is as random as its ring.
- From the code: gradients on kept images drop nothing, and are written to parameters that the batch does not reach.
- Clipping comes after the projection: it scales the whole step, which no constraint minds.
Relations: ``agem`` has one constraint in all; in ``er`` kept images teach. Without a memory it is ``finetune``.
Cost: F is a frozen forward pass; t earlier tasks, m kept images of each per step of B. ``head``: any image F once ever.
    ``full``: training image 3 F (1 + t m / B) per epoch and F to herd; ``adapter``, ``lora``: 2 F in place of 3 F. Test
    image: F after each task. While it trains: 4 t p bytes for p numbers that learn. State: the part, a head, the files.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar, Self

import torch
from pydantic import Field

from perdure.config import published
from perdure.data import Task
from perdure.learned import learned
from perdure.methods.base import Tags, methods
from perdure.methods.base_replay import ReplayConfig, ReplayMethod
from perdure.modules.gradient_projection import Projection, project
from perdure.train.projecting import Guard, HeldTraining
from perdure.train.replay import Memory, kept


class TaskMemory(Memory):
    """What is kept of earlier tasks, chosen at the end of each."""

    per_step: int | None = Field(  # type: ignore[assignment]  # a mean over all is exact, and cheap on stored features
        None, ge=1, description="kept images of each earlier task in every step, drawn anew (memory_batch); null: all"
    )


class GEMConfig(ReplayConfig):
    """Settings of GEM."""

    presets: ClassVar = published("gem")

    train: HeldTraining = Field(HeldTraining(), description="of the part and the head")
    memory: TaskMemory = Field(TaskMemory(), description="images kept of earlier tasks")
    projection: Projection = Field(Projection(), description="of a step that would raise a loss")


@methods.register("gem")
class GEM(ReplayMethod[GEMConfig]):
    """One constraint per earlier task."""

    Config = GEMConfig
    tags: ClassVar = Tags(
        keeps_data=True,
        small={"train": {"epochs": 2, "batch_size": 4}, "memory": {"n_per_class": 2}},
        learns={"train": {"lr": 1.0, "epochs": 30}, "memory": {"n_per_class": 4}},
    )

    exemplar_tasks_: list[int] = learned("exemplars", int, "task of each kept image", below="tasks", merges="pooled")

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        how, of_task, known = self.config.projection, self.exemplar_tasks_, self._tasks_by_image()
        held = kept(self.exemplars_, self.columns, per_step=0)  # no step learns from them
        session = self._session(task.train, rng, held, "gradient episodic memory")
        guard = Guard(
            session, self._loss, len(task.train), of_task, self.config.memory.per_step,
            lambda g, memories: project(g, memories, how),
        )  # fmt: skip
        session.run(self._loss, after_backward=guard)
        self._keep(task, rng)
        self.exemplar_tasks_ = [known.get(key, task.index) for key in self.exemplars_.images().keys.tolist()]

    def _tasks_by_image(self) -> dict[bytes, int]:
        return dict(zip(self.exemplars_.images().keys.tolist(), self.exemplar_tasks_, strict=True))

    def _pooled(self, other: Self) -> dict[str, Any]:
        """Each image that both together keep is of the task that it was taught in."""
        both, of_task = copy.deepcopy(self.exemplars_), {**other._tasks_by_image(), **self._tasks_by_image()}
        both.merge(other.exemplars_)
        return {**super()._pooled(other), "exemplar_tasks_": [of_task[key] for key in both.images().keys.tolist()]}
