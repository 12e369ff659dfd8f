"""A cosine head with a learned scale: the classifier that APER and PILOT train on the first task."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from perdure.learned import learned
from perdure.modules.heads import GrowingLinear, HeadInit, cosine_scores, linear_scores


class CosineHead(nn.Module):
    """Logits sigma cos(w_c, f), without bias; sigma starts at 1. Loading a state resizes it.

    Args:
        dim: feature size d.
    """

    STATE: ClassVar = {"weight": learned("classes, d", torch.float32), "sigma": learned("", torch.float32)}

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, dim))  # (classes, d)
        self.sigma = nn.Parameter(torch.ones(()))

    def grow(self, width: int, rng: torch.Generator, init: HeadInit = "torch_linear") -> None:
        """Adds columns up to ``width``; old ones keep their values.

        Args:
            width: columns afterwards.
            rng: where new weights come from.
            init: of the weights, as :meth:`GrowingLinear.grow` draws them.
        """
        new = GrowingLinear(self.weight.shape[1])
        new.grow(width - len(self.weight), rng, init)
        self.weight = nn.Parameter(torch.cat([self.weight.data, new.weight.data.to(self.weight.device)]))

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self.sigma * F.linear(F.normalize(features, dim=1), F.normalize(self.weight, dim=1))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        self.weight = nn.Parameter(torch.empty_like(state[prefix + "weight"], device=self.weight.device))
        super()._load_from_state_dict(state, prefix, *rest)


EITHER = {
    "weight": learned("heads classes, d", torch.float32), "bias?": learned("heads classes", torch.float32),
    "sigma?": learned("", torch.float32),
}  # fmt: skip
"""The state of a head of either kind, which has no class where there are no ``heads``."""


def new_head(kind: Literal["linear", "cosine"], dim: int) -> GrowingLinear | CosineHead:
    """A head without classes.

    Args:
        kind: of which kind.
        dim: feature size d.
    """
    return CosineHead(dim) if kind == "cosine" else GrowingLinear(dim)


def head_scores(features: Float[Tensor, "b d"], head: GrowingLinear | CosineHead) -> Float[Tensor, "b classes"]:
    """Scores of test images by a head of either kind, float32; products are taken in float64.

    Args:
        features: of a batch.
        head: of as many classes as scores are wanted for.
    """
    if isinstance(head, CosineHead):
        return head.sigma * cosine_scores(features, head.weight)
    return linear_scores(features, head)
