"""mos_release: MOS as its released code runs, side effects included; only for comparing with the published logs.

Source: the released code of Sun, Zhou, Zhao, Gan, Zhan & Ye, "MOS: Model Surgery for Pre-Trained Model-Based
    Class-Incremental Learning", AAAI 2025, arXiv 2412.09441, as its specification describes it.
Use when: you want to know what the published numbers are made of. For all else there is ``mos``.
Deviations:
- From the paper: any use of a later task's adapter pulls it to its predecessors' mean, once per block.
- From the paper: in training this comes on top of the pull after every step.
- From the paper: the pass for the Gaussians pulls too, in batches three times as large; the next task goes on there.
- From the paper: every test batch pulls too, so that it soon is that mean, and scores depend on what was tested before.
- From the paper: class means in the first adapter's space have dropout from the second task on.
- From the released code: tests go task by task, so that each task's last batch may be smaller; the head is as in MOS.
Relations: ``mos`` is the method as described.
Cost: as ``mos``, but a test image passes all adapters anew after every task: (T + 1) (2 T + 1) / 6 F per test image
    for T equal tasks (38.5 F for ten). State: one more set of adapter weights per task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from perdure.backbone import Backbone
from perdure.backbone.passes import finite
from perdure.data import LabelledImages, Task
from perdure.learned import learned
from perdure.methods.base import Method, Tags, methods
from perdure.methods.mos import MOS
from perdure.modules.adapter import adapters_in, dropping
from perdure.modules.heads import GrowingLinear
from perdure.modules.merging import pull_on_use, split_like

DROPOUT = 2**31  # added to a task's index: the random stream of the dropout in its class means
STATISTICS = 3  # times batch_size: a batch of the pass that takes a class's statistics


@methods.register("mos_release")
class MOSRelease(MOS):
    """As :class:`MOS`; tests change it."""

    tags: ClassVar = Tags(
        backbone="transformer", adapts=True, depends_on_test_batch=True,
        small=MOS.tags.small, learns=MOS.tags.learns,
        expected_failures={
            "check_predicting_changes_nothing": "the release's tests move stored adapters",
            "check_threads_do_not_matter": "the release's tests move stored adapters",
            "check_frozen_features_cost_one_pass": "features under adapters that tests move cannot be kept",
        },
    )  # fmt: skip

    prefix_: Tensor = learned("tasks, parameters", torch.float64, "S_t = A_0 + … + A_t as they were stored")
    working_: Tensor = learned("parameters", torch.float32, "W, which training goes on from")

    def _added(self, task: int) -> None:
        """From the second task on, an adapter is pulled towards its predecessors' mean whenever it is used."""
        if task:
            pull_on_use(adapters_in(self.adapters_[task]), lambda: self._mean(task), self.config.merge)

    def _train_adapter(self, task: Task, own: Int[Tensor, " n"], head: GrowingLinear, rng: torch.Generator) -> None:
        if task.index:  # goes on from W
            vector_to_parameters(self.working_.to(self.backbone.device), self.adapters_[-1].parameters())
        super()._train_adapter(task, own, head, rng)

    def _mean_adapter(self) -> list[Tensor]:
        return self._mean(len(self.adapters_) - 1)

    def _mean(self, task: int) -> list[Tensor]:
        """The mean of the adapters before ``task``, as they were stored; nothing for the first."""
        if not task:
            return []
        mean = (self.prefix_[task - 1] / task).float().to(self.backbone.device)
        return split_like(mean, list(self.adapters_[0].parameters()))

    def _add_statistics(self, task: Task, columns: Int[Tensor, " n"]) -> None:
        adapter = self.adapters_[-1]
        stored = parameters_to_vector(adapter.parameters()).detach()
        earlier = self.prefix_ if task.index else torch.zeros(0, len(stored), dtype=torch.float64)
        total = earlier[-1:].sum(0) + stored.cpu().double()
        self.prefix_ = torch.cat([earlier, total[None]])
        super()._add_statistics(task, columns)  # moves the adapter
        self.working_ = parameters_to_vector(adapter.parameters()).detach().cpu()
        vector_to_parameters(stored, adapter.parameters())

    def _embedded(self, task: int, data: LabelledImages) -> Float[Tensor, "n d"]:
        view, size, parts = self.adapters_.views[task], self.config.adapter.train.batch_size, [np.arange(len(data))]
        if task:  # for statistics; class means are taken under A_0, which no pull moves
            columns = self.columns(data.labels)
            size, parts = STATISTICS * size, [(columns == c).nonzero()[:, 0].numpy() for c in columns.unique()]
        dropout = torch.Generator(self.backbone.device).manual_seed(self.seed + DROPOUT + self.tasks_seen_)
        out, drops = torch.empty(len(data), view.dim), task == 0 and self.tasks_seen_ > 0
        # in A_0, once the alignment of an earlier task has left the release in training mode
        with dropping(adapters_in(self.adapters_[task]), dropout if drops else None):
            for positions in parts:
                for here, images in data.batches(self.backbone.preprocess, size, positions):
                    out[torch.from_numpy(here)] = _passed(view, images)
        return out

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """In batches of ``batch_size`` on every device: each changes all adapters but the first."""
        return Method._scores_of(self, data)

    @property
    def _test_batch(self) -> int:
        return self.config.adapter.train.batch_size

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        table = [_passed(view, images) for view in self.adapters_.views[: self.tasks_seen_]]  # every adapter once
        return self._ensemble(lambda task, positions: table[task][positions], len(images))


def _passed(view: Backbone, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
    """Features by one pass of the whole batch, which is one use of every adapter."""
    with torch.no_grad():
        return finite(view.embed(images)).cpu()
