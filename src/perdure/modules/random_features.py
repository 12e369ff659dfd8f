"""Random features h = ReLU(f W_R), some rows or some columns at a time, so that no large H is ever held.

Source: McDonnell et al., "RanPAC", NeurIPS 2023, section 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from perdure.modules.ridge import Statistics, add_gram_

ROWS = 512  # lifted rows, or columns, held at once: 41 MB at M = 10 000


class Rows(Protocol):
    """Features of images, taken by position."""

    def __getitem__(self, positions: np.ndarray, /) -> Tensor:
        """(n, d) of n positions."""


class RandomFeatures:
    """h = ReLU(f W_R), float64.

    Args:
        projection: W_R; without columns: none, and h = f.
        device: to compute on.
    """

    def __init__(self, projection: Float[Tensor, "d columns"], device: torch.device) -> None:
        self.projection, self.device = projection, device
        self.m = projection.shape[1] or projection.shape[0]

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        return self._lift(features, self.projection if self.projection.shape[1] else None)

    def blocks(self, features: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "n _b"]]:
        """The columns of h, some at a time.

        Args:
            features: f.
        """
        for part in self.projection.split(ROWS, dim=1) if self.projection.shape[1] else (None,):
            yield self._lift(features, part)

    def added(
        self, known: Statistics, rows: Rows, columns: Int[Tensor, " n"], which: Int[Tensor, " k"], width: int
    ) -> Statistics:
        """(G, Q) with some rows added, in new tensors on the CPU.

        Args:
            known: what they are added to.
            rows: features by position.
            columns: of the classes of all rows.
            which: positions of the rows to add.
            width: columns of Q afterwards.
        """
        gram = known[0].to(self.device, copy=True)
        sums = F.pad(known[1], (0, width - known[1].shape[1])).to(self.device)
        for positions in which.split(ROWS):
            h = self(rows[positions.numpy()])
            add_gram_(gram, h)
            sums += h.T @ F.one_hot(columns[positions], width).to(h)
        return gram.cpu(), sums.cpu()

    def _lift(self, features: Tensor, projection: Tensor | None) -> Tensor:
        f = features.to(self.device, torch.float64)
        return f if projection is None else torch.relu(f @ projection.to(self.device, torch.float64))
