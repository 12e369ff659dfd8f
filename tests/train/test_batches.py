"""What a prompt training sees: crops, flips, both or neither, and queries of the same views or of the eval view."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from perdure import Backbone, FeatureStore
from perdure.data import LabelledImages
from perdure.data.synthetic import synthetic_dataset
from perdure.modules.augment import random_crop_flip
from perdure.train.batches import Batch, TaskImages
from perdure.train.settings import Augment, ImageTraining


@pytest.fixture
def data() -> LabelledImages:
    return synthetic_dataset([0, 1], train_per_class=6, test_per_class=1).train


def whole(backbone: Backbone, data: LabelledImages, store: FeatureStore, augment: Augment, **options: Any) -> Batch:
    """All images in one batch of a prompt training."""
    config, columns = ImageTraining(lr=1, epochs=1, batch_size=12, augment=augment), torch.tensor(data.labels)
    source = TaskImages(backbone, data, columns, config, store, [], prompted=True, **options)
    with source.open():
        return source.batch(torch.arange(12), torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("min_scale", "flip"), [(1.0, False), (1.0, True), (0.3, False), (0.3, True)])
def test_crops_and_flips_are_made_each_without_the_other(
    min_scale: float, flip: bool, backbone: Backbone, data: LabelledImages, store: FeatureStore
) -> None:
    (plain,) = [x for _, x in data.batches(backbone.preprocess, 12)]
    batch = whole(backbone, data, store, Augment(min_scale=min_scale, flip=flip))
    images = batch.images
    assert torch.equal(batch.embedded(backbone), backbone.embed_tokens(images))
    same = (images == plain).flatten(1).all(1)
    mirrored = (images == plain.flip(-1)).flatten(1).all(1)
    if min_scale < 1:
        assert not (same | mirrored).any()
        crops = random_crop_flip(plain, torch.Generator().manual_seed(0), min_scale=min_scale, flip=flip)
        assert torch.equal(images, crops)
    else:
        assert (same | mirrored).all()
        assert mirrored.any() == flip


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("queries", [None, "augmented", "clean"])
def test_queries_are_stored_where_they_are_those_of_the_eval_view(
    flip: bool, queries: Any, backbone: Backbone, data: LabelledImages, store: FeatureStore
) -> None:
    """A pass of every image goes into the store; views that change have queries of their own, one pass per batch."""
    batch = whole(backbone, data, store, Augment(min_scale=1.0, flip=flip), queries=queries)
    stored = queries == "clean" or (queries == "augmented" and not flip)
    assert (batch.rows is not None, backbone.passes.images) == (stored, 12 if stored else 0)
    (plain,) = [x for _, x in data.batches(backbone.preprocess, 12)]
    seen: Tensor = plain if stored else batch.images
    found = batch.queries(backbone, batch.embedded(backbone))
    assert backbone.passes.images == 12
    assert not found.requires_grad
    torch.testing.assert_close(found, backbone.features(seen), atol=1e-5, rtol=0)
