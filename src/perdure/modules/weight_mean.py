"""What holds weights near where they were: their mean over a training, and a pull towards its start.

Source: Zheng et al., "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models", ICCV
    2023, section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perdure.modules.merging import pull_


class WeightMean:
    """The uniform mean of what weights were at some moments, the first of which is now.

    Args:
        parameters: the weights, which go on learning.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.values = [p.detach().clone() for p in self.parameters]
        self.n = 1  # moments

    def add(self) -> None:
        """One more moment: now."""
        self.n += 1
        pull_(self.values, [p.detach() for p in self.parameters], 1 / self.n)

    @torch.no_grad()
    def take(self) -> None:
        """The weights become their mean."""
        for p, value in zip(self.parameters, self.values, strict=True):
            p.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """The mean so far, and of how many moments it is."""
        return {"n": self.n, "values": [value.clone() for value in self.values]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a mean of the same weights.

        Args:
            state: from :meth:`state_dict`.
        """
        self.n, self.values = state["n"], [value.clone() for value in state["values"]]


@torch.no_grad()
def add_pull_(parameters: Sequence[nn.Parameter], start: Sequence[Tensor], weight: float) -> None:
    """Adds the gradient of ``weight * sum (W - start)²`` to the gradients that are there.

    Args:
        parameters: W.
        start: of the same shapes.
        weight: of the sum over all of them.
    """
    moved = [(p, at) for p, at in zip(parameters, start, strict=True) if p.grad is not None]
    if moved:
        learning, anchors = map(list, zip(*moved, strict=True))
        differences = torch._foreach_sub([p.detach() for p in learning], anchors)
        torch._foreach_add_([p.grad for p in learning], differences, alpha=2 * weight)
