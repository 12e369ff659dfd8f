"""Class means: sums over features that come in chunks, means of subspaces completed, classes of several means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from perdure.modules.gaussians import add_class_sums


def add_class_chunks(
    sums: Float[Tensor, "old d"], columns: Int[Tensor, " n"], chunks: Iterable[Tensor], width: int
) -> Float[Tensor, "{width} d"]:
    """Per-class sums with features added that come in chunks, in a new tensor grown to ``width`` rows.

    Args:
        sums: float64 sums so far.
        columns: the row each feature belongs to.
        chunks: (_, d) features each, n in all.
        width: rows of the result.
    """
    sums, done = add_class_sums(sums, columns[:0], sums[:0], width), 0
    for chunk in chunks:
        sums = add_class_sums(sums, columns[done : done + len(chunk)], chunk, width)
        done += len(chunk)
    return sums


def completed(
    means: Float[Tensor, "subspaces slots d"], tasks: Sequence[int], temperature: float = 1.0
) -> Float[Tensor, "subspaces slots d"]:
    """The means with those of old classes in newer subspaces filled in.

    For a class c of task b and k > b: the sum over classes j of tasks k and later of softmax_j(cos(P[b, c], P[b, j]))
    P[k, j]. All terms are real, so the order does not matter.

    Source: Zhou et al., "EASE", CVPR 2024, its released code.

    Args:
        means: P[k, c], anything where ``tasks[c] < k``.
        tasks: ascending, of every slot.
        temperature: of the softmax.
    """
    of, filled = torch.tensor(tasks), means.clone()
    for b in range(len(means)):
        unit = F.normalize(means[b], dim=1)
        for k in range(b + 1, len(means)):
            similar = unit[of == b] @ unit[of >= k].T / temperature
            filled[k, of == b] = similar.softmax(1) @ means[k, of >= k]
    return filled


def best_of_slots(scores: Float[Tensor, "b slots"], columns: Sequence[int], width: int) -> Float[Tensor, "b {width}"]:
    """The best score of each class that has several slots; minus infinity for a class that has none.

    Args:
        scores: of every slot.
        columns: the class's column, of every slot.
        width: classes.
    """
    index = torch.tensor(columns).expand(len(scores), -1)
    return scores.new_full((len(scores), width), -torch.inf).scatter_reduce(1, index, scores, "amax")
