"""What section 9 of MOS's specification says of the released code, and its golden tests of the compatible mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from perdure import Backbone, FeatureStore, Stream
from perdure.checks.subject import pixels
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods.mos import MOS, MOSConfig
from perdure.methods.mos_release import MOSRelease
from perdure.modules.merging import pull_on_use

IDS = [4, 2, 7, 0, 5, 9]
QUICK: dict[str, Any] = {
    "epochs": 1, "batch_size": 4, "rank": 2, "min_scale": 1.0, "flip": False, "align_epochs": 2, "lr": 0.05
}  # fmt: skip


def release(backbone: Backbone, store: FeatureStore, **config: Any) -> MOSRelease:
    return MOSRelease(backbone, MOSConfig(**{**QUICK, **config}), store=store)


def stream() -> Stream:
    return class_incremental(synthetic_dataset(IDS, train_per_class=4, test_per_class=3), (2, 2, 2), IDS)


def fitted(method: MOS, upto: int = 3) -> MOS:
    for task in stream()[method.tasks_seen_ : upto]:
        method.fit_task(task)
    return method


def flat(part: nn.Module) -> Tensor:
    return parameters_to_vector(part.parameters()).detach().clone()


class Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.w


def test_a_pass_through_twelve_blocks_pulls_twelve_times() -> None:
    blocks = [Scalar() for _ in range(12)]
    pull_on_use(blocks, lambda: [torch.tensor(2.0)] * 12, 0.1)
    seen, x = [], torch.ones(())
    for block in blocks:
        block(x)
        seen.append(block.w.item())
    assert seen == pytest.approx([2 - 0.9**k for k in range(1, 13)])  # block k's weights, when they are used
    assert [b.w.item() for b in blocks] == pytest.approx([2 - 0.9**12] * 12)  # 1.7176
    assert blocks[0].w.item() == pytest.approx(1.7176, abs=5e-5)


def test_a_backward_pass_raises_no_error() -> None:
    blocks = [nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)]
    pull_on_use(blocks, lambda: [torch.full((1, 1), 2.0)] * 2, 0.1)
    x = torch.ones(1, 1, requires_grad=True)
    blocks[1](blocks[0](x)).backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def test_tests_move_stored_adapters_towards_the_mean_of_their_predecessors(
    backbone: Backbone, store: FeatureStore
) -> None:
    m = fitted(release(backbone, store))
    stored = [flat(part) for part in m.adapters_]
    blocks = len(list(backbone.model.blocks))
    images = pixels(m, stream().test(2))
    m.views[2].features(images)
    mean = (stored[0] + stored[1]) / 2
    torch.testing.assert_close(flat(m.adapters_[2]), mean + 0.9**blocks * (stored[2] - mean))
    m.views[0].features(images)
    assert torch.equal(flat(m.adapters_[0]), stored[0])  # has no predecessors


def test_predictions_depend_on_what_was_tested_before(backbone: Backbone, store: FeatureStore) -> None:
    m = fitted(release(backbone, store, lr=0.5))
    assert m.depends_on_test_batch
    whole, images = stream(), pixels(m, stream().test(2))
    first = m.scores(images)
    for _ in range(3):
        m.predict(whole.test(1))
        m.predict(whole.test(2))
    assert not torch.equal(first, m.scores(images))


def test_a_step_pulls_once_per_block_and_once_more(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, seen = fitted(release(backbone, store, lr=1e-30, align_epochs=0), 2), []

    def statistics(self: MOSRelease, task: object, columns: object) -> None:
        seen.append(flat(self.adapters_[-1]))

    m.working_ = torch.randn(len(m.working_), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(MOSRelease, "_add_statistics", statistics)
    mean = torch.cat([v.flatten() for v in m._mean(2)])
    before = m.working_
    m.fit_task(stream()[2])
    pulls = 2 * (len(list(backbone.model.blocks)) + 1)  # eight images, four per step
    torch.testing.assert_close(seen[0], mean + 0.9**pulls * (before - mean))


def test_the_next_task_goes_on_from_where_the_statistics_left_off(backbone: Backbone, store: FeatureStore) -> None:
    m = fitted(release(backbone, store), 2)
    stored, mean = flat(m.adapters_[1]), flat(m.adapters_[0])
    batches = 2  # eight images, four per batch
    share = 0.9 ** (batches * len(list(backbone.model.blocks)))
    torch.testing.assert_close(m.working_, mean + share * (stored - mean))
    assert torch.equal(m.prefix_[1], mean.double() + stored.double())
    m._add_adapter(2)
    assert torch.equal(flat(m.adapters_[2]), m.working_)


def test_class_means_have_dropout_from_the_second_task_on(backbone: Backbone, store: FeatureStore) -> None:
    m, data = release(backbone, store, lr=0.5), stream()
    for task in data[:2]:
        m.fit_task(task)
    frozen = [store.features(m.views[0], data[t].train)[:].double() for t in (0, 1)]
    columns = [m.columns(data[t].train.labels) for t in (0, 1)]
    clean = torch.stack([frozen[c // 2][columns[c // 2] == c].sum(0) for c in range(4)])
    torch.testing.assert_close(m.sums_[:2], clean[:2])
    assert (m.sums_[2:] - clean[2:]).abs().max() > 1e-4


def test_without_pulls_and_dropout_it_is_the_clean_method(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.modules.adapter.Adapter.forward", _without_dropout)
    a, b = (fitted(kind(backbone, MOSConfig(**QUICK, merge=0.0), store=store)) for kind in (MOS, MOSRelease))
    images = pixels(a, stream().test(1))
    torch.testing.assert_close(a.scores(images), b.scores(images))


def _without_dropout(self: Any, u: Tensor) -> Tensor:
    return self.scale * self.up(torch.relu(self.down(u)))
