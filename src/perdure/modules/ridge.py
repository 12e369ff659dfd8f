"""Ridge regression from statistics that add up: a symmetric Gram matrix, stored once, and the choice of its ridge.

Source: McDonnell et al., "RanPAC", NeurIPS 2023, section 4 and appendix; the push-through identity
``(HᵀH + λI)⁻¹Hᵀ = Hᵀ(HHᵀ + λI)⁻¹`` makes the choice of λ cost n³ instead of m³ where a task has fewer images n than
features m. Everything is float64: diag(G) reaches 1e8, where float32 swallows a small λ.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import ConfigError

BLOCK = 512


def packed_gram(m: int) -> Float[Tensor, " packed"]:
    """An all-zero symmetric (m, m) matrix of which only blocks on and above the diagonal are stored, float64."""
    return torch.zeros(sum((stop - start) * (m - start) for start, stop in _block_rows(m)), dtype=torch.float64)


def add_gram_(packed: Float[Tensor, " packed"], h: Float[Tensor, "n m"]) -> None:
    """Adds ``hᵀh`` in place, at n m² operations instead of the 2 n m² of a full product.

    Args:
        packed: from :func:`packed_gram`, on the device of ``h``.
        h: float64 rows.
    """
    for (start, stop), rows in _views(packed, h.shape[1]):
        rows.addmm_(h[:, start:stop].T, h[:, start:])


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


def summed_kernels(
    blocks: Iterable[tuple[Float[Tensor, "fit _b"], Float[Tensor, "val _b"]]],
) -> tuple[Float[Tensor, "fit fit"], Float[Tensor, "val fit"]]:
    """(H_fit H_fitᵀ, H_val H_fitᵀ), summed over blocks of columns of both, so that no H is ever held.

    Args:
        blocks: float64 columns of H_fit and H_val; at least one.
    """
    pairs = iter(blocks)
    fit, val = next(pairs)
    kernel, cross = fit @ fit.T, val @ fit.T
    for fit, val in pairs:
        kernel.addmm_(fit, fit.T)
        cross.addmm_(val, fit.T)
    return kernel, cross


def validation_losses_dual(
    kernel: Float[Tensor, "fit fit"],
    cross: Float[Tensor, "val fit"],
    targets: Float[Tensor, "fit classes"],
    val_targets: Float[Tensor, "val classes"],
    grid: Sequence[float],
) -> list[float]:
    """Mean squared validation error per λ, from inner products of lifted rows alone; infinite where unsolvable.

    Args:
        kernel: K = H_fit H_fitᵀ.
        cross: K_val = H_val H_fitᵀ.
        targets: one-hot rows of the fitting images.
        val_targets: one-hot rows of the held-out images.
        grid: the λ to try.
    """
    losses = []
    for ridge in grid:
        damped = kernel.clone()
        damped.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if failed:
            losses.append(float("inf"))
            continue
        predicted = cross @ torch.cholesky_solve(targets, factor)
        losses.append(float((predicted - val_targets).square().mean()))
    return losses


def validation_losses_primal(
    gram: Float[Tensor, "m m"],
    sums: Float[Tensor, "m classes"],
    val_gram: Float[Tensor, "m m"],
    val_sums: Float[Tensor, "m classes"],
    n_val: int,
    grid: Sequence[float],
) -> list[float]:
    """The same loss from statistics: ``‖H_val W - Y_val‖² = tr WᵀG_val W - 2 tr WᵀQ_val + n_val`` for one-hot targets.

    Args:
        gram: G of the fitting images.
        sums: Q of the fitting images.
        val_gram: G of the held-out images.
        val_sums: Q of the held-out images.
        n_val: how many held-out images.
        grid: the λ to try.
    """
    losses = []
    for ridge in grid:
        try:
            weight = solve_ridge(gram.clone(), sums, ridge)
        except ConfigError:
            losses.append(float("inf"))
            continue
        squared = (weight * (val_gram @ weight)).sum() - 2 * (weight * val_sums).sum() + n_val
        losses.append(float(squared) / (n_val * sums.shape[1]))
    return losses


def best_ridge(grid: Sequence[float], losses: Sequence[float]) -> float:
    """The λ with the smallest finite loss; ties go to the smaller λ.

    Raises:
        ConfigError: if no loss is finite.
    """
    finite = [(loss, ridge) for ridge, loss in zip(grid, losses, strict=True) if loss < float("inf")]
    if not finite:  # NaN < inf is false too
        raise ConfigError("ridge", "losses", "finite for some lambda", list(losses), "Look at the features")
    return min(finite)[1]


def _block_rows(m: int) -> list[tuple[int, int]]:
    return [(start, min(start + BLOCK, m)) for start in range(0, m, BLOCK)]


def _views(packed: Tensor, m: int) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Each block row's range and its stored part, (stop - start, m - start), as a view."""
    offset = 0
    for start, stop in _block_rows(m):
        size = (stop - start) * (m - start)
        yield (start, stop), packed[offset : offset + size].view(stop - start, m - start)
        offset += size
