"""Vectors of every class's own before its name, which learn."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from perdure.backbone import TwoTowers, normalised
from perdure.backbone.contexts import NamedContexts


class ClassContexts(nn.Module):
    """The text embeddings of some classes, with gradient to the vectors before their names.

    Source: Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, its class-specific contexts.

    Args:
        clip: whose text tower reads them.
        names: of the classes; there may be none.
        length: M, vectors of each.
        placeholders: whether M tokens ``X`` stay between the vectors and the name.
        rng: where the initial values come from, N(0, 0.01²).

    Raises:
        BackboneError: for a name that is too long beside so many tokens, with its text.
    """

    def __init__(
        self, clip: TwoTowers, names: Sequence[str], length: int, placeholders: bool, rng: torch.Generator
    ) -> None:
        super().__init__()
        self._encode, self._dim = clip.text_embeddings_of, clip.dim
        self._texts = NamedContexts(clip.text, names, length, length * placeholders) if names else None
        drawn = 0.01 * torch.randn(len(names), length, clip.text.width, generator=rng)
        self.vectors = nn.Parameter(drawn.to(clip.device))

    def forward(self) -> Float[Tensor, "n d"]:
        """Embeddings of length 1."""
        if self._texts is None:
            return self.vectors.new_zeros(0, self._dim)
        return normalised(self._encode(self._texts.filled(self.vectors), self._texts.ids))
