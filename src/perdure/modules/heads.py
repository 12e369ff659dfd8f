"""Classifier heads."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class GrowingLinear(nn.Module):
    """A linear head whose width follows the classes seen; loading a state resizes it.

    Args:
        dim: feature size d.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, dim))  # (classes, d)
        self.bias = nn.Parameter(torch.zeros(0))  # (classes,)

    def grow(self, width: int, rng: torch.Generator) -> None:
        """Adds columns up to ``width``: weights N(0, 0.01²) from ``rng``, biases zero; old ones keep their values."""
        more, dim = width - len(self.bias), self.weight.shape[1]
        device = self.weight.device
        new = 0.01 * torch.randn(more, dim, generator=rng)
        self.weight = nn.Parameter(torch.cat([self.weight.data, new.to(device)]))
        self.bias = nn.Parameter(F.pad(self.bias.data, (0, more)))

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return F.linear(features, self.weight, self.bias)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        device = self.weight.device
        self.weight = nn.Parameter(torch.empty_like(state[prefix + "weight"], device=device))
        self.bias = nn.Parameter(torch.empty_like(state[prefix + "bias"], device=device))
        super()._load_from_state_dict(state, prefix, *rest)


def cosine_scores(features: Float[Tensor, "b d"], prototypes: Float[Tensor, "classes d"]) -> Float[Tensor, "b classes"]:
    """Cosine of every feature with every prototype, float32.

    The product is taken in float64, so that its rounding, which depends on the batch, vanishes in the result.
    """
    unit = F.normalize(features.double(), dim=1, eps=1e-12)
    return (unit @ F.normalize(prototypes.double(), dim=1, eps=1e-12).T).float()
