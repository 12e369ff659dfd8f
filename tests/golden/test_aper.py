"""The golden tests of APER's specification, section 12; those of the parts (1 to 5) are in backbone/test_seats.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure import Backbone, FeatureStore, Stream, load_stream
from perdure.backbone import Insertion
from perdure.checks import check_method
from perdure.config import laid_over
from perdure.data import Task
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError
from perdure.methods.aper import APER, APERConfig
from perdure.methods.simplecil import SimpleCIL
from perdure.modules.heads import cosine_scores
from perdure.train.adapting import Adaptation
from perdure.train.session import Session
from tiny_vit import ON_ANOTHER_VIT

VARIANTS = [kind.model_fields["variant"].default for kind in get_args(Adaptation)]
QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 8, "augment": {"min_scale": 1.0, "flip": False}}
NOTHING: Mapping[str, Any] = MappingProxyType({})
IDS = [4, 2, 7, 0, 5, 9]


def of(variant: str) -> dict[str, Any]:
    """A variant, small if it is an adapter."""
    return {"variant": variant, **({"rank": 4} if variant == "adapter" else {})}


def aper(
    backbone: Backbone,
    store: FeatureStore,
    variant: str = "adapter",
    *,
    train: Mapping[str, Any] = NOTHING,
    **adapt: Any,
) -> APER:
    config = APERConfig(adapt={**of(variant), **adapt, "train": laid_over(QUICK, train)})
    return APER(backbone, config, store=store)


def stream(sizes: tuple[int, ...] = (2, 2, 2), order: list[int] = IDS) -> Stream:
    return class_incremental(synthetic_dataset(IDS, train_per_class=6, test_per_class=4), sizes, order)


def fitted(method: APER, tasks: Stream) -> APER:
    for task in tasks:
        method.fit_task(task)
    return method


def hash_of(module: torch.nn.Module) -> list[Tensor]:
    return [p.clone() for p in module.state_dict().values()]


def test_06_the_cosine_is_over_the_whole_merged_vector() -> None:
    z = torch.tensor([[1.0, 0, 0, 2]])
    assert cosine_scores(z, torch.tensor([[1.0, 0, 0, 0]])).item() == pytest.approx(1 / math.sqrt(5), abs=1e-6)


def test_06_the_method_merges_so(backbone: Backbone, store: FeatureStore) -> None:
    tasks = stream()
    method = fitted(aper(backbone, store), tasks)
    x = torch.stack([torch.from_numpy(np.asarray(backbone.preprocess.pixels(tasks.test(0).source.read(0))))])
    z = torch.cat([backbone.features(x), method.first.backbone.features(x)], dim=1).double()
    p = method.prototypes
    expected = (z @ p.T) / (z.norm() * p.norm(dim=1))
    assert torch.allclose(method.scores(x).double(), expected, atol=1e-6)
    assert not torch.equal(z[:, :64], z[:, 64:])


def test_07_an_adaptation_to_nothing_is_simplecil(backbone: Backbone, store: FeatureStore) -> None:
    tasks = stream()
    method = aper(backbone, store, train={"lr": 1e-30, "optimizer": {"weight_decay": 0.0}})
    simple = SimpleCIL(backbone, store=store)
    for task in tasks:
        method.fit_task(task)
        simple.fit_task(task)
    for i in range(3):
        scores = torch.cat(list(method.scores_of(tasks.test(i))))
        assert torch.allclose(scores, torch.cat(list(simple.scores_of(tasks.test(i)))), atol=1e-6)
        assert torch.equal(method.predict(tasks.test(i)), simple.predict(tasks.test(i)))


@pytest.mark.parametrize("other", [(2, 4), (2, 1, 3), (2, 1, 1, 1, 1)])
def test_08_later_tasks_may_be_cut_anew(other: tuple[int, ...], backbone: Backbone, store: FeatureStore) -> None:
    tests = stream((6,)).test(0)
    one, two = (fitted(aper(backbone, store), stream(sizes)) for sizes in ((2, 2, 2), other))
    assert torch.equal(one.predict(tests), two.predict(tests))


def test_08_and_may_come_in_another_order_but_the_first_may_not(backbone: Backbone, store: FeatureStore) -> None:
    tests = stream((6,)).test(0)
    one = fitted(aper(backbone, store), stream())
    later = fitted(aper(backbone, store), stream(order=[4, 2, 9, 5, 0, 7]))
    first = fitted(aper(backbone, store), stream(order=[7, 0, 4, 2, 5, 9]))
    assert torch.equal(one.predict(tests), later.predict(tests))
    assert all(torch.equal(a, b) for a, b in zip(hash_of(one.tuned_), hash_of(later.tuned_), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(hash_of(one.tuned_), hash_of(first.tuned_), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
def test_09_nothing_changes_after_the_first_task(variant: str, backbone: Backbone, store: FeatureStore) -> None:
    tasks, method = stream(), aper(backbone, store, variant)
    untrained = hash_of(method.tuned_)
    method.fit_task(tasks[0])
    before, fingerprint = hash_of(method.tuned_), method.first.backbone.fingerprint
    assert not all(torch.equal(a, b) for a, b in zip(untrained, before, strict=True))
    assert not any(p.requires_grad or p.grad is not None for p in method.first.backbone.parameters())
    for task in tasks[1:]:
        method.fit_task(task)
    assert all(torch.equal(a, b) for a, b in zip(before, hash_of(method.tuned_), strict=True))
    assert method.first.backbone.fingerprint == fingerprint != backbone.fingerprint


def test_10_prototypes_are_free_of_dropout(backbone: Backbone, tmp_path: Path) -> None:
    found = []
    for name in "ab":
        method = fitted(aper(backbone, FeatureStore(tmp_path / name)), stream())
        found.append(method.prototypes)
        adapted = method.first.backbone
        direct = torch.cat([adapted.features(x) for _, x in stream()[0].train.batches(backbone.preprocess, 12)])
        columns = method.columns(stream()[0].train.labels)
        assert torch.allclose(method.prototypes[0, 64:].float(), direct[columns == 0].mean(0), atol=1e-5)
    assert torch.equal(*found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_11_a_method_read_back_after_the_first_task_goes_on_alike(
    variant: str, backbone: Backbone, store: FeatureStore
) -> None:
    tasks = stream()
    straight = aper(backbone, store, variant).fit_task(tasks[0])
    resumed = aper(backbone, store, variant).load_state_dict(straight.state_dict())
    for method in (straight, resumed):
        for task in tasks[1:]:
            method.fit_task(task)
    assert torch.equal(straight.prototypes, resumed.prototypes)
    assert torch.equal(straight.predict(tasks.test(1)), resumed.predict(tasks.test(1)))


# --- the pitfalls of section 9, and what a user would expect


@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant != "adapter"])
def test_what_promises_say_of_learning_and_of_state_is_kept_by_every_variant(variant: str) -> None:
    small = {"adapt": {**of(variant), "train": {"epochs": 1, "batch_size": 8}}}

    class Kind(APER):
        __doc__ = APER.__doc__
        tags = APER.tags.__class__(adapts=True, small=small, learns=APER.tags.learns)

    Kind.__module__ = APER.__module__
    assert APER.tags.small["adapt"]["variant"] == "adapter"  # which keeps every promise in tests/checks
    names = [*ON_ANOTHER_VIT, "check_failed_task_changes_nothing", "check_refused_state_changes_nothing"]
    assert [result.note for result in check_method(Kind, only=names) if not result.ok] == []


@pytest.mark.parametrize("variant", ["ssf", "finetune"])
def test_convolutional_networks_adapt_by_scales_and_by_weights(variant: str, store: FeatureStore) -> None:
    backbone = Backbone.load("test_efficientnet", pretrained=False, device="cpu")
    tasks = stream()
    method = fitted(aper(backbone, store, variant), tasks)
    assert not torch.equal(method.prototypes[:, : backbone.dim], method.prototypes[:, backbone.dim :])
    assert len(method.predict(tasks.test(2))) == 8


@pytest.mark.parametrize("variant", ["adapter", "vpt_deep", "vpt_shallow"])
def test_but_an_adapter_is_refused_there_with_the_seats_that_are(variant: str, store: FeatureStore) -> None:
    backbone = Backbone.load("test_resnet", pretrained=False, device="cpu")
    with pytest.raises(BackboneError, match=r"outputs.*convolutions"):
        aper(backbone, store, variant)


def test_the_throw_away_head_starts_at_a_temperature_of_one_and_learns_it(
    backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def spy(session: Session[Any], loss: object) -> None:
        learned, config, optimizer = session.learned, session.config, session.optimizer
        [group] = optimizer.param_groups
        given.update(sizes=[p.shape for p in learned], last=[p.item() for p in learned if not p.ndim])
        given.update(schedule=config.schedule.name, n_epochs=config.epochs, optimizer=type(optimizer).__name__.lower())
        given.update(lr=group["peak"], weight_decay=group["weight_decay"])

    monkeypatch.setattr(Session, "run", spy)
    aper(backbone, store, train={"epochs": 7, "lr": 0.3, "optimizer": {"weight_decay": 0.1}}).fit_task(stream()[0])
    assert given["last"] == [1.0]
    assert given["sizes"][-2:] == [torch.Size([2, 64]), torch.Size([])]  # two classes, no more; and sigma
    assert {k: given[k] for k in ("lr", "schedule", "n_epochs", "weight_decay", "optimizer")} == {
        "lr": 0.3, "schedule": "epoch_cosine", "n_epochs": 7, "weight_decay": 0.1, "optimizer": "sgd"
    }  # fmt: skip


def test_zero_prompts_stay_equal_and_uniform_ones_differ(backbone: Backbone, store: FeatureStore) -> None:
    for init, alike in (("zeros", True), ("uniform", False)):
        method = aper(backbone, store, "vpt_deep", prompt_init=init, train={"lr": 0.5}).fit_task(stream()[0])
        assert isinstance(method.tuned_, Insertion)
        values = method.tuned_.inserted[0].values
        assert bool((values != 0).any())
        assert torch.allclose(values, values[:1].expand_as(values), atol=1e-6) == alike


def test_the_state_is_the_adapted_part_and_means(backbone: Backbone, store: FeatureStore) -> None:
    method = fitted(aper(backbone, store), stream())
    adapters = len(backbone.vit.blocks) * (2 * 64 * 4 + 4 + 64)
    assert sum(v.numel() for v in method.tuned_.state_dict().values()) == adapters
    assert method.learned_parameters() == adapters + 6 * 2 * 64


def test_training_is_seeded_whatever_the_global_generator(backbone: Backbone, store: FeatureStore) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        method = aper(backbone, store, train={"augment": {"min_scale": 0.5, "flip": True}}).fit_task(stream()[0])
        found.append(hash_of(method.tuned_))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_stem_is_passed_once_where_views_stay(store: FeatureStore) -> None:
    backbone = Backbone.load("default", device="cpu")
    tasks = load_stream("synthetic", tasks=1, train_per_class=2, test_per_class=1)
    seen: list[int] = []
    backbone.model.patch_embed.backbone.register_forward_hook(lambda _, args, out: seen.append(len(args[0])))
    method = aper(backbone, store, train={"epochs": 2})
    method.fit_task(tasks[0])
    n = len(tasks[0].train)
    assert sum(seen) <= 2 * n + 2  # once for frozen features, once for the patches that all else goes on from
    assert isinstance(tasks[0], Task)
