"""Parts of which every task adds one; all of one shape. Loading a state makes as many as it holds."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor, nn


class GrowingStack(nn.Module, abc.ABC):
    """One part per task."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self.register_buffer("place", torch.empty(0), persistent=False)
        self.place: Tensor  # where new parts go, while there are none

    def __len__(self) -> int:
        return len(self.parts)

    @abc.abstractmethod
    def _new(self, rng: torch.Generator) -> nn.Module:
        """A part as it starts."""

    def one(self) -> dict[str, Tensor]:
        """The state of one part."""
        return dict(self._new(torch.Generator()).state_dict())

    def add(self, rng: torch.Generator) -> None:
        """Adds a task's part, frozen for now.

        Args:
            rng: of its initial values.
        """
        self.parts.append(self._new(rng).to(self.place.device).requires_grad_(False))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        n = len({name.removeprefix(f"{prefix}parts.").split(".")[0] for name in state if name.startswith(prefix)})
        self.parts = self.parts[:n]
        while len(self) < n:
            self.add(torch.Generator())
        super()._load_from_state_dict(state, prefix, *rest)
