"""The pitfalls of RAPF's specification, section 9, its presets, and what perdure adds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from rapf_cases import IDS, QUICK, TEMPLATE, rapf, stream

from perdure import FeatureStore, load_stream, merge
from perdure.backbone.clip import tiny_clip
from perdure.config import load
from perdure.data import Task
from perdure.data.stream import Candidate
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import DataError
from perdure.methods.rapf import RAPF, RAPFConfig
from tiny_clip import clip


def test_a_class_of_one_image_is_refused_before_anything_is_learned(store: FeatureStore) -> None:
    one, backbone = stream((2, 2), (3, 1, 3, 3, 3, 3)), tiny_clip()
    method = rapf(store, backbone)
    with pytest.raises(
        DataError, match=r"images of class 'pattern \d' must be 2 or more, for a covariance, but got 1\. Add"
    ):
        method.fit_task(one[0])
    assert (method.classes_, len(method.texts_), backbone.passes.texts, backbone.passes.images) == ([], 0, 0, 0)
    ridged = rapf(store, one_image="ridge").fit_task(one[0]).fit_task(one[1])
    torch.testing.assert_close(ridged._old(torch.arange(0)).normals[1].covariance(), 1e-4 * torch.eye(48).double())


def comes_again(store: FeatureStore, n: int) -> RAPF:
    """Three classes by day, and two of them, with ``n`` images each, by night."""
    day = synthetic_dataset(IDS[:3], train_per_class=3)
    night = synthetic_dataset(IDS[1:3], train_per_class=n, seed=1, shift=-40.0)
    method, names = rapf(store), {c: f"pattern {c}" for c in IDS[:3]}
    for index, (images, domain) in enumerate(((day.train, "day"), (night.train, "night"))):
        own = {c: names[c] for c in dict.fromkeys(images.labels.tolist())}
        method.fit_task(Task(index, images, tuple(own), domain, class_names=own, display_names=own))
    return method


def test_a_class_that_comes_again_has_a_gaussian_per_domain(store: FeatureStore) -> None:
    method = comes_again(store, 2)
    assert (method.slot_columns_, method.gaussians_.counts.tolist()) == ([0, 1, 2, 1, 2], [3, 3, 3, 2, 2])
    assert method.hard_pairs_ == [0, 4], "three old classes and two of the task's, but no name beside itself"
    assert method.texts_.shape == (3, 48)
    alone = comes_again(store, 1)
    assert (alone.slot_columns_, alone.gaussians_.counts.tolist()) == ([0, 1, 2], [3, 4, 4])


def test_what_is_replayed_follows_the_settings(store: FeatureStore) -> None:
    method = rapf(store).fit_task(stream()[0])
    old = method._old(torch.tensor([1]))
    assert (old.columns.tolist(), old.per_step, old.per_epoch, old.per_pair) == ([0, 1], None, 12, 2)
    assert old.normals[0].noise == 1e-4
    told_k = RAPF(clip(), store=store, beta=0.59, old_classes_per_step=3, shrink=True, ridge=0.5, train=QUICK["train"])
    shrunk = told_k.fit_task(stream()[0])._old(torch.arange(0))
    assert (shrunk.per_step, shrunk.samples, shrunk.per_pair) == (3, 5, 11)
    assert shrunk.normals[0].noise != 0.5
    assert method.learned_parameters() == 48 * 48


def test_names_that_were_never_taught_pass_the_same_map(store: FeatureStore) -> None:
    whole = stream()
    method = rapf(store).fit_task(whole[0])
    strange = [Candidate(whole.class_names[c], whole.display_names[c]) for c in whole[1].classes]
    found = torch.cat(list(method.scores_among(whole.test(0), strange)))
    x = store.features(clip(), whole.test(0))[:] @ method.map_.T
    wanted = clip().logits(x, method.class_texts([c.text for c in strange], None))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_the_tie_of_a_map_that_never_learned_is_counted(store: FeatureStore) -> None:
    """A task of one class teaches nothing: the next one's old map is the identity."""
    method = rapf(store)
    for task in stream((1, 2)):
        method.fit_task(task)
    assert method.ties_ == [0, 47]


def test_two_methods_merge(store: FeatureStore) -> None:
    (task,) = stream((2,), 8)
    even, odd = (task.train.subset(np.arange(first, 16, 2)) for first in (0, 1))
    one, two = (rapf(store).fit_task(_of(task, part)) for part in (even, odd))
    both, whole = merge(one, two, weight=0.25), rapf(store).fit_task(task)
    torch.testing.assert_close(both.map_, 0.75 * one.map_ + 0.25 * two.map_)
    torch.testing.assert_close(both.gaussians_.covariance(1), whole.gaussians_.covariance(1))


def _of(task: Task, images: Any) -> Task:
    return Task(0, images, task.classes, class_names=task.class_names, display_names=task.display_names)


PUBLISHED = {  # batch, beta, k, theta, b, shrink
    "cifar100": (100, 2, 2, 0.55, 0.6, False),
    "cifar100_50_5": (50, 2, 4, 0.55, 0.6, False),
    "cifar100_50_5_libcontinual": (50, 2, 4, 0.65, 0.6, False),
    "imagenet_r": (64, 1, 5, 0.65, 0.7, True),
    "imagenet_r_10_10": (60, 2, 5, 0.6, 0.7, True),
    "imagenet_r_40_40": (64, 0.5, 5, 0.6, 0.7, True),
    "imagenet_r_100_10": (64, 2, 5, 0.65, 0.7, True),
    "cub": (32, 1, 10, 0.65, 0.8, True),
    "imagenet100": (128, 1, 2, 0.65, 0.5, False),
    "imagenet100_20_20": (128, 0.5, 2, 0.65, 0.5, False),
}


def test_the_published_settings() -> None:
    assert RAPFConfig.presets.keys() == PUBLISHED.keys()
    common = RAPFConfig().train.model_dump()
    for name, (batch, *rest) in PUBLISHED.items():
        c = load(RAPFConfig, {"preset": name})
        assert [c.beta, c.old_classes_per_step, c.theta, c.fusion, c.shrink] == rest
        assert (c.init, c.templates, c.margin, c.ridge) == ("random", [TEMPLATE], 0.1, 1e-4)
        assert c.train.model_dump() == {**common, "batch_size": batch}
    assert (common["lr"], common["epochs"], common["optimizer"]["name"]) == (1e-3, 15, "adam")
    assert {k: common["optimizer"][k] for k in ("beta1", "beta2", "weight_decay", "amsgrad")} == {
        "beta1": 0.9, "beta2": 0.999, "weight_decay": 0, "amsgrad": False,
    }  # fmt: skip
    assert RAPFConfig().init == "identity"


def test_the_default_map_learns_where_the_stream_is_easy(store: FeatureStore) -> None:
    whole, method = load_stream("synthetic", tasks=2), rapf(store, train={"epochs": 40}, theta=0.0)
    for task in whole:
        method.fit_task(task)
    assert all((method.predict(whole.test(k)).numpy() == whole.test(k).labels).mean() > 0.8 for k in range(2))
