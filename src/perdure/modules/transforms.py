"""Transforms of features before their moments are taken. A method has them as a section of kinds."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from perdure.config import Config
from perdure.modules.gaussians import tukey


class Unit(Config):
    """Unit vectors."""

    name: Literal["unit"] = "unit"

    def of(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Transformed, float64."""
        return F.normalize(features.double(), dim=1)


class Raw(Config):
    """Features as they are."""

    name: Literal["raw"] = "raw"

    def of(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """The same, float64."""
        return features.double()


class Tukey(Config):
    """Powers of features that are not negative."""

    name: Literal["tukey"] = "tukey"
    power: float = Field(0.5, ge=0, le=1, description="Tukey's exponent (beta); 0: the logarithm")

    def of(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Transformed, float64; a negative feature is refused."""
        return tukey(features, self.power)


Transform: TypeAlias = Unit | Raw | Tukey
