"""Merging of weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


@torch.no_grad()
def pull_(parameters: Sequence[Tensor], means: Sequence[Tensor], share: float) -> None:
    """``W <- (1 - m) W + m mean``, in place.

    Args:
        parameters: W.
        means: of the same shapes.
        share: m.
    """
    torch._foreach_lerp_(list(parameters), list(means), share)


def pull_on_use(parts: Sequence[nn.Module], means: Callable[[], Sequence[Tensor]], share: float) -> None:
    """Whenever one of ``parts`` is used, in training or not, all of them are pulled once: twelve times per pass of a
    model of twelve blocks, the part of block k for the k-th time when it is used.

    Source: what the released code of Sun et al., "MOS", AAAI 2025, does. Values are replaced behind autograd's back, as
    there: a backward pass raises no error and may go through later values than the forward pass saw.

    Args:
        parts: the adapters of all blocks.
        means: of their parameters, asked for at every use.
        share: how far they are pulled.
    """

    def pull(module: nn.Module, inputs: object) -> None:
        with torch.no_grad():
            own = [p for part in parts for p in part.parameters()]
            for p, mean in zip(own, means(), strict=True):
                p.data = torch.lerp(p.data, mean, share)

    for part in parts:
        part.register_forward_pre_hook(pull)
