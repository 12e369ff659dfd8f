"""Two forms of an exact ridge regression that goes on: on random features, or on a kernel with every training row.

Both give one score per class, about 0 to 1, and the same for every order and cut of the images. All is float64.

Source: random features as in McDonnell et al., "RanPAC", NeurIPS 2023; the kernel form is that of Saunders, Gammerman &
Vovk, "Ridge Regression Learning Algorithm in Dual Variables", ICML 1998.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, Literal, Self, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.config import Config
from perdure.errors import ConfigError
from perdure.learned import Derived, Sizes, learned
from perdure.modules.random_features import RandomFeatures, Rows
from perdure.modules.ridge import packed_size
from perdure.modules.ridge_choice import FixedRidge
from perdure.modules.ridge_sums import RidgeSums
from perdure.modules.room import require_room

ROWS: Final = 4096  # of a kernel, made at once


class Primal(Config):
    """On random features, whose sums are kept."""

    name: Literal["primal"] = "primal"
    projection_dim: int = Field(4096, ge=0, description="M, random features; 0: none, the embeddings themselves")
    ridge: float = Field(0.1, gt=0, description="lambda")

    def sizes(self, dim: int) -> Sizes:
        """drawn: columns of W_R; M: of h; packed: M²/2 and some. It has no keys.

        Args:
            dim: of a row.
        """
        m = self.projection_dim or dim
        return {"drawn": self.projection_dim, "M": m, "packed": packed_size(m), "keys": 0}

    def made(self, dim: int, rng: torch.Generator, device: torch.device) -> PrimalRidge:
        """The regression, of no images.

        Args:
            dim: of a row.
            rng: draws W_R.
            device: to compute on; must have float64.
        """
        return PrimalRidge(self, dim, rng, device)


class Dual(Config):
    """On a Gaussian kernel with every training image, whose embeddings are kept."""

    name: Literal["dual"] = "dual"
    gamma: float = Field(0.1, gt=0, description="how fast the kernel falls with the squared distance")
    ridge: float = Field(0.001, gt=0, description="lambda")

    def sizes(self, dim: int) -> Sizes:
        """It has nothing but keys."""
        return dict.fromkeys(("drawn", "M", "packed", "rows", "whole"), 0)

    def made(self, dim: int, rng: torch.Generator, device: torch.device) -> DualRidge:
        """As :meth:`Primal.made`; nothing is drawn."""
        return DualRidge(self, dim, device)


class _Ridge(nn.Module):
    """Buffers of any length, float64 among them: no device but a CPU is sure to have these."""

    merges_itself: ClassVar = True

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device, self._solved = device, Derived[Tensor]()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        return self

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name, _ in list(self.named_buffers()):
            setattr(self, name, torch.empty_like(state[prefix + name]))
        super()._load_from_state_dict(state, prefix, *rest)


class PrimalRidge(_Ridge):
    """W = (G + λI)⁻¹ Q with h = ReLU(g W_R), G = Σ h hᵀ and Q = Σ h yᵀ.

    Args:
        form: its settings.
        dim: of a row g.
        rng: draws W_R, U(-1/√d, 1/√d) as a linear layer begins.
        device: to compute on.

    Raises:
        ConfigError: for more random features than this machine's memory can hold G of.
    """

    STATE: ClassVar = {
        "projection?": learned("d, drawn", torch.float32, "W_R; nothing drawn: h = g"),
        "whole?": learned("", torch.long, "1 once G itself is kept, 0 before", tells="whole"),
        "factor?": learned("rows, M", torch.float64, "R, G = RᵀR, of up to M/2 images"),
        "targets?": learned("rows, classes", torch.float64, "Z, Q = RᵀZ"),
        "gram?": learned("whole packed", torch.float64, "G, packed"),
        "sums?": learned("M, whole classes", torch.float64, "Q"),
        "images?": learned("", torch.long, "how many there were"),
    }

    projection: Tensor
    whole: Tensor
    factor: Tensor
    targets: Tensor
    gram: Tensor
    sums: Tensor
    images: Tensor

    def __init__(self, form: Primal, dim: int, rng: torch.Generator, device: torch.device) -> None:
        super().__init__(device)
        m, double = form.projection_dim, torch.float64
        require_room("Primal", "projection_dim", m, 12 * m**2, "Take fewer random features")  # G, and half of it packed
        self.how = FixedRidge(value=form.ridge)
        self.register_buffer("projection", dim**-0.5 * (2 * torch.rand(dim, m, generator=rng) - 1))
        self.register_buffer("whole", torch.zeros((), dtype=torch.long))
        self.register_buffer("factor", torch.zeros(0, m or dim, dtype=double))
        self.register_buffer("targets", torch.zeros(0, 0, dtype=double))
        self.register_buffer("gram", torch.zeros(0, dtype=double))
        self.register_buffer("sums", torch.zeros(m or dim, 0, dtype=double))
        self.register_buffer("images", torch.zeros((), dtype=torch.long))

    @property
    def lift(self) -> RandomFeatures:
        """g to h."""
        return RandomFeatures(self.projection, self.device)

    @property
    def kept(self) -> RidgeSums:
        """Of all images."""
        tensors = self.factor, self.targets, self.gram, self.sums
        return RidgeSums(*tensors, self.gram[:0], self.sums[:, :0], int(self.images), 0)

    @kept.setter
    def kept(self, new: RidgeSums) -> None:
        self.factor, self.targets, self.gram, self.sums = new.factor, new.targets, new.gram, new.sums
        self.whole, self.images = torch.tensor(int(new.whole)), torch.tensor(new.n)

    def add(self, rows: Rows, columns: Int[Tensor, " n"], width: int) -> None:
        """Adds images.

        Args:
            rows: g of each, by position.
            columns: of their classes.
            width: classes afterwards.
        """
        self.kept = self.kept.added(self.lift, rows, columns, None, width)

    def merge(self, other: PrimalRidge) -> None:
        """Adds the images of another, of the same classes.

        Raises:
            ConfigError: if its random features are others.
        """
        if not torch.equal(self.projection, other.projection):
            gap = float((self.projection - other.projection).abs().max())
            hint = "Merge what was taught with one seed"
            raise ConfigError("merge", "random features W_R", "the same in both", f"up to {gap:.3g} apart", hint)
        self.kept = self.kept.joined(other.kept, held=False)

    @property
    def n_weights(self) -> int:
        """Of each class."""
        return self.factor.shape[1]

    @property
    def weight(self) -> Float[Tensor, "m classes"]:
        """W, solved when first needed."""
        source = self.sums if self.kept.whole else self.targets
        return self._solved.of(source, lambda: self.kept.weight(self.how, self.how.value, self.device))

    def forward(self, g: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """The scores, on the CPU.

        Args:
            g: rows.
        """
        return (self.lift(g) @ self.weight).cpu()


class DualRidge(_Ridge):
    """alpha = (K + λI)⁻¹ Y with k(x, y) = exp(-gamma |x - y|²).

    Args:
        form: its settings.
        dim: of a row g.
        device: to compute on.
    """

    STATE: ClassVar = {
        "keys?": learned("keys, d", torch.float32, "g of every image"),
        "columns?": learned("keys", torch.long, "their classes' columns", below="classes"),
    }

    keys: Tensor
    columns: Tensor

    def __init__(self, form: Dual, dim: int, device: torch.device) -> None:
        super().__init__(device)
        self.form = form
        self.register_buffer("keys", torch.zeros(0, dim))
        self.register_buffer("columns", torch.zeros(0, dtype=torch.long))

    def add(self, rows: Rows, columns: Int[Tensor, " n"], width: int) -> None:
        """As :meth:`PrimalRidge.add`.

        Raises:
            ConfigError: if the kernel of all images is more than this machine's memory can hold.
        """
        n = len(self.keys) + len(columns)
        require_room("DualRidge.add", "images taught", n, 16 * n**2, "Take form=primal, or fewer images")
        self.keys = torch.cat([self.keys, rows[np.arange(len(columns))].cpu()])
        self.columns = torch.cat([self.columns, columns])

    def merge(self, other: DualRidge) -> None:
        """As :meth:`PrimalRidge.merge`."""
        self.keys, self.columns = torch.cat([self.keys, other.keys]), torch.cat([self.columns, other.columns])

    @property
    def n_weights(self) -> int:
        """Of each class."""
        return len(self.keys)

    @property
    def weight(self) -> Float[Tensor, "keys classes"]:
        """alpha, solved when first needed.

        Raises:
            ConfigError: if lambda is too small for a kernel in which two images are one.
        """
        return self._solved.of(self.columns, self._solve)

    def _solve(self) -> Float[Tensor, "keys classes"]:
        keys = self.keys.to(self.device, torch.float64)
        kernel = gaussian_kernel(keys, keys, self.form.gamma)
        kernel.diagonal().add_(self.form.ridge)
        factor, failed = torch.linalg.cholesky_ex(kernel)
        if failed:
            must_be, hint = "large enough for a positive definite kernel", "Raise it: beside the kernel it is zero"
            raise ConfigError("DualRidge", "ridge", must_be, self.form.ridge, hint)
        return torch.cholesky_solve(F.one_hot(self.columns).to(kernel), factor)

    def forward(self, g: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """As :meth:`PrimalRidge.forward`."""
        keys = self.keys.to(self.device, torch.float64)
        return (gaussian_kernel(g.to(keys), keys, self.form.gamma) @ self.weight).cpu()


RidgeForm: TypeAlias = Primal | Dual


def gaussian_kernel(a: Float[Tensor, "n d"], b: Float[Tensor, "m d"], gamma: float) -> Float[Tensor, "n m"]:
    """exp(-gamma |a_i - b_j|²), float64, some rows at a time.

    Args:
        a: float64 rows.
        b: float64 rows.
        gamma: how fast it falls.
    """
    out = a.new_empty(len(a), len(b))
    for rows, part in zip(out.split(ROWS), a.split(ROWS), strict=True):
        rows.copy_(part.square().sum(1, keepdim=True) + b.square().sum(1)).addmm_(part, b.T, alpha=-2)
        rows.clamp_(min=0).mul_(-gamma).exp_()
    return out
