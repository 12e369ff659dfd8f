"""LAE's training, as its specification has it, in the session: what a method's own lines come to."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from perdure import FeatureStore, Task
from perdure.checks.subject import small_stream
from perdure.config import MethodConfig
from perdure.learned import learned_module
from perdure.methods.base import Method
from perdure.modules.heads import GrowingLinear
from perdure.modules.losses import masked_cross_entropy
from perdure.train.adapting import AdapterPart, adaptable
from perdure.train.batches import Batch
from perdure.train.session import on_images
from perdure.train.settings import ImageTraining
from tiny_vit import tiny

TRAIN = ImageTraining(lr=0.05, epochs=3, batch_size=4)
FREEZE, DECAY = 2, 0.9


class LAE(Method[MethodConfig]):
    """Learning and accumulation: an online adapter, and an offline one that follows it."""

    Config = MethodConfig
    online_: nn.Module = learned_module({}, "learns the present task", rest="adapter")
    offline_: nn.Module = learned_module({}, "follows it, from the second task on", rest="adapter")
    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "of both")

    def setup(self) -> None:
        self.view, self.online_ = adaptable(self.backbone, AdapterPart(rank=2), self._initial())
        self.offline_, self.head_ = copy.deepcopy(self.online_), GrowingLinear(self.backbone.dim)
        self.seen: list[list[Tensor]] = []

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        columns, first = self.columns(task.train.labels), not self.tasks_seen_
        self.head_.grow(len(self.classes_), rng)
        learns = [self.online_, self.head_]
        session = on_images(self.view, task.train, columns, TRAIN, rng, self.store, fast=learns)

        def loss(batch: Batch) -> Tensor:
            return masked_cross_entropy(self.head_(batch.features(self.view)), batch.columns, columns.unique())

        def freeze() -> None:
            self.online_.requires_grad_(first or session.epoch >= FREEZE)

        session.run(loss, before_epoch=freeze, after_step=self._copy if first else self._accumulate)

    def _copy(self) -> None:
        self.offline_.load_state_dict(self.online_.state_dict())

    @torch.no_grad()
    def _accumulate(self) -> None:
        self.seen.append([p.clone() for p in self.online_.parameters()])
        for off, on in zip(self.offline_.parameters(), self.online_.parameters(), strict=True):
            off += (1 - DECAY) * (on - off)

    def _scores(self, images: Tensor) -> Tensor:
        return self.head_(self.view.features(images))


def test_the_training_step_of_lae_takes_twelve_lines(store: FeatureStore) -> None:
    lines = [line for line in inspect.getsource(LAE._learn).splitlines()[1:] if line.strip()]
    assert len(lines) <= 12


def test_it_freezes_learns_and_accumulates_as_specified(store: FeatureStore) -> None:
    """Section 6: a copy of the first task's result; then every step follows, during the freeze too."""
    stream = small_stream((2, 2))
    method: Any = LAE(tiny(), store=store).fit_task(stream[0])
    start = [p.clone() for p in method.online_.parameters()]
    assert all(map(torch.equal, start, method.offline_.parameters()))
    method.fit_task(stream[1])
    n_frozen = len(method.seen) * FREEZE // TRAIN.epochs
    for step, online in enumerate(method.seen):
        assert all(map(torch.equal, online, start)) == (step < n_frozen)
    wanted = start
    for online in method.seen:
        wanted = [off + (1 - DECAY) * (on - off) for off, on in zip(wanted, online, strict=True)]
    for off, by_hand in zip(method.offline_.parameters(), wanted, strict=True):
        torch.testing.assert_close(off, by_hand)
    assert not any(map(torch.equal, method.offline_.parameters(), method.online_.parameters()))
