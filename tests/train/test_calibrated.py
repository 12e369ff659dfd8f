"""LAE's small modules: where they go, and what refuses them. Their values are in tests/golden/test_lae.py."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from timm.models.swin_transformer import SwinTransformer

from perdure import Backbone
from perdure.backbone import Insertion
from perdure.data import Preprocess
from perdure.errors import BackboneError
from perdure.modules.adapter import Adapter
from perdure.modules.lora import LoRA
from perdure.modules.prefix import Prefix
from perdure.train.adapting import adaptable
from perdure.train.calibrated import Calibrated, CalibratedAdapter, CalibratedLoRA, CalibratedPrefix
from tiny_vit import tiny


def inserted(backbone: Backbone, how: Calibrated) -> Insertion:
    part = adaptable(backbone, how, torch.Generator().manual_seed(0))[1]
    assert isinstance(part, Insertion)
    return part


def convnext(depths: tuple[int, ...] = (1, 1, 1, 1)) -> Backbone:
    model = ConvNeXt(num_classes=0, depths=depths, dims=(8, 12, 16, 24))
    return Backbone(model, name="a tiny ConvNeXt", preprocess=Preprocess(image_size=32), device="cpu")


def swin(depths: tuple[int, ...] = (1, 1)) -> Backbone:
    model = SwinTransformer(num_classes=0, depths=depths, img_size=32, window_size=4, embed_dim=12, num_heads=(2, 2))
    return Backbone(model, name="a tiny Swin", preprocess=Preprocess(image_size=32), device="cpu")


def test_adapters_are_in_the_blocks_of_the_papers_models() -> None:
    models = [tiny(depth=7), swin((6, 6)), convnext((3, 3, 9, 3))]
    found = [inserted(model, CalibratedAdapter()) for model in models]
    assert [part.seat for part in found] == ["attention", "attention", "block"]
    assert [len(part.inserted) for part in found] == [5, 10, 15]
    for part in found:
        [first, *_] = part.inserted
        assert isinstance(first, Adapter)
        assert first.activation is F.gelu
        assert (float(first.scale), first.dropout, first.down.out_features) == (1.0, 0.0, 5)
    assert inserted(convnext(), CalibratedAdapter()).names == [f"stages.{i}.blocks.0" for i in range(4)]
    assert len(inserted(tiny(depth=7), CalibratedAdapter(blocks=6)).inserted) == 6


def test_what_lora_and_prefix_are_made_of() -> None:
    [lora, *_] = inserted(tiny(), CalibratedLoRA(rank=3)).inserted
    assert isinstance(lora, LoRA)
    assert (lora.parts, lora.updated, [tuple(a.shape) for a in lora.a], len(lora.scales)) == (
        3,
        (1, 2),
        [(3, 8)] * 2,
        2,
    )
    [prefix, *_] = inserted(tiny(), CalibratedPrefix(length=4)).inserted
    assert isinstance(prefix, Prefix)
    assert prefix.keys.shape == prefix.values.shape == (4, 8)
    assert 0 <= float(prefix.keys.min().detach()) <= float(prefix.keys.max().detach()) <= 0.01


@pytest.mark.parametrize("make", [convnext, swin])
@pytest.mark.parametrize("how", [CalibratedLoRA(), CalibratedPrefix()])
def test_a_variant_without_a_seat_is_refused_with_those_that_have_one(
    make: Callable[[], Backbone], how: Calibrated
) -> None:
    with pytest.raises(BackboneError, match=rf"seat must be .*a tiny.*\['adapter'\], but got '{how.variant}: "):
        inserted(make(), how)
