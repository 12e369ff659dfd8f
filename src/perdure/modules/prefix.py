"""Prefixes: learned keys and values that a block's attention reads besides its own, and how CODA-Prompt mixes them.

Source: Smith et al., "CODA-Prompt" (CVPR 2023, arXiv 2211.13218), section 4: weights of components, their
orthogonality; the initialisation is that of the released code, by Gram-Schmidt at every task.
"""

from __future__ import annotations

import math
import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from perdure.errors import ShapeError
from perdure.modules.prompts import TaskBlocks

Orthogonalisation = Literal["qr", "reference"]
SHORTEST = 1e-12  # a shorter vector has no direction: its cosines are zero


class ExhaustedSpaceWarning(UserWarning):
    """No direction is left that is orthogonal to all older rows."""


def split_heads(rows: Float[Tensor, "b m dim"], n_heads: int) -> Float[Tensor, "b heads m head_dim"]:
    """Rows of the model's width as the heads see them: head h reads the h-th part of the width.

    Args:
        rows: prompt rows.
        n_heads: attention heads of the block.
    """
    return rows.unflatten(2, (n_heads, -1)).transpose(1, 2)


def component_weights(
    queries: Float[Tensor, "b d"], attention: Float[Tensor, "m d"], keys: Float[Tensor, "m d"]
) -> Float[Tensor, "b m"]:
    """CODA-Prompt's weights α: the cosine of every masked query q ⊙ A_m with its key K_m, in [-1, 1].

    Neither softmax nor selection follows. The masked queries (b, m, d) are never formed: their products with the keys
    and their lengths are two matrix products. In float32 whatever the autocast (float64 queries stay float64).

    Args:
        queries: of any scale; not normalised before they are masked.
        attention: feature masks A.
        keys: K, of any scale.
    """
    with torch.autocast(queries.device.type, enabled=False):
        dtype = torch.promote_types(queries.dtype, torch.float32)
        q, a, k = (x.to(dtype) for x in (queries, attention, keys))
        lengths = (q.square() @ a.square().T).clamp(min=SHORTEST**2).sqrt()  # (b, m) of q ⊙ A_m
        return q @ (a * F.normalize(k, dim=1, eps=SHORTEST)).T / lengths


def orthonormal_block(
    old_rows: Float[Tensor, "m d"], n: int, rng: torch.Generator, how: Orthogonalisation = "qr"
) -> Float[Tensor, "n d"]:
    """``n`` random rows of unit length, orthogonal to each other and to the old rows.

    Where the d dimensions cannot hold old and new rows, the new ones are orthogonal to each other only.

    Args:
        old_rows: trained, so neither of unit length nor orthogonal to each other.
        n: how many rows, at most d.
        rng: a CPU generator.
        how: ``qr`` keeps the promise; ``reference`` subtracts from a row its projections on all rows before it, one by
            one, as the released code does: with old rows that are not orthogonal the result is not orthogonal either.

    Raises:
        ShapeError: if ``n`` orthogonal rows do not exist.
    """
    m, width = old_rows.shape
    if n > width:
        raise ShapeError("orthonormal_block", "n", f"at most the rows' width {width}", n, "Ask for fewer rows")
    old = old_rows.detach().cpu().double()
    drawn = torch.randn(n, width, generator=rng, dtype=torch.float64)
    if m + n > width:
        message = (
            f"{m} old and {n} new rows cannot all be orthogonal in {width} dimensions: "
            "the new ones are orthogonal to each other only. Use fewer components per task."
        )
        warnings.warn(ExhaustedSpaceWarning(message), stacklevel=2)
        old = old[:0]
    block = _by_qr(old, drawn) if how == "qr" else _by_projections(old, drawn)
    return block.to(old_rows.dtype).to(old_rows.device)


def _by_qr(old: Float[Tensor, "m d"], drawn: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    basis, triangle = torch.linalg.qr(torch.cat([old, drawn]).T)
    signs = triangle.diagonal().sign()[len(old) :]  # as Gram-Schmidt: every row keeps its drawn side
    return (basis.T[len(old) :]) * signs[:, None]


def _by_projections(old: Float[Tensor, "m d"], drawn: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    rows = old
    for row in drawn:
        shares = (rows @ row) / rows.square().sum(1).clamp(min=SHORTEST**2)
        rows = torch.cat([rows, F.normalize(row - shares @ rows, dim=0)[None]])
    return rows[len(old) :]


def orthogonality_penalty(rows: Float[Tensor, "m ..."]) -> Float[Tensor, ""]:
    """R(X): the mean over the entries of (X Xᵀ - I)², zero for orthonormal rows.

    Args:
        rows: flattened behind the first dimension.
    """
    flat = rows.flatten(1)
    return (flat @ flat.T - torch.eye(len(flat), device=flat.device, dtype=flat.dtype)).square().mean()


class Components(nn.Module):
    """One layer's components: prompts P (M, Lp, D), keys K (M, D) and attention vectors A (M, D); tasks add blocks.

    Args:
        n: components per block.
        length: rows of a component (Lp), key and value rows together.
        dim: the model's width (D).
    """

    def __init__(self, n: int, length: int, dim: int) -> None:
        super().__init__()
        self.shapes = {"prompts": (n, length, dim), "keys": (n, dim), "attention": (n, dim)}
        self.prompts, self.keys, self.attention = TaskBlocks(), TaskBlocks(), TaskBlocks()

    def grow(self, rng: torch.Generator, how: Orthogonalisation = "qr") -> None:
        """Freezes what is there and adds a block, orthogonal to it.

        Args:
            rng: a CPU generator.
            how: see :func:`orthonormal_block`.
        """
        for kind, rows in self._kinds():
            n, *shape = self.shapes[kind]
            old = rows().flatten(1) if len(rows) else rows.place.new_empty(0, math.prod(shape))
            rows.add(orthonormal_block(old, n, rng, how).unflatten(1, shape))

    def grow_from_pool(self, pool: int, rng: torch.Generator) -> None:
        """Adds the next block of a pool that is orthogonal as a whole; what the older blocks learned plays no part.

        Args:
            pool: rows of the whole pool.
            rng: a CPU generator, in the same state for every block of a pool.
        """
        for kind, rows in self._kinds():
            n, *shape = self.shapes[kind]
            whole = orthonormal_block(rows.place.new_empty(0, math.prod(shape)), pool, rng)
            rows.add(whole[n * len(rows) :][:n].unflatten(1, shape))

    def weights(self, queries: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        """The weight α of every component in each image's prompt.

        Args:
            queries: see :func:`component_weights`.
        """
        return component_weights(queries, self.attention(), self.keys())

    def forward(self, queries: Float[Tensor, "b d"]) -> Float[Tensor, "b lp d"]:
        prompts = self.prompts()
        return (self.weights(queries) @ prompts.flatten(1)).unflatten(1, prompts.shape[1:])

    def penalty(self) -> Float[Tensor, ""]:
        """R(K) + R(A) + R(P); gradient reaches the newest block, through its products with the older ones too."""
        return torch.stack([orthogonality_penalty(rows()) for _, rows in self._kinds()]).sum()

    def state_shapes(self, n_blocks: int) -> dict[str, tuple[int, ...]]:
        """The entries of a state with ``n_blocks`` blocks, and their shapes."""
        return {f"{kind}.blocks.{i}": shape for kind, shape in self.shapes.items() for i in range(n_blocks)}

    def _kinds(self) -> list[tuple[str, TaskBlocks]]:
        return [("prompts", self.prompts), ("keys", self.keys), ("attention", self.attention)]
