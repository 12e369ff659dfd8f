"""Low-rank updates of a layer's weight, which fold away into the layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LoRA(nn.Module):
    """``scale * B A x`` beside a linear layer or an ungrouped convolution: zero at first, since B is.

    Source: Hu et al., "LoRA", ICLR 2022. In a fused query-key-value layer each part has an update of its own.

    Args:
        layer: the layer it is for.
        rank: r.
        rng: where A ~ U(±1/√fan_in) comes from.
        scale: alpha / r in the paper.
        parts: into how many equal parts the output falls, each with its own A and B.
        updated: which of them get an update.
        learned_scale: whether every part's update has a scale of its own that learns, from ``scale`` on.
    """

    def __init__(
        self,
        layer: nn.Linear | nn.Conv2d,
        rank: int,
        rng: torch.Generator,
        *,
        scale: float = 1.0,
        parts: int = 1,
        updated: tuple[int, ...] = (0,),
        learned_scale: bool = False,
    ) -> None:
        super().__init__()
        self.scale, self.parts, self.updated = scale, parts, updated
        self.scales = nn.ParameterList(torch.tensor(scale) for _ in updated if learned_scale)
        n_out, *fan = layer.weight.shape
        bound = torch.Size(fan).numel() ** -0.5
        draws = [bound * (2 * torch.rand(rank, *fan, generator=rng) - 1) for _ in updated]
        self.a = nn.ParameterList(nn.Parameter(a) for a in draws)  # (r, in) or (r, in, k, k) each
        self.b = nn.ParameterList(nn.Parameter(torch.zeros(n_out // parts, rank)) for _ in updated)
        if isinstance(layer, nn.Conv2d):
            self.options: dict[str, Any] = {
                "stride": layer.stride,
                "padding": layer.padding,
                "dilation": layer.dilation,
            }

    def forward(self, x: Tensor) -> Tensor:
        """(b, ..., in) or (b, in, h, w) to what is added to the layer's output."""
        updates = [self._update(x, *own) for own in self._triples()]
        added, like = dict(zip(self.updated, updates, strict=True)), updates[0]
        axis = 1 if self.a[0].ndim == 4 else -1
        return torch.cat([added.get(p, torch.zeros_like(like)) for p in range(self.parts)], dim=axis)

    def _triples(self) -> Iterator[tuple[Tensor | float, Tensor, Tensor]]:
        """Scale, A and B of every update."""
        return zip(self.scales or [self.scale] * len(self.updated), self.a, self.b, strict=True)

    def _update(self, x: Tensor, scale: Tensor | float, a: Tensor, b: Tensor) -> Tensor:
        if a.ndim == 2:
            return scale * F.linear(F.linear(x, a), b)
        return scale * F.conv2d(F.conv2d(x, a, **self.options), b[:, :, None, None])

    @torch.no_grad()
    def fold_into(self, layer: nn.Module) -> None:
        """Adds the update to ``layer``'s weight."""
        weight: Tensor = layer.weight.detach().clone()  # type: ignore[operator]
        n = len(weight) // self.parts
        for part, (scale, a, b) in zip(self.updated, self._triples(), strict=True):
            weight[part * n : (part + 1) * n] += scale * (b @ a.flatten(1)).view(n, *weight.shape[1:])
        layer.weight = nn.Parameter(weight, requires_grad=False)

    def extra_repr(self) -> str:
        """What the values do not say."""
        return f"scale={self.scale}, parts={self.parts}, updated={self.updated}"
