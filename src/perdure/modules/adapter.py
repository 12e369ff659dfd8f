"""The bottleneck adapter beside a block or a part of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Adapter(nn.Module):
    """``scale * (W_up D(act(W_down u + b_down)) + b_up)``: zero at first.

    Source: Chen et al., "AdaptFormer", NeurIPS 2022, without its norm, as APER, RanPAC, EASE and MOS use it.

    Args:
        dim: width d of the tokens.
        rank: width of the bottleneck.
        rng: where W_down ~ U(±1/√d) comes from; all else is zero.
        scale: it multiplies b_up too.
        dropout: share of the bottleneck that is dropped while ``dropout_rng`` is set, that is, in training.
        activation: of the bottleneck.
        learned_scale: whether ``scale`` learns from there on; else it is fixed.
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        rng: torch.Generator,
        *,
        scale: float = 0.1,
        dropout: float = 0.1,
        activation: Callable[[Tensor], Tensor] = F.relu,
        learned_scale: bool = False,
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale)) if learned_scale else scale
        self.dropout, self.activation = dropout, activation
        self.dropout_rng: torch.Generator | None = None
        # without torch's own values: those are drawn from the global generator
        self.down, self.up = nn.utils.skip_init(nn.Linear, dim, rank), nn.utils.skip_init(nn.Linear, rank, dim)
        with torch.no_grad():
            self.down.weight.copy_(dim**-0.5 * (2 * torch.rand(rank, dim, generator=rng) - 1))
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(self, u: Float[Tensor, "b *n d"]) -> Float[Tensor, "b *n d"]:
        hidden = self.activation(self.down(u))
        if self.dropout_rng is not None and self.dropout:
            kept = torch.rand(hidden.shape, generator=self.dropout_rng, device=hidden.device) >= self.dropout
            hidden = hidden * kept / (1 - self.dropout)
        out: Tensor = self.scale * self.up(hidden)
        return out

    def extra_repr(self) -> str:
        """What the values do not say."""
        scale = self.scale.item() if isinstance(self.scale, Tensor) else self.scale
        other = f", activation={self.activation.__name__}" if self.activation is not F.relu else ""
        return f"scale={scale}{other}"


def adapters_in(part: nn.Module) -> list[Adapter]:
    """All adapters in a module, e.g. those of a task, one per block, in their order."""
    return [m for m in part.modules() if isinstance(m, Adapter)]


@contextlib.contextmanager
def dropping(adapters: Iterable[Adapter], rng: torch.Generator | None) -> Iterator[None]:
    """As long as this lasts, adapters drop a share of their bottlenecks; then what they dropped before.

    Args:
        adapters: which.
        rng: where what is dropped comes from, on their device; None: nothing is dropped.
    """
    before = [(adapter, adapter.dropout_rng) for adapter in adapters]
    for adapter, _ in before:
        adapter.dropout_rng = rng
    try:
        yield
    finally:
        for adapter, dropout_rng in before:
            adapter.dropout_rng = dropout_rng
