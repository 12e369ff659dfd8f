"""A second backbone: it sees the first one's images, and its passes are counted with the first one's."""

from __future__ import annotations

import dataclasses as dc
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.backbone import Backbone, TwoTowers
from perdure.backbone.clip import tiny_clip
from perdure.backbone.second import SecondBackbone, View, as_second_sees
from perdure.backbone.tiny import TINY, small_vit
from perdure.data import Preprocess
from perdure.errors import BackboneError, ConfigError, UnknownNameError

PIXELS = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def beside(first: Backbone, view: View = "own", **asked: Any) -> Backbone:
    return SecondBackbone(**{"name": "test_vit", "pretrained": False, **asked}).beside(first, view, "a test")


def test_pixels_are_normalised_as_either_weights_want() -> None:
    first = tiny_clip()
    own, shared = beside(first), beside(first, "shared")
    assert own.preprocess == dc.replace(first.preprocess, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert shared.preprocess == first.preprocess
    assert own.identity != shared.identity
    floats = first.preprocess.normalise(PIXELS)
    for second in (own, shared):
        seen = second.preprocess.normalise(PIXELS)
        torch.testing.assert_close(as_second_sees(second, first, floats), seen, atol=1e-5, rtol=0)
        assert torch.equal(as_second_sees(second, first, PIXELS), PIXELS)


def test_a_position_embedding_for_other_images_is_resampled() -> None:
    first = tiny_clip()
    second = beside(first)
    assert second.tokens_shape == (1 + 16, 64)
    assert second.features(PIXELS).shape == (2, 64)
    assert not second.is_thawed
    as_built = Backbone.load("test_vit", pretrained=False, device="cpu")
    assert torch.equal(second.vit.pos_embed[:, 0], as_built.vit.pos_embed[:, 0])  # type: ignore[index]
    same = small_vit("test_vit", 160)
    assert torch.equal(beside(same).vit.pos_embed, as_built.vit.pos_embed)  # type: ignore[arg-type]


def test_passes_are_counted_together() -> None:
    first = tiny_clip()
    beside(first).features(PIXELS)
    assert first.passes.images == 2


def test_a_clip_gives_its_image_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    first = tiny_clip()
    monkeypatch.setattr(Backbone, "load", lambda *args, **asked: tiny_clip())
    second = beside(first)
    assert not isinstance(second, TwoTowers)
    assert second.dim == 64


def test_a_backbone_that_is_of_no_use_is_refused() -> None:
    first = tiny_clip()
    with pytest.raises(BackboneError, match=r"must be a timm VisionTransformer, but got 'test_efficientnet"):
        beside(first, name="test_efficientnet.r160_in1k")
    with pytest.raises(BackboneError, match=r"must be a timm VisionTransformer, but got 'test_efficientnet"):
        beside(TINY["any"]())
    first.preprocess = Preprocess(8)
    with pytest.raises(ConfigError, match=r"booster must be one that takes images of 8 pixels, the CLIP's, but got"):
        beside(first)


def test_what_is_wrong_with_it_is_told_as_the_boosters() -> None:
    with pytest.raises(BackboneError, match=r"^a test: booster: backbone must be a timm VisionTransformer, but got"):
        beside(tiny_clip(), name="test_efficientnet.r160_in1k")
    with pytest.raises(UnknownNameError, match=r"^a test: booster: .*but got 'no_such_vit'"):
        beside(tiny_clip(), name="no_such_vit")


def test_weights_are_found_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert SecondBackbone(weights="mine.safetensors").weights == str(tmp_path / "mine.safetensors")
    assert SecondBackbone().weights is None
