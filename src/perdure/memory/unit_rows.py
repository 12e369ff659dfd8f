"""Features of length 1, by position: what a ridge regression on a CLIP takes."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from perdure.memory.shelf import Features


class UnitRows:
    """Features, each of length 1.

    Args:
        features: as a store gives them.
    """

    def __init__(self, features: Features) -> None:
        self._features = features

    def __getitem__(self, positions: np.ndarray, /) -> Float[Tensor, "n d"]:
        return F.normalize(self._features[positions].float(), dim=-1)
