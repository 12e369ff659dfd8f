"""Seats: places of a stock model where small modules are inserted, by hooks, and from which they are removed again.

* ``mlp``: beside the MLP branch of every block of a Vision Transformer. The module reads the residual stream u behind
  the attention, un-normalised: ``y = u + MLP(LN2 u) + A(u)``; a layer scale does not reach A.
* ``qkv``: beside the fused query-key-value layer of every block; the module reads what that layer reads.
* ``tokens``: prompt tokens behind the others, for one block each or from the first one on; gone before the final norm.
* ``outputs``: on the output of every layer: in a Vision Transformer the patch projection, both norms and the four
  linear layers of every block, and the final norm; in another model every convolution, layer norm and group norm.
* ``convolutions``: beside every ungrouped convolution of another model; the module reads what the layer reads.

The model's own parameters are never touched: hooks hold the modules, and removing the hooks is removing everything.
"""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from perdure.errors import BackboneError

SEATS: Final = ("mlp", "qkv", "tokens", "outputs", "convolutions")


@dc.dataclass(frozen=True, slots=True)
class Site:
    """One layer of a model that a module is made for.

    Args:
        name: the layer's, in the model.
        layer: the layer; for ``mlp`` and ``tokens`` the block.
        n_in: channels of what the module reads.
        n_out: channels of what it returns.
        block: index of the layer's block; None outside the blocks.
    """

    name: str
    layer: nn.Module
    n_in: int
    n_out: int
    block: int | None = None


Make = Callable[[Site], nn.Module]


class PromptTokens(nn.Module):
    """Tokens (p, d) of one block, or of all from there on.

    Args:
        values: their initial values.
    """

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.values = nn.Parameter(values.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """``x`` (b, n, d) with the tokens behind it, (b, n + p, d)."""
        return torch.cat([x, self.values.to(x.dtype).expand(len(x), -1, -1)], dim=1)


class Insertion(nn.Module):
    """The modules that one call of :meth:`perdure.Backbone.insert` made.

    Args:
        seat: where they are.
        sites: one per module.
        modules: what was made, in the order of the sites.
    """

    def __init__(self, seat: str, sites: Sequence[Site], modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.seat, self.names = seat, [site.name for site in sites]
        self.inserted = nn.ModuleList(modules)

    def extra_repr(self) -> str:
        """What the fingerprint knows besides the values."""
        return f"seat={self.seat}, names={self.names}"


@dc.dataclass(slots=True, eq=False)
class _Hook:
    """A forward hook that deep copies take along: all it knows are attributes."""

    owner: Insertion
    module: nn.Module
    read: Tensor | None = None

    def beside(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + self.module(args[0])

    def on_output(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        changed: Tensor = self.module(out)
        return changed

    def keep_stream(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.read = args[0]

    def add_to_branch(self, branch_end: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        stream, self.read = self.read, None
        return out + self.module(stream)

    def append(self, block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.module(args[0]), *args[1:])

    def drop(self, block: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out[:, : out.shape[1] - len(self.module.values)]  # type: ignore[arg-type]


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
        has = [s for s in SEATS if next(_sites(model, s), None)]
        raise BackboneError("insert", "seat", f"among {has} on {name}", seat, "Choose a seat that the backbone has")
    if blocks is None:
        return found
    there = {site.block for site in found} - {None}
    if not blocks or not set(blocks) <= there:
        must_be = f"some of {sorted(there)}" if there else "left out (the model has no blocks)"  # type: ignore[type-var]
        raise BackboneError("insert", "blocks", must_be, list(blocks), "Count blocks from 0")
    return [site for site in found if site.block in blocks]


def attach(found: Sequence[Site], insertion: Insertion, last: nn.Module | None) -> None:
    """Puts the hooks of an insertion in place.

    Args:
        found: the sites, one per module.
        insertion: the modules.
        last: for ``tokens`` that stay: the block behind which they are dropped; None: each behind its own.
    """
    for site, module in zip(found, insertion.inserted, strict=True):
        hook, layer = _Hook(insertion, module), site.layer
        if insertion.seat == "mlp":
            layer.norm2.register_forward_pre_hook(hook.keep_stream)  # type: ignore[union-attr]
            layer.drop_path2.register_forward_hook(hook.add_to_branch)  # type: ignore[union-attr]
        elif insertion.seat == "tokens":
            layer.register_forward_pre_hook(hook.append)
            (layer if last is None else last).register_forward_hook(hook.drop)
        else:
            layer.register_forward_hook(hook.on_output if insertion.seat == "outputs" else hook.beside)


def detach(model: nn.Module, insertion: Insertion) -> None:
    """Takes the hooks of an insertion away.

    Args:
        model: where they are.
        insertion: whose they are.
    """
    for layer in model.modules():
        for hooks in (layer._forward_hooks, layer._forward_pre_hooks):
            mine = [k for k, h in hooks.items() if _owner(h) is insertion]
            for key in mine:
                del hooks[key]


def fold(model: nn.Module, insertion: Insertion) -> None:
    """Writes an insertion into the weights of ``model``, which has no hooks.

    Args:
        model: to be changed.
        insertion: of scales and shifts, or of LoRA.

    Raises:
        BackboneError: for modules that are no linear map.
    """
    for name, module in zip(insertion.names, insertion.inserted, strict=True):
        if not hasattr(module, "fold_into"):
            got, hint = type(module).__name__, "Keep it inserted: only scales, shifts and LoRA fold"
            raise BackboneError("fold", "inserted modules", "linear maps", got, hint)
        module.fold_into(model.get_submodule(name))  # type: ignore[operator]


def _owner(hook: Any) -> object:
    held = getattr(hook, "__self__", None)
    return held.owner if isinstance(held, _Hook) else None


def _sites(model: nn.Module, seat: str) -> Iterator[Site]:
    if not isinstance(model, VisionTransformer):
        yield from _plain_sites(model, seat)
        return
    d, stock = model.embed_dim, all(type(block) is Block for block in model.blocks)
    projection = getattr(model.patch_embed, "proj", None)
    if seat == "outputs" and stock and isinstance(projection, nn.Conv2d | nn.Linear):
        yield Site("patch_embed.proj", projection, 0, _channels(projection))
    for i, block in enumerate(model.blocks):
        if seat == "tokens" or (stock and seat == "mlp"):
            yield Site(f"blocks.{i}", block, d, d, i)
        elif stock and seat == "qkv":
            qkv = block.get_submodule("attn.qkv")
            yield Site(f"blocks.{i}.attn.qkv", qkv, d, _channels(qkv), i)
        elif stock and seat == "outputs":
            for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"):
                layer = block.get_submodule(name)
                yield Site(f"blocks.{i}.{name}", layer, 0, _channels(layer), i)
    if seat == "outputs" and stock:
        name = "fc_norm" if isinstance(model.norm, nn.Identity) else "norm"
        yield Site(name, model.get_submodule(name), 0, d)


def _plain_sites(model: nn.Module, seat: str) -> Iterator[Site]:
    for name, layer in model.named_modules():
        convolution = type(layer) is nn.Conv2d
        if seat == "outputs" and (convolution or isinstance(layer, nn.LayerNorm | nn.GroupNorm)):
            yield Site(name, layer, 0, _channels(layer))
        elif seat == "convolutions" and convolution and layer.groups == 1:
            yield Site(name, layer, layer.in_channels, layer.out_channels)


def _channels(layer: nn.Module) -> int:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return len(weight)
