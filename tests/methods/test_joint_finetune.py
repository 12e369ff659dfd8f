"""The upper bound: everything is kept, and every task starts again from the pretrained weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perdure import Backbone, FeatureStore, Stream
from perdure.backbone.tiny import small_vit
from perdure.checks.subject import small_stream
from perdure.data import LabelledImages
from perdure.methods.joint_finetune import JointFinetune
from perdure.train.session import Session

SMALL = {"train": {"epochs": 2, "batch_size": 8}}


class Watched(JointFinetune):
    """Tells what every training starts from, and on which images."""

    def setup(self) -> None:
        super().setup()
        self.seen: list[tuple[dict[str, torch.Tensor], int, LabelledImages]] = []

    def _session(self, data: LabelledImages, *rest: Any, **named: Any) -> Session[Any]:
        start = {name: value.clone() for name, value in self.part_.state_dict().items()}
        self.seen.append((start, len(self.head_.bias), data))
        return super()._session(data, *rest, **named)


@pytest.fixture(scope="module")
def stream() -> Stream:
    return small_stream((2, 3), train_per_class=3, test_per_class=1)


@pytest.mark.parametrize("part", ["full", "adapter"])
def test_every_task_starts_again_on_all_images(part: str, stream: Stream, store: FeatureStore) -> None:
    backbone = small_vit()
    method, first = Watched(backbone, SMALL, part=part, store=store), stream[0].train
    initial = {name: value.clone() for name, value in method.part_.state_dict().items()}
    for task in stream:
        method.fit_task(task)
        assert any(not torch.equal(value, method.part_.state_dict()[name]) for name, value in initial.items())
    for start, width, _ in method.seen:
        assert width == 0
        assert all(torch.equal(value, start[name]) for name, value in initial.items())
    assert [len(data) for _, _, data in method.seen] == [6, 15]
    _, _, both = method.seen[1]
    assert sorted(both.keys.tolist()) == sorted([*first.keys.tolist(), *stream[1].train.keys.tolist()])
    labels = dict(zip(first.keys.tolist(), first.labels.tolist(), strict=True))
    found = dict(zip(both.keys.tolist(), both.labels.tolist(), strict=True))
    assert {key: found[key] for key in labels} == labels
    assert method.n_exemplars == 15
    assert backbone.passes.images == (2 * (6 + 15) if part == "full" else backbone.passes.images)


def test_one_task_of_all_classes_is_one_training(store: FeatureStore, backbone: Backbone) -> None:
    (task,) = small_stream((4,), train_per_class=3)
    method = JointFinetune(small_vit(), SMALL, store=store).fit_task(task)
    assert method.backbone.passes.images == 2 * 12
    assert method.n_exemplars == 12
