"""The golden tests of SLCA's specification, section 12, and its pitfalls."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perdure import Backbone, FeatureStore, Stream
from perdure.config import laid_over
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods import slca as module
from perdure.methods.slca import SLCA, SLCAConfig
from perdure.modules.gaussians import Gaussians
from perdure.modules.heads import GrowingLinear
from perdure.modules.losses import norm_scaled
from perdure.train import slow_learner
from perdure.train.alignment import shortened
from perdure.train.session import Session
from perdure.train.settings import Milestone

IDS = [4, 2, 7, 0, 5, 9]
QUICK: dict[str, Any] = {
    "train": {"epochs": 2, "schedule": {"milestone": 1}, "batch_size": 8, "lr": 0.05},
    "align": {"epochs": 2, "samples": 8, "batch_size": 8},
}


def slca(backbone: Backbone, store: FeatureStore, **config: Any) -> SLCA:
    return SLCA(backbone, SLCAConfig(**laid_over(QUICK, config)), store=store)


def stream(sizes: tuple[int, ...] = (2, 2, 2), train_per_class: int = 4) -> Stream:
    return class_incremental(synthetic_dataset(IDS, train_per_class=train_per_class, test_per_class=2), sizes, IDS)


def values(part: nn.Module) -> list[Tensor]:
    return [t.clone() for t in part.state_dict().values() if isinstance(t, Tensor)]


def alike(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_01_the_logit_norm_by_hand() -> None:
    logits, blocks = torch.tensor([[3.0, 4, 12]]), torch.tensor([[1.0, 0], [1, 0], [0, 1]])
    scaled = norm_scaled(logits, blocks, 1.0)
    torch.testing.assert_close(scaled, torch.tensor([[0.3529, 0.4706, 1.4118]]), atol=1e-4, rtol=0)
    loss = nn.functional.cross_entropy(scaled, torch.tensor([2]))
    assert float(loss) == pytest.approx(0.5522, abs=1e-3)
    equal = torch.tensor([[3.0, 4, 5]])
    torch.testing.assert_close(norm_scaled(equal, blocks, 0.5), equal / (0.5 * 5), atol=1e-6, rtol=0)


def test_01_the_gradient_flows_through_the_norm_and_is_finite_at_zero() -> None:
    logits = torch.tensor([[3.0, 4, 12], [0, 0, 0]], requires_grad=True)
    norm_scaled(logits, torch.tensor([[1.0, 0], [1, 0], [0, 1]]), 1.0)[:, 2].sum().backward()
    assert logits.grad is not None
    # d/dl1 of l3 / nu with nu = (|l1,l2| + |l3|) / 2: -l3 / nu^2 * l1 / |l1,l2| / 2
    assert float(logits.grad[0, 0]) == pytest.approx(-12 / 8.5**2 * 3 / 5 / 2, rel=1e-5)
    assert bool(torch.isfinite(logits.grad).all())


def test_02_the_argmax_stays() -> None:
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    blocks = nn.functional.one_hot(torch.tensor([0, 0, 0, 1, 1, 2, 2])).float()
    for tau in (0.05, 1.0, 30.0):
        assert torch.equal(norm_scaled(logits, blocks, tau).argmax(1), logits.argmax(1))


def test_03_the_decay_of_means() -> None:
    assert [shortened(t, 4, 0.1) for t in range(4)] == pytest.approx([0.925, 0.95, 0.975, 1.0])
    assert shortened(0, 1, 0.1) == 1.0
    assert shortened(0, 4, 0.0) == 1.0


def test_03_a_class_knows_its_task_in_unequal_tasks(backbone: Backbone, store: FeatureStore) -> None:
    method = slca(backbone, store)
    for task in stream((3, 1, 2)):
        method.fit_task(task)
    assert method.task_of_ == method.slot_tasks_ == [0, 0, 0, 1, 2, 2]
    assert method.slot_columns_ == [0, 1, 2, 3, 4, 5]


def test_04_and_05_samples_come_from_the_scatter_with_n_minus_one_and_a_ridge() -> None:
    g, x = Gaussians(3), torch.tensor([[1.0, 2, 3], [4, 0, 1]], dtype=torch.float64)
    g.grow(1)
    g.add(0, x)
    z = g.deviation(0)  # sampling is m + e1 Z + sqrt(ridge) e2: the covariance of this map is ZᵀZ + ridge I
    torch.testing.assert_close(z.T @ z, torch.cov(x.T), atol=1e-12, rtol=0)

    draws = [torch.eye(2, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *a, **k: draws.pop(0))
        moved = g.sample(0, 2, torch.Generator(), ridge=1e-4, scale=0.9) - 0.9 * x.mean(0)
    torch.testing.assert_close(moved, z)


def test_06_the_next_task_starts_from_unaligned_heads(backbone: Backbone, store: FeatureStore) -> None:
    tasks, method = stream(), slca(backbone, store, align={"lr": 0.5})
    method.fit_task(tasks[0])
    assert alike(values(method.head_), values(method.raw_head_))  # no alignment in the first task
    method.fit_task(tasks[1])
    raw, aligned = values(method.raw_head_), values(method.head_)
    assert not alike(raw, aligned)
    started: list[list[Tensor]] = []
    apart = GrowingLinear.apart

    def spy(self: GrowingLinear, columns: Tensor) -> Any:
        started.append(values(self))
        return apart(self, columns)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GrowingLinear, "apart", spy)
        method.fit_task(tasks[2])
    assert alike([t[:4] for t in started[0]], raw)
    x = torch.zeros(2, 3, 160, 160, dtype=torch.uint8)
    expected = method.head_(method.backbone_.features(x))
    torch.testing.assert_close(method.scores(x), expected, atol=1e-5, rtol=1e-5)  # tests use the aligned ones


def test_07_alignment_leaves_the_backbone_and_stage_1_leaves_old_heads(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, method = stream(), slca(backbone, store, train={"optimizer": {"weight_decay": 0.1}})
    method.fit_task(tasks[0])
    old = [t[:2] for t in values(method.raw_head_)]
    before: list[list[Tensor]] = []
    align = module.align_heads

    def spy(self: SLCA, rng: torch.Generator) -> None:
        before.append(values(self.backbone_))
        align(self, rng)

    monkeypatch.setattr(module, "align_heads", spy)
    method.fit_task(tasks[1])
    assert alike(before[0], values(method.backbone_))
    assert alike(old, [t[:2] for t in values(method.raw_head_)])  # weight decay does not reach them


def test_08_two_rates_one_milestone(backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Session[Any]] = []
    monkeypatch.setattr(Session, "run", lambda self, loss, **hooks: given.append(self))
    method = slca(backbone, store).fit_task(stream()[0])
    (session,) = given
    fast, slow = session.optimizer.param_groups
    assert (fast["peak"], slow["peak"]) == pytest.approx((0.05, 0.05 / 100))
    assert (session.config.schedule, session.config.epochs) == (Milestone(milestone=1), 2)
    assert [id(p) for p in slow["params"]] == [id(p) for p in method.backbone_.model.parameters()]
    assert [tuple(p.shape) for p in fast["params"]] == [(2, backbone.dim), (2,)]
    with pytest.warns(UserWarning, match="milestone=40 is never reached in 5 epochs"):
        SLCAConfig(preset="pilot_imagenet_r")


@pytest.mark.parametrize("tau", [0.1, 0.0])
def test_09_alignment_separates_well_separated_gaussians(tau: float, backbone: Backbone, store: FeatureStore) -> None:
    align = {"tau": tau, "epochs": 30, "samples": 256, "batch_size": 64, "lr": 0.1, "mean_decay": 0.0}
    method = slca(backbone, store, align=align)
    rng = torch.Generator().manual_seed(0)
    centres = torch.tensor([[12.0, 0], [0, 12], [-12, -12]], dtype=torch.float64)
    method.gaussians_ = Gaussians(2)
    method.gaussians_.grow(3)
    for c in range(3):
        method.gaussians_.add(c, centres[c] + torch.randn(50, 2, generator=rng, dtype=torch.float64))
    method.slot_columns_, method.slot_tasks_, method.task_of_ = [0, 1, 2], [0, 0, 1], [0, 0, 1]
    method.classes_, method.tasks_seen_ = [7, 8, 9], 1
    head = GrowingLinear(2)
    head.grow(3, rng)
    head.weight.data += 0.3 * torch.randn(3, 2, generator=rng)  # of the size that stage 1 leaves: nu has no scale
    method.raw_head_ = head
    module.align_heads(method, rng)
    for c in range(3):
        fresh = method.gaussians_.sample(c, 200, rng).float()
        assert bool((method.head_(fresh).argmax(1) == c).all())


def test_10_old_heads_get_no_gradient_in_stage_1(backbone: Backbone, store: FeatureStore) -> None:
    tasks, method = stream(), slca(backbone, store, train={"optimizer": {"weight_decay": 0.0}, "lr": 0.5})
    for task in tasks[:2]:
        before = values(method.raw_head_)
        method.fit_task(task)
        after = [t[: len(before[0])] for t in values(method.raw_head_)]
        assert alike(before, after)


def test_11_a_class_of_one_image_has_finite_statistics(backbone: Backbone, store: FeatureStore) -> None:
    method = slca(backbone, store)
    for task in stream((2, 2), train_per_class=1):
        method.fit_task(task)
    assert all(bool(torch.isfinite(t).all()) for t in values(method.head_))
    assert [len(method.gaussians_.deviation(c)) for c in range(4)] == [0] * 4


def test_12_a_method_read_back_goes_on_alike(backbone: Backbone, store: FeatureStore) -> None:
    tasks = stream()
    straight = slca(backbone, store)
    for task in tasks[:2]:
        straight.fit_task(task)
    resumed = slca(backbone, store).load_state_dict(copy.deepcopy(straight.state_dict()))
    for method in (straight, resumed):
        method.fit_task(tasks[2])
    assert alike(values(straight.head_), values(resumed.head_))
    assert alike(values(straight.backbone_), values(resumed.backbone_))


def test_gaussians_are_taken_after_the_task_and_never_again(backbone: Backbone, store: FeatureStore) -> None:
    tasks, method = stream(), slca(backbone, store)
    method.fit_task(tasks[0])
    images = [x for _, x in tasks[0].train.batches(backbone.preprocess, 8)]
    features = torch.cat([method.backbone_.features(x) for x in images])
    mine = features[method.columns(tasks[0].train.labels) == 0].double()
    torch.testing.assert_close(method.gaussians_.means[0], mine.mean(0), atol=1e-5, rtol=0)
    kept = method.gaussians_.means[0].clone()
    method.fit_task(tasks[1])
    assert torch.equal(method.gaussians_.means[0], kept)


def test_a_class_that_comes_again_gets_another_gaussian(backbone: Backbone, store: FeatureStore) -> None:
    data = synthetic_dataset(IDS[:2], train_per_class=4, test_per_class=2)
    method = slca(backbone, store)
    once = class_incremental(data, [2], IDS[:2])
    method.fit_task(once[0])
    method.fit_task(type(once[0])(1, once[0].train, once[0].classes))
    assert method.slot_columns_ == [0, 1, 0, 1]
    assert (method.slot_tasks_, method.task_of_) == ([0, 0, 1, 1], [0, 0])
    assert len(method.head_.bias) == 2


def test_a_task_of_known_classes_alone_does_not_count_among_the_norms(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, first, seen = slca(backbone, store), stream((2, 1)), []
    plain = slow_learner.norm_scaled

    def spy(logits: Tensor, blocks: Tensor, tau: float) -> Tensor:
        seen.append(blocks.T.tolist())
        return plain(logits, blocks, tau)

    monkeypatch.setattr(slow_learner, "norm_scaled", spy)
    for index, task in enumerate((first[0], first[0], first[1])):
        method.fit_task(type(task)(index, task.train, task.classes))
    assert method.task_of_ == [0, 0, 2]
    assert (seen[0], seen[-1]) == ([[1, 1]], [[1, 1, 0], [0, 0, 1]])


def test_the_final_norm_is_reset_on_demand(store: FeatureStore) -> None:
    backbone = Backbone.load("test_vit", pretrained=False, device="cpu")
    with torch.no_grad():
        backbone.model.norm.weight.fill_(3.0)
    for reset in (False, True):
        norm = slca(backbone, store, reset_final_norm=reset).backbone_.model.norm
        assert float(norm.weight[0]) == (1.0 if reset else 3.0)
        assert norm.eps == (1e-5 if reset else backbone.model.norm.eps)


def test_a_convolutional_network_is_fine(store: FeatureStore) -> None:
    backbone = Backbone.load("test_efficientnet", pretrained=False, device="cpu")
    method = slca(backbone, store)
    statistics = {k: v.clone() for k, v in backbone.model.state_dict().items() if "running" in k}
    method.fit_task(stream()[0])
    trained = method.backbone_.model.state_dict()
    assert statistics
    assert all(torch.equal(trained[k], v) for k, v in statistics.items())
    assert any(not torch.equal(trained[k], v) for k, v in backbone.model.state_dict().items())
