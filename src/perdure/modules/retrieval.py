"""Finding the task of an image by asking again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.modules.heads import GrowingLinear, linear_scores

ROUNDS = 4  # as published


def logits_found(
    features: Callable[[int, Tensor], Tensor],
    first: Float[Tensor, "n d"],
    head: GrowingLinear,
    tasks: Int[Tensor, " classes"],
    guess: Int[Tensor, " n"],
) -> Float[Tensor, "n classes"]:
    """A head's logits of every image under the adapter that :func:`refined` finds for it.

    Args:
        features: (task, positions) to the features under that task's adapter.
        first: those under the first task's, of all images; they are not asked for again.
        head: of all classes.
        tasks: of every class.
        guess: the task every image starts from.
    """

    def logits(task: int, positions: Tensor) -> Tensor:
        f = first[positions] if task == 0 else features(task, positions)
        return linear_scores(f.to(head.weight.device), head).cpu()

    return refined(logits, tasks, guess)


def refined(
    logits: Callable[[int, Tensor], Tensor], tasks: Int[Tensor, " classes"], guess: Int[Tensor, " n"]
) -> Float[Tensor, "n classes"]:
    """Every image's logits under the adapter found: that of the task it was given to last, asked four times at most.

    Images of one guess are asked together, so that an adapter computes only what is asked of it.

    Source: Sun et al., "MOS", AAAI 2025 (self-refined adapter retrieval).

    Args:
        logits: (task, positions) to the logits under that task's adapter.
        tasks: of every class.
        guess: the task every image starts from.
    """
    out, guess, asked = torch.zeros(len(guess), len(tasks)), guess.clone(), torch.arange(len(guess))
    for _ in range(ROUNDS):
        for task in guess[asked].unique().tolist():
            here = asked[guess[asked] == task]
            out[here] = logits(task, here)
        told = tasks[out[asked].argmax(1)]
        moves = told != guess[asked]
        asked = asked[moves]
        guess[asked] = told[moves]
    return out
