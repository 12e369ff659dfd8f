"""The numbered golden tests of RAPF's specification, section 12, and its pitfalls."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rapf_cases import TEMPLATE, rapf, scores, stream, told, uncached
from torch import Tensor

from perdure import FeatureStore
from perdure.backbone.clip import tiny_clip
from perdure.data.stream import Candidate
from perdure.methods import rapf as module
from perdure.methods.clip_zeroshot import ClipZeroShot
from perdure.methods.rapf import RAPF, RAPFConfig
from perdure.modules.gaussians import Gaussians
from perdure.modules.losses import separation
from perdure.modules.map_fusion import fused
from perdure.modules.normal import Normal
from perdure.train.rehearsal import add_by_class, near_names, visits
from perdure.train.session import Session
from tiny_clip import clip


def test_01_fusion_by_hand() -> None:
    old = told([[2.0, 0], [0, 1]])
    for b in (0.0, 0.6):
        torch.testing.assert_close(fused(old, told([[2.0, 1], [0, 2]]), b).map, told([[2.0, 1], [0, 2]]))
    for b, wanted in ((0.0, 0.25), (0.2, 0.35), (0.6, 0.5)):
        torch.testing.assert_close(fused(old, told([[2.0, 0.5], [0, 2]]), b).map, told([[2, wanted], [0, 2]]))


def test_02_nothing_changed_is_nothing_fused() -> None:
    old = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(fused(old, old, 0.0).map, old)


def test_03_the_hinge_by_hand() -> None:
    sample, own = torch.tensor([[[5.0, 0, 0]]]), torch.tensor([[0.8, 0.6, 0]])
    for cosine, wanted in ((0.75, 0.05), (0.6, 0.0)):
        other = torch.tensor([[cosine, 0, (1 - cosine**2) ** 0.5]])
        assert float(separation(sample, own, other, 0.1)) == pytest.approx(wanted, abs=1e-6)
    two = torch.tensor([[cosine, 0, (1 - cosine**2) ** 0.5] for cosine in (0.75, 0.6)])
    mean = separation(sample.expand(2, 3, 3), own.expand(2, 3), two, 0.1)
    assert float(mean) == pytest.approx(0.025, abs=1e-6)
    assert float(separation(sample[:0], own[:0], own[:0], 0.1)) == 0


def test_04_hard_pairs_by_hand(store: FeatureStore) -> None:
    for degrees, theta, pairs in ((30.0, 0.55, 1), (40.0, 0.65, 0)):
        angle = torch.deg2rad(torch.tensor(degrees))
        texts = torch.stack([torch.tensor([1.0, 0]), torch.stack([angle.cos(), angle.sin()])])
        assert len(near_names(texts, [0], torch.tensor([1]), theta)[0]) == pairs
    method = rapf(store)
    for task in stream():
        method.fit_task(task)
    assert method.hard_pairs_ == [0, 4, 8], "every pair of an old and a new class, at a theta of 2"
    w, theta = method.texts_, 0.5
    near = sum(float((w[o] - w[n]).norm()) < theta for n in (2, 3) for o in (0, 1))
    assert 0 < near < 4
    few = rapf(store, theta=theta)
    assert few.fit_task(stream()[0]).fit_task(stream()[1]).hard_pairs_ == [0, near]


def test_05_the_map_starts_as_zero_shot(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "run", lambda self, loss: None)
    first, zero_shot = stream()[0], ClipZeroShot(clip(), store=store, templates=[TEMPLATE])
    method = rapf(store).fit_task(first)
    assert torch.equal(scores(method, first.train), scores(zero_shot.fit_task(first), first.train))
    drawn = RAPF(clip(), store=store, init="random").map_
    assert drawn.shape == (48, 48)
    assert 0.9 < float(drawn.abs().max()) * 48**0.5 <= 1
    assert float(drawn.mean()) * 48**0.5 == pytest.approx(0, abs=0.05)
    assert torch.equal(drawn, RAPF(clip(), store=store, init="random").map_)
    assert not torch.equal(drawn, RAPF(clip(), store=store, seed=1, init="random").map_)


def test_06_gaussians_are_of_raw_embeddings_and_stay(store: FeatureStore) -> None:
    method, other = rapf(store), rapf(store, init="random", train={"lr": 0.3})
    for k, task in enumerate(stream()):
        before = [x.clone() for x in [method.gaussians_.means, *method.gaussians_.factors]]
        method.fit_task(task), other.fit_task(task)
        after = [method.gaussians_.means[: 2 * k], *method.gaussians_.factors[: 2 * k]]
        assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    assert torch.equal(method.gaussians_.means, other.gaussians_.means)
    assert all(torch.equal(x, y) for x, y in zip(method.gaussians_.factors, other.gaussians_.factors, strict=True))
    features = store.features(clip(), stream()[0].train.of_classes([4]))[:].double()
    torch.testing.assert_close(method.gaussians_.means[0], features.mean(0))
    torch.testing.assert_close(method.gaussians_.covariance(0), features.T.cov())
    g = Gaussians(2)
    add_by_class(g, [], torch.tensor([[0.0, 0], [2, 0]]), torch.zeros(2, dtype=torch.long))
    assert g.means.tolist() == [[1, 0]]
    torch.testing.assert_close(g.normal(0, ridge=1e-4).covariance(), told([[2.0001, 0], [0, 0.0001]]))


def test_07_cached_is_uncached_step_by_step(store: FeatureStore) -> None:
    losses: list[float] = []
    watching = FeatureStore(store.directory, progress=lambda e: losses.append(e.loss) if e.loss is not None else None)
    plain = {"optimizer": {"name": "sgd", "momentum": 0.0}, "lr": 0.1}  # Adam makes large steps of rounding
    tasks, method = list(stream()), rapf(watching, train=plain, init="random")
    for task in tasks:
        method.fit_task(task)
    a, wanted = uncached(method, tasks, clip())
    assert losses == pytest.approx(wanted, abs=1e-5)
    torch.testing.assert_close(method.map_, a, atol=1e-5, rtol=0)


def test_07_each_image_and_each_name_passes_once(store: FeatureStore) -> None:
    backbone, whole = tiny_clip(), stream()
    method = rapf(store, backbone)
    for task in whole:
        method.fit_task(task)
        for k in range(task.index + 1):
            scores(method, whole.test(k))
    assert backbone.passes.images == sum(len(t.train) + len(whole.test(t.index)) for t in whole)
    assert backbone.passes.texts == 6


def test_08_shrinkage_by_hand() -> None:
    values, vectors = torch.linalg.eigh(told([[1.0, 0.5], [0.5, 3]]))
    made = Normal(told([0.0, 0]), values.sqrt()[:, None] * vectors.T).shrunk()
    torch.testing.assert_close(made.covariance(), told([[3.0, 1], [1, 5]]))


def test_09_old_classes_in_turn_and_the_rate_by_epoch(store: FeatureStore) -> None:
    found = visits(7, 2, 4, torch.Generator().manual_seed(0)).flatten()
    assert sorted(found[:7].tolist()) == list(range(7))
    assert found[7] == found[0]
    schedule = RAPFConfig().train.schedule
    rates = [1e-3 * schedule.factor(0, 0, epoch, 15) for epoch in range(15)]
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 6 + [1e-5] * 5, rel=1e-12)


def test_10_samples_of_a_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    g = Gaussians(3)
    g.append(torch.randn(3, 3, generator=torch.Generator().manual_seed(0)))
    parts = iter(torch.eye(6, dtype=torch.float64).split(3, 1))
    monkeypatch.setattr(torch, "randn", lambda n, width, **_: next(parts))
    x = g.sample(0, 6, torch.Generator(), ridge=1e-4) - g.means[0]
    torch.testing.assert_close(x.T @ x, g.factors[0].T @ g.factors[0] / 2 + 1e-4 * torch.eye(3).double())


def test_11_without_fusion_the_map_is_the_new_one(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Tensor] = []
    run = Session.run

    def watched(self: Any, loss: Any) -> None:
        run(self, loss)
        trained.append(self.learned[0].detach().clone())

    monkeypatch.setattr(Session, "run", watched)
    for b in (0.6, 1.0):
        method = rapf(store, fusion=b).fit_task(stream()[0])
        assert torch.equal(method.map_, trained[-1]), "nothing is fused after the first task"
        method.fit_task(stream()[1])
        assert torch.equal(method.map_, trained[-1]) == (b == 1)


def test_12_signs_of_the_basis_do_not_matter() -> None:
    rng = torch.Generator().manual_seed(0)
    old, new = (torch.randn(5, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    u, s, vh = torch.linalg.svd(old)
    flips = told([1.0, -1, -1, 1, -1])
    u, vh = u * flips, vh * flips[:, None]
    p, d = u.T @ new, s[:, None] * vh
    share = ((p - d).abs() / (p - d).abs().max() + 0.2).clamp(max=1)
    torch.testing.assert_close(fused(old, new, 0.2).map, u @ (share * p + (1 - share) * d), atol=1e-6, rtol=0)


def test_13_unseen_names_enter_no_training(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    method, widths, seen, entropy = rapf(store), set[int](), list[str](), F.cross_entropy
    texts = store.texts
    monkeypatch.setattr(store, "texts", lambda backbone, names, **_: (seen.extend(names), texts(backbone, names))[1])
    monkeypatch.setattr(F, "cross_entropy", lambda x, y: (widths.add(x.shape[1]), entropy(x, y))[1])
    whole = stream()
    for k, task in enumerate(whole):
        strange = [Candidate("strange", "strange")]
        method.fit_task(task)
        assert widths == {2 * (k + 1)}
        assert seen == [TEMPLATE.format(whole.display_names[c]) for c in task.classes]
        list(method.scores_among(whole.test(0), strange))
        widths.clear(), seen.clear()


def test_14_a_task_that_stops_before_the_fusion_is_learned_again(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, stopped = (rapf(store).fit_task(stream()[0]) for _ in range(2))
    straight.fit_task(stream()[1])

    def fail(*args: Any) -> None:
        raise OSError("the power failed")

    with monkeypatch.context() as patched:
        patched.setattr(module, "fused", fail)
        with pytest.raises(OSError, match="the power failed"):
            stopped.fit_task(stream()[1])
    resumed = rapf(store).load_state_dict(stopped.state_dict()).fit_task(stream()[1])
    assert torch.equal(resumed.map_, straight.map_)
