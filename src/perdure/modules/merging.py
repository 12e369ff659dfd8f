"""Merging of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn


def mean_of(parts: Iterable[nn.Module]) -> list[Tensor]:
    """The mean of every parameter over modules of one form, taken in float64; nothing if there is no module.

    Args:
        parts: the modules.
    """
    values = ([p.data.double() for p in part.parameters()] for part in parts)
    return [torch.stack(same).mean(0).float() for same in zip(*values, strict=True)]


def split_like(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Some parameters' values, from the vector that ``torch.nn.utils.parameters_to_vector`` would make of them.

    Args:
        vector: (n,), as many numbers as ``parameters`` have.
        parameters: of the shapes wanted.
    """
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


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
