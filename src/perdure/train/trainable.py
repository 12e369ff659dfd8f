"""Which part of a backbone learns beside a head: nothing, adapters, low-rank updates, or all weights.

With ``head`` everything runs on the frozen backbone's stored features, and where views do not change a step costs no
pass. Adapters and low-rank updates stand in a view that shares all weights; ``full`` is a copy of the whole backbone.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from pydantic import Field
from torch import nn

from perdure.backbone import Backbone, Site
from perdure.backbone.sites import has_seat
from perdure.config import Config
from perdure.modules.lora import LoRA
from perdure.train.adapting import AdapterPart, AllWeights, adaptable


class Head(Config):
    """Nothing of the backbone."""

    name: Literal["head"] = "head"

    def made(self, backbone: Backbone, rng: torch.Generator) -> tuple[Backbone, nn.Module]:
        """The backbone itself, and an empty part."""
        return backbone, nn.ModuleList()


class Adapters(Config):
    """A bottleneck beside every block's MLP."""

    name: Literal["adapter"] = "adapter"
    rank: int = Field(16, ge=1, description="width of an adapter's bottleneck (r)")

    def made(self, backbone: Backbone, rng: torch.Generator) -> tuple[Backbone, nn.Module]:
        """A view with adapters, which start as nothing."""
        return adaptable(backbone, AdapterPart(rank=self.rank), rng)


class LowRank(Config):
    """Low-rank updates of every block's queries and values; of the ungrouped convolutions where there are no such."""

    name: Literal["lora"] = "lora"
    rank: int = Field(4, ge=1, description="of every update (r)")

    def made(self, backbone: Backbone, rng: torch.Generator) -> tuple[Backbone, nn.Module]:
        """A view with updates, which start as nothing."""
        view, fused = backbone.view(), has_seat(backbone.model, "qkv")
        how = {"parts": 3, "updated": (0, 2)} if fused else {}  # queries, keys and values are one layer there

        def update(site: Site) -> nn.Module:
            return LoRA(site.layer, self.rank, rng, **how)  # type: ignore[arg-type]

        return view, view.insert("qkv" if fused else "convolutions", update).requires_grad_(False)


class Full(Config):
    """All weights, in a copy of the backbone."""

    name: Literal["full"] = "full"

    def made(self, backbone: Backbone, rng: torch.Generator) -> tuple[Backbone, nn.Module]:
        """The copy, and its model."""
        return adaptable(backbone, AllWeights(), rng)


Part: TypeAlias = Head | Adapters | LowRank | Full
"""A section of several kinds: ``part: Part = Field(Head(), discriminator="name")``."""


def made(backbone: Backbone, how: Part, rng: torch.Generator) -> tuple[Backbone, nn.Module]:
    """What images are to pass through, and what learns in it: frozen, until a session thaws it.

    Args:
        backbone: is not changed.
        how: which part learns.
        rng: of initial values.

    Returns:
        The backbone, a view of it or a copy; and the part, to be declared by
        ``learned_module({}, "...", rest="part")``.

    Raises:
        BackboneError: if the backbone has no seat for the part.
    """
    return how.made(backbone, rng)
