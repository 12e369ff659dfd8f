"""Class statistics that add up: counts, sums and Gaussians in float64; any cut into tasks or chunks gives the same.

A Gaussian keeps its scatter ``M2 = Σ (x - m)(x - m)ᵀ`` as a triangular factor R with ``RᵀR = M2``, of at most min(n, d)
rows: exact, smaller than a matrix where a class has fewer images than dimensions, and sampled from without any Cholesky
decomposition. The factor is unique only up to signs of rows, and holds no image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from sklearn.cluster import KMeans
from torch import Tensor, nn

from perdure.errors import DataError
from perdure.learned import Entry, learned
from perdure.modules.normal import Normal


def add_class_sums(
    sums: Float[Tensor, "old d"], columns: Int[Tensor, " n"], features: Float[Tensor, "n d"], width: int
) -> Float[Tensor, "{width} d"]:
    """Per-class sums with one more chunk added, in a new tensor grown to ``width`` rows.

    Args:
        sums: float64 sums so far.
        columns: the row each feature belongs to.
        features: float32 or float64.
        width: rows of the result, at least those of ``sums``.
    """
    grown = F.pad(sums, (0, 0, 0, width - len(sums)))
    return grown.index_add_(0, columns, features.double())


def add_class_counts(counts: Int[Tensor, " old"], columns: Int[Tensor, " n"], width: int) -> Int[Tensor, " {width}"]:
    """Per-class counts with one more chunk added, in a new tensor grown to ``width``."""
    return F.pad(counts, (0, width - len(counts))) + torch.bincount(columns, minlength=width)


class Gaussians(nn.Module):
    """Count, mean and scatter of every class, float64 on the CPU. Loading a state resizes it.

    Source of the merge: Chan, Golub & LeVeque, "Algorithms for computing the sample variance", 1983.

    Args:
        dim: feature size d.
        ddof: what is taken from n in a variance's divisor.
    """

    merges_itself: ClassVar = True
    counts: Tensor
    means: Tensor

    def __init__(self, dim: int, *, ddof: int = 1) -> None:
        super().__init__()
        self.ddof = ddof
        self.register_buffer("counts", torch.zeros(0, dtype=torch.long))  # n_c, (classes,)
        self.register_buffer("means", torch.zeros(0, dim, dtype=torch.float64))  # m_c, (classes, d)
        self.factors: list[Tensor] = []  # R_c, (min(n_c, d), d)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return self  # float64 sums: no device but a CPU is sure to have them

    @staticmethod
    def state(each: str) -> dict[str, Entry]:
        """What its state is declared to be.

        Args:
            each: the size that says how many Gaussians there are.
        """
        return {
            "counts": learned(each, torch.long),
            "means": learned(f"{each}, d", torch.float64),
            f"_extra_state.<{each}>": learned("<=d, d", torch.float64, "factors of the scatters"),
        }

    def __len__(self) -> int:
        return len(self.counts)

    def grow(self, width: int) -> None:
        """Adds empty classes.

        Args:
            width: classes afterwards.
        """
        more = width - len(self)
        self.counts = F.pad(self.counts, (0, more))
        self.means = F.pad(self.means, (0, 0, 0, more))
        self.factors = [*self.factors, *(self.means.new_zeros(0, self.means.shape[1]) for _ in range(more))]

    def append(self, rows: Float[Tensor, "n d"]) -> None:
        """Adds a class with its images.

        Args:
            rows: their features.
        """
        self.grow(len(self) + 1)
        self.add(len(self) - 1, rows)

    def append_classes(
        self, rows: Float[Tensor, "n d"], columns: Int[Tensor, " n"], n_clusters: int = 1, seed: int = 0
    ) -> list[int]:
        """Adds every class that is there, in ascending order, as one Gaussian or as one per cluster.

        Args:
            rows: features of several classes' images.
            columns: of their classes.
            n_clusters: Gaussians per class; see :func:`clusters`.
            seed: of the clusters.

        Returns:
            The column of each; -1 for a cluster of one image beside larger ones: it has no variance.
        """
        added = []
        for column in columns.unique().tolist():
            parts = clusters(rows[columns == column], n_clusters, seed)
            for part in parts:
                self.append(part)
                added.append(-1 if len(part) == 1 < max(map(len, parts)) else column)
        return added

    def add(self, column: int, rows: Float[Tensor, "n d"], *, halve: bool = False) -> None:
        """Adds images of one class.

        Args:
            column: which.
            rows: their features; none is nothing.
            halve: take the mean of the covariances before and of ``rows``, in place of that of all images together.
        """
        if len(rows):
            x = rows.double().cpu()
            mean, before = x.mean(0), self.deviation(column)
            self._merge(column, len(x), mean, x - mean)
            if halve and len(x) > 1 and len(before):
                z = torch.cat([before, (x - mean) / (len(x) - self.ddof) ** 0.5]) / 2**0.5
                factor = torch.linalg.qr(z * (int(self.counts[column]) - self.ddof) ** 0.5, mode="r").R
                self.factors = [*self.factors[:column], factor, *self.factors[column + 1 :]]

    def merge(self, other: Gaussians) -> None:
        """Adds another's classes to those of the same column.

        Args:
            other: of the same dimension, with at most as many classes.
        """
        for column, n in enumerate(other.counts.tolist()):
            if n:
                self._merge(column, n, other.means[column], other.factors[column])

    def _merge(self, column: int, n: int, mean: Tensor, spread: Tensor) -> None:
        had = int(self.counts[column])
        apart = mean - self.means[column] if had else torch.zeros_like(mean)
        between = (had * n / (had + n)) ** 0.5 * apart
        factor = torch.linalg.qr(torch.cat([self.factors[column], spread, between[None]]), mode="r").R
        counts, means = self.counts.clone(), self.means.clone()
        counts[column] = had + n
        means[column] = means[column] + apart * (n / (had + n)) if had else mean
        self.counts, self.means = counts, means
        rows = min(had + n, means.shape[1])
        self.factors = [*self.factors[:column], factor[:rows].clone(), *self.factors[column + 1 :]]

    def deviation(self, column: int) -> Float[Tensor, "k d"]:
        """Z with ``ZᵀZ`` the covariance (divisor n - ddof); no rows for a class of one image.

        Args:
            column: which class.
        """
        n = int(self.counts[column])
        return self.factors[column] / (n - self.ddof) ** 0.5 if n > 1 else self.factors[column][:0]

    def covariance(self, column: int) -> Float[Tensor, "d d"]:
        """With divisor n - ddof; zero for a class of one image."""
        z = self.deviation(column)
        return z.T @ z

    def pooled_deviation(self) -> Float[Tensor, "k d"]:
        """Z with ``ZᵀZ`` the pooled within-class covariance: all scatters over (all images - classes)."""
        free = int((self.counts - 1).clamp(min=0).sum())
        z: Tensor = torch.linalg.qr(torch.cat([self.means[:0], *self.factors]), mode="r").R
        return z / free**0.5 if free else z[:0]

    def normal(
        self, column: int, *, ridge: float = 0.0, scale: float = 1.0, diagonal: bool = False, shrink: bool = False
    ) -> Normal:
        """N(scale * m_c, Σ_c + ridge * I), to be sampled from often.

        Args:
            column: which class.
            ridge: added to all variances.
            scale: of the mean.
            diagonal: whether covariances are left out.
            shrink: whether all of that is shrunk; see :meth:`perdure.modules.normal.Normal.shrunk`.
        """
        z = self.deviation(column)
        if diagonal:
            z = z.square().sum(0).sqrt().diag()
        made = Normal(scale * self.means[column], z, ridge)
        return made.shrunk() if shrink else made

    def sample(self, column: int, n: int, rng: torch.Generator, **how: Any) -> Float[Tensor, "n d"]:
        """Draws from :meth:`normal`, float64.

        Args:
            column: which class.
            n: how many.
            rng: a CPU generator.
            how: as for :meth:`normal`.
        """
        return self.normal(column, **how).sample(n, rng)

    def get_extra_state(self) -> dict[str, Tensor]:
        """The factors."""
        return {str(column): factor for column, factor in enumerate(self.factors)}

    def set_extra_state(self, state: dict[str, Tensor]) -> None:
        """Takes over the factors.

        Args:
            state: from :meth:`get_extra_state`.
        """
        # column by column in memory, as QR leaves them: the last bits of a product depend on it
        factors = (state[str(column)].T for column in range(len(state)))
        self.factors = [factor.clone(memory_format=torch.contiguous_format).T for factor in factors]

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        self.counts = torch.empty_like(state[prefix + "counts"])
        self.means = torch.empty_like(state[prefix + "means"])
        super()._load_from_state_dict(state, prefix, *rest)


def sampled_epoch(
    gaussians: Gaussians,
    columns: Sequence[int],
    n: int,
    rng: torch.Generator,
    *,
    batch_size: int,
    n_steps: int,
    scales: Sequence[float] | None = None,
    ridge: float = 1e-4,
    diagonal: bool = False,
) -> Iterator[tuple[Float[Tensor, "b d"], Int[Tensor, " b"]]]:
    """Fresh samples of every Gaussian, shuffled, float32, with the score columns they belong to.

    Args:
        gaussians: where from.
        columns: of each Gaussian; below 0: it is left out.
        n: samples per Gaussian.
        rng: a CPU generator.
        batch_size: samples per step.
        n_steps: at most so many steps.
        scales: of each mean; 1 if not given.
        ridge: as for :meth:`Gaussians.sample`.
        diagonal: as for :meth:`Gaussians.sample`.
    """
    slots = [slot for slot, column in enumerate(columns) if column >= 0]
    drawn = [
        gaussians.sample(slot, n, rng, ridge=ridge, scale=scales[slot] if scales else 1.0, diagonal=diagonal).float()
        for slot in slots
    ]
    z, of = torch.cat(drawn), torch.tensor([columns[slot] for slot in slots]).repeat_interleave(n)
    for positions in torch.randperm(len(z), generator=rng).split(batch_size)[:n_steps]:
        yield z[positions], of[positions]


def clusters(rows: Float[Tensor, "n d"], n_clusters: int, seed: int) -> list[Float[Tensor, "_ d"]]:
    """Rows that lie together, by k-means; ``n_clusters`` groups, or as many as there are different rows.

    Args:
        rows: at least one.
        n_clusters: 1: all rows are one group.
        seed: of the first centres.
    """
    n_clusters = min(n_clusters, len(rows.unique(dim=0))) if n_clusters > 1 else 1
    if n_clusters == 1:
        return [rows]
    found = torch.from_numpy(KMeans(n_clusters, n_init=1, random_state=seed % 2**32).fit_predict(rows.cpu().numpy()))
    return [rows[found == k] for k in range(n_clusters)]


def tukey(features: Float[Tensor, "n d"], power: float) -> Float[Tensor, "n d"]:
    """Tukey's ladder of powers, ``x**power``, the logarithm for 0; float64.

    Args:
        features: not negative.
        power: the exponent.

    Raises:
        DataError: for a negative value.
    """
    x = features.double()
    lowest = float(x.min()) if x.numel() else 0.0
    if lowest < 0:
        raise DataError("tukey", "features", "0 or more", lowest, "Leave the transform out for features with signs")
    return x**power if power else x.clamp(min=1e-12).log()
