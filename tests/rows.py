"""Random rows, and how far rows are from orthonormal."""

from __future__ import annotations

import torch
from torch import Tensor


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=dtype)


def gap_to_identity(rows: Tensor) -> float:
    return float((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype)).abs().max())
