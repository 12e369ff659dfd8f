"""What section 9 of MOS's specification says of the released code, and its golden tests of the compatible mode."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector

from perdure import Backbone, FeatureStore, Stream
from perdure.checks.subject import pixels
from perdure.config import laid_over
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods.mos import MOS, MOSConfig
from perdure.methods.mos_release import DROPOUT, MOSRelease
from perdure.modules.adapter import Adapter
from perdure.modules.merging import pull_on_use
from perdure.train.session import Session
from tiny_vit import tiny

IDS = [4, 2, 7, 0, 5, 9]
QUICK: dict[str, Any] = {
    "adapter": {
        "rank": 2, "train": {"epochs": 1, "batch_size": 4, "lr": 0.05, "augment": {"min_scale": 1.0, "flip": False}}
    },
    "align": {"epochs": 2},
}  # fmt: skip


def release(backbone: Backbone, store: FeatureStore, **config: Any) -> MOSRelease:
    return MOSRelease(backbone, MOSConfig(**laid_over(QUICK, config)), store=store)


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
    m.adapters_.views[2].features(images)
    mean = (stored[0] + stored[1]) / 2
    torch.testing.assert_close(flat(m.adapters_[2]), mean + 0.9**blocks * (stored[2] - mean))
    m.adapters_.views[0].features(images)
    assert torch.equal(flat(m.adapters_[0]), stored[0])  # has no predecessors


def test_predictions_depend_on_what_was_tested_before(backbone: Backbone, store: FeatureStore) -> None:
    m = fitted(release(backbone, store, adapter={"train": {"lr": 0.5}}))
    assert m.promises.depends_on_test_batch
    whole, images = stream(), pixels(m, stream().test(2))
    first = m.scores(images)
    for _ in range(3):
        m.predict(whole.test(1))
        m.predict(whole.test(2))
    assert not torch.equal(first, m.scores(images))


def test_a_step_pulls_once_per_block_and_once_more(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    m, seen = fitted(release(backbone, store, adapter={"train": {"lr": 1e-30}}, align="none"), 2), []

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
    started: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "run", lambda self, loss, **hooks: started.append(flat(m.adapters_[2])))
        working = m.working_
        m.fit_task(stream()[2])
    assert torch.equal(started[0], working)


def test_class_means_have_dropout_from_the_second_task_on(backbone: Backbone, store: FeatureStore) -> None:
    m, data = release(backbone, store, adapter={"train": {"lr": 0.5}}), stream()
    for task in data[:2]:
        m.fit_task(task)
    frozen = [store.features(m.adapters_.views[0], data[t].train)[:].double() for t in (0, 1)]
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


# --- the released procedure written out, image by image and block by block

Weights = list[list[Tensor]]  # of every block: W_down, b_down, W_up, b_up
PER_CLASS, BATCH, SHARE = 13, 4, 0.1  # thirteen images of a class are a batch of 3 x 4 and one of 1


def weights(adapter: nn.Module) -> Weights:
    blocks = [m for m in adapter.modules() if isinstance(m, Adapter)]
    return [[p.detach().clone() for p in (b.down.weight, b.down.bias, b.up.weight, b.up.bias)] for b in blocks]


def features(backbone: Backbone, images: Tensor, w: Weights, mean: Weights | None, dropout: Any = None) -> Tensor:
    """A pass: before a block's adapter is used, those of all blocks are pulled once, ``w`` in place."""
    model = backbone.vit
    x = model._pos_embed(model.patch_embed(backbone.preprocess.normalise(images)))
    for k, block in enumerate(model.blocks):
        u = x + block.attn(block.norm1(x))
        for own, theirs in zip(w, mean, strict=True) if mean else ():
            for i in range(4):
                own[i] = (1 - SHARE) * own[i] + SHARE * theirs[i]
        hidden = torch.relu(u @ w[k][0].T + w[k][1])
        if dropout is not None:
            hidden = hidden * (torch.rand(hidden.shape, generator=dropout) >= 0.1) / 0.9
        x = u + block.mlp(block.norm2(u)) + 0.1 * (hidden @ w[k][2].T + w[k][3])
    return model.norm(x)[:, 0]


def mean_of(parts: list[Weights]) -> Weights:
    return [[torch.stack(same).mean(0) for same in zip(*block, strict=True)] for block in zip(*parts, strict=True)]


def decode(method: MOS, data: Any, positions: Tensor) -> Tensor:
    return torch.cat([x for _, x in data.batches(method.backbone.preprocess, 1, positions.numpy())])


class Shown(MOSRelease):
    """Keeps the adapters that were stored after every task's training."""

    def setup(self) -> None:
        super().setup()
        self.stored: list[Weights] = []

    def _add_statistics(self, task: Any, columns: Any) -> None:
        self.stored.append(weights(self.adapters_[-1]))
        super()._add_statistics(task, columns)


@pytest.fixture
def release_run(store: FeatureStore) -> tuple[Shown, Stream]:
    """Three tasks on two blocks, adapters far apart."""
    data = class_incremental(synthetic_dataset(IDS, train_per_class=PER_CLASS, test_per_class=5), (2, 2, 2), IDS)
    train = {"lr": 2.0, "epochs": 3, "batch_size": BATCH}
    changes = {"adapter": {"train": train}, "align": {"lr": 0.5}, "merge": SHARE}
    method = Shown(tiny(), MOSConfig(**laid_over(QUICK, changes)), store=store)
    for task in data:
        method.fit_task(task)
    return method, data


@torch.no_grad()
def test_statistics_are_the_releases_class_by_class(release_run: tuple[Shown, Stream]) -> None:
    method, data = release_run
    first = [[t.clone() for t in block] for block in method.stored[0]]
    for task in data:
        own, of = [list(block) for block in method.stored[task.index]], method.columns(task.train.labels)
        mean = mean_of(method.stored[: task.index]) if task.index else None
        for column in of.unique().tolist():
            images = decode(method, task.train, (of == column).nonzero()[:, 0])
            rows = [features(method.backbone, x, own, mean) for x in images.split(3 * BATCH)]
            f = torch.cat(rows).double()
            torch.testing.assert_close(method.gaussians_.means[column], f.mean(0), atol=5e-6, rtol=0)
            torch.testing.assert_close(method.gaussians_.covariance(column), torch.cov(f.T), atol=5e-6, rtol=0)
        if task.index == 2:  # what the next task would go on from
            left = torch.cat([t.flatten() for block in own for t in block])
            torch.testing.assert_close(method.working_, left, atol=5e-7, rtol=1e-6)
        dropout = torch.Generator().manual_seed(method.seed + DROPOUT + task.index) if task.index else None
        images = decode(method, task.train, torch.arange(len(of)))
        f = torch.cat([features(method.backbone, x, first, None, dropout) for x in images.split(BATCH)]).double()
        for column in of.unique().tolist():
            torch.testing.assert_close(method.sums_[column], f[of == column].sum(0), atol=5e-5, rtol=0)


def head(method: MOS, feature: Tensor) -> Tensor:
    return method.head_.weight @ feature + method.head_.bias


def retrieved(method: MOS, table: Tensor, q: Tensor) -> Tensor:
    """An image's logits, asked adapter by adapter; ``table``: its features under every adapter."""
    task = method.task_of_[int(q.argmax())]
    for _ in range(4):
        logits = head(method, table[task])
        told = method.task_of_[int(logits.argmax())]
        if told == task:
            break
        task = told
    return logits


@torch.no_grad()
def test_tests_are_the_releases_batch_by_batch(release_run: tuple[Shown, Stream]) -> None:
    method, data = release_run
    own = [[list(block) for block in part] for part in method.stored]
    means = [None, *(mean_of(method.stored[:t]) for t in (1, 2))]
    protos, asked = method.sums_ / method.counts_[:, None], set()
    for index in (0, 1, 2, 0):  # ten images each: batches of 4, 4 and 2
        images, expected = decode(method, data.test(index), torch.arange(10)), []
        for batch in images.split(BATCH):
            table = torch.stack([features(method.backbone, batch, w, m) for w, m in zip(own, means, strict=True)])
            q = F.normalize(table[0].double(), dim=1) @ F.normalize(protos, dim=1).T
            found = torch.stack([retrieved(method, table[:, i], q[i]) for i in range(len(batch))])
            for i, logits in enumerate(found):
                asked |= {t for t in range(3) if torch.equal(logits, head(method, table[t, i]))}
            expected.append(found.softmax(1) + (3 * q).softmax(1))
        scores = torch.cat(list(method.scores_of(data.test(index))))
        torch.testing.assert_close(scores, torch.cat(expected).float(), atol=5e-6, rtol=0)
        assert torch.equal(scores.argmax(1), torch.cat(expected).argmax(1))
    assert len(asked) > 1, "images end at different adapters"
    for part, w in zip(method.adapters_, own, strict=True):
        torch.testing.assert_close(flat(part), torch.cat([t.flatten() for b in w for t in b]), atol=5e-7, rtol=1e-6)
    assert (flat(method.adapters_[2]) - torch.cat([t.flatten() for b in means[2] for t in b])).abs().max() > 1e-4


def test_the_backbones_batch_has_no_say(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for size in (1, 256):  # 16 on a CPU, 256 on a GPU
        monkeypatch.setattr(Backbone, "batch_size", size)
        data = class_incremental(synthetic_dataset(IDS, train_per_class=9, test_per_class=5), (2, 2, 2), IDS)
        method = release(tiny(), store, adapter={"train": {"lr": 2.0}})
        scores = []
        for task in data:
            method.fit_task(task)
            scores += [part for i in range(task.index + 1) for part in method.scores_of(data.test(i))]
        state = [method.working_, method.sums_, method.gaussians_.means, *map(flat, method.adapters_)]
        found.append((torch.cat([part.flatten() for part in scores]), torch.cat([part.flatten() for part in state])))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_a_batch_of_any_size_passes_every_adapter_once(release_run: tuple[Shown, Stream]) -> None:
    method, data = release_run
    before, passed = [flat(part) for part in method.adapters_], method.backbone.passes.images
    method.scores(decode(method, data.test(1), torch.arange(10)))
    assert method.backbone.passes.images - passed == 3 * 10
    for t in (1, 2):
        mean = torch.cat([part.flatten() for part in method._mean(t)])
        torch.testing.assert_close(flat(method.adapters_[t]), mean + (1 - SHARE) ** 2 * (before[t] - mean))
    assert torch.equal(flat(method.adapters_[0]), before[0])
