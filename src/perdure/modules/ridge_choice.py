"""The choice of a ridge λ: by the squared error on held-out rows, over a grid.

Source: McDonnell et al., "RanPAC", NeurIPS 2023, section 4 and appendix. The push-through identity
``(HᵀH + λI)⁻¹Hᵀ = Hᵀ(HHᵀ + λI)⁻¹`` makes the choice cost n³ instead of m³ where there are fewer rows n than features m
(the dual); otherwise it is made from the statistics (the primal).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.config import Config
from perdure.errors import ConfigError
from perdure.modules.random_features import RandomFeatures, Rows
from perdure.modules.ridge import Statistics, no_statistics, solve_ridge, unpack, zero_ridge
from perdure.modules.ridge_factor import Factor, kernel

GRID = tuple(10.0**k for k in range(-8, 9))


class FixedRidge(Config):
    """One lambda for all tasks."""

    name: Literal["fixed"] = "fixed"
    value: float = Field(1e5, gt=0, description="lambda")


class _Chosen(Config):
    validation_fraction: float = Field(0.2, gt=0, lt=1, description="of a task's images, held out to choose lambda")
    first: float = Field(1e5, gt=0, description="lambda while no task could choose: of one image, or of one class")


class RidgePerTask(_Chosen):
    """Chosen on held-out images of the task alone, as published."""

    name: Literal["per_task"] = "per_task"


class CumulativeRidge(_Chosen):
    """Chosen on held-out images of all tasks so far."""

    name: Literal["cumulative"] = "cumulative"


RidgeChoice: TypeAlias = RidgePerTask | FixedRidge | CumulativeRidge


def held_out(n: int, fraction: float, rng: torch.Generator) -> tuple[Int[Tensor, " fit"], Int[Tensor, " val"]]:
    """Positions of rows to fit and of rows to hold out, at random: in stored order the last would be whole classes.

    Args:
        n: rows, of which one at least is to fit.
        fraction: held out.
        rng: a CPU generator.
    """
    fit, val = torch.randperm(n, generator=rng).tensor_split([max(1, int((1 - fraction) * n))])
    return fit, val


def chosen_on_rows(
    lift: RandomFeatures, rows: Rows, columns: Int[Tensor, " n"], fit: Int[Tensor, " fit"], val: Int[Tensor, " val"]
) -> float | None:
    """The best λ for some rows alone, in the dual or the primal, whichever costs less.

    Args:
        lift: what makes H of them.
        rows: their features, by position.
        columns: of their classes; any numbers.
        fit: positions of the rows to fit.
        val: positions of the rows held out.

    Returns:
        None if no row is held out, or if there is only one class.
    """
    classes, own = columns.unique(return_inverse=True)
    if not len(val) or len(classes) < 2:
        return None
    if len(fit) >= lift.m:
        held = lift.added(no_statistics(lift.m), rows, own, val, len(classes))
        both = lift.added(held, rows, own, fit, len(classes))
        return chosen_on_statistics(both, held, len(fit), len(val), lift.device)
    y = F.one_hot(own).double().to(lift.device)
    blocks = zip(lift.blocks(rows[fit.numpy()]), lift.blocks(rows[val.numpy()]), strict=True)
    return best_ridge(GRID, validation_losses_dual(*summed_kernels(blocks), y[fit], y[val], GRID))


def chosen_on_statistics(
    everything: Statistics, held: Statistics, n_fit: int, n_held: int, device: torch.device
) -> float:
    """The best λ for the rows of ``everything`` that were not held out.

    Args:
        everything: of all rows, those held out among them.
        held: of the rows held out.
        n_fit: how many were not held out.
        n_held: how many these are; at least one.
        device: to compute on.
    """
    m, q_held = len(held[1]), held[1].to(device)
    gram_held = unpack(held[0].to(device), m)
    gram = unpack(everything[0].to(device), m) - gram_held
    zero = zero_ridge(float(gram.trace()), n_fit, m)
    losses = validation_losses_primal(gram, everything[1].to(device) - q_held, gram_held, q_held, n_held, GRID, zero)
    return best_ridge(GRID, losses)


def chosen_on_factors(fit: Factor, held: Factor, device: torch.device) -> float:
    """The same from factors, which have the inner products of the rows that they stand for.

    Args:
        fit: of the rows to fit.
        held: of the rows held out; at least one.
        device: to compute on.
    """
    (factor, targets), (held_factor, held_targets) = ([part.to(device) for part in parts] for parts in (fit, held))
    square = unpack(kernel(factor), len(factor))
    zero = zero_ridge(float(square.trace()), *factor.shape)
    losses = validation_losses_dual(square, held_factor @ factor.T, targets, held_targets, GRID, zero)
    return best_ridge(GRID, losses)


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
    zero: float = 0.0,
) -> list[float]:
    """Mean squared validation error per λ, from inner products of lifted rows alone; infinite where unsolvable.

    Args:
        kernel: K = H_fit H_fitᵀ.
        cross: K_val = H_val H_fitᵀ.
        targets: one-hot rows of the fitting images.
        val_targets: one-hot rows of the held-out images.
        grid: the λ to try.
        zero: the λ up to which it is numerically zero.
    """
    losses = []
    for ridge in grid:
        damped = kernel.clone()
        damped.diagonal().add_(ridge)
        factor, failed = torch.linalg.cholesky_ex(damped)
        if ridge <= zero or failed:
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
    zero: float = 0.0,
) -> list[float]:
    """The same loss from statistics: ``‖H_val W - Y_val‖² = tr WᵀG_val W - 2 tr WᵀQ_val + n_val`` for one-hot targets.

    Args:
        gram: G of the fitting images.
        sums: Q of the fitting images.
        val_gram: G of the held-out images.
        val_sums: Q of the held-out images.
        n_val: how many held-out images.
        grid: the λ to try.
        zero: the λ up to which it is numerically zero.
    """
    losses = []
    for ridge in grid:
        try:
            weight = solve_ridge(gram.clone(), sums, ridge, zero)
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
