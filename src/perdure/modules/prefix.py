"""Prefixes: learned keys and values that a block's attention reads besides its own, and how CODA-Prompt mixes them.

Source: Smith et al., "CODA-Prompt" (CVPR 2023, arXiv 2211.13218), section 4: weights of components, their
orthogonality; the initialisation is that of the released code, by Gram-Schmidt at every task. :class:`Prefix` is that
of Gao et al., "LAE" (ICCV 2023, arXiv 2303.10070).
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from perdure.errors import ShapeError

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


def by_layer(slots: Float[Tensor, "b k layers 2 m d"], *, scrambled: bool = False) -> Float[Tensor, "layers b 2 km d"]:
    """The key and value rows of each image's slots, one after another, layer by layer.

    Args:
        slots: of each image; index 0 of the 2 is for keys.
        scrambled: as DualPrompt's ports have it, which reshape where the axes of key or value and of the image should
            change places.
    """
    rows = slots.permute(2, 3, 0, 1, 4, 5).flatten(3, 4)  # (layers, 2, b, k m, d)
    return rows.reshape(len(rows), len(slots), 2, *rows.shape[3:]) if scrambled else rows.transpose(1, 2)


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


class Prefix(nn.Module):
    """Keys ``s_k P_k`` and values ``s_v P_v`` of one block, whose weights always sum to 1 (prefix compensation).

    Attention over the model's own tokens and the prefix, with the weights of the prefix divided by their sum: tokens
    and prefix are then two terms, ``(1 - m) Attn(x) + softmax(q (s_k P_k)ᵀ) s_v P_v``, where m is what the prefix
    takes from the tokens. It does not matter where among the keys the prefix stands.

    Args:
        dim: width d of the tokens.
        length: rows of P_k and of P_v.
        rng: where both come from, U(0, 0.01); s_k and s_v are 1 at first.
    """

    def __init__(self, dim: int, length: int, rng: torch.Generator) -> None:
        super().__init__()
        self.keys, self.values = (nn.Parameter(0.01 * torch.rand(length, dim, generator=rng)) for _ in range(2))
        self.key_scale, self.value_scale = (nn.Parameter(torch.ones(())) for _ in range(2))

    def forward(
        self,
        attended: Float[Tensor, "b n d"],
        queries: Float[Tensor, "b heads n head_dim"],
        keys: Float[Tensor, "b heads n head_dim"],
    ) -> Float[Tensor, "b n d"]:
        """The attention's result with the prefix.

        Args:
            attended: what the attention gave, head after head, before its projection.
            queries: behind any norm.
            keys: as well.
        """
        heads, attend = queries.shape[1], F.scaled_dot_product_attention
        scaled = (self.key_scale * self.keys, self.value_scale * self.values)
        mine, values = (split_heads(p[None].to(keys.dtype), heads).expand(len(keys), -1, -1, -1) for p in scaled)
        # 1 - m: no softmax or sigmoid of its own, whose last bits would depend on the batch
        of_tokens = torch.cat([torch.zeros_like(mine), torch.ones_like(keys)], dim=2)
        kept = attend(queries, torch.cat([mine, keys], dim=2), of_tokens)
        both = kept * split_heads(attended, heads) + attend(queries, mine, values)
        return both.transpose(1, 2).flatten(2).to(attended.dtype)
