"""Batches of a task's features beside samples of earlier classes' Gaussians, which never go stale on frozen features.

Source: Huang, Cao, Lu & Liu, "Class-Incremental Learning with CLIP: Adaptive Representation Adjustment and Parameter
    Fusion", ECCV 2024 (arXiv 2407.14143), and its released code.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.modules.gaussians import Gaussians
from perdure.modules.normal import Normal
from perdure.train.batches import planned
from perdure.train.settings import Training

SAME = 1e-4  # texts that are no further apart are one text, rounded differently


@dc.dataclass(frozen=True, slots=True, eq=False)
class Old:
    """What stands for the images of earlier tasks.

    Args:
        normals: a Gaussian per class and domain.
        columns: of the class of each.
        per_step: k, how many of them a step visits; None: as few as let an epoch visit all.
        samples: of each that is visited, where ``per_step`` is given.
        per_epoch: else, about how many samples an epoch draws in all.
        apart: the Gaussian of each pair that is to be kept apart.
        per_pair: samples that a step draws for each pair.
    """

    normals: Sequence[Normal]
    columns: Int[Tensor, " old"]
    per_step: int | None
    samples: int
    per_epoch: int
    apart: Int[Tensor, " pairs"]
    per_pair: int

    def schedule(self, n_steps: int) -> tuple[int, int]:
        """How many Gaussians each step of an epoch visits, and how many samples it draws of each.

        Args:
            n_steps: of the epoch.
        """
        if self.per_step is not None:
            return self.per_step, self.samples
        per_step = math.ceil(len(self.normals) / n_steps)
        return per_step, max(round(self.per_epoch / (n_steps * max(per_step, 1))), 1)


@dc.dataclass(frozen=True, slots=True, eq=False)
class Rehearsed:
    """One batch, on the CPU.

    Args:
        rows: features of the task's images, then samples.
        columns: of their classes.
        apart: samples of each pair's Gaussian.
    """

    rows: Float[Tensor, "b d"]
    columns: Int[Tensor, " b"]
    apart: Float[Tensor, "pairs m d"]


class RehearsedRows:
    """A source of such batches; samples are fresh in every step.

    Args:
        rows: features of the task's images.
        columns: of their classes.
        config: batch size and order.
        old: of earlier tasks.
    """

    def __init__(self, rows: Float[Tensor, "n d"], columns: Int[Tensor, " n"], config: Training, old: Old) -> None:
        self.rows, self.columns, self.config, self.old = rows, columns, config, old

    def open(self) -> contextlib.AbstractContextManager[object]:
        """Nothing to prepare."""
        return contextlib.nullcontext()

    def plan(self, rng: torch.Generator) -> list[Tensor]:
        """Each batch's positions; Gaussians follow, counted on from the last image, each as often as it is sampled."""
        plans, n_old = planned(len(self.rows), self.config, rng), len(self.old.normals)
        if not n_old:
            return plans
        per_step, samples = self.old.schedule(len(plans))
        visited = visits(n_old, per_step, len(plans), rng).repeat_interleave(samples, 1)
        return [torch.cat([plan, len(self.rows) + of]) for plan, of in zip(plans, visited, strict=True)]

    def batch(self, plan: Int[Tensor, " b"], rng: torch.Generator) -> Rehearsed:
        """One batch."""
        old, new = self.old, plan[plan < len(self.rows)]
        of = plan[len(new) :] - len(self.rows)
        pairs = old.apart.repeat_interleave(old.per_pair)
        return Rehearsed(
            torch.cat([self.rows[new], self._drawn(of, rng)]), torch.cat([self.columns[new], old.columns[of]]),
            self._drawn(pairs, rng).view(len(old.apart), old.per_pair, self.rows.shape[1]),
        )  # fmt: skip

    def _drawn(self, of: Int[Tensor, " n"], rng: torch.Generator) -> Float[Tensor, "n d"]:
        """A sample of each Gaussian that is named, drawn in float64, all of one Gaussian together."""
        out = torch.empty(len(of), self.rows.shape[1])
        for each in of.unique().tolist():
            at = of == each
            out[at] = self.old.normals[each].sample(int(at.sum()), rng).float()
        return out


def visits(n_old: int, per_step: int, n_steps: int, rng: torch.Generator) -> Int[Tensor, "n_steps per_step"]:
    """An epoch's steps through a shuffled list, read from its start and over again.

    Args:
        n_old: length of the list.
        per_step: entries that a step takes.
        n_steps: of the epoch.
        rng: a CPU generator.
    """
    order = torch.randperm(n_old, generator=rng)
    return order[torch.arange(n_steps * per_step) % n_old].view(n_steps, per_step)


def near_names(
    texts: Float[Tensor, "classes d"], old: Sequence[int], new: Int[Tensor, " new"], theta: float
) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"]]:
    """Pairs of an old and a new class whose names are near each other, but not equal.

    Args:
        texts: each class's embedding, of length 1.
        old: the class of each Gaussian.
        new: the task's classes.
        theta: a distance that is too large.

    Returns:
        The position in ``old`` and the column of the new class, of each pair.
    """
    exact = "donot_use_mm_for_euclid_dist"  # the other way is wrong by up to 1e-3 near zero
    wide = texts.double()
    apart = torch.cdist(wide[torch.tensor(old, dtype=torch.long)], wide[new], compute_mode=exact)
    positions, found = ((apart < theta) & (apart > SAME)).nonzero(as_tuple=True)
    return positions, new[found]


def add_by_class(
    gaussians: Gaussians, of: Sequence[int], rows: Float[Tensor, "n d"], columns: Int[Tensor, " n"]
) -> list[int]:
    """Adds a Gaussian per class; one image of a class that has a Gaussian joins its last one.

    Args:
        gaussians: changed in place.
        of: the class of each.
        rows: features.
        columns: of their classes.

    Returns:
        The class of each Gaussian afterwards.
    """
    out = list(of)
    for column in columns.unique().tolist():
        mine = rows[columns == column]
        if len(mine) == 1 and column in out:
            gaussians.add(max(slot for slot, c in enumerate(out) if c == column), mine)
        else:
            gaussians.append(mine)
            out.append(column)
    return out
