"""Classifier heads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from perdure.learned import Entry, learned

HeadInit = Literal[
    "normal_0.001", "normal_0.01", "normal_0.02", "zeros", "torch_linear", "kaiming_uniform", "kaiming_fan_out"
]


class GrowingLinear(nn.Module):
    """A linear head whose width follows the classes seen; loading a state resizes it.

    Args:
        dim: feature size d.
    """

    STATE: ClassVar = {"weight": learned("classes, d", torch.float32), "bias": learned("classes", torch.float32)}

    @staticmethod
    def state(dim: str) -> dict[str, Entry]:
        """:attr:`STATE` of a head on features of another size than d.

        Args:
            dim: the size's name.
        """
        return {**GrowingLinear.STATE, "weight": learned(f"classes, {dim}", torch.float32)}

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(0, dim))  # (classes, d)
        self.bias = nn.Parameter(torch.zeros(0))  # (classes,)

    def grow(self, width: int, rng: torch.Generator, init: HeadInit = "normal_0.01") -> None:
        """Adds columns up to ``width``; old ones keep their values.

        Args:
            width: columns afterwards.
            rng: where new weights come from.
            init: weights N(0, 0.001²), N(0, 0.01²), truncated N(0, 0.02²), zeros, ``torch.nn.Linear``'s U(±1/√d) (its
                biases too), the same with biases of zero, or VPT's N(0, 2/columns); biases are zero otherwise.
        """
        more, dim = width - len(self.bias), self.weight.shape[1]
        weight, bias = torch.zeros(more, dim), torch.zeros(more)
        if init in ("normal_0.001", "normal_0.01"):
            weight = float(init.removeprefix("normal_")) * torch.randn(more, dim, generator=rng)
        elif init == "normal_0.02":
            nn.init.trunc_normal_(weight, std=0.02, generator=rng)
        elif init == "kaiming_uniform":
            weight = dim**-0.5 * (2 * torch.rand(weight.shape, generator=rng) - 1)
        elif init == "kaiming_fan_out" and more:
            weight = (2 / more) ** 0.5 * torch.randn(more, dim, generator=rng)
        elif init == "torch_linear":
            weight, bias = (dim**-0.5 * (2 * torch.rand(x.shape, generator=rng) - 1) for x in (weight, bias))
        self.weight = nn.Parameter(torch.cat([self.weight.data, weight.to(self.weight.device)]))
        self.bias = nn.Parameter(torch.cat([self.bias.data, bias.to(self.bias.device)]))

    @contextlib.contextmanager
    def apart(self, columns: Int[Tensor, " n"]) -> Iterator[tuple[GrowingLinear, Tensor]]:
        """A head of some classes alone, which may learn while the rows of all others stay as they are.

        When the block ends, its values are taken back, and the whole head is frozen.

        Args:
            columns: of images' classes.

        Yields:
            The head, one row per class that is there, ascending; and the row of each image's class.
        """
        current, own = torch.unique(columns, return_inverse=True)
        part = GrowingLinear(self.weight.shape[1])
        part.weight = nn.Parameter(self.weight.data[current])
        part.bias = nn.Parameter(self.bias.data[current])
        yield part, own
        weight, bias = self.weight.data.clone(), self.bias.data.clone()
        weight[current], bias[current] = part.weight.data, part.bias.data
        self.weight, self.bias = (nn.Parameter(x, requires_grad=False) for x in (weight, bias))

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return F.linear(features, self.weight, self.bias)

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        device = self.weight.device
        self.weight = nn.Parameter(torch.empty_like(state[prefix + "weight"], device=device))
        self.bias = nn.Parameter(torch.empty_like(state[prefix + "bias"], device=device))
        super()._load_from_state_dict(state, prefix, *rest)


def linear_scores(features: Float[Tensor, "b d"], head: GrowingLinear) -> Float[Tensor, "b classes"]:
    """A linear head's scores of test images, float32.

    The product is taken in float64, so that its rounding, which depends on the batch, vanishes in the result.
    """
    return F.linear(float64(features), float64(head.weight), float64(head.bias)).float()


def cosine_scores(features: Float[Tensor, "b d"], prototypes: Float[Tensor, "classes d"]) -> Float[Tensor, "b classes"]:
    """Cosine of every feature with every prototype, float32; the product is taken in float64, as above."""
    unit = F.normalize(float64(features), dim=1, eps=1e-12)
    return (unit @ F.normalize(float64(prototypes), dim=1, eps=1e-12).T).float()


def float64(x: Tensor) -> Tensor:
    """The numbers in float64, whose rounding vanishes in float32; on the CPU where the device has no such numbers.

    Args:
        x: of any device.
    """
    return (x.cpu() if x.device.type == "mps" else x).double()  # Apple's GPUs have none
