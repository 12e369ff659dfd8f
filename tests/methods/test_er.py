"""Experience replay: what a step sees, what it costs, and every part that may learn."""

from __future__ import annotations

import dataclasses as dc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perdure import Backbone, FeatureStore, Stream
from perdure.backbone.tiny import TINY, small_vit
from perdure.checks import check_method
from perdure.checks.subject import small_stream
from perdure.config import laid_over
from perdure.errors import BackboneError
from perdure.methods.er import ER
from perdure.train.batches import Batch

ON_EVERY_PART = [
    "check_features_come_from_where_the_tags_say",
    "check_frozen_features_cost_one_pass",
    "check_failed_task_changes_nothing",
    "check_whole_data_equals_batches",
    "check_resumed_equals_straight",
]
SMALL = {"train": {"epochs": 2, "batch_size": 5}, "memory": {"n_per_class": 3, "per_step": 4}}


class Watched(ER):
    """Tells every batch and its loss."""

    def setup(self) -> None:
        super().setup()
        self.seen: list[tuple[int, Batch, Tensor, Tensor]] = []

    def _loss(self, batch: Batch) -> Tensor:
        value = super()._loss(batch)
        logits = self.head_(batch.features(self.view)).detach()
        self.seen.append((self.tasks_seen_, batch, logits, value.detach()))
        return value


@pytest.fixture(scope="module")
def stream() -> Stream:
    return small_stream(test_per_class=2)


@pytest.fixture(scope="module")
def small() -> Backbone:
    return small_vit()


def test_a_step_is_one_mean_over_the_batch_and_what_is_kept(
    small: Backbone, stream: Stream, store: FeatureStore
) -> None:
    method = Watched(small, SMALL, store=store)
    for task in stream:
        method.fit_task(task)
    for index in range(3):
        steps = [step[1:] for step in method.seen if step[0] == index]
        assert len(steps) == 2 * 3  # 12 images, 5 a step
        for batch, logits, value in steps:
            n = len(batch.columns)
            assert n - batch.n_new == (4 if index else 0)
            assert logits.shape == (n, 2 * (index + 1))  # all classes seen, and none to come
            assert torch.equal(batch.columns[: batch.n_new] // 2, torch.full((batch.n_new,), index))
            assert (batch.columns[batch.n_new :] // 2 < index).all()
            new, old = (
                F.cross_entropy(logits[part], batch.columns[part], reduction="sum")
                for part in (slice(batch.n_new), slice(batch.n_new, n))
            )
            assert torch.allclose(value, (new + old) / n, atol=1e-6)
        kept = torch.cat([batch.positions[batch.n_new :] for batch, _, _ in steps])
        assert len(kept.unique()) > 4 or not index  # drawn anew at every step


def test_a_head_on_stored_features_passes_no_image_twice(small: Backbone, stream: Stream, store: FeatureStore) -> None:
    method, before = ER(small, SMALL, store=store), small.passes.images
    for task in stream:
        method.fit_task(task)
        method.predict(stream.test(0))
    assert small.passes.images - before == sum(len(task.train) for task in stream) + len(stream.test(0))
    assert method.n_exemplars == 6 * 3


@pytest.mark.parametrize("part", ["adapter", "lora", "full"])
def test_every_part_keeps_the_promises(part: str) -> None:
    name: dict[str, Any] = {"name": part} if part == "full" else {"name": part, "rank": 2}

    class Kind(ER):
        __doc__ = ER.__doc__
        tags = dc.replace(
            ER.tags, adapts=part != "full", trains_backbone=part == "full",
            small=laid_over(ER.tags.small, {"part": name}),
        )  # fmt: skip

    Kind.__module__ = ER.__module__
    assert [result.note for result in check_method(Kind, only=ON_EVERY_PART) if not result.ok] == []


def test_a_part_without_a_seat_is_refused_before_any_task(store: FeatureStore) -> None:
    with pytest.raises(BackboneError, match=r"seat must be among .*, but got 'mlp'"):
        ER(TINY["any"](), part="adapter", store=store)
