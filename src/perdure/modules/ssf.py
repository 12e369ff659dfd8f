"""Scale and shift of a layer's output, which folds away into the layer."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ScaleShift(nn.Module):
    """``gamma * y + beta`` per channel.

    Source: Lian et al., "Scaling & Shifting Your Features" (SSF), NeurIPS 2022.

    Args:
        channels: of the layer's output.
        rng: where gamma ~ N(1, std²) and beta ~ N(0, std²) come from.
        std: of the initial values; 0 starts as the identity, bit for bit.
    """

    def __init__(self, channels: int, rng: torch.Generator, *, std: float = 0.02) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1 + std * torch.randn(channels, generator=rng))
        self.beta = nn.Parameter(std * torch.randn(channels, generator=rng))

    def forward(self, y: Tensor) -> Tensor:
        """(b, ..., channels), of the same shape and type: under autocast too, layers behind get what they know."""
        return (y * self.gamma + self.beta).to(y.dtype)

    @torch.no_grad()
    def fold_into(self, layer: nn.Module) -> None:
        """Gives ``layer`` (linear, convolution, or norm with weight and bias) the weights that do the same alone."""
        weight: Tensor = layer.weight  # type: ignore[assignment]
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        rows = self.gamma.view(-1, *[1] * (weight.ndim - 1))
        layer.weight = nn.Parameter(weight * rows, requires_grad=False)
        folded = self.beta if bias is None else self.gamma * bias + self.beta
        layer.bias = nn.Parameter(folded.detach().clone(), requires_grad=False)
