"""MOS as its released code runs, side effects included: only for comparing with the published logs.

Source: the released code of Sun, Zhou, Zhao, Gan, Zhan & Ye, "MOS: Model Surgery for Pre-Trained Model-Based
    Class-Incremental Learning", AAAI 2025 (arXiv 2412.09441), as its specification describes it.
Deviations: from the paper, all of them the release's. Adapters of later tasks are pulled towards their predecessors'
    mean whenever they are used, once per block: in training passes on top of the pull after every step, while the
    statistics are taken, class by class in batches of 3 ``batch_size`` (and the next task goes on from there), and in
    tests, which therefore change what was learned: every test batch, of ``batch_size``, passes all adapters once each.
    After a few test batches a stored adapter is its predecessors' mean, and predictions depend on what was tested
    before. Class means in A_0's space have dropout from the second task on. From the release: the head grows, so that
    rows of unseen and old classes do not decay while a task trains; a run tests task by task, so that each task's
    last batch may be smaller, where the release has one list of all images; A_0's features are computed once per test
    batch, not twice, which changes nothing.
Use when: you want to know what the published numbers are made of. Relations: ``mos`` is the method as described.
Cost: as ``mos``, but nothing that passes an adapter is kept, so that a test image passes all adapters anew after every
    task (38.5 passes per image for ten equal tasks); one more set of adapter weights per task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from perdure.backbone import Backbone
from perdure.backbone.passes import finite
from perdure.data import LabelledImages, Task
from perdure.methods.base import Method, Tags, methods
from perdure.methods.mos import MOS
from perdure.modules.adapter import Adapter
from perdure.modules.merging import pull_on_use

DROPOUT = 2**31  # added to a task's index: the random stream of the dropout in its class means
STATISTICS = 3  # times batch_size: a batch of the pass that takes a class's statistics


@methods.register("mos_release")
class MOSRelease(MOS):
    """As :class:`MOS`; tests change it."""

    tags: ClassVar = Tags(
        adapts=True,
        depends_on_test_batch=True,
        small=MOS.tags.small,
        learns=MOS.tags.learns,
        expected_failures={
            "check_predicting_changes_nothing": "the release's tests move stored adapters",
            "check_threads_do_not_matter": "the release's tests move stored adapters",
            "check_frozen_features_cost_one_pass": "features under adapters that tests move cannot be kept",
        },
    )

    def setup(self) -> None:
        """As in MOS, and no stored sum."""
        super().setup()
        self.prefix_ = torch.zeros(0)  # S_t = A_0 + … + A_t as they were stored, (tasks, parameters), float64
        self.working_ = torch.zeros(0)  # W, which training goes on from, (parameters,)

    def _added(self, task: int) -> None:
        """From the second task on, an adapter is pulled towards its predecessors' mean whenever it is used."""
        if task:
            pull_on_use(_blocks(self.adapters_[task]), lambda: self._mean(task), self.config.merge)

    def _train_adapter(self, task: Task, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        if task.index:  # goes on from W
            vector_to_parameters(self.working_.to(self.backbone.device), self.adapters_[-1].parameters())
        super()._train_adapter(task, columns, rng)

    def _mean_adapter(self) -> list[Tensor]:
        return self._mean(len(self.adapters_) - 1)

    def _mean(self, task: int) -> list[Tensor]:
        """The mean of the adapters before ``task``, as they were stored; nothing for the first."""
        if not task:
            return []
        own = list(self.adapters_[0].parameters())
        parts = (self.prefix_[task - 1] / task).float().to(self.backbone.device).split([p.numel() for p in own])
        return [part.view_as(p) for part, p in zip(parts, own, strict=True)]

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
        adapters, out = _blocks(self.adapters_[task]), torch.empty(len(data), view.dim)
        for adapter in adapters:  # of A_0, once the alignment of an earlier task has left the release in training mode
            adapter.dropout_rng = dropout if task == 0 and self.tasks_seen_ > 0 else None
        try:
            for positions in parts:
                for here, images in data.batches(self.backbone.preprocess, size, positions):
                    out[torch.from_numpy(here)] = _passed(view, images)
        finally:
            for adapter in adapters:
                adapter.dropout_rng = None
        return out

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """As in :class:`Method`, in batches of ``batch_size`` on every device: each changes all adapters but the first.

        Args:
            data: images; their labels are not looked at.

        Raises:
            NotFittedError: before the first task.
        """
        return Method.scores_of(self, data)

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


def _blocks(part: nn.Module) -> list[Adapter]:
    """The adapters of a task, one per block."""
    return [m for m in part.modules() if isinstance(m, Adapter)]
