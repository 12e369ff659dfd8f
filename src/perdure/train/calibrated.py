"""Small modules in the first blocks of a backbone whose speed of adaptation is calibrated: LAE's adapter, LoRA, prefix.

Source: Gao et al., "A Unified Continual Learning Framework with General Parameter-Efficient Tuning", ICCV 2023, arXiv
2303.10070, section 3: scales that learn, prefixes whose weights sum to 1. Two calls of
:func:`perdure.train.adapting.adaptable` give two views with a module each; ``load_state_dict`` takes values across.
"""

from __future__ import annotations

import abc
from typing import ClassVar, Literal, TypeAlias

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from perdure.backbone import Backbone, Site
from perdure.backbone.sites import has_seat, sites
from perdure.config import Config
from perdure.errors import BackboneError
from perdure.modules.adapter import Adapter
from perdure.modules.lora import LoRA
from perdure.modules.prefix import Prefix

WINDOWS, CONVOLUTIONS = 10, 15  # blocks of Swin-B and of ConvNeXt-B that get a module; of a ViT 5


class _Calibrated(Config, abc.ABC):
    variant: str
    seats: ClassVar[tuple[str, ...]]  # the first that the backbone has

    blocks: int | None = Field(
        None, ge=1, description="the first blocks that get one; null: 5 of a ViT, 10 of Swin, 15 of ConvNeXt"
    )

    def insert(self, view: Backbone, rng: torch.Generator) -> nn.Module:
        """Into a view of the backbone, one module per block, or as many as there are blocks.

        Raises:
            BackboneError: if the backbone has no seat for it, naming the variants that it has one for.
        """
        seat = self.seat_in(view.model)
        if seat is None:
            has = [kind.model_fields["variant"].default for kind in KINDS if kind.seat_in(view.model)]
            must_be, got = (
                f"one that {view.name} has: those of variant {has}",
                f"{self.variant}: {' or '.join(self.seats)}",
            )
            raise BackboneError("insert", "seat", must_be, got, "Choose one of those variants, or another backbone")
        usual = CONVOLUTIONS if seat == "block" else WINDOWS
        n = self.blocks or (5 if has_seat(view.model, "tokens") else usual)
        there = len(sites(view.model, view.name, seat, None))
        return view.insert(seat, lambda site: self._make(site, rng), blocks=range(min(n, there)))

    @classmethod
    def seat_in(cls, model: nn.Module) -> str | None:
        """The seat that it takes in a model; None if there is none."""
        return next((seat for seat in cls.seats if has_seat(model, seat)), None)

    @abc.abstractmethod
    def _make(self, site: Site, rng: torch.Generator) -> nn.Module: ...


class CalibratedAdapter(_Calibrated):
    """A bottleneck beside the attention; beside the whole block of ConvNeXt."""

    seats = ("attention", "block")
    variant: Literal["adapter"] = "adapter"
    rank: int = Field(5, ge=1, description="width of the bottleneck (r)")

    def _make(self, site: Site, rng: torch.Generator) -> nn.Module:
        options = {"scale": 1.0, "dropout": 0.0}
        return Adapter(site.n_in, self.rank, rng, **options, activation=F.gelu, learned_scale=True)


class CalibratedLoRA(_Calibrated):
    """A low-rank update of the keys' and the values' weights."""

    seats = ("qkv",)
    variant: Literal["lora"] = "lora"
    rank: int = Field(5, ge=1, description="rank of each update (r)")

    def _make(self, site: Site, rng: torch.Generator) -> nn.Module:
        return LoRA(site.layer, self.rank, rng, parts=3, updated=(1, 2), learned_scale=True)  # type: ignore[arg-type]


class CalibratedPrefix(_Calibrated):
    """Further keys and values of every attention, their weights compensated."""

    seats = ("prefix",)
    variant: Literal["prefix"] = "prefix"
    length: int = Field(10, ge=1, description="keys and values per block")

    def _make(self, site: Site, rng: torch.Generator) -> nn.Module:
        return Prefix(site.n_in, self.length, rng)


KINDS: tuple[type[_Calibrated], ...] = (CalibratedAdapter, CalibratedLoRA, CalibratedPrefix)
Calibrated: TypeAlias = CalibratedAdapter | CalibratedLoRA | CalibratedPrefix
