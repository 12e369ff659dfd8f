"""The memory that methods of replay share: its one budget, its policies, and what a step takes of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from perdure import Backbone, FeatureStore
from perdure.data import LabelledImages
from perdure.data.synthetic import synthetic_dataset
from perdure.memory.exemplars import herding
from perdure.train.replay import Memory, keep, kept


@pytest.fixture
def images() -> LabelledImages:
    return synthetic_dataset([5, 3], train_per_class=6, test_per_class=1).train


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def columns(labels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy((labels == 3).astype(np.int64))


@pytest.mark.parametrize(
    ("budget", "n"),
    [
        ({}, 12),
        ({"n_per_class": 2, "policy": "random"}, 4),
        ({"n_images": 5}, 5),
        ({"n_images": 5, "policy": "reservoir"}, 5),
    ],
)
def test_a_memory_keeps_as_many_as_its_budget_says(
    budget: dict[str, Any], n: int, images: LabelledImages, backbone: Backbone, store: FeatureStore
) -> None:
    exemplars = Memory(**budget).make()
    assert exemplars.policy == budget.get("policy", "herding")
    assert kept(exemplars, columns, 3) is None
    keep(exemplars, images, rng(), backbone, store)
    assert len(exemplars) == n
    assert backbone.passes.images == (len(images) if exemplars.policy == "herding" else 0)
    found = kept(exemplars, columns, 3)
    assert found is not None
    assert found.per_step == 3
    assert found.columns.tolist() == [int(label == 3) for label in found.images.labels.tolist()]
    assert set(found.images.keys) <= set(images.keys)


def test_herding_follows_the_frozen_features(images: LabelledImages, backbone: Backbone, store: FeatureStore) -> None:
    exemplars = Memory(policy="herding", n_per_class=2).make()
    keep(exemplars, images, rng(), backbone, store)
    assert backbone.passes.images == len(images)
    rows = torch.nn.functional.normalize(store.features(backbone, images)[:], dim=1)
    for c in (5, 3):
        of_class = np.flatnonzero(images.labels == c)
        wanted = images.keys[of_class[herding(rows[of_class], 2).numpy()]]
        assert exemplars.images().keys[exemplars.labels.numpy() == c].tolist() == wanted.tolist()
