"""Merging of weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def pull_(parameters: Sequence[Tensor], means: Sequence[Tensor], share: float) -> None:
    """``W <- (1 - m) W + m mean``, in place.

    Args:
        parameters: W.
        means: of the same shapes.
        share: m.
    """
    torch._foreach_lerp_(list(parameters), list(means), share)
