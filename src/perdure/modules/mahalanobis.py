"""Mahalanobis distances of shrunk covariances, by Cholesky or, with few images, by the Woodbury identity.

Source: Goswami et al., "FeCAM", NeurIPS 2023: S = Σ + g1 V1 I + g2 V2 (J - I), with V1 and V2 the mean entries of Σ on
and off the diagonal, J all ones, and R = D^(-1/2) S D^(-1/2), D = diag(S).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import ClassVar, Literal, Protocol, Self

import torch
from jaxtyping import Float
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor

from perdure.config import Config
from perdure.modules.gaussians import Gaussians

JITTER = 1e-8  # times the mean variance, where S is not positive definite in float64
PILOT_RIDGE = 100.0


class Metric(Protocol):
    """A matrix R to measure by."""

    def distances(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """``xᵀ R⁻¹ x`` of every row, and log det R if it was asked for; float64."""


def mixed(z: Float[Tensor, "k d"], share: float, chunks: Iterable[Float[Tensor, "_ d"]]) -> Float[Tensor, "m d"]:
    """Z of a mixture of two covariances: the one that was, and that of new rows around their one mean.

    Source: the released code of FeCAM, which so mixes tasks.

    Args:
        z: with ZᵀZ the one that was, float64.
        share: of what was, from 0 to 1.
        chunks: the new rows, at least one.
    """
    new = Gaussians(z.shape[1])
    new.grow(1)
    for rows in chunks:
        new.add(0, rows)
    both = torch.cat([share**0.5 * z, (1 - share) ** 0.5 * new.deviation(0)])
    mixture: Tensor = torch.linalg.qr(both, mode="r").R
    return mixture


def shrinkage(z: Float[Tensor, "k d"], g1: float, g2: float) -> tuple[float, float]:
    """(a, b) with S = ZᵀZ + a I + b J.

    Args:
        z: with Σ = ZᵀZ, float64.
        g1: of the diagonal.
        g2: of the other entries.
    """
    d = z.shape[1]
    trace, total = float(z.square().sum()), float(z.sum(1).square().sum())
    v1, v2 = trace / d, (total - trace) / (d * (d - 1)) if d > 1 else 0.0
    return g1 * v1 - g2 * v2, g2 * v2


def _scales(z: Tensor, a: float, b: float, normalise: bool) -> Tensor | None:
    """D^(1/2), or None for R = I: the matrix is zero."""
    diagonal = z.square().sum(0) + a + b
    if not bool((diagonal > 0).all()):
        return None
    return diagonal.sqrt() if normalise else torch.ones_like(diagonal)


class Dense:
    """By the Cholesky factor of R: d³/3 once, 2 d² per row.

    Args:
        z: (k, d) with Σ = ZᵀZ, float64.
        a: added to the diagonal.
        b: added to every entry.
        normalise: whether R has a unit diagonal; otherwise R = S.
        log_determinant: whether distances include it.
    """

    def __init__(self, z: Tensor, a: float, b: float, *, normalise: bool, log_determinant: bool = False) -> None:
        d, scales = z.shape[1], _scales(z, a, b, normalise)
        eye = torch.eye(d, dtype=torch.float64)
        r = eye if scales is None else (z.T @ z + a * eye + b) / scales[:, None] / scales
        factor, failed = torch.linalg.cholesky_ex(r)
        for power in range(8):
            if not failed:
                break
            factor, failed = torch.linalg.cholesky_ex(r + JITTER * 10**power * r.diagonal().mean() * eye)
        self._half = torch.linalg.solve_triangular(factor, eye, upper=False)  # L⁻¹
        self._constant = 2 * float(factor.diagonal().log().sum()) if log_determinant else 0.0

    @classmethod
    def of_inverse(cls, inverse: Float[Tensor, "d d"]) -> Self:
        """From R⁻¹, symmetric and perhaps singular.

        Args:
            inverse: float64.
        """
        values, vectors = torch.linalg.eigh(inverse)
        made = cls.__new__(cls)
        made._half, made._constant = values.clamp(min=0).sqrt()[:, None] * vectors.T, 0.0
        return made

    def distances(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """As in :class:`Metric`."""
        return (rows @ self._half.T).square().sum(1) + self._constant


class LowRank:
    """By the Woodbury identity, for k + 1 < d and a > 0: k³ once, 4 d k per row.

    ``S⁻¹ = (I - Uᵀ (a E⁻¹ + U Uᵀ)⁻¹ U) / a`` with U = [Z; 1ᵀ] and E = diag(1, …, 1, b); b may be negative.

    Args:
        z: as for :class:`Dense`, and so are the others.
        a: positive.
        b: any sign.
        normalise: whether R has a unit diagonal.
        log_determinant: whether distances include it.
    """

    def __init__(self, z: Tensor, a: float, b: float, *, normalise: bool, log_determinant: bool = False) -> None:
        d = z.shape[1]
        self._scales, self._a = _scales(z, a, b, normalise), a
        signs = z.new_ones(len(z))
        if b:
            z, signs = torch.cat([z, z.new_ones(1, d)]), torch.cat([signs, signs.new_tensor([b])])
        core = torch.diag(a / signs) + z @ z.T
        self._u, self._core = z, torch.linalg.inv(core)
        self._constant = 0.0
        if log_determinant and self._scales is not None:
            inner = torch.linalg.slogdet(core).logabsdet + (signs.abs() / a).log().sum()
            logs = 2 * self._scales.log().sum() if normalise else 0.0
            self._constant = d * math.log(a) + float(inner - logs)

    def distances(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """As in :class:`Metric`."""
        if self._scales is None:
            return rows.square().sum(1)
        y = rows * self._scales
        inner = y @ self._u.T
        return (y.square().sum(1) - ((inner @ self._core) * inner).sum(1)) / self._a + self._constant


class Shrunk(Config):
    """The published matrix: shrunk, and divided by its diagonal."""

    name: Literal["shrunk"] = "shrunk"
    shrink_diagonal: float = Field(1.0, ge=0, description="times the mean variance, added to the diagonal (gamma_1)")
    shrink_off_diagonal: float = Field(0.0, ge=0, description="times the mean covariance, added elsewhere (gamma_2)")
    normalise: bool = Field(True, description="a unit diagonal, so that classes compare")
    log_determinant: bool = Field(False, description="add it to distances: with normalise=false, a Gaussian classifier")

    @field_validator("shrink_off_diagonal")
    @classmethod
    def _is_definite(cls, value: float, info: ValidationInfo) -> float:
        most = info.data.get("shrink_diagonal", value)
        if value > most:
            raise ValueError(f"at most shrink_diagonal = {most}, or the matrix may be indefinite")
        return value

    def of(self, z: Float[Tensor, "k d"], *, shrink: bool = True) -> Metric:
        """The metric of Σ = ZᵀZ, in the form that is quicker to apply.

        Args:
            z: Z, float64.
            shrink: whether it is shrunk at all.
        """
        a, b = shrinkage(z, self.shrink_diagonal, self.shrink_off_diagonal) if shrink else (0.0, 0.0)
        if b < 0:
            a *= 1 + JITTER  # with equal shrinkages and V2 < 0, S may be singular to rounding
        kind = LowRank if len(z) + 1 < z.shape[1] and a > 0 else Dense
        return kind(z, a, b, normalise=self.normalise, log_determinant=self.log_determinant)


class PilotCorrelation(Config):
    """LAMDA-PILOT's: 100 is added to all variances, then the rows of S are correlated, which is singular."""

    name: Literal["pilot"] = "pilot"
    normalise: ClassVar[bool] = True

    def of(self, z: Float[Tensor, "k d"], *, shrink: bool = True) -> Metric:
        """The metric of Σ = ZᵀZ, by a pseudo-inverse.

        Args:
            z: Z, float64.
            shrink: nothing here.
        """
        s = z.T @ z + PILOT_RIDGE * torch.eye(z.shape[1], dtype=torch.float64)
        return Dense.of_inverse(torch.linalg.pinv(torch.corrcoef(s), rtol=1e-6, hermitian=True))
