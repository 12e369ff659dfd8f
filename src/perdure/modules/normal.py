"""One normal distribution that is sampled from without decomposing its covariance: a class in place of its images."""

from __future__ import annotations

import dataclasses as dc
import warnings

import torch
from jaxtyping import Float
from torch import Tensor

ROUNDING = 1e-12  # of a correlation: what is less was zero before it was rounded


@dc.dataclass(frozen=True, slots=True, eq=False)
class Normal:
    """N(mean, ZᵀZ + noise I + common 11ᵀ), float64.

    Args:
        mean: of every sample.
        z: Z, one row per direction in which the samples differ.
        noise: a variance added to every dimension on its own, 0 or more.
        common: a variance added to all dimensions together, 0 or more.
    """

    mean: Float[Tensor, " d"]
    z: Float[Tensor, "k d"]
    noise: float = 0.0
    common: float = 0.0

    def covariance(self) -> Float[Tensor, "d d"]:
        """The whole matrix."""
        return self.z.T @ self.z + self.noise * torch.eye(len(self.mean), dtype=self.z.dtype) + self.common

    def sample(self, n: int, rng: torch.Generator) -> Float[Tensor, "n d"]:
        """Draws, float64.

        Args:
            n: how many.
            rng: a CPU generator.
        """
        out = self.mean + torch.randn(n, len(self.z), generator=rng, dtype=torch.float64) @ self.z
        if self.noise:
            out = out + self.noise**0.5 * torch.randn(n, len(self.mean), generator=rng, dtype=torch.float64)
        if self.common:
            out = out + self.common**0.5 * torch.randn(n, 1, generator=rng, dtype=torch.float64)
        return out

    def shrunk(self) -> Normal:
        """With the covariance S + v I + c (11ᵀ - I): v is the mean variance in S, c the mean of its other entries.

        Entries that are zero, but for rounding, are left out of c; c is 0 where all of them are. Where the sum is no
        covariance, because c is far from the mean of all entries, the nearest one is taken.

        Warns:
            UserWarning: if it is no covariance.
        """
        s = self.covariance()
        variances = s.diagonal()
        off = s - variances.diag()
        counted = off.abs() > ROUNDING * torch.outer(variances, variances).sqrt()
        common = float(off[counted].mean()) if bool(counted.any()) else 0.0
        more = float(variances.mean()) - common
        if common >= 0 and self.noise + more >= 0:
            return dc.replace(self, noise=self.noise + more, common=self.common + common)
        values, vectors = torch.linalg.eigh(s + more * torch.eye(len(s), dtype=s.dtype) + common)
        if float(values[0]) < -1e-9 * float(values[-1]):
            what = f"has a negative variance, {float(values[0]):.3g}, which is taken as 0"
            warnings.warn(f"Normal.shrunk: a covariance, shrunk by {common:.3g} off its diagonal, {what}", stacklevel=2)
        return Normal(self.mean, values.clamp(min=0).sqrt()[:, None] * vectors.T)
