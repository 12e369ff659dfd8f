"""Fusion of a linear map with what it became, entry by entry in the old map's singular basis.

Source: Huang, Cao, Lu & Liu, "Class-Incremental Learning with CLIP: Adaptive Representation Adjustment and Parameter
    Fusion", ECCV 2024 (arXiv 2407.14143).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

TIED = 1e-9  # of the largest: singular values that are no further apart do not tell their vectors apart


class Fused(NamedTuple):
    """A map, and how many of the old map's singular values equalled the one before them.

    Where there are any, the basis is not the only one, and what was fused depends on which one was found.
    """

    map: Tensor
    tied: int


def fused(old: Float[Tensor, "d d"], new: Float[Tensor, "d d"], b: float) -> Fused:
    """U (M * Uᵀnew + (1 - M) * Uᵀold), where old = U S Vᵀ and M = min(1, D / max D + b), D = |Uᵀnew - Uᵀold|.

    Entries that changed most take their new value. Signs of U do not matter; taken in float64 on the CPU.

    Args:
        old: the map before it learned.
        new: the map afterwards.
        b: the least share of the new value; 1 or more: nothing is fused.

    Returns:
        The fused map in a new tensor, of the dtype and device of ``new``.
    """
    before, after = (x.detach().cpu().double() for x in (old, new))
    u, tied = _basis(before)
    d, p = u.T @ before, u.T @ after
    change = (p - d).abs()
    largest = float(change.max())
    if b >= 1 or not largest:
        return Fused(new.clone(), tied)
    share = (change / largest + b).clamp(max=1)
    return Fused((u @ torch.lerp(d, p, share)).to(new), tied)


def _basis(a: Float[Tensor, "d d"]) -> tuple[Float[Tensor, "d d"], int]:
    """The left singular vectors, each with its largest entry above 0, and the ties among their values."""
    u, s, _ = torch.linalg.svd(a)
    tied = int((s[:-1] - s[1:] <= TIED * s[0]).sum())
    return u * u.gather(0, u.abs().argmax(0, keepdim=True)).sign(), tied
