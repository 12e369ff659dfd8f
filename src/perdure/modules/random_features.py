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

from perdure.errors import CheckpointError
from perdure.modules.ridge import Statistics, add_gram_
from perdure.modules.ridge_factor import Factor, turn_, with_room

ROWS = 512  # lifted rows, or columns, held at once: 41 MB at M = 10 000
SAME = 1e-6  # of a row's sum of |W_R|: that of other random numbers differs by about 1/√M of it


class Rows(Protocol):
    """Features of images, taken by position."""

    def __getitem__(self, positions: np.ndarray, /) -> Tensor:
        """(n, d) of n positions."""


class RandomFeatures:
    """h = ReLU(f W_R), float64.

    Args:
        projection: W_R, float32; without columns: none, and h = f.
        device: to compute on.
    """

    def __init__(self, projection: Float[Tensor, "d columns"], device: torch.device) -> None:
        self.projection, self.device = projection.to(device), device
        self.m = projection.shape[1] or projection.shape[0]

    @classmethod
    def drawn(cls, seed: int, d: int, columns: int, device: torch.device) -> RandomFeatures:
        """Of a W_R of standard normal numbers, drawn in float32 on the CPU.

        Args:
            seed: of W_R; the same seed, d and columns give the same.
            d: features f.
            columns: random features; 0: none, and h = f.
            device: to compute on if it is CUDA, else on the CPU: MPS has no float64.
        """
        w = torch.randn(d, columns, generator=torch.Generator().manual_seed(seed))
        return cls(w, device if device.type == "cuda" else torch.device("cpu"))

    @property
    def totals(self) -> Float[Tensor, " d"]:
        """The sum of |W_R| over each of its rows, float64 on the CPU."""
        # numbers, not tensors: small ones that stay would keep the freed large ones apart, 100 MB in all
        return torch.tensor([float(row.double().abs().sum()) for row in self.projection], dtype=torch.float64)

    def require_totals(self, totals: Float[Tensor, " d"]) -> None:
        """Refuses to stand for another W_R.

        Kinds of CPU differ in a number's last digits, which changes a sum by about 1e-8 of it, and that is let pass.

        Args:
            totals: of that W_R.

        Raises:
            CheckpointError: if it is another.
        """
        own = self.totals
        apart = (totals - own).abs()
        if not (apart <= SAME * own).all():
            row = int(apart.argmax())
            hint = "Load it with the versions of PyTorch and perdure that it was written with"
            must_be = f"{float(own[row])}, as W_R is drawn here"
            raise CheckpointError("RandomFeatures", f"the sum of |W_R| in row {row}", must_be, float(totals[row]), hint)

    def __call__(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        h = torch.empty(len(features), self.m, dtype=torch.float64, device=self.device)
        for columns, part in zip(h.split(ROWS, dim=1), self.blocks(features), strict=True):
            columns.copy_(part)
        return h

    def blocks(self, features: Float[Tensor, "n d"]) -> Iterator[Float[Tensor, "n _b"]]:
        """The columns of h, some at a time.

        Args:
            features: f.
        """
        f = features.to(self.device, torch.float64)
        if not self.projection.shape[1]:
            yield from f.split(ROWS, dim=1)
            return
        for part in self.projection.split(ROWS, dim=1):
            yield (f @ part.double()).relu_()

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

    def appended(
        self, known: Factor, rows: Rows, columns: Int[Tensor, " n"], which: Int[Tensor, " k"], width: int
    ) -> Factor:
        """(R, Z) of some rows more, in new tensors on the CPU.

        Args:
            known: the factor that they are added to.
            rows: features by position.
            columns: of the classes of all rows.
            which: positions of the rows to add.
            width: columns of Z afterwards.
        """
        old = len(known[0])
        factor, targets = with_room((known[0].to(self.device), known[1].to(self.device)), len(which), width)
        for positions in which.split(ROWS):
            stop = old + len(positions)
            factor[old:stop] = self(rows[positions.numpy()])
            targets[old:stop] = F.one_hot(columns[positions], width)
            turn_((factor[:stop], targets[:stop]), old)
            old = stop
        return factor.cpu(), targets.cpu()
