"""Ridge regression from few images: of G = HᵀH a factor R of one row per image, RᵀR = G, and HᵀY = RᵀZ.

(R, Z) is (H, Y) turned by an orthogonal matrix, so a row of it is no image's. R follows from G alone, but for the signs
of its rows: where the columns of S = RΩ are means of neighbouring columns, S is the Cholesky factor of ΩᵀGΩ, and
R = S⁻ᵀΩᵀG. So R tells what G tells, in n m numbers instead of m² / 2. The means are there because a single column may
be zero for all images, and would then leave a row unturned.

Source: Golub & Van Loan, "Matrix Computations", section 6.5 (updating a QR factorisation); for the dual see
:mod:`perdure.modules.ridge_choice`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from perdure.modules.ridge import (
    BLOCK,
    Statistics,
    add_gram_,
    packed_gram,
    solve_ridge_upwards,
    trace,
    unpack,
    zero_ridge,
)

Factor: TypeAlias = tuple[Float[Tensor, "_rows m"], Float[Tensor, "_rows _classes"]]  # R and Z

PANEL, NEIGHBOURS = 128, 32  # rows turned at once beside the new ones; columns in a mean


def has_room(n: int, m: int) -> bool:
    """Whether the factor of n images is smaller than half a matrix of (m, m).

    Args:
        n: images.
        m: features of each.
    """
    return 2 * n < m


def with_room(known: Factor, k: int, width: int) -> Factor:
    """A copy with k rows of zeros below.

    Args:
        known: of the images so far; with fewer classes, perhaps.
        k: rows.
        width: columns of Z afterwards.
    """
    factor, targets = known
    return F.pad(factor, (0, 0, 0, k)), F.pad(targets, (0, width - targets.shape[1], 0, k))


def turn_(known: Factor, old: int) -> None:
    """Turns new rows of (H, Y) that stand below a factor into it, in place.

    At about 2 n (2 k + 128) m operations for k new rows of n, for whom :func:`has_room`.

    Args:
        known: n rows, float64.
        old: so many of them are the factor of the images before.
    """
    factor, n = known[0], len(known[0])
    if old == n:
        return
    for start in range(0, old, PANEL):  # reflections of a triangle and all new rows, each of one row of the triangle
        stop = min(start + PANEL, old)
        triangle = _means(factor[start:stop], start, stop).triu()  # what is below is rounding
        reflectors, scales = torch.geqrf(torch.cat([triangle, _means(factor[old:], start, stop)]))
        q, below = torch.linalg.householder_product(reflectors, scales), reflectors[stop - start :]
        for columns in _some_columns(known):
            upper, new = columns[start:stop], columns[old:]
            turned = (q[: stop - start].T @ upper).addmm_(q[stop - start :].T, new)
            new.addmm_(below, upper - turned, alpha=-1)
            upper.copy_(turned)
    q = torch.linalg.householder_product(*torch.geqrf(_means(factor[old:], old, n)))
    for columns in _some_columns(known):
        columns[old:] = q.T @ columns[old:]


def _means(rows: Tensor, start: int, stop: int) -> Tensor:
    width = min(NEIGHBOURS, rows.shape[1] // 2)
    return F.avg_pool1d(rows[None, :, start : stop + width - 1], width, stride=1)[0]


def _some_columns(known: Factor) -> Iterator[Tensor]:
    for part in known:
        yield from part.split(BLOCK, dim=1)


def statistics_of(known: Factor) -> Statistics:
    """(G, Q), exact up to float64 rounding.

    Args:
        known: the factor.
    """
    factor, targets = known
    gram = packed_gram(factor.shape[1]).to(factor.device)
    add_gram_(gram, factor)
    return gram, factor.T @ targets


def kernel(factor: Float[Tensor, "rows m"]) -> Float[Tensor, " packed"]:
    """R Rᵀ, packed, at half the operations of a full product.

    Args:
        factor: R.
    """
    packed = packed_gram(len(factor)).to(factor.device)
    add_gram_(packed, factor.T)
    return packed


def solve_factor_upwards(known: Factor, ridges: Sequence[float]) -> Float[Tensor, "m classes"]:
    """``(G + λI)⁻¹ Q = Rᵀ (R Rᵀ + λI)⁻¹ Z`` with the first λ that is not numerically zero beside G.

    Args:
        known: the factor.
        ridges: the λ to try, in order.

    Raises:
        ConfigError: if even the last is too small.
    """
    factor, targets = known
    packed, n = kernel(factor), len(factor)
    least = zero_ridge(trace(packed, n), *factor.shape)
    return factor.T @ solve_ridge_upwards(lambda: unpack(packed, n), targets, ridges, least)
