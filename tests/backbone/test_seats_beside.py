"""Modules beside the attention, the MLP and whole blocks: on a Vision Transformer, Swin and ConvNeXt, by hand."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from timm.models.convnext import ConvNeXtBlock, Downsample
from torch import Tensor, nn

from perdure import Backbone
from perdure.backbone import SEATS, Insertion, Prompt, Site
from perdure.backbone.seats import attach
from perdure.data import Preprocess
from perdure.errors import BackboneError, ShapeError
from perdure.modules.adapter import Adapter
from perdure.modules.ssf import ScaleShift
from tiny_vit import tiny

SWIN: dict[str, Any] = {"img_size": 16, "patch_size": 2, "embed_dim": 8, "num_heads": (2, 2), "window_size": 3}
DIMS = (8, 16, 16, 16)
MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "swin": ("swin_tiny_patch4_window7_224", 16, SWIN | {"depths": (2, 1)}),
    "swinv2": ("swinv2_tiny_window8_256", 16, SWIN | {"depths": (2, 1)}),
    "convnext": ("convnext_tiny", 32, {"depths": (1, 2, 1, 1), "dims": DIMS, "ls_init_value": 0.5}),
    "convnext, conv_mlp": ("convnext_tiny", 32, {"depths": (2, 1, 1, 1), "dims": DIMS, "conv_mlp": True}),
    "vit": ("", 8, {"init_values": 0.5}),
}
HAS = {
    "swin": ["attention", "mlp", "block"], "swinv2": ["block"], "convnext": ["block"], "convnext, conv_mlp": ["block"],
    "vit": ["attention", "mlp"],
}  # fmt: skip
CASES = [(name, seat) for name, seats in HAS.items() for seat in seats]
BLOCKS = {
    "swin": ["layers.0.blocks.0", "layers.0.blocks.1", "layers.1.blocks.0"],
    "convnext": [f"stages.{i}.blocks.{j}" for i, j in ((0, 0), (1, 0), (1, 1), (2, 0), (3, 0))],
    "vit": ["blocks.0", "blocks.1"],
}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def models() -> dict[str, Backbone]:
    """Small stock models of random weights."""
    made = {}
    for name, (timm_name, size, options) in MODELS.items():
        if not timm_name:
            made[name] = tiny(**options)
            continue
        torch.manual_seed(0)
        model = timm.create_model(timm_name, pretrained=False, num_classes=0, **options)
        for p in model.parameters():
            p.data.add_(0.2 * torch.randn(p.shape))
        made[name] = Backbone(model, name=name, preprocess=Preprocess(image_size=size), device="cpu")
    return made


def images(backbone: Backbone, n: int = 2) -> Tensor:
    side = backbone.preprocess.image_size
    return torch.randint(0, 256, (n, 3, side, side), generator=rng(), dtype=torch.uint8)


def pattern(c: float, d: int) -> Tensor:
    """(d,) constants: the same one in all channels would be invisible behind a layer norm."""
    return c * torch.linspace(-1, 2, d)


class Constant(nn.Module):
    """The same for every image and place; remembers what it read."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x)
        return self.values.expand_as(x)


def constants(c: float) -> Callable[[Site], nn.Module]:
    return lambda site: Constant(pattern(c, site.n_out))


def adapters(site: Site) -> nn.Module:
    module = Adapter(site.n_in, 3, rng())
    with torch.no_grad():
        module.up.weight.copy_(torch.randn(module.up.weight.shape, generator=rng(1)))
    return module.requires_grad_(False)


@pytest.mark.parametrize(("name", "seat"), CASES)
def test_nothing_added_changes_no_bit(name: str, seat: str, models: dict[str, Backbone]) -> None:
    stock = models[name]
    x, before = images(stock, 3), stock.fingerprint
    expected = stock.features(x)
    view = stock.view()
    insertion = view.insert(seat, constants(0.0))
    assert len(insertion.names) == len(insertion.inserted) == sum(MODELS[name][2].get("depths", (2,)))
    assert torch.equal(view.features(x), expected)
    view.remove(insertion)
    view.insert(seat, constants(0.5))
    assert not torch.allclose(view.features(x), expected, atol=1e-4)
    assert torch.equal(stock.features(x), expected)
    assert view.fingerprint != before == stock.fingerprint


def by_hand(block: Any, seat: str, x: Tensor, c: float) -> tuple[Tensor, Tensor]:
    """The output of a stock block with constants added, and what a module at the seat reads; from timm's own layers."""
    if seat == "block":
        channels_last = x.movedim(1, -1) if isinstance(block, ConvNeXtBlock) else x
        added = pattern(c, channels_last.shape[-1])
        return block(x) + (added[:, None, None] if isinstance(block, ConvNeXtBlock) else added), channels_last
    swin, shape, added = hasattr(block, "_attn"), x.shape, pattern(c, x.shape[-1])
    scaled_1, scaled_2 = getattr(block, "ls1", nn.Identity()), getattr(block, "ls2", nn.Identity())
    normed = block.norm1(x)
    attended = scaled_1(block._attn(normed) if swin else block.attn(normed))
    x = x + (attended + added if seat == "attention" else attended)
    u = x.reshape(len(x), -1, shape[-1]) if swin else x
    branch = scaled_2(block.mlp(block.norm2(u)))
    out = u + (branch + added if seat == "mlp" else branch)
    return out.reshape(shape), normed if seat == "attention" else u


@pytest.mark.parametrize(("name", "seat"), CASES)
def test_a_constant_is_added_at_the_place_described(name: str, seat: str, models: dict[str, Backbone]) -> None:
    stock, c = models[name], 0.375
    view = stock.view()
    insertion = view.insert(seat, constants(c))
    inputs: dict[str, Tensor] = {}

    def remember(layer: str) -> Callable[..., None]:
        return lambda _, args: inputs.update({layer: args[0]})

    for layer in insertion.names:
        view.model.get_submodule(layer).register_forward_pre_hook(remember(layer))
    view.features(images(stock))
    for layer, module in zip(insertion.names, insertion.inserted, strict=True):
        with torch.no_grad():
            out, read = by_hand(stock.model.get_submodule(layer), seat, inputs[layer], c)
            assert torch.equal(view.model.get_submodule(layer)(inputs[layer]), out)
        assert torch.equal(module.seen[0], read)
        assert module.seen[0].shape[-1] in (8, 16)


@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_0_to_k_are_counted_through_all_stages(name: str, models: dict[str, Backbone]) -> None:
    stock, names = models[name], BLOCKS[name]
    seat = HAS[name][-1]
    told: list[Site] = []

    def make(site: Site) -> nn.Module:
        told.append(site)
        return adapters(site)

    for k in range(1, len(names) + 1):
        told.clear()
        assert stock.view().insert(seat, make, blocks=range(k)).names == names[:k]
        assert [site.block for site in told] == list(range(k))
        assert all(site.layer.__class__.__name__.endswith("Block") and site.n_in == site.n_out for site in told)
    with pytest.raises(BackboneError, match=rf"blocks must be some of {list(range(len(names)))}".replace("[", r"\[")):
        stock.view().insert(seat, make, blocks=range(len(names) + 1))


@pytest.mark.parametrize("name", HAS)
def test_a_model_offers_these_seats_beside_something(name: str, models: dict[str, Backbone]) -> None:
    view = models[name].view()
    for seat in {"attention", "mlp", "block"} - set(HAS[name]):
        with pytest.raises(BackboneError, match=rf"seat must be among .*, but got '{seat}'") as error:
            view.insert(seat, adapters)
        assert all(f"'{has}'" in str(error.value) for has in HAS[name])


def test_a_block_that_changes_the_shape_has_no_seat_beside_it(models: dict[str, Backbone]) -> None:
    odd = copy.deepcopy(models["convnext"])
    odd.model.stages[1].blocks[0].shortcut = Downsample(8, 16)
    with pytest.raises(BackboneError, match="'block'"):
        odd.insert("block", adapters)


def test_attach_refuses_a_seat_that_there_is_not() -> None:
    block = tiny().vit.blocks[0]
    site = Site("blocks.0", block, 8, 8, 0)
    with pytest.raises(BackboneError, match=r"attach: seat must be one of .*, but got 'atention'"):
        attach([site], Insertion("atention", [site], [nn.Identity()]), None)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in block.modules())
    assert all(SEATS.values())


@pytest.mark.parametrize(("name", "seat"), CASES)
def test_views_copies_and_threads_keep_apart(name: str, seat: str, models: dict[str, Backbone]) -> None:
    view = models[name].view()
    insertion = view.insert(seat, adapters)
    x = images(view, 4)
    alone, often = [view.features(part) for part in x.split(1)], sys.getswitchinterval()
    assert torch.equal(copy.deepcopy(view).features(x), view.features(x))
    assert torch.equal(view.view().features(x), view.features(x))
    assert view.view().fingerprint == view.fingerprint
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(view.features, list(x.split(1)) * 4))
    finally:
        sys.setswitchinterval(often)
    for one, other in zip(alone * 4, together, strict=True):
        assert torch.equal(one, other)
    other = view.view()
    other.insert(seat, constants(0.25))
    assert not torch.equal(other.features(x), view.features(x)), "two at one seat both count"
    view.remove(insertion)
    assert torch.equal(view.features(x), models[name].features(x))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in view.model.modules())


def test_the_walk_with_prefixes_passes_by_the_attention_too() -> None:
    stock = tiny()
    view, x = stock.view(), images(stock)
    module = view.insert("attention", constants(0.5), blocks=[1]).inserted[0]
    prefix = (torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4))
    with torch.no_grad():
        got = view.tokens(x, {1: Prompt(prefix=prefix)}).all
        first = stock.vit.blocks[0](stock.embed_tokens(x))
        assert torch.equal(module.seen[-1], stock.vit.blocks[1].norm1(first))
        handle = stock.vit.blocks[1].drop_path1.register_forward_hook(lambda _, args, out: out + pattern(0.5, 8))
        assert torch.equal(got, stock.tokens(x, {1: Prompt(prefix=prefix)}).all)
        handle.remove()


def test_what_is_read_beside_the_attention_hangs_on_no_order() -> None:
    stock, found = tiny(depth=1), []
    normed = stock.vit.blocks[0].norm1
    for order in (("attention", "outputs"), ("outputs", "attention")):
        view = stock.view()
        made = {
            "attention": constants(0.5),
            "outputs": lambda site: ScaleShift(site.n_out, rng(), std=0.0 if site.block is None else 0.2),
        }
        parts = {seat: view.insert(seat, made[seat]).requires_grad_(False) for seat in order}
        found.append(view.features(images(stock)))
        with torch.no_grad():
            expected = normed(stock.embed_tokens(images(stock)))
            assert torch.equal(parts["attention"].inserted[0].seen[0], expected)
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(("name", "seat"), CASES)
def test_a_module_of_another_width_is_refused(name: str, seat: str, models: dict[str, Backbone]) -> None:
    view = models[name].view()
    view.insert(seat, lambda site: nn.Linear(site.n_in, 1))  # torch would stretch it
    with pytest.raises(ShapeError, match=r"output of the Linear at .* but got \(.*, 1\)"):
        view.features(images(view))


def test_scales_and_shifts_beside_a_branch_do_not_fold() -> None:
    view = tiny().view()
    view.insert("attention", lambda site: ScaleShift(site.n_out, rng())).requires_grad_(False)
    with pytest.raises(BackboneError, match="linear maps, but got 'ScaleShift at seat attention'"):
        view.folded()
