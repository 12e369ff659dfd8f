"""What a prompt method's training sees: crops, flips, both or neither."""

from __future__ import annotations

import pytest
import torch

from perdure import Backbone, FeatureStore
from perdure.data.synthetic import synthetic_dataset
from perdure.methods.vpt import VPT, VPTConfig
from perdure.modules.augment import random_crop_flip


@pytest.mark.parametrize(("min_scale", "flip"), [(1.0, False), (1.0, True), (0.3, False), (0.3, True)])
def test_crops_and_flips_are_made_each_without_the_other(
    min_scale: float, flip: bool, backbone: Backbone, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, seen = synthetic_dataset([0, 1], train_per_class=6, test_per_class=1).train, []
    embed = Backbone.embed_tokens

    def spy(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        seen.append(images)
        return embed(self, images)

    monkeypatch.setattr(Backbone, "embed_tokens", spy)
    method = VPT(backbone, VPTConfig(length=2, min_scale=min_scale, flip=flip), store=store)
    (plain,) = [x for _, x in data.batches(backbone.preprocess, 12)]
    with method._views(data) as views:
        views(torch.arange(12), torch.Generator().manual_seed(0))
    (images,) = seen
    same = (images == plain).flatten(1).all(1)
    mirrored = (images == plain.flip(-1)).flatten(1).all(1)
    if min_scale < 1:
        assert not (same | mirrored).any()
        crops = random_crop_flip(plain, torch.Generator().manual_seed(0), min_scale=min_scale, flip=flip)
        assert torch.equal(images, crops)
    else:
        assert (same | mirrored).all()
        assert mirrored.any() == flip
