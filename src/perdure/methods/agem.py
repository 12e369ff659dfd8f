"""A-GEM: averaged GEM. No step may raise the loss on some images drawn from all kept ones, to first order.

Source: Chaudhry, Ranzato, Rohrbach & Elhoseiny, "Efficient Lifelong Learning with A-GEM", ICLR 2019, arXiv 1812.00420.
Use when: as ``gem``, where a gradient per earlier task takes too long. With new classes it forgets much more.
Deviations:
- From the paper: one softmax over all classes seen, of the batch and of kept images; the task is never told.
- From the paper: several epochs (``train.epochs=1`` is its single pass) of a pretrained backbone's head (``part``).
- From the paper: images are herded when a task ends, not drawn step by step; ``memory.policy=random`` draws them.
- From ports of the code: as many images are kept as the memory says, not one batch per task or those of the task too.
- From ports of the code: kept images are seen like the task's own, normalised and augmented, but nothing is dropped.
- Clipping comes after the projection: it scales the whole step, which the constraint does not mind.
Relations: ``gem`` has a constraint per task, and is the same while one task is past; in ``er`` kept images teach.
Cost: F is a frozen forward pass, m kept images per step of B. ``head``: any image F once ever. ``full``: training image
    3 F (1 + m / B) per epoch and F to herd; ``adapter``, ``lora``: 2 F in place of 3 F. Test image: F after each task.
    While it trains: 8 p bytes for p numbers that learn. State: the part, a head, the files.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from perdure.config import published
from perdure.data import Task
from perdure.methods.base import Tags, methods
from perdure.methods.base_replay import ReplayConfig, ReplayMethod
from perdure.modules.gradient_projection import project_on_one
from perdure.train.projecting import Guard, HeldTraining
from perdure.train.replay import kept


class AGEMConfig(ReplayConfig):
    """Settings of A-GEM."""

    presets: ClassVar = published("agem")

    train: HeldTraining = Field(HeldTraining(lr=0.03), description="of the part and the head")


@methods.register("agem")
class AGEM(ReplayMethod[AGEMConfig]):
    """One constraint on the mean gradient of kept images."""

    Config = AGEMConfig
    tags: ClassVar = Tags(
        keeps_data=True,
        small={"train": {"epochs": 2, "batch_size": 4}, "memory": {"n_per_class": 2, "per_step": 4}},
        learns={"train": {"lr": 1.0, "epochs": 30}, "memory": {"n_per_class": 4}},
    )

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        held = kept(self.exemplars_, self.columns, per_step=0)  # no step learns from them
        session = self._session(task.train, rng, held, "averaged gradient episodic memory")
        guard = Guard(
            session, self._loss, len(task.train), [0] * len(self.exemplars_), self.config.memory.per_step,
            lambda g, memories: project_on_one(g, memories[0]),
        )  # fmt: skip
        session.run(self._loss, after_backward=guard)
        self._keep(task, rng)
