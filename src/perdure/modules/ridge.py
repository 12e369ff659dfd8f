"""Ridge regression from statistics that add up: G = HᵀH, a symmetric matrix of which half is stored, and Q = HᵀY.

Everything is float64: diag(G) reaches 1e8, where float32 swallows a small λ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from perdure.errors import ConfigError, DataError, ShapeError

BLOCK = 512
ZERO = torch.finfo(torch.float64).eps / 8  # of tr G: see zero_ridge
Statistics: TypeAlias = tuple[Float[Tensor, " packed"], Float[Tensor, "m _classes"]]  # G, from packed_gram, and Q


def packed_gram(m: int) -> Float[Tensor, " packed"]:
    """An all-zero symmetric (m, m) matrix of which only blocks on and above the diagonal are stored, float64."""
    return torch.zeros(packed_size(m), dtype=torch.float64)


def packed_size(m: int) -> int:
    """How many numbers of a symmetric (m, m) matrix are stored: half of them, and a little more."""
    return sum((stop - start) * (m - start) for start, stop in _block_rows(m))


def no_statistics(m: int) -> Statistics:
    """(G, Q) of no images and no classes."""
    return packed_gram(m), torch.zeros(m, 0, dtype=torch.float64)


def add_gram_(packed: Float[Tensor, " packed"], h: Float[Tensor, "n m"]) -> None:
    """Adds ``hᵀh`` in place, at n m² operations instead of the 2 n m² of a full product.

    Args:
        packed: from :func:`packed_gram`, on the device of ``h``.
        h: float64 rows.
    """
    for (start, stop), rows in _views(packed, h.shape[1]):
        rows.addmm_(h[:, start:stop].T, h[:, start:])


def merge_ridge(
    mine: tuple[Float[Tensor, " packed"], Float[Tensor, "m classes"]],
    theirs: tuple[Float[Tensor, " packed"], Float[Tensor, "m others"]],
    columns: Int[Tensor, " others"],
    width: int,
    *,
    subtract: bool = False,
) -> tuple[Float[Tensor, " packed"], Float[Tensor, "m {width}"]]:
    """(G, Q) of the images of both, or, by ``subtract``, of ``mine`` without ``theirs``: those images are unlearned.

    Exact up to float64 rounding, about 1e-16 of the largest entry ever added. A class without images is left with a
    column of (nearly) zeros.

    Args:
        mine: a Gram matrix from :func:`packed_gram`, and the class sums Hᵀ Y.
        theirs: another pair from the same random features.
        columns: its class j is the result's column ``columns[j]``.
        width: columns of the result.
        subtract: take its images away, which must have been among those of ``mine``.

    Returns:
        New tensors.

    Raises:
        ShapeError: if the pairs are of different sizes, or ``width`` is too small.
        DataError: if something is subtracted that was never added.
    """
    (gram, sums), (other, other_sums), sign = mine, theirs, -1 if subtract else 1
    sizes, must_be = (len(other), len(other_sums)), (len(gram), len(sums))
    if sizes != must_be:
        hint = "Lift both with the same random features"
        raise ShapeError("merge_ridge", "lengths of the Gram matrix and the sums", str(must_be), sizes, hint)
    least = max(sums.shape[1], int(columns.max()) + 1 if len(columns) else 0)
    if width < least:
        raise ShapeError("merge_ridge", "width", f"at least {least}", width, "Count all classes seen")
    merged = torch.add(gram, other, alpha=sign)
    lowest, rounding = float(_diagonal(merged, len(sums)).min()), 1e-9 * float(_diagonal(gram, len(sums)).max())
    if lowest < -rounding:
        hint = "Subtract only statistics of images that were added"
        raise DataError("merge_ridge", "diagonal of the Gram matrix", "non-negative after subtraction", lowest, hint)
    return merged, F.pad(sums, (0, width - sums.shape[1])).index_add_(1, columns, other_sums, alpha=sign)


def unpack(packed: Float[Tensor, " packed"], m: int) -> Float[Tensor, "m m"]:
    """The full symmetric matrix."""
    full = packed.new_empty(m, m)
    for (start, stop), rows in _views(packed, m):
        full[start:stop, start:] = rows
        full[stop:, start:stop] = rows[:, stop - start :].T
    return full


def trace(packed: Float[Tensor, " packed"], m: int) -> float:
    """The sum of a packed matrix's diagonal."""
    return float(_diagonal(packed, m).sum())


def zero_ridge(trace_of_gram: float, n: int, m: int) -> float:
    """The λ up to which a λ is numerically zero beside G = HᵀH of n images.

    Of fewer images than features G is singular, and rounding decides from which λ on the Cholesky factorisation of
    G + λI goes through: on random features of photographs from 0.02 to 0.22 eps tr G, and from 0.17 to 1.14 of it for
    one image. One value among these holds for every way to solve, so that λ hardly depends on the way; where the
    factorisation fails above it, the next λ is taken as for any other. A G of more images is regular, or the
    factorisation decides.

    Args:
        trace_of_gram: tr G.
        n: images.
        m: features of each.
    """
    return trace_of_gram * ZERO if n < m else 0.0


def solve_ridge(
    gram: Float[Tensor, "m m"], sums: Float[Tensor, "m classes"], ridge: float, zero: float = 0.0
) -> Float[Tensor, "m classes"]:
    """``(G + λI)⁻¹ Q`` by Cholesky; ``gram`` is overwritten.

    Args:
        gram: G.
        sums: Q.
        ridge: λ.
        zero: from :func:`zero_ridge`.

    Raises:
        ConfigError: if λ is numerically zero, or too small for the matrix to be positive definite in float64.
    """
    gram.diagonal().add_(ridge)
    # a symmetric matrix is its transpose, whose layout LAPACK factors in place: no second m x m matrix is held
    factor, failed = gram.mT, torch.zeros((), dtype=torch.int32, device=gram.device)
    if ridge > zero:
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if ridge <= zero or failed:
        hint = "Raise it: at this size it is numerically zero beside the Gram matrix"
        raise ConfigError("ridge", "lambda", "large enough for a positive definite matrix", ridge, hint)
    # two steps with views: cholesky_solve would hold a copy of the factor
    half = torch.linalg.solve_triangular(factor, sums, upper=False)
    return torch.linalg.solve_triangular(factor.mT, half, upper=True)


def solve_ridge_upwards(
    gram: Callable[[], Float[Tensor, "m m"]],
    sums: Float[Tensor, "m classes"],
    ridges: Sequence[float],
    zero: float = 0.0,
) -> Float[Tensor, "m classes"]:
    """:func:`solve_ridge` with the first λ for which it can be done.

    Args:
        gram: makes the matrix, anew for every attempt.
        sums: Q.
        ridges: the λ to try, in order.
        zero: from :func:`zero_ridge`.

    Raises:
        ConfigError: if even the last is too small.
    """
    *attempts, last = [ridge for ridge in ridges if ridge > zero] or ridges[-1:]
    for ridge in attempts:
        with contextlib.suppress(ConfigError):
            return solve_ridge(gram(), sums, ridge, zero)
    return solve_ridge(gram(), sums, last, zero)


def _block_rows(m: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, m)) for start in range(0, m, BLOCK)]


def _diagonal(packed: Tensor, m: int) -> Tensor:
    """The diagonal behind a zero, so that it has a least and a greatest entry for m = 0 too."""
    return torch.cat([packed.new_zeros(1), *(rows.diagonal() for _, rows in _views(packed, m))])


def _views(packed: Tensor, m: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Each block row's range and its stored part, (stop - start, m - start), as a view."""
    offset = 0
    for start, stop in _block_rows(m):
        size = (stop - start) * (m - start)
        yield (start, stop), packed[offset : offset + size].view(stop - start, m - start)
        offset += size
