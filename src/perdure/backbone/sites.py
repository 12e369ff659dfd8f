"""Sites: the places of a stock model that have a seat for small modules, and what a module reads and returns there."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from timm.layers import Attention, GroupNorm, GroupNorm1, LayerNorm, LayerNorm2d
from timm.models.convnext import ConvNeXtBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.swin_transformer_v2 import SwinTransformerV2Block
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from perdure.errors import BackboneError

SEATS: Final = {
    "attention": "beside the attention of every block: of a Vision Transformer and of Swin",
    "mlp": "beside the MLP of every block: of a Vision Transformer and of Swin",
    "block": "beside every whole block: of ConvNeXt and of Swin",
    "qkv": "beside the fused query-key-value layer of every block of a Vision Transformer",
    "prefix": "further keys and values in the attention of every block of a Vision Transformer",
    "tokens": "prompt tokens behind a Vision Transformer's own",
    "outputs": "on the output of every layer",
    "convolutions": "beside every ungrouped convolution of a model that is no Vision Transformer",
}
# where these layers have their channels; no subclass is among them, for it may do more, like an activation
CHANNEL_AXIS: Final[dict[type[nn.Module], int]] = {
    **dict.fromkeys((nn.Conv2d, nn.GroupNorm, GroupNorm, GroupNorm1, LayerNorm2d), 1),
    **dict.fromkeys((nn.Linear, nn.LayerNorm, LayerNorm), -1),
}
# and these blocks, which return what has the shape of what they read
BLOCK_AXIS: Final[dict[type[nn.Module], int]] = {ConvNeXtBlock: 1, SwinTransformerBlock: -1, SwinTransformerV2Block: -1}


@dc.dataclass(frozen=True, slots=True)
class Site:
    """One layer of a model that a module is made for.

    Args:
        name: the layer's, in the model.
        layer: the layer; for ``attention``, ``mlp``, ``block`` and ``tokens`` the block.
        n_in: channels of what the module reads.
        n_out: channels of what it returns.
        block: index of the layer's block, counted through all stages; None outside the blocks.
    """

    name: str
    layer: nn.Module
    n_in: int
    n_out: int
    block: int | None = None


Make = Callable[[Site], nn.Module]


def sites(model: nn.Module, name: str, seat: str, blocks: Sequence[int] | None) -> list[Site]:
    """The places of ``seat`` in ``model``.

    Args:
        model: any model.
        name: its name, for messages.
        seat: one of ``SEATS``.
        blocks: which blocks; all of them by default. Layers outside the blocks belong to the whole model.

    Raises:
        BackboneError: for a seat this model does not have, naming those it has, or a block it does not have.
    """
    found = list(_sites(model, seat))
    if not found:
        has = [s for s in SEATS if has_seat(model, s)]
        raise BackboneError("insert", "seat", f"among {has} on {name}", seat, "Choose a seat that the backbone has")
    if blocks is None:
        return found
    there = {site.block for site in found} - {None}
    if not blocks or not set(blocks) <= there:
        must_be = f"some of {sorted(there)}" if there else "left out (the model has no blocks)"  # type: ignore[type-var]
        raise BackboneError("insert", "blocks", must_be, list(blocks), "Count blocks from 0")
    return [site for site in found if site.block in blocks]


def has_seat(model: nn.Module, seat: str) -> bool:
    """Whether a model has a place of a seat.

    Args:
        model: any model.
        seat: one of ``SEATS``.
    """
    return next(_sites(model, seat), None) is not None


def _sites(model: nn.Module, seat: str) -> Iterator[Site]:
    if not isinstance(model, VisionTransformer):
        yield from _block_sites(model, seat)
        yield from _plain_sites(model, seat)
        return
    d, stock = model.embed_dim, all(type(block) is Block for block in model.blocks)
    if seat == "outputs":
        yield from _vit_outputs(model) if stock else ()
        return
    for i, block in enumerate(model.blocks):
        if seat == "tokens" or (stock and seat in ("attention", "mlp")):
            yield Site(f"blocks.{i}", block, d, d, i)
        elif stock and seat == "qkv":
            qkv = block.get_submodule("attn.qkv")
            yield Site(f"blocks.{i}.attn.qkv", qkv, d, _channels(qkv), i)
        elif stock and seat == "prefix" and type(block.attn) is Attention:
            width = block.attn.num_heads * block.attn.head_dim
            yield Site(f"blocks.{i}.attn", block.attn, width, width, i)


def _block_sites(model: nn.Module, seat: str) -> Iterator[Site]:
    """None at all where a block is of another kind than the seat needs."""
    blocks = [(name, block) for name, block in model.named_modules() if type(block) in BLOCK_AXIS]
    beside_branch = seat in ("attention", "mlp") and all(type(block) is SwinTransformerBlock for _, block in blocks)
    if beside_branch or (seat == "block" and all(_keeps_shape(block) for _, block in blocks)):
        for i, (name, block) in enumerate(blocks):
            d: int = block.conv_dw.in_channels if type(block) is ConvNeXtBlock else block.dim
            yield Site(name, block, d, d, i)


def _vit_outputs(vit: VisionTransformer) -> Iterator[Site]:
    """None at all where a block lacks one of the layers, like one with a gated MLP."""
    layers = dict(vit.named_modules())
    in_block = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    names = {f"blocks.{i}.{name}": i for i in range(len(vit.blocks)) for name in in_block}
    if not all(name in layers and _has_scale(layers[name]) for name in names):
        return
    for name, block in [("patch_embed.proj", None), *names.items(), ("norm", None), ("fc_norm", None)]:
        if name in layers and _has_scale(layers[name]):
            yield Site(name, layers[name], 0, _channels(layers[name]), block)


def _plain_sites(model: nn.Module, seat: str) -> Iterator[Site]:
    for name, layer in model.named_modules():
        # not linear layers: some models use their weights without calling them, which no hook sees
        if seat == "outputs" and type(layer) is not nn.Linear and _has_scale(layer):
            yield Site(name, layer, 0, _channels(layer))
        elif seat == "convolutions" and type(layer) is nn.Conv2d and layer.groups == 1:
            yield Site(name, layer, layer.in_channels, layer.out_channels)


def _keeps_shape(block: nn.Module) -> bool:
    return type(block) is not ConvNeXtBlock or isinstance(block.shortcut, nn.Identity)


def _has_scale(layer: nn.Module) -> bool:
    """Whether a scale and shift of its output is one of its weights."""
    return type(layer) in CHANNEL_AXIS and layer.weight is not None


def _channels(layer: nn.Module) -> int:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return len(weight)
