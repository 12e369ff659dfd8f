"""Class statistics that add up: counts and sums in float64, so that any cut into tasks or chunks gives the same."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor


def add_class_sums(
    sums: Float[Tensor, "old d"], columns: Int[Tensor, " n"], features: Float[Tensor, "n d"], width: int
) -> Float[Tensor, "{width} d"]:
    """Per-class sums with one more chunk added, in a new tensor grown to ``width`` rows.

    Args:
        sums: float64 sums so far.
        columns: the row each feature belongs to.
        features: float32 or float64.
        width: rows of the result, at least those of ``sums``.
    """
    grown = F.pad(sums, (0, 0, 0, width - len(sums)))
    return grown.index_add_(0, columns, features.double())


def add_class_counts(counts: Int[Tensor, " old"], columns: Int[Tensor, " n"], width: int) -> Int[Tensor, " {width}"]:
    """Per-class counts with one more chunk added, in a new tensor grown to ``width``."""
    return F.pad(counts, (0, width - len(counts))) + torch.bincount(columns, minlength=width)
