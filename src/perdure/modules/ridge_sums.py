"""What is kept of images for a ridge regression: a factor of G while that is smaller, then G itself."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.modules.random_features import RandomFeatures, Rows
from perdure.modules.ridge import Statistics, solve_ridge_upwards, trace, unpack, zero_ridge
from perdure.modules.ridge_choice import (
    GRID,
    RidgeChoice,
    chosen_on_factors,
    chosen_on_rows,
    chosen_on_statistics,
    held_out,
)
from perdure.modules.ridge_factor import Factor, has_room, solve_factor_upwards, statistics_of, turn_, with_room


@dc.dataclass(frozen=True)
class RidgeSums:
    """Of n images, of which n_val are held out to choose λ. Nothing is changed in place.

    Args:
        factor: R, the held-out images' rows last; without rows once G is kept.
        targets: Z.
        gram: G of all images, packed; empty before.
        sums: Q of all images.
        val_gram: G of held-out images, empty where none ever are.
        val_sums: Q of held-out images.
        n: images.
        n_val: held-out images.
    """

    factor: Float[Tensor, "rows m"]
    targets: Float[Tensor, "rows classes"]
    gram: Float[Tensor, " packed"]
    sums: Float[Tensor, "m _classes"]
    val_gram: Float[Tensor, " held"]
    val_sums: Float[Tensor, "m _held"]
    n: int
    n_val: int

    @property
    def whole(self) -> bool:
        """Whether G itself is kept."""
        return len(self.gram) > 0

    @property
    def statistics(self) -> Statistics:
        """(G, Q) of all images, as :func:`~perdure.modules.ridge.merge_ridge` takes them."""
        return (self.gram, self.sums) if self.whole else statistics_of((self.factor, self.targets))

    def entries(self) -> dict[str, Any]:
        """As a method declares them."""
        tensors = {f.name: getattr(self, f.name) for f in dc.fields(self) if f.name != "n"}
        return {"whole_": int(self.whole), **{f"{name}_": value for name, value in tensors.items()}}

    def taught(
        self,
        how: RidgeChoice,
        ridges: Sequence[float],
        lift: RandomFeatures,
        rows: Rows,
        columns: Int[Tensor, " k"],
        width: int,
        rng: torch.Generator,
    ) -> tuple[RidgeSums, float]:
        """With a task's images, and the λ after it.

        Args:
            how: λ is set.
            ridges: of the tasks before.
            lift: what makes H of the images.
            rows: their features.
            columns: of their classes.
            width: classes afterwards.
            rng: a CPU generator.
        """
        if how.name == "fixed":
            return self.added(lift, rows, columns, None, width), how.value
        ridge, split = ridges[-1] if ridges else how.first, held_out(len(columns), how.validation_fraction, rng)
        if how.name == "per_task":
            ridge = chosen_on_rows(lift, rows, columns, *split) or ridge
            return self.added(lift, rows, columns, None, width), ridge
        kept = self.added(lift, rows, columns, split, width)
        return kept, kept.best_ridge(lift.device) if kept.n_val else ridge

    def added(
        self,
        lift: RandomFeatures,
        rows: Rows,
        columns: Int[Tensor, " k"],
        split: tuple[Int[Tensor, " fit"], Int[Tensor, " val"]] | None,
        width: int,
    ) -> RidgeSums:
        """With a task's images.

        Args:
            lift: what makes H of them.
            rows: their features.
            columns: of their classes.
            split: positions of those to fit and of those held out; None: none are, ever.
            width: classes afterwards.
        """
        everything = torch.arange(len(columns))
        fit, val = split or (everything, everything[:0])
        n, n_val = self.n + len(columns), self.n_val + len(val)
        if not self.whole and has_room(n, lift.m):
            pairs = zip(self._factors(), (fit, val), strict=True)
            parts = [lift.appended(known, rows, columns, which, width) for known, which in pairs]
            factor, targets = (torch.cat(both) for both in zip(*parts, strict=True)) if n_val else parts[0]
            return dc.replace(self, factor=factor, targets=targets, n=n, n_val=n_val)
        gram, sums = lift.added(self.statistics, rows, columns, everything, width)
        held = (self.val_gram, self.val_sums)
        if split:
            held = lift.added(held if self.whole else statistics_of(self._factors()[1]), rows, columns, val, width)
        none = self.factor.new_zeros(0, lift.m), self.targets.new_zeros(0, width)
        return RidgeSums(*none, gram, sums, *held, n, n_val)

    def joined(self, other: RidgeSums, *, held: bool) -> RidgeSums:
        """Of the images of both, with the same random features and classes.

        Args:
            other: of other images.
            held: whether images are held out, ever.
        """
        n, n_val, m = self.n + other.n, self.n_val + other.n_val, self.factor.shape[1]
        if not (self.whole or other.whole) and has_room(n, m):
            parts = [_turned(*pair) for pair in zip(self._factors(), other._factors(), strict=True)]
            factor, targets = (torch.cat(both) for both in zip(*parts, strict=True))
            return dc.replace(self, factor=factor, targets=targets, n=n, n_val=n_val)
        gram, sums = (a + b for a, b in zip(self.statistics, other.statistics, strict=True))
        val = self.val_gram, self.val_sums
        if held:
            mine, theirs = (
                (part.val_gram, part.val_sums) if part.whole else statistics_of(part._factors()[1])
                for part in (self, other)
            )
            val = mine[0] + theirs[0], mine[1] + theirs[1]
        return RidgeSums(self.factor[:0], self.targets[:0], gram, sums, *val, n, n_val)

    def best_ridge(self, device: torch.device) -> float:
        """The best λ for the images not held out; one at least must be held out.

        Args:
            device: to compute on.
        """
        if not self.whole:
            return chosen_on_factors(*self._factors(), device)
        held = (self.val_gram, self.val_sums)
        return chosen_on_statistics((self.gram, self.sums), held, self.n - self.n_val, self.n_val, device)

    def weight(self, how: RidgeChoice, ridge: float, device: torch.device) -> Float[Tensor, "m classes"]:
        """W_o = (G + λI)⁻¹ Q.

        A λ chosen on a small task may be numerically zero beside the G of all tasks: the next that is not is taken.

        Args:
            how: λ was set.
            ridge: λ.
            device: to compute on.

        Raises:
            ConfigError: if a fixed λ is numerically zero.
        """
        ridges = [ridge, *(r for r in GRID if r > ridge and how.name != "fixed")]
        if not self.whole:
            return solve_factor_upwards((self.factor.to(device), self.targets.to(device)), ridges)
        gram, sums, m = self.gram.to(device), self.sums.to(device), len(self.sums)
        return solve_ridge_upwards(lambda: unpack(gram, m), sums, ridges, zero_ridge(trace(gram, m), self.n, m))

    def _factors(self) -> tuple[Factor, Factor]:
        # of the images to fit, and of those held out
        k = len(self.factor) - self.n_val
        return (self.factor[:k], self.targets[:k]), (self.factor[k:], self.targets[k:])


def joined(
    how: RidgeChoice, mine: RidgeSums, my_ridges: Sequence[float], theirs: RidgeSums, their_ridges: Sequence[float],
    device: torch.device,
) -> tuple[RidgeSums, list[float]]:  # fmt: skip
    """Of the images of both, with a λ for each task: the larger of both, since it shrinks more, and for the last one
    the best on the images held out, if λ is chosen on those of all tasks.

    Args:
        how: λ is set.
        mine: of some images.
        my_ridges: λ after each task.
        theirs: of other images, with the same random features and classes.
        their_ridges: λ after each task.
        device: to compute on.
    """
    kept = mine.joined(theirs, held=how.name == "cumulative")
    ridges = [max(both) for both in zip(my_ridges, their_ridges, strict=True)]
    return kept, [*ridges[:-1], kept.best_ridge(device)] if how.name == "cumulative" and kept.n_val else ridges


def _turned(mine: Factor, theirs: Factor) -> Factor:
    old, width = len(mine[0]), mine[1].shape[1]
    both = with_room(mine, len(theirs[0]), width)
    both[0][old:], both[1][old:] = theirs
    turn_(both, old)
    return both
