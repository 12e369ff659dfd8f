"""Ensembles of heads: several members' logits, each for classes of its own, become the scores of all classes.

Each image is scored on its own, in float64: its scores do not depend on the others in the batch.
"""

from __future__ import annotations

import abc
import dataclasses as dc
from collections.abc import Iterable, Sequence
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from perdure.config import Config
from perdure.errors import ShapeError
from perdure.modules.prototypes import best_of_slots

Logits = Sequence[Tensor]  # (b, n_j) of each member, n_j of its own


class How(abc.ABC):
    """How members are combined."""

    adds: ClassVar[bool] = False  # a class of several members gets the sum of its scores, else the best

    @abc.abstractmethod
    def __call__(self, logits: Logits) -> Logits:
        """Scores that compare from member to member.

        Args:
            logits: (b, n_j) of each member, float64.
        """


@dc.dataclass(frozen=True)
class Maximum(How):
    """Every member's probabilities; a class of several members has its best.

    They are compared by their logarithms, which differ where a probability rounds to 0 or 1.
    """

    def __call__(self, logits: Logits) -> Logits:
        """Logarithms of probabilities: their softmax is p / sum p of the best p."""
        return [z.log_softmax(1) for z in logits]


@dc.dataclass(frozen=True)
class WeightedSum(How):
    """Every member's probabilities times its weight; a class of several members has the sum.

    Args:
        weights: of each member.
    """

    weights: Sequence[float]
    adds: ClassVar[bool] = True

    def __call__(self, logits: Logits) -> Logits:
        """Weighted probabilities."""
        return [w * z.softmax(1) for w, z in zip(self.weights, logits, strict=True)]


@dc.dataclass(frozen=True)
class EnergyVote(How):
    """One member answers: that of the lowest free energy, temperatures voting on which one it is.

    At each temperature T the member with the largest T log sum_k exp(z_k / T) has a vote. The member with most votes
    answers, of several the first. It is followed by the others in the order of their votes, then of the mean of these
    sums over all T, and within a member classes are in the order of its logits.

    Source: Wang et al., "Isolation and Impartial Aggregation", AAAI 2023, its released code. The order behind the
    answer is ours.

    Args:
        temperatures: one that is there several times has one vote.
    """

    temperatures: Sequence[float]

    def __call__(self, logits: Logits) -> Logits:
        """0 for the answer, and how far below the best of its member a logit is; each member a step below the last."""
        negative = torch.stack([negative_energies(logits, t) for t in sorted(set(self.temperatures))])
        votes = F.one_hot(negative.argmax(2), len(logits)).sum(0).double()  # (b, members); argmax takes the first
        votes = votes + F.one_hot(votes.argmax(1), len(logits)) / 2  # the answer is before those of as many votes
        order = negative.mean(0).argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, votes.gather(1, order).argsort(dim=1, descending=True, stable=True))
        steps = 1 + torch.stack([z.amax(1) - z.amin(1) for z in logits], 1).gather(1, order)
        below = (steps.cumsum(1) - steps).gather(1, order.argsort(1))
        return [z - z.amax(1, keepdim=True) - down[:, None] for z, down in zip(logits, below.unbind(1), strict=True)]


class NewestRecall(Config):
    """A task adds the temperature at which its own member answers for most of its training images."""

    name: Literal["newest_recall"] = "newest_recall"
    candidates: list[Annotated[float, Field(gt=0)]] = Field(
        [0.001, 0.01, *(i / 10 for i in range(1, 11))], min_length=1, description="temperatures (T) to choose from"
    )

    def choose(self, batches: Iterable[Logits]) -> float:
        """The temperature at which the last member has the lowest energy for most images; of several the smallest.

        Args:
            batches: of the newest task's images: (b, n_j) logits of each member.
        """
        tried = sorted(self.candidates)
        won = torch.zeros(len(tried), dtype=torch.long)
        for logits in batches:
            won += torch.stack([negative_energies(logits, t).argmax(1) == len(logits) - 1 for t in tried]).sum(1)
        return tried[int(won.argmax())]


class Fixed(Config):
    """One temperature for all tasks."""

    name: Literal["fixed"] = "fixed"
    value: float = Field(1.0, gt=0, description="the temperature (T)")

    def choose(self, batches: Iterable[Logits]) -> float:
        """The temperature.

        Args:
            batches: are not read.
        """
        return self.value


def negative_energies(logits: Logits, temperature: float) -> Float[Tensor, "b members"]:
    """T log sum_k exp(z_k / T) of every member: minus the free energy; for a small T the largest logit.

    Args:
        logits: (b, n_j) of each member.
        temperature: T; energies of different T do not compare.
    """
    return torch.stack([temperature * torch.logsumexp(z.double() / temperature, 1) for z in logits], 1)


def combined(logits: Logits, columns: Sequence[Sequence[int]], how: How) -> Float[Tensor, "b classes"]:
    """The scores of all classes, float32; higher is likelier.

    Args:
        logits: (b, n_j) of each member.
        columns: the score columns of each member's classes; together they are all columns.
        how: members are combined.

    Raises:
        ShapeError: for a member with more or fewer logits than columns.
    """
    shown, wanted = [z.shape[1] for z in logits], [len(own) for own in columns]
    if shown != wanted:
        raise ShapeError("combined", "logits per member", f"{wanted}, one per column", shown, "Give columns by member")
    scores = torch.cat(list(how([z.cpu().double() for z in logits])), 1)
    at = [column for own in columns for column in own]
    if how.adds:
        return scores.new_zeros(len(scores), max(at) + 1).index_add(1, torch.tensor(at), scores).float()
    return best_of_slots(scores, at, max(at) + 1).float()
