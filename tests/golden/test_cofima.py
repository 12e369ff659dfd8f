"""The golden tests of CoFiMA's and CoMA's specification, section 12, and its pitfalls."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from perdure import Backbone, FeatureStore, Stream
from perdure.config import laid_over, load
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods import Method, cofima, coma
from perdure.methods.cofima import CoFiMA, CoFiMAConfig
from perdure.methods.coma import CoMA, CoMAConfig
from perdure.methods.slca import SLCA, SLCAConfig
from perdure.modules.gaussians import Gaussians
from perdure.modules.losses import norm_scaled
from perdure.modules.merging import merged
from perdure.run.checkpoint import tensor_bytes
from perdure.run.merger import merge
from perdure.run.recipe import StreamConfig
from perdure.train.alignment import shortened
from perdure.train.fisher import by_name, in_a_row
from perdure.train.settings import Milestone
from perdure.types import Event
from tiny_vit import tiny

IDS = [4, 2, 7, 0, 5, 9]
QUICK: dict[str, Any] = {
    "train": {"epochs": 2, "schedule": {"milestone": 1}, "batch_size": 4, "lr": 0.05}, "slow": 0.1,
    "align": {"epochs": 2, "samples": 8, "batch_size": 8, "lr": 0.5},
}  # fmt: skip
Weights = dict[str, Tensor]


def made(kind: type[Method[Any]], store: FeatureStore, backbone: Backbone | None = None, **config: Any) -> Any:
    return kind(backbone or tiny(), kind.Config(**laid_over(QUICK, config)), store=store)


def stream(sizes: tuple[int, ...] = (2, 2, 2), train_per_class: int = 4, seed: int = 0) -> Stream:
    data = synthetic_dataset(IDS, train_per_class=train_per_class, test_per_class=2, side=8, seed=seed)
    return class_incremental(data, sizes, IDS)


def fitted(method: Any, tasks: Any) -> Any:
    for task in tasks:
        method.fit_task(task)
    return method


def values(part: Any) -> Weights:
    return {name: t.clone() for name, t in part.state_dict().items() if isinstance(t, Tensor)}


def alike(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def by_fisher(old: float, new: float, f_old: float, f_new: float, weight: float = 0.5) -> float:
    a, b, f, g = ({"w": torch.tensor([float(x)])} for x in (old, new, f_old, f_new))
    return float(merged(a, b, how="fisher", weight=weight, fisher_old=f, fisher_new=g)["w"])


# --- 1 to 6: the merge


def test_01_equal_information_is_coma_and_the_ends_are_the_networks() -> None:
    old, new = ({"w": torch.randn(9, generator=torch.Generator().manual_seed(s))} for s in range(2))
    for c in (1e-20, 1.0, 1e10):
        f = {"w": torch.full((9,), c)}
        for weight, expected in ((0.0, old), (1.0, new), (0.3, merged(old, new, how="linear", weight=0.3))):
            found = merged(old, new, how="fisher", weight=weight, fisher_old=f, fisher_new=f)
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)


def test_02_and_03_and_04_numbers_by_hand() -> None:
    assert by_fisher(0, 4, 3, 1) == pytest.approx(1.0)
    assert by_fisher(0, 4, 3, 1, weight=0.25) == pytest.approx(0.4)
    assert by_fisher(0, 4, 0, 0, weight=0.25) == 1.0
    assert by_fisher(1, 4, 3, 0) == 1.0
    assert by_fisher(0, 4, 3e-20, 1e-20) == pytest.approx(1.0)
    clip = CoFiMAConfig().fisher.clip
    assert clip is not None
    assert by_fisher(1, 4, min(1, clip), min(1e-2, clip)) == pytest.approx(2.5)
    assert by_fisher(1, 4, 1, 1e-2) == pytest.approx((1 + 0.01 * 4) / 1.01)


def test_05_new_names_are_copied_and_the_networks_may_be_swapped() -> None:
    old, new = {"w": torch.tensor([0.3]), "n": torch.tensor(2)}, {"w": torch.tensor([0.7]), "n": torch.tensor(3)}
    f, g, more = {"w": torch.tensor([0.1])}, {"w": torch.tensor([0.4])}, {"head": torch.tensor([0.1, 1e-40])}
    one = merged(old, {**new, **more}, how="fisher", weight=0.3, fisher_old=f, fisher_new=g)
    other = merged(new, old, how="fisher", weight=0.7, fisher_old=g, fisher_new=f)
    torch.testing.assert_close(one["w"], other["w"])
    assert torch.equal(one["head"], more["head"])
    assert int(one["n"]) == 3


def test_06_merges_one_after_the_other() -> None:
    star, seen = {"w": torch.tensor([0.0])}, []
    for t in range(1, 4):
        star = merged(star, {"w": torch.tensor([float(t)])}, how="linear", weight=0.5)
        seen.append(float(star["w"]))
    assert seen == [0.5, 1.25, 2.125]


# --- the merge in the methods


def test_coma_with_all_weight_on_the_new_network_is_slca(store: FeatureStore) -> None:
    """The stages, their order and their draws are SLCA's; only the merge is added."""
    slca = fitted(made(SLCA, store), stream())
    method = fitted(made(CoMA, store, weight=1.0), stream())
    for name in ("backbone_", "head_", "raw_head_"):
        assert alike(values(getattr(slca, name)), values(getattr(method, name))), name
    assert not alike(values(slca.backbone_), values(fitted(made(CoMA, store), stream()).backbone_))


@pytest.mark.parametrize("kind", [CoFiMA, CoMA])
def test_the_first_task_is_not_merged_and_without_weight_later_ones_leave_no_trace(
    kind: type[Method[Any]], store: FeatureStore
) -> None:
    method, tasks = made(kind, store, weight=0.0), stream()
    fresh = values(method.backbone_)
    first = values(method.fit_task(tasks[0]).backbone_)
    assert alike(first, values(fitted(made(SLCA, store), tasks[:1]).backbone_))
    assert not alike(fresh, first)
    assert alike(first, values(fitted(method, tasks[1:]).backbone_))


def test_each_weight_is_merged_by_its_information(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Information at the weights that each task left, before its merge; all of it in the order of section 6."""
    order: list[str] = []
    kept: dict[str, Any] = {}

    def spied(name: str) -> None:
        function = getattr(cofima, name)

        def spy(m: Any, *rest: Any, **more: Any) -> Any:
            order.append(name)
            backbone = getattr(m, "backbone_", m)
            kept[f"before {name}"] = values(backbone.model)
            kept[name] = function(m, *rest, **more)
            if name == "fisher_of_images":
                kept["head"] = values(rest[0])
            return kept[name]

        monkeypatch.setattr(cofima, name, spy)

    method, tasks = made(CoFiMA, store, weight=0.3, fisher={"clip": None}), stream((2, 2))
    method.fit_task(tasks[0])
    names = [name for name, _ in method.backbone_.model.named_parameters()]
    star, known = values(method.backbone_.model), by_name(method.fisher_, method.backbone_)
    for name in ("learn_slowly", "fisher_of_images", "merge_backbone", "add_gaussians", "align_heads"):
        spied(name)
    method.fit_task(tasks[1])
    assert order == ["learn_slowly", "fisher_of_images", "merge_backbone", "add_gaussians", "align_heads"]
    own, new = kept["before fisher_of_images"], kept["fisher_of_images"]
    assert alike(own, kept["before merge_backbone"])
    assert list(new) == names, "heads are not in it"
    assert alike(by_name(method.fisher_, method.backbone_), new)
    assert alike(kept["head"], values(method.raw_head_)), "the heads as they were trained, of all classes seen"
    for name in names:
        a, b = 0.7 * known[name].double(), 0.3 * new[name].double()
        linear = 0.7 * star[name].double() + 0.3 * own[name].double()
        expected = torch.where(a + b > 0, (a * star[name] + b * own[name]) / (a + b), linear)
        found = method.backbone_.model.state_dict()[name].double()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_old_information_is_the_last_or_the_mean(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}
    for how in ("last", "running_mean"):
        method, given, old = made(CoFiMA, store, fisher_old=how), iter([3.0, 1.0, 8.0]), []

        def fixed(backbone: Backbone, *rest: Any, given: Any = given) -> Weights:
            c = next(given)
            return {n: torch.full_like(p, c) for n, p in backbone.model.named_parameters()}

        def spy(m: Any, before: Weights, weight: float, *, old: list[float] = old, **fishers: Weights) -> None:
            old.append(float(in_a_row(fishers["fisher_old"])[0]))

        monkeypatch.setattr(cofima, "fisher_of_images", fixed)
        monkeypatch.setattr(cofima, "merge_backbone", spy)
        told[how] = old, fitted(method, stream())
    assert told["last"][0] == [3.0, 1.0]
    assert told["running_mean"][0] == [3.0, 2.0]
    assert [float(told[how][1].fisher_[-1]) for how in told] == [8.0, 4.0]


def test_two_methods_are_merged_by_the_information_that_they_hold(store: FeatureStore) -> None:
    first, second = (fitted(made(CoFiMA, store, fisher={"clip": None}), stream((3, 3), seed=s)) for s in range(2))
    both = merge(first, second, how="fisher", weight=0.25)
    each = [(values(m.backbone_.model), by_name(m.fisher_, m.backbone_)) for m in (first, second)]
    (a, f), (b, g) = ({k: {n: t.double() for n, t in v.items()} for k, v in enumerate(one)}.values() for one in each)
    for name in f:
        total = 0.75 * f[name] + 0.25 * g[name]
        linear = 0.75 * a[name] + 0.25 * b[name]
        expected = torch.where(total > 0, (0.75 * f[name] * a[name] + 0.25 * g[name] * b[name]) / total, linear)
        torch.testing.assert_close(values(both.backbone_.model)[name].double(), expected, rtol=1e-5, atol=1e-7)
    assert both.gaussians_.counts.tolist() == [8] * 6


# --- 7, 11: the information


def test_07_batch_gradients_cancel_where_those_of_images_do_not(store: FeatureStore) -> None:
    """The closed forms are in tests/train/test_fisher.py."""
    found = {}
    for estimator in ("batch", "per_sample"):
        method = made(CoFiMA, store, fisher={"estimator": estimator, "clip": None}, train={"batch_size": 8})
        found[estimator] = float(method.fit_task(stream()[0]).fisher_.sum())
    assert 0 < found["batch"] < found["per_sample"]


def test_information_is_clipped_unless_told_otherwise(store: FeatureStore) -> None:
    clipped, free = (
        made(CoFiMA, store, **how).fit_task(stream()[0]).fisher_ for how in ({}, {"fisher": {"clip": None}})
    )
    assert float(clipped.max()) == pytest.approx(1e-4)
    assert torch.equal(clipped, free.clamp(max=1e-4))
    assert not torch.equal(clipped, free)


def test_the_softmax_is_over_all_classes_seen_unless_told_otherwise(store: FeatureStore) -> None:
    tasks = stream()
    seen, own = (fitted(made(CoFiMA, store, fisher={"logits": logits}), tasks[:1]) for logits in ("seen", "task"))
    assert torch.equal(seen.fisher_, own.fisher_)
    assert not torch.equal(seen.fit_task(tasks[1]).fisher_, own.fit_task(tasks[1]).fisher_)


def test_11_stale_gradients_do_not_enter(store: FeatureStore) -> None:
    tasks, clean, stale = stream(), made(CoFiMA, store), made(CoFiMA, store)
    for method in (clean, stale):
        method.fit_task(tasks[0])
        if method is stale:
            for part in (method.backbone_, method.raw_head_, method.head_):
                for p in part.parameters():
                    p.grad = torch.full_like(p, 7.0)
        method.fit_task(tasks[1])
    assert torch.equal(clean.fisher_, stale.fisher_)
    assert alike(values(clean.backbone_), values(stale.backbone_))
    assert len(clean.fisher_) == sum(p.numel() for p in clean.backbone.model.parameters())


# --- 8, 9: alignment and rates


def test_08_the_normaliser_by_hand() -> None:
    blocks = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    found = norm_scaled(torch.tensor([[3.0, 4, 0, 5]]), blocks, 0.1)
    torch.testing.assert_close(found, torch.tensor([[6.0, 8, 0, 10]]), rtol=1e-6, atol=0)


def test_09_the_milestone_the_shorter_means_and_the_samples() -> None:
    assert [Milestone(milestone=3).factor(0, 0, epoch, 4) for epoch in range(4)] == [1, 1, 1, 0.1]
    assert [shortened(t, 4, 0.1) for t in (0, 3)] == pytest.approx([0.925, 1.0])
    rng, g, n = torch.Generator().manual_seed(0), Gaussians(3), 100_000
    g.append(torch.randn(40, 3, generator=rng) @ torch.tensor([[2.0, 0, 0], [1, 1, 0], [0, 1, 0.5]]) + 5)
    drawn, sigma = g.sample(0, n, rng, ridge=1e-4, scale=0.925), g.covariance(0) + 1e-4 * torch.eye(3)
    deviation = sigma.diagonal().sqrt()
    assert bool(((drawn.mean(0) - 0.925 * g.means[0]).abs() < 3 * deviation / n**0.5).all())
    spread = (deviation[:, None].square() * deviation.square() + sigma.square()).sqrt()  # of a covariance's estimate
    assert bool(((torch.cov(drawn.T) - sigma).abs() < 3 * spread / n**0.5).all())


def test_the_mean_of_a_class_is_shortened_by_its_own_task(store: FeatureStore) -> None:
    method = fitted(made(CoFiMA, store), stream((3, 1, 2)))
    assert method.task_of_ == method.slot_tasks_ == [0, 0, 0, 1, 2, 2]


# --- 10, 12: what is kept


@pytest.mark.parametrize("kind", [CoFiMA, CoMA])
def test_10_training_goes_on_from_raw_heads_and_tests_use_aligned_ones(
    kind: type[Method[Any]], store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = cofima if kind is CoFiMA else coma
    trained: list[Weights] = []
    learn = module.learn_slowly

    def spy(m: Any, *rest: Any) -> None:
        trained.append(values(m.raw_head_))
        learn(m, *rest)
        trained.append(values(m.raw_head_))

    monkeypatch.setattr(module, "learn_slowly", spy)
    method = fitted(made(kind, store), stream())
    assert alike(trained[1], trained[2]), "as stage 1 left them: neither merged nor aligned"
    assert alike(trained[3], trained[4])
    assert alike(trained[5], values(method.raw_head_))
    assert all(
        torch.equal(new[: len(old)], old) for old, new in zip(trained[1].values(), trained[5].values(), strict=True)
    )
    assert not alike(values(method.raw_head_), values(method.head_))
    x = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    torch.testing.assert_close(method.scores(x), method.head_(method.backbone_.features(x)), atol=1e-5, rtol=1e-5)
    without = fitted(made(kind, store, align="none"), stream())
    assert alike(values(without.raw_head_), values(without.head_))


@pytest.mark.parametrize("kind", [CoFiMA, CoMA])
def test_statistics_are_those_of_the_merged_network_and_stay(kind: type[Method[Any]], store: FeatureStore) -> None:
    tasks = stream((2, 2, 2))
    method = fitted(made(kind, store), tasks[:2])
    images = torch.cat([x for _, x in tasks[1].train.batches(method.backbone.preprocess, 8)])
    features = method.backbone_.features(images)
    mine = features[method.columns(tasks[1].train.labels) == 2].double()
    torch.testing.assert_close(method.gaussians_.means[2], mine.mean(0), atol=1e-6, rtol=0)
    kept = method.gaussians_.means.clone()
    method.fit_task(tasks[2])
    assert torch.equal(method.gaussians_.means[:4], kept)


class Stop(BaseException):
    """Somebody pulled the plug."""


@pytest.mark.parametrize(
    ("kind", "stage"),
    [(CoFiMA, "training"), (CoFiMA, "Fisher information"), (CoFiMA, "aligning"), (CoMA, "aligning")],
)
def test_12_a_task_that_was_stopped_is_learned_anew_to_the_bit(
    kind: type[Method[Any]], stage: str, store: FeatureStore, tmp_path: Path
) -> None:
    tasks, straight = stream(), made(kind, store)
    fitted(straight, tasks[:2])
    state = copy.deepcopy(straight.state_dict())
    stopped = made(kind, FeatureStore(tmp_path)).load_state_dict(state)

    def stop(event: Event) -> None:
        if event.stage == stage and event.done == 2:
            raise Stop

    stopped.store.progress = stop
    with pytest.raises(Stop):
        stopped.fit_task(tasks[2])
    stopped.store.progress = lambda event: None
    for method in (straight, stopped):
        method.fit_task(tasks[2])
    one, other = straight.state_dict(), stopped.state_dict()
    for name in ("backbone_", "head_", "raw_head_"):
        assert alike(values(getattr(straight, name)), values(getattr(stopped, name))), name
    if kind is CoFiMA:
        assert torch.equal(one["fisher_"], other["fisher_"])


def test_12_two_networks_are_kept_whatever_the_number_of_tasks(store: FeatureStore) -> None:
    method, sizes = made(CoFiMA, store), []
    for task in stream((1, 1, 2, 2)):
        state = method.fit_task(task).state_dict()
        sizes.append(tensor_bytes({name: state[name] for name in ("backbone_", "fisher_")}))
    assert sizes == [2 * 4 * sum(p.numel() for p in method.backbone.model.parameters())] * 4
    grows = [tensor_bytes({k: v for k, v in state.items() if k in ("head_", "raw_head_", "gaussians_", "taught_")})]
    assert tensor_bytes(state) == sizes[-1] + grows[0]


def test_passes_are_as_the_docstrings_say(store: FeatureStore) -> None:
    task = stream((6,))[0]
    for kind, expected in ((CoFiMA, 4), (CoMA, 3)):  # two epochs and the statistics, and the information
        method = made(kind, store)
        method.fit_task(task)
        assert method.backbone.passes.images == expected * len(task.train), kind


def test_classes_of_one_image_and_a_convolutional_network_are_fine(store: FeatureStore) -> None:
    backbone = Backbone.load("test_efficientnet", pretrained=False, device="cpu")
    for kind in (CoFiMA, CoMA):
        method = fitted(made(kind, store, backbone), stream((2, 2), train_per_class=1))
        trained, given = values(method.backbone_.model), values(backbone.model)
        fixed = [name for name in given if "running" in name or "num_batches" in name]
        assert fixed
        assert all(torch.equal(trained[name], given[name]) for name in fixed)
        assert not alike(trained, given)
        assert all(bool(torch.isfinite(t).all()) for t in values(method.head_).values())


def test_the_final_norm_is_reset_on_demand(store: FeatureStore) -> None:
    for kind in (CoFiMA, CoMA):
        norms = [made(kind, store, reset_final_norm=reset).backbone_.model.norm for reset in (False, True)]
        assert [float(norm.weight[0]) == 1 for norm in norms] == [False, True]


# --- section 5: presets and recipes

OFFICIAL = {"epochs": 20, "milestone": 18, "batch": 128, "weight": 0.5, "align": 5, "tau": 0.1, "scale": 0.08}
LONG = {**OFFICIAL, "epochs": 50, "milestone": 40}
PILOT = {**OFFICIAL, "batch": 64, "weight": 0.4, "align": 3, "scale": 0.05}
PRESETS: dict[str, tuple[dict[str, Any], bool, int | None]] = {  # and whether the norm is reset, and windows' sides
    "default": ({**OFFICIAL, "scale": 0.5}, False, None),
    "official_cifar100": (OFFICIAL, True, None),
    "official_imagenet_r": (LONG, True, None),
    "official_cub": (LONG, True, 300),
    "official_cars": ({**LONG, "tau": 0.05}, True, 300),
    "official_vtab": (OFFICIAL, True, 300),
    "pilot_cifar100": (PILOT, False, None),
    "pilot_imagenet_r": ({**PILOT, "epochs": 50, "milestone": 40}, False, None),
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_specification(preset: str) -> None:
    expected, reset, side = PRESETS[preset]
    for kind in (CoFiMAConfig, CoMAConfig):
        assert set(kind.presets) == set(PRESETS) - {"default"}
        c = load(kind, {"preset": preset})
        assert isinstance(c.train.schedule, Milestone)
        assert c.align is not None
        assert expected == {
            "epochs": c.train.epochs, "milestone": c.train.schedule.milestone, "batch": c.train.batch_size,
            "weight": c.weight, "align": c.align.epochs, "tau": c.align.tau, "scale": c.train.augment.min_scale,
        }  # fmt: skip
        assert (c.reset_final_norm, c.train.augment.resize) == (reset, side)
        assert (c.train.lr, c.slow, c.train.optimizer.weight_decay) == (0.01, 0.01, 5e-4)
        told = c.model_dump(exclude={"preset", "weight", "fisher", "fisher_old"})
        same = SLCAConfig().model_dump(exclude={"preset"})
        assert told.keys() == same.keys()
        assert preset != "default" or told == same
    c = load(CoFiMAConfig, {"preset": preset})
    assert c.fisher.model_dump() == {"estimator": "batch", "clip": 1e-4, "logits": "seen"}
    assert c.fisher_old == "last"


@pytest.mark.parametrize(("data", "n", "view"), [("cifar100", 10, "slca_cifar"), ("imagenet-r", 20, "slca")])
def test_recipes_are_the_published_rows(data: str, n: int, view: str) -> None:
    path = Path(__file__).parents[2] / "recipes" / data / "cofima_vitb16_in21k.yaml"
    told = yaml.safe_load(path.read_text(encoding="utf-8"))
    c = load(StreamConfig, told["stream"])
    assert (c.base, c.increment, c.order_seed) == (n, n, 1993)
    assert told["backbone"] == {"name": "vit_base_patch16_224.augreg_in21k", "preset": view}
    assert told["method"] == {"name": "cofima", "preset": f"official_{data.replace('-', '_')}"}


@pytest.mark.parametrize("data", ["caltech101", "cifar10", "fashion-mnist"])
def test_short_recipes_differ_from_slcas_by_the_merge_alone(data: str) -> None:
    folder = Path(__file__).parents[2] / "recipes" / data
    told = {
        name: yaml.safe_load((folder / f"{name}_default.yaml").read_text(encoding="utf-8"))
        for name in ("slca_short", "cofima", "coma")
    }
    for name in ("cofima", "coma"):
        assert told[name].pop("method") == {**told["slca_short"]["method"], "name": name}
        assert told[name] == {k: v for k, v in told["slca_short"].items() if k != "method"}
