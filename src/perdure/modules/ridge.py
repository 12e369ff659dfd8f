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


def solve_ridge(
    gram: Float[Tensor, "m m"], sums: Float[Tensor, "m classes"], ridge: float
) -> Float[Tensor, "m classes"]:
    """``(G + λI)⁻¹ Q`` by Cholesky; ``gram`` is overwritten.

    Raises:
        ConfigError: if λ is too small for the matrix to be positive definite in float64.
    """
    gram.diagonal().add_(ridge)
    # a symmetric matrix is its transpose, whose layout LAPACK factors in place: no second m x m matrix is held
    factor, failed = gram.mT, torch.zeros((), dtype=torch.int32, device=gram.device)
    torch.linalg.cholesky_ex(factor, out=(factor, failed))
    if failed:
        hint = "Raise it: at this size it is numerically zero beside the Gram matrix"
        raise ConfigError("ridge", "lambda", "large enough for a positive definite matrix", ridge, hint)
    return torch.cholesky_solve(sums, factor)


def solve_ridge_upwards(
    gram: Callable[[], Float[Tensor, "m m"]], sums: Float[Tensor, "m classes"], ridges: Sequence[float]
) -> Float[Tensor, "m classes"]:
    """:func:`solve_ridge` with the first λ for which it can be done.

    Args:
        gram: makes the matrix, anew for every attempt.
        sums: Q.
        ridges: the λ to try, in order.

    Raises:
        ConfigError: if even the last is too small.
    """
    *attempts, last = ridges
    for ridge in attempts:
        with contextlib.suppress(ConfigError):
            return solve_ridge(gram(), sums, ridge)
    return solve_ridge(gram(), sums, last)


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
