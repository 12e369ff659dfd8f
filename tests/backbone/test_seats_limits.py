"""Modules at seats where things go wrong easily: layouts, layers that do more, two kinds of tokens, misfits."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from perdure import Backbone
from perdure.backbone import Prompt, PromptTokens, Site
from perdure.data import Preprocess
from perdure.errors import BackboneError, ShapeError
from perdure.modules.adapter import Adapter
from perdure.modules.ssf import ScaleShift
from tiny_vit import tiny


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(backbone: Backbone) -> Tensor:
    side = backbone.preprocess.image_size
    return torch.randint(0, 256, (2, 3, side, side), generator=rng(), dtype=torch.uint8)


def wrapped(model: nn.Module, image_size: int) -> Backbone:
    torch.manual_seed(0)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    return Backbone(model, name="wrapped", preprocess=Preprocess(image_size=image_size), device="cpu")


def scale_shift(site: Site) -> nn.Module:
    return ScaleShift(site.n_out, rng(), std=0.2)


def tokens(seed: int) -> Callable[[Site], nn.Module]:
    return lambda site: PromptTokens(torch.randn(2, site.n_in, generator=rng(seed)))


@pytest.mark.parametrize("image_size", [32, 64])
def test_channels_are_told_from_rows_even_where_there_are_as_many(image_size: int) -> None:
    sizes: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 16, 16, 16)}
    stock = wrapped(timm.create_model("convnext_tiny", pretrained=False, num_classes=0, **sizes), image_size)
    view, x = stock.view(), images(stock)  # at 32 px, the first stage's norms see (b, 8, 8, 8) with the channels last
    view.insert("outputs", scale_shift).requires_grad_(False)
    assert not torch.allclose(view.features(x), stock.features(x), atol=1e-3)
    assert torch.allclose(view.folded().features(x), view.features(x), atol=1e-5)


def test_modules_at_outputs_see_the_channels_last() -> None:
    stock, seen = tiny(depth=1), []

    class Looks(nn.Module):
        def forward(self, y: Tensor) -> Tensor:
            seen.append(tuple(y.shape))
            return y

    view = stock.view()
    names = view.insert("outputs", lambda site: Looks()).names
    assert torch.equal(view.features(images(stock)), stock.features(images(stock)))
    d, n = 8, 5
    shapes = [(2, 2, 2, d), *[(2, n, w) for w in (d, 3 * d, d, d, 4 * d, d, d)]]
    assert dict(zip(names, shapes, strict=True)) == dict(zip(names, seen, strict=True))


def test_a_norm_with_an_activation_is_no_place_for_scale_and_shift() -> None:
    view = wrapped(ResNetV2(layers=(1, 1), channels=(128, 256), num_classes=0, stem_chs=32), 32).view()
    with pytest.raises(BackboneError, match="outputs"):  # all its norms end in a ReLU, all its weights are standardised
        view.insert("outputs", scale_shift)


def test_a_block_without_the_usual_layers_has_the_seats_it_has() -> None:
    sizes = {"img_size": 28, "embed_dim": 32, "depth": 2, "num_heads": 2}
    view = wrapped(timm.create_model("aimv2_large_patch14_224", pretrained=False, num_classes=0, **sizes), 28).view()
    with pytest.raises(BackboneError, match="outputs") as error:  # a gated MLP, and norms without shift
        view.insert("outputs", scale_shift)
    assert "['attention', 'mlp', 'qkv', 'prefix', 'tokens']" in str(error.value)
    view.insert("mlp", lambda site: Adapter(site.n_in, 2, rng())).requires_grad_(False)
    assert view.features(images(view)).shape == (2, 32)


@pytest.mark.parametrize(
    ("options", "final"),
    [({}, "norm"), ({"global_pool": "avg"}, "fc_norm"), ({"global_pool": "avg", "fc_norm": False}, "norm"),
     ({"class_token": False, "global_pool": "map"}, "norm"), ({"final_norm": False}, "blocks.1.mlp.fc2")],
)  # fmt: skip
def test_the_final_norm_is_the_one_there_is(options: dict[str, Any], final: str) -> None:
    stock = tiny(**options)
    view, x = stock.view(), images(stock)
    insertion = view.insert("outputs", scale_shift).requires_grad_(False)
    assert insertion.names[-1] == final
    assert torch.allclose(view.folded().features(x), view.features(x), rtol=1e-4, atol=1e-4)


def test_tokens_that_stay_and_tokens_that_leave_go_together_in_any_order() -> None:
    stock, found = tiny(depth=3), []
    stay: dict[str, Any] = {"blocks": [0], "stay": True}
    for calls in ([(1, stay), (2, {})], [(2, {}), (1, stay)]):
        view = stock.view()
        for seed, options in calls:
            view.insert("tokens", tokens(seed), **options).requires_grad_(False)
        with torch.no_grad():
            assert view.tokens(images(stock)).all.shape == (2, 5, 8)
        found.append(view.features(images(stock)))
    assert torch.allclose(found[0], found[1], atol=1e-5)


def test_whether_tokens_stay_is_in_the_fingerprint() -> None:
    stock, found = tiny(), set()
    for stay in (False, True):
        view = stock.view()
        view.insert("tokens", tokens(0), blocks=[0], stay=stay).requires_grad_(False)
        found.add(view.fingerprint)
    assert len(found) == 2


def test_a_prefix_beside_inserted_tokens_is_refused() -> None:
    view = tiny().view()
    insertion = view.insert("tokens", tokens(0), blocks=[0], stay=True)
    prefix = {1: Prompt(prefix=(torch.zeros(1, 2, 1, 4), torch.zeros(1, 2, 1, 4)))}
    with pytest.raises(BackboneError, match=r"\[1\]"):
        view.tokens(images(view), prefix)
    assert view.tokens(images(view), {1: Prompt(tokens=torch.zeros(1, 2, 8))}).all.shape == (2, 5, 8)
    view.remove(insertion)
    assert view.tokens(images(view), prefix).all.shape == (2, 5, 8)


@pytest.mark.parametrize(
    ("seat", "width"),
    [("mlp", 1), ("mlp", 5), ("qkv", 8), ("outputs", 1)],  # torch would stretch a width of 1
)
def test_a_module_of_another_width_is_refused(seat: str, width: int) -> None:
    view = tiny().view()
    view.insert(seat, lambda site: nn.Linear(site.n_in or site.n_out, width))
    with pytest.raises(ShapeError, match=rf"output of the Linear at .* but got \(.*, {width}\)"):
        view.features(images(view))


def test_what_make_returns_must_belong_there() -> None:
    view = tiny().view()
    with pytest.raises(BackboneError, match="'an adapter'"):
        view.insert("mlp", lambda site: "an adapter")  # type: ignore[arg-type,return-value]
    with pytest.raises(BackboneError, match=r"Identity\(\)"):
        view.insert("tokens", lambda site: nn.Identity())
    with pytest.raises(ShapeError, match=r"\(2, 5\)"):
        view.insert("tokens", lambda site: PromptTokens(torch.zeros(2, 5)))
    with pytest.raises(BackboneError, match="stay must be False at seat mlp, but got True"):
        view.insert("mlp", lambda site: Adapter(site.n_in, 2, rng()), stay=True)
    assert not len(view.insertions)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in view.model.modules())


def test_a_pass_that_failed_half_way_leaves_nothing_behind() -> None:
    stock = tiny()
    view, x = stock.view(), images(stock)
    insertion = view.insert("mlp", lambda site: Adapter(site.n_in, 2, rng()))

    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    handle = view.vit.blocks[1].mlp.register_forward_hook(fails)
    with pytest.raises(KeyboardInterrupt):
        view.embed(x)
    handle.remove()
    insertion.requires_grad_(False)
    assert torch.equal(copy.deepcopy(view).features(x), stock.features(x))
    assert torch.equal(view.view().features(x), stock.features(x))


def test_a_view_of_what_may_still_be_trained_is_refused() -> None:
    for stock in (tiny(), Backbone.load("default", device="cpu")):
        view = stock.view()
        view.insert("mlp", lambda site: Adapter(site.n_in, 2, rng()))
        with pytest.raises(BackboneError, match=r"Backbone.view: .* trainable"):
            view.view()
