"""The golden tests of MOS's specification, section 12, and its pitfalls, for the clean semantics."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdure import Backbone, FeatureStore, Stream
from perdure.config import laid_over
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError
from perdure.methods import mos as module
from perdure.methods.mos import MOS, MOSConfig
from perdure.modules.gaussians import Gaussians, sampled_epoch
from perdure.modules.heads import GrowingLinear, cosine_scores
from perdure.modules.losses import masked_cross_entropy, own_index_loss
from perdure.modules.merging import pull_
from perdure.modules.retrieval import refined
from perdure.train.alignment import Samples
from perdure.train.session import Session
from perdure.train.settings import SGD, EpochCosine

IDS = [4, 2, 7, 0, 5, 9]
QUICK: dict[str, Any] = {
    "adapter": {
        "rank": 2, "train": {"epochs": 1, "batch_size": 4, "lr": 0.05, "augment": {"min_scale": 1.0, "flip": False}}
    },
    "align": {"epochs": 2},
}  # fmt: skip


def mos(backbone: Backbone, store: FeatureStore, **config: Any) -> MOS:
    return MOS(backbone, MOSConfig(**laid_over(QUICK, config)), store=store)


def stream(sizes: tuple[int, ...] = (2, 2, 2)) -> Stream:
    return class_incremental(synthetic_dataset(IDS, train_per_class=4, test_per_class=3), sizes, IDS)


def fitted(method: MOS, tasks: Stream) -> MOS:
    for task in tasks:
        method.fit_task(task)
    return method


def values(part: nn.Module) -> list[Tensor]:
    return [t.clone() for t in part.state_dict().values() if isinstance(t, Tensor)]


def alike(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_01_one_pull() -> None:
    w = torch.tensor([1.0])
    pull_([w], [torch.tensor([2.0])], 0.1)
    assert w.item() == pytest.approx(1.1)


@pytest.mark.parametrize(("every", "pulls"), [("step", 6), ("epoch", 3), ("task_end", 1)])
def test_01_pulls_happen_when_they_should(
    every: str, pulls: int, backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[float] = []
    monkeypatch.setattr(module, "pull_", lambda p, means, share: counted.append(share))
    tasks, method = stream(), mos(backbone, store, merge_every=every, adapter={"train": {"epochs": 3}})
    method.fit_task(tasks[0])
    assert not counted  # the first task has no predecessors
    method.fit_task(tasks[1])  # eight images, four per step
    assert counted == [0.1] * pulls


def test_02_evaluation_is_pure(backbone: Backbone, store: FeatureStore) -> None:
    tasks = stream()
    method = fitted(mos(backbone, store), tasks)
    before, x = values(method.adapters_), torch.cat([x for _, x in tasks.test(1).batches(backbone.preprocess, 6)])
    first, second = method.scores(x), method.scores(x)
    assert torch.equal(first, second)
    torch.testing.assert_close(torch.cat([method.scores(x[i : i + 1]) for i in range(len(x))]), first)
    torch.testing.assert_close(torch.cat(list(method.scores_of(tasks.test(1)))), first)
    assert alike(before, values(method.adapters_))


def test_03_the_mean_is_of_all_earlier_adapters(backbone: Backbone, store: FeatureStore) -> None:
    tasks, method = stream(), mos(backbone, store)
    fitted(method, tasks)
    method.adapters_.add(go_on=True)
    expected = [
        torch.stack([method.adapters_[t].state_dict()[k] for t in range(3)]).mean(0)
        for k in method.adapters_[0].state_dict()
    ]
    for found, mean in zip(method._mean_adapter(), expected, strict=True):
        torch.testing.assert_close(found, mean)
    assert MOS(backbone)._mean_adapter() == []


def test_03_an_adapter_goes_on_from_the_last_and_ends_near_the_mean(backbone: Backbone, store: FeatureStore) -> None:
    tasks = stream()
    train = {"epochs": 6, "lr": 0.5}
    close, free = (fitted(mos(backbone, store, merge=m, adapter={"train": train}), tasks) for m in (0.9, 0.0))

    def apart(method: MOS) -> float:
        pairs = zip(method.adapters_[0].parameters(), method.adapters_[1].parameters(), strict=True)
        return sum(float((a - b).square().sum()) for a, b in pairs)

    assert 0 < apart(close) < 0.5 * apart(free)


def test_04_masked_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[5.0, 1, 2]], requires_grad=True)
    loss = masked_cross_entropy(logits, torch.tensor([1]), torch.tensor([1, 2]))
    loss.backward()
    assert loss.item() == pytest.approx(1.3133, abs=1e-4)
    assert logits.grad is not None
    assert float(logits.grad[0, 0]) == 0


def test_05_the_own_index_loss_by_hand() -> None:
    assert float(own_index_loss(torch.eye(2))) == pytest.approx(math.log(1 + math.exp(-1.25)), abs=1e-4)
    assert float(own_index_loss(torch.eye(2))) == pytest.approx(0.2519, abs=1e-4)


def test_05_old_means_are_rows_of_it(backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []
    monkeypatch.setattr(module, "own_index_loss", lambda rows: seen.append(rows.detach()) or own_index_loss(rows))
    tasks, method = stream(), mos(backbone, store)
    method.fit_task(tasks[0])
    assert [len(rows) for rows in seen] == [4, 4]
    means = method.gaussians_.means.float()
    seen.clear()
    method.fit_task(tasks[1])
    assert [len(rows) for rows in seen] == [6, 6]
    assert torch.equal(seen[0][:2], means)


def table(answers: dict[int, int], visits: list[int]) -> Any:
    """Logits whose argmax under adapter t is a class of task answers[t]; one class per task; value 10 + t marks t."""

    def logits(task: int, positions: Tensor) -> Tensor:
        visits.append(task)
        out = torch.zeros(len(positions), len(answers))
        out[:, answers[task]] = 10.0 + task
        return out

    return logits


def test_06_retrieval_by_hand() -> None:
    visits: list[int] = []
    found = refined(table({0: 1, 1: 2, 2: 2}, visits), torch.arange(3), torch.tensor([0]))
    assert visits == [0, 1, 2]
    assert found.tolist() == [[0, 0, 12]]
    visits.clear()
    cycle = refined(table({0: 1, 1: 0}, visits), torch.arange(2), torch.tensor([0]))
    assert visits == [0, 1, 0, 1]
    assert cycle.tolist() == [[11, 0]]  # of adapter 1, though it points to task 0


def test_07_asking_few_is_asking_all() -> None:
    rng = torch.Generator().manual_seed(0)
    n, tasks = 60, torch.tensor([0, 0, 1, 2, 2, 3, 4, 5, 5])
    full = torch.randn(6, n, len(tasks), generator=rng)
    guess = torch.randint(6, (n,), generator=rng)
    found = refined(lambda task, positions: full[task, positions], tasks, guess)
    for i in range(n):
        t = int(guess[i])
        for turn in range(4):
            row = full[t, i]
            told = int(tasks[row.argmax()])
            if told == t or turn == 3:
                break
            t = told
        assert torch.equal(found[i], row)


def test_08_the_ensemble_by_hand(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    method = MOS(backbone, MOSConfig())
    method.tasks_seen_, method.task_of_, method.counts_ = 3, [0, 0], torch.ones(2, dtype=torch.long)
    method.sums_ = torch.zeros(2, 64, dtype=torch.float64)
    monkeypatch.setattr(module, "cosine_scores", lambda f, p: torch.tensor([[0.2, 0.1]]))
    monkeypatch.setattr("perdure.modules.retrieval.linear_scores", lambda f, head: torch.zeros(len(f), 2))
    found = method._ensemble(lambda task, positions: torch.zeros(len(positions), 64), 1)
    assert (found - 0.5).tolist()[0] == pytest.approx([0.5744, 0.4256], abs=1e-4)
    assert int(found.argmax()) == 0
    method.config = MOSConfig(ensemble=False)
    assert method._ensemble(lambda task, positions: torch.zeros(len(positions), 64), 1).tolist() == [[0.5, 0.5]]


def test_09_prototypes_are_free_of_dropout(backbone: Backbone, store: FeatureStore) -> None:
    tasks = stream()
    method = fitted(mos(backbone, store), tasks)
    for task in tasks:
        x = torch.cat([x for _, x in task.train.batches(backbone.preprocess, 8)])
        columns = method.columns(task.train.labels)
        for column in columns.unique().tolist():
            mean = method.adapters_.views[0].features(x[columns == column]).double().mean(0)
            torch.testing.assert_close(method.sums_[column] / method.counts_[column], mean, atol=1e-5, rtol=0)
            own = method.adapters_.views[task.index].features(x[columns == column]).double().mean(0)
            torch.testing.assert_close(method.gaussians_.means[column], own, atol=1e-5, rtol=0)


def test_10_alignment_touches_only_the_head(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, method = stream(), mos(backbone, store, align={"lr": 0.5})
    method.fit_task(tasks[0])
    old = method.gaussians_.means.clone()
    around: list[Any] = []
    plain = module.align

    def spy(head: GrowingLinear, *rest: Any, **options: Any) -> None:
        before = values(method.adapters_), values(head)
        plain(head, *rest, **options)
        around.append((alike(before[0], values(method.adapters_)), alike(before[1], values(head))))

    monkeypatch.setattr(module, "align", spy)
    method.fit_task(tasks[1])
    assert around == [(True, False)]
    assert torch.equal(method.gaussians_.means[:2], old)


def test_11_growing_the_head_leaves_old_logits(backbone: Backbone, store: FeatureStore) -> None:
    method = mos(backbone, store, align="none", adapter={"train": {"optimizer": {"weight_decay": 0.5}}})
    tasks = stream()
    method.fit_task(tasks[0])
    before = values(method.head_)
    method.fit_task(tasks[1])
    assert alike(before, [t[:2] for t in values(method.head_)])  # weight decay does not reach old rows either


def test_12_variances_are_the_covariances_diagonal() -> None:
    g = Gaussians(3)
    g.grow(1)
    square = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0], [0, 0, 3], [0, 0, -3]], dtype=torch.float64)
    g.add(0, square)  # a diagonal covariance
    full, diagonal = (g.sample(0, 100_000, torch.Generator().manual_seed(0), diagonal=flag) for flag in (False, True))
    torch.testing.assert_close(torch.cov(full.T), torch.cov(diagonal.T), atol=0.06, rtol=0)
    assert MOSConfig(preset="official_imagenet_a").gaussian == "variance"


def test_12_centroids_are_slots_of_their_class(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = synthetic_dataset(IDS[:4], train_per_class=14, test_per_class=1)
    tasks = class_incremental(data, (2, 2), IDS[:4])
    given: list[Samples] = []
    plain = module.align
    monkeypatch.setattr(module, "align", lambda *a, **options: given.append(a[1]) or plain(*a, **options))
    method, one_each = (fitted(mos(backbone, store, gaussian=g), tasks) for g in ("centroids", "variance"))
    lone = method.gaussians_.counts == 1
    columns = torch.arange(4).repeat_interleave(10)
    assert lone.any(), "ten clusters of fourteen images"
    assert method.slot_columns_ == columns.where(~lone, -1).tolist()
    assert one_each.slot_columns_ == list(range(4))
    counts, sums = method.gaussians_.counts, method.gaussians_.means * method.gaussians_.counts[:, None]
    assert counts.min() >= 1
    assert counts.view(4, 10).sum(1).tolist() == [14] * 4
    whole = sums[:20].view(2, 10, -1).sum(1) / 14  # of the first task: later adapters depend on the head
    torch.testing.assert_close(whole, one_each.gaussians_.means[:2], atol=1e-9, rtol=0)
    assert [(s.n, s.batch_size, s.diagonal) for s in given] == [(2, 20, True), (20, 20, True)]
    resumed = mos(backbone, store, gaussian="centroids").load_state_dict(method.state_dict())
    assert torch.equal(resumed.predict(tasks.test(1)), method.predict(tasks.test(1)))


def test_12_a_centroids_variance_is_over_n_and_single_images_are_left_out(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the released code has it: numpy's variance of each cluster, and clusters without variance not sampled from."""
    rows = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
    groups = [rows[:6], rows[6:8] + 50, rows[8:9] + 100, rows[9:] + 150]
    monkeypatch.setattr("perdure.modules.gaussians.clusters", lambda rows, k, seed: groups if k == 10 else [rows])
    tasks = class_incremental(synthetic_dataset(IDS[:2], train_per_class=24, test_per_class=1), (1, 1), IDS[:2])
    method = fitted(mos(backbone, store, gaussian="centroids", align="none"), tasks[:1])
    assert method.slot_columns_ == [0, 0, -1, 0]
    assert method.gaussians_.counts.tolist() == [6, 2, 1, 15]  # all are old means of the next task's loss
    for slot, part in enumerate(groups):
        expected = np.var(part.double().numpy(), axis=0)
        found = method.gaussians_.covariance(slot).diag().numpy()
        np.testing.assert_allclose(found, expected, atol=1e-12)
    z = method.gaussians_.sample(0, 20_000, torch.Generator().manual_seed(0), diagonal=True)
    torch.testing.assert_close(z.var(0), groups[0].double().var(0, correction=0), rtol=0.06, atol=0)
    drawn = sampled_epoch(method.gaussians_, method.slot_columns_, 5, torch.Generator(), batch_size=99, n_steps=9)
    z, of = next(drawn)
    assert of.tolist() == [0] * 15
    near = torch.cdist(z.double(), method.gaussians_.means).argmin(1)
    assert sorted(near.tolist()) == [0] * 5 + [1] * 5 + [3] * 5
    resumed = mos(backbone, store, gaussian="centroids").load_state_dict(method.state_dict())
    assert torch.equal(resumed.gaussians_.covariance(0), method.gaussians_.covariance(0))
    whole = fitted(mos(backbone, store, gaussian="variance", align="none"), tasks[:1])
    own = whole.adapters_.views[0].features(torch.cat([x for _, x in tasks[0].train.batches(backbone.preprocess, 24)]))
    torch.testing.assert_close(whole.gaussians_.covariance(0), torch.cov(own.double().T), atol=1e-5, rtol=0)


def test_12_a_class_of_few_images_keeps_its_clusters_of_one(backbone: Backbone, store: FeatureStore) -> None:
    method = fitted(mos(backbone, store, gaussian="centroids"), stream((2, 2)))  # four images, four clusters
    assert method.gaussians_.counts.tolist() == [1] * 16
    assert method.slot_columns_ == [column for column in range(4) for _ in range(4)]


def test_13_one_task_is_adapter_0_alone(backbone: Backbone, store: FeatureStore) -> None:
    tasks = stream((3, 3))
    method = mos(backbone, store).fit_task(tasks[0])
    x = torch.cat([x for _, x in tasks.test(0).batches(backbone.preprocess, 9)])
    f = method.adapters_.views[0].features(x)
    q = cosine_scores(f, method.sums_ / method.counts_[:, None])
    torch.testing.assert_close(method.scores(x), method.head_(f).softmax(1) + q.softmax(1), atol=1e-5, rtol=0)


def test_14_a_method_read_back_goes_on_alike(backbone: Backbone, store: FeatureStore) -> None:
    tasks, straight = stream(), mos(backbone, store)
    for task in tasks[:2]:
        straight.fit_task(task)
    resumed = mos(backbone, store).load_state_dict(straight.state_dict())
    for method in (straight, resumed):
        method.fit_task(tasks[2])
    assert alike(values(straight.adapters_), values(resumed.adapters_))
    assert alike(values(straight.head_), values(resumed.head_))
    assert torch.equal(straight.predict(tasks.test(0)), resumed.predict(tasks.test(0)))


def test_a_test_image_passes_only_adapters_it_visits(backbone: Backbone, store: FeatureStore) -> None:
    tasks = stream()
    method = fitted(mos(backbone, store), tasks)
    before = backbone.passes.images
    method.predict(tasks.test(0))
    n = len(tasks.test(0))
    assert n <= backbone.passes.images - before <= 3 * n
    again = backbone.passes.images
    method.predict(tasks.test(0))
    assert backbone.passes.images == again


def test_the_heads_rate_and_the_schedule(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Session[Any]] = []
    monkeypatch.setattr(Session, "run", lambda self, loss, **hooks: given.append(self))
    config = MOSConfig(adapter={"train": {"augment": {"min_scale": 1.0, "flip": False}}})
    method = MOS(backbone, config, store=store).fit_task(stream()[0])
    adapter, head = given[0].optimizer.param_groups
    assert (adapter["peak"], head["peak"]) == pytest.approx((0.03, 0.1 * 0.03))
    assert [id(p) for p in adapter["params"]] == [id(p) for p in method.adapters_[0].parameters()]
    assert [tuple(p.shape) for p in head["params"]] == [(2, backbone.dim), (2,)]
    train = given[0].config
    assert (train.lr, train.epochs, train.schedule) == (0.03, 20, EpochCosine())
    assert train.optimizer == SGD(weight_decay=5e-4)


def test_a_convolutional_network_is_refused(store: FeatureStore) -> None:
    with pytest.raises(BackboneError, match="seat"):
        mos(Backbone.load("test_resnet", pretrained=False, device="cpu"), store).fit_task(stream()[0])
