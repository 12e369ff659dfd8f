"""The same images for two Vision Transformers: from pixels or from the store, in training and in tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdure import FeatureStore
from perdure.backbone import Backbone, TwoTowers
from perdure.backbone.clip import tiny_clip
from perdure.backbone.second import SecondBackbone
from perdure.checks.subject import small_stream
from perdure.train.pairs import PairedImages, PairedPrompts
from perdure.train.settings import Training
from tiny_vit import behind

DATA = small_stream((2,), train_per_class=5)[0].train


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def prompts(clip: TwoTowers, second: Backbone | None = None) -> PairedPrompts:
    beside = SecondBackbone(name="test_vit", pretrained=False).beside(clip, "own", "a test")
    return PairedPrompts(clip, second or beside, 2, 3, rng())


def with_stem() -> Backbone:
    """A Vision Transformer whose patches come from a network, on 64 px."""
    hybrid = behind(nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU()))
    hybrid.vit.set_input_size(img_size=(64, 64))
    hybrid.preprocess = tiny_clip().preprocess
    return hybrid


def batches(towers: tuple[Backbone, Backbone], store: FeatureStore) -> list[Any]:
    images = PairedImages(towers, DATA, torch.arange(10) // 5, Training(lr=1, epochs=1, batch_size=4), store)
    with images.open():
        generator = rng()
        return [(images.batch(plan, generator), plan) for plan in images.plan(generator)]


@pytest.mark.parametrize("stems", [0, 1, 2])
def test_a_batch_has_the_inputs_of_both_towers(stems: int, store: FeatureStore) -> None:
    clip = tiny_clip()
    towers = {0: (clip, prompts(clip).towers[1]), 1: (clip, with_stem()), 2: (with_stem(), with_stem())}[stems]
    pixels = torch.cat([images for _, images in DATA.batches(towers[0].preprocess, 64)])
    found = batches(towers, store)
    assert [len(plan) for _, plan in found] == [4, 4, 2]
    for ((first, second), columns), plan in found:
        torch.testing.assert_close(first, towers[0].embed_tokens(pixels[plan]), atol=1e-5, rtol=0)
        torch.testing.assert_close(second, towers[1].embed_tokens(pixels[plan]), atol=1e-5, rtol=0)
        assert columns.tolist() == [int(i >= 5) for i in plan]
        assert not first.requires_grad


@pytest.mark.parametrize("stem", [False, True])
def test_a_whole_data_set_is_tested_as_its_images_are(stem: bool, store: FeatureStore) -> None:
    clip, told = tiny_clip(), []
    part = prompts(clip, with_stem() if stem else None)
    if stem:  # nothing is decoded where both are stored
        part.towers = (with_stem(), part.towers[1])  # type: ignore[assignment]
    store.progress = told.append
    pixels = torch.cat([images for _, images in DATA.batches(part.towers[0].preprocess, 64)])
    whole = [torch.cat(tower) for tower in zip(*part.batches(store, DATA), strict=True)]
    for there, once in zip(whole, part.embedded(pixels), strict=True):
        torch.testing.assert_close(there, once, atol=1e-5, rtol=0)
    assert [event.done for event in told if event.stage == "testing"] == [8, 10]
    assert list(part.batches(store, DATA.subset(np.arange(0)))) == []


def test_features_are_those_of_images_that_are_asked_for(store: FeatureStore) -> None:
    clip = tiny_clip()
    part = prompts(clip)
    pair = part.embedded(torch.cat([images for _, images in DATA.batches(clip.preprocess, 64)]))

    def asks(embeddings: Tensor) -> Tensor:
        return torch.arange(len(embeddings)) % 4 == 1

    with torch.no_grad():
        embeddings, asked, features = part.tested(pair, asks)
        unit, every = part(pair)
    assert asked.nonzero().flatten().tolist() == [1, 5, 9]
    torch.testing.assert_close(features, every[asked], atol=1e-5, rtol=0)
    torch.testing.assert_close(nn.functional.normalize(embeddings), unit, atol=1e-5, rtol=0)
    assert [tuple(p.shape) for p in part.parameters()] == [(2, 64), (3, 64)]
