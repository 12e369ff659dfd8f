"""Seats: places of a stock model where small modules are inserted, by hooks, and from which they are removed again.

* ``attention``: beside the attention branch of every block of a Vision Transformer or of Swin. The module reads what
  the attention reads: ``u = x + Attn(LN1 x) + A(LN1 x)``; a layer scale does not reach A, nor does a scale and shift
  at ``outputs`` reach what A reads. In Swin it reads the whole map, (b, h, w, c), before it is cut into windows.
* ``mlp``: beside the MLP branch of the same blocks. The module reads the residual stream u behind the attention,
  un-normalised: ``y = u + MLP(LN2 u) + A(u)``; a layer scale does not reach A.
* ``block``: beside every whole block of ConvNeXt or of Swin: ``y = Block(x) + A(x)``. The module gets x with the
  channels last, (b, h, w, c).
* ``qkv``: beside the fused query-key-value layer of every block; the module reads what that layer reads.
* ``prefix``: further keys and values in the attention of every block. The module reads what the attention gave before
  its projection, (b, n, d), the queries and the keys, (b, heads, n, head_dim); what it returns takes the first's place.
* ``tokens``: prompt tokens behind the others, for one block each or from the first one on; gone before the final norm.
* ``outputs``: on the output of every layer: in a Vision Transformer the patch projection, both norms and the four
  linear layers of every block, and the final norm; in another model every convolution, layer norm and group norm. The
  module gets it with the channels last, a convolution's as (b, h, w, c).
* ``convolutions``: beside every ungrouped convolution of another model; the module reads what the layer reads.

The model's own parameters are never touched: hooks hold the modules, and removing the hooks is removing everything.
"""

from __future__ import annotations

import copy
import dataclasses as dc
import threading
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from perdure.backbone.sites import BLOCK_AXIS, CHANNEL_AXIS, SEATS, Make, Site
from perdure.errors import BackboneError, ShapeError

FOLDING: Final = ("qkv", "outputs", "convolutions")  # where a module does something to one layer


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
        stay: whether tokens travel on to the last block.
    """

    def __init__(self, seat: str, sites: Sequence[Site], modules: Sequence[nn.Module], *, stay: bool = False) -> None:
        super().__init__()
        self.seat, self.names, self.stay = seat, [site.name for site in sites], stay
        self.inserted = nn.ModuleList(modules)

    def extra_repr(self) -> str:
        """Where the modules are."""
        return f"seat={self.seat}, names={self.names}" + (", stay=True" if self.stay else "")


class _Pass(threading.local):
    """What one hook keeps while one pass is under way: every thread has its own."""

    stream: Tensor | None = None
    queries: Tensor | None = None


@dc.dataclass(slots=True, eq=False)
class _Hook:
    """A forward hook that deep copies take along: all it knows are attributes."""

    is_insertion: ClassVar = True  # its module is told beside the model's own settings

    owner: Insertion
    module: nn.Module
    name: str
    under_way: _Pass = dc.field(default_factory=_Pass)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hook:
        """Without what a forward pass that failed half way has left to read."""
        return _Hook(copy.deepcopy(self.owner, memo), copy.deepcopy(self.module, memo), self.name)

    def beside(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out + self._made(out, args[0])

    def beside_block(self, block: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        axis = BLOCK_AXIS[type(block)]
        return out + self._made(out.movedim(axis, -1), args[0].movedim(axis, -1)).movedim(-1, axis)

    def on_output(self, layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        axis = CHANNEL_AXIS[type(layer)]
        last = out.movedim(axis, -1)
        return self._made(last, last).movedim(-1, axis)

    def keep_stream(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.under_way.stream = args[0]

    def keep_normed(self, norm: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.under_way.stream = out

    def add_to_branch(self, branch_end: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        stream, self.under_way.stream = self.under_way.stream, None
        return out + self._made(out, stream)

    def keep_queries(self, norm: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        self.under_way.queries = out

    def in_attention(self, norm: nn.Module, args: tuple[Tensor, ...]) -> Tensor:
        here = self.under_way
        queries, keys, here.queries, here.stream = here.queries, here.stream, None, None
        return self._made(args[0], args[0], queries, keys)

    def append(self, block: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (self.module(args[0]), *args[1:])

    def drop(self, block: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out[:, : out.shape[1] - len(self.module.values)]  # type: ignore[arg-type]

    def _made(self, like: Tensor, *read: Tensor | None) -> Tensor:
        made: Tensor = self.module(*read)
        if made.shape != like.shape:
            name, wanted = f"output of the {type(self.module).__name__} at {self.name}", f"of shape {tuple(like.shape)}"
            raise ShapeError("insert", name, wanted, tuple(made.shape), "Make it for the site's n_in and n_out")
        return made


def make_module(seat: str, site: Site, make: Make) -> nn.Module:
    """What ``make`` makes for a site.

    Args:
        seat: one of ``SEATS``.
        site: one of its places.
        make: makes the module.

    Raises:
        BackboneError: if it is no module, or at ``tokens`` no :class:`PromptTokens`.
        ShapeError: for tokens of another width than the block's.
    """
    module, wanted, where = make(site), PromptTokens if seat == "tokens" else nn.Module, f"module for {site.name}"
    if not isinstance(module, wanted):
        hint = "Return a module from make"
        raise BackboneError("insert", where, f"of type {wanted.__name__} at seat {seat}", module, hint)
    if isinstance(module, PromptTokens) and module.values.shape[1:] != (site.n_in,):
        shape = tuple(module.values.shape)
        raise ShapeError("insert", where, f"of shape (p, {site.n_in})", shape, "Make it for the site's n_in")
    return module


def attach(found: Sequence[Site], insertion: Insertion, last: nn.Module | None) -> None:
    """Puts the hooks of an insertion in place.

    Args:
        found: the sites, one per module.
        insertion: the modules.
        last: for ``tokens`` that stay: the block behind which they are dropped; None: each behind its own.

    Raises:
        BackboneError: for a seat that there is not.
    """
    if insertion.seat not in SEATS:
        raise BackboneError("attach", "seat", f"one of {list(SEATS)}", insertion.seat, "Choose one of them")
    for site, module in zip(found, insertion.inserted, strict=True):
        hook, layer = _Hook(insertion, module, site.name), site.layer
        if insertion.seat == "attention":
            layer.norm1.register_forward_hook(hook.keep_normed, prepend=True)  # type: ignore[union-attr]
            layer.drop_path1.register_forward_hook(hook.add_to_branch)  # type: ignore[union-attr]
        elif insertion.seat == "mlp":
            layer.norm2.register_forward_pre_hook(hook.keep_stream)  # type: ignore[union-attr]
            layer.drop_path2.register_forward_hook(hook.add_to_branch)  # type: ignore[union-attr]
        elif insertion.seat == "prefix":
            layer.q_norm.register_forward_hook(hook.keep_queries)  # type: ignore[union-attr]
            layer.k_norm.register_forward_hook(hook.keep_normed)  # type: ignore[union-attr]
            layer.norm.register_forward_pre_hook(hook.in_attention)  # type: ignore[union-attr]
        elif insertion.seat == "tokens":
            # those that stay come before those that leave, which are cut off the end
            layer.register_forward_pre_hook(hook.append, prepend=insertion.stay)
            (layer if last is None else last).register_forward_hook(hook.drop)
        else:
            does = {"block": hook.beside_block, "outputs": hook.on_output}.get(insertion.seat, hook.beside)
            layer.register_forward_hook(does)


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
        if insertion.seat not in FOLDING or not hasattr(module, "fold_into"):
            got = f"{type(module).__name__} at seat {insertion.seat}"
            hint = "Keep it inserted: only scales, shifts and LoRA fold"
            raise BackboneError("fold", "inserted modules", "linear maps", got, hint)
        module.fold_into(model.get_submodule(name))  # type: ignore[operator]


def _owner(hook: Any) -> object:
    held = getattr(hook, "__self__", None)
    return held.owner if isinstance(held, _Hook) else None
