"""Learned contexts: vectors in the place of the words before a class's name.

Source: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022: [start] V_1 … V_M name . [end].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.backbone.text_tower import TextTower

PLACE = "X"  # one token in every vocabulary


class NamedContexts:
    """The texts ``V_1 … V_M name.`` of some names, whose first M tokens are left open.

    Args:
        tower: that reads them.
        names: of classes.
        length: M, vectors.
        placeholders: tokens ``X`` that stay between the vectors and the name.

    Raises:
        BackboneError: for a name that is too long beside M tokens, with its text.
    """

    def __init__(self, tower: TextTower, names: Sequence[str], length: int, placeholders: int = 0) -> None:
        self.ids = tower.tokens([f"{' '.join([PLACE] * (length + placeholders))} {name}." for name in names])
        start = first_place(tower)
        with torch.no_grad():
            vectors = tower.vectors(self.ids)
        self._before, self._behind = vectors[:, :start], vectors[:, start + length :]

    def filled(self, context: Float[Tensor, "m w"] | Float[Tensor, "n m w"]) -> Float[Tensor, "n l w"]:
        """Token vectors with the context in its place; ``TextTower.encode`` takes them with ``ids``.

        Args:
            context: V, of all names or of each.
        """
        return torch.cat([self._before, context.expand(len(self.ids), -1, -1), self._behind], dim=1)


def first_place(tower: TextTower) -> int:
    """The position of a text's first token of its own.

    Args:
        tower: whose texts.
    """
    one, two = tower.tokens([PLACE, f"{PLACE} {PLACE}"])
    return _places(one, two)[0]


def vectors_of_words(tower: TextTower, words: str) -> Float[Tensor, "m w"]:
    """The vectors of some words' tokens, without those at the ends.

    Args:
        tower: whose vectors.
        words: at least one.
    """
    ids = tower.tokens([words])
    behind = tower.tokens([f"{words} {PLACE}"])[0]
    place = tower.tokens([PLACE])[0, start := first_place(tower)]
    length = int((behind == place).nonzero()[-1]) - start
    with torch.no_grad():
        return tower.vectors(ids)[0, start : start + length]


def _places(one: Int[Tensor, " l"], two: Int[Tensor, " l"]) -> list[int]:
    """Where a token stands that is there twice in ``two`` and once in ``one``."""
    return [i for i, token in enumerate(one.tolist()) if (one == token).sum() == 1 and (two == token).sum() == 2]
