"""Losses shared by methods."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def masked_cross_entropy(
    logits: Float[Tensor, "b classes"], columns: Int[Tensor, " b"], current: Int[Tensor, " c"] | None
) -> Float[Tensor, ""]:
    """Cross-entropy over the columns ``current`` alone; the other columns' weights get a gradient of exactly zero.

    Args:
        logits: of all classes seen.
        columns: the true ones, among ``current``.
        current: ascending; None: all columns.
    """
    if current is None:
        return F.cross_entropy(logits, columns)
    return F.cross_entropy(logits[:, current], torch.searchsorted(current, columns))
