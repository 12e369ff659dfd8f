"""ER: experience replay. Every step trains on a batch of the task and on some images kept of earlier tasks.

Source: Chaudhry et al., "On Tiny Episodic Memories in Continual Learning", 2019, arXiv 1902.10486.
Use when: some images may be kept. The plain method that every other one with a memory should beat.
Deviations:
- From the paper: the memory is filled after a task, not after each step: no image of the present task is replayed.
- From the paper: ``memory.policy=reservoir`` is its sample; the default herds 20 images of each class.
- From the paper: 32 kept images beside 16 new ones, not as many as those (``memory.per_step``), and several epochs.
- From the paper: the head alone learns by default (``part``), and on views that do not change, so that it costs little.
- These defaults were found on held-out training images of CIFAR-10.
Relations: ``finetune`` is its ``part=full`` without a memory; ``joint`` keeps everything; ``gem`` and ``agem`` let kept
    images forbid directions, and do not learn from them.
Cost: F is a forward pass, B new and m kept images a step. Training and test image with ``head``: F once ever. Training
    image with ``adapter`` or ``lora``: 2 F (1 + m / B) per epoch, with ``full`` 3 F (1 + m / B); test image: F after
    each task. Herding: F per training image once ever. State: the part, a head, and the files of what is kept.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from perdure.data import Task
from perdure.methods.base import Tags, methods
from perdure.methods.base_replay import ReplayConfig, ReplayMethod
from perdure.train.replay import Memory


class ERConfig(ReplayConfig):
    """Settings of experience replay."""

    memory: Memory = Field(Memory(per_step=32), description="images kept of earlier tasks")


@methods.register("er")
class ER(ReplayMethod[ERConfig]):
    """One cross-entropy over [batch; memory batch], over all classes seen."""

    Config = ERConfig
    tags: ClassVar = Tags(
        keeps_data=True,
        small={"train": {"epochs": 2, "batch_size": 4}, "memory": {"n_per_class": 2, "per_step": 4}},
        learns={"train": {"lr": 0.1, "epochs": 30}, "memory": {"n_per_class": 4, "per_step": 16}},
    )

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        self._session(task.train, rng, self._kept(), "experience replay").run(self._loss)
        self._keep(task, rng)
