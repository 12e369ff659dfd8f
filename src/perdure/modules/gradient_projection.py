"""The gradient nearest to a given one along which no loss of a memory rises, to first order.

Source: Lopez-Paz & Ranzato, "Gradient Episodic Memory for Continual Learning", NeurIPS 2017, section 3: one constraint
per memory, a quadratic program. Chaudhry, Ranzato, Rohrbach & Elhoseiny, "Efficient Lifelong Learning with A-GEM", ICLR
2019, section 4: one constraint in all, in closed form.
Both projections grow with the gradient: a factor on the result, as clipping has, leaves every constraint kept.
Cost: for t memories and p parameters t (t + 2) p products where the gradients are, and a program of t numbers on the
CPU; if no constraint is violated, t p products.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from scipy.optimize import nnls
from torch import Tensor

from perdure.config import Config
from perdure.errors import TrainingError

NO_GRADIENT = 1e-12
"""The squared norm below which the gradient of a mean loss is float32 noise, and constrains nothing."""


class Projection(Config):
    """How far a step keeps away from harm."""

    margin: float = Field(
        0.0, ge=0, description="what a step that would do harm follows every memory's gradient by at least (γ)"
    )
    margin_mode: Literal["bound", "added"] = Field(
        "bound", description="γ bounds the solution of the dual, as in all code, or is added to it, as in the paper"
    )
    ridge: float = Field(1e-6, ge=0, description="on the diagonal of the gradients' inner products (ε)")
    ridge_unit: Literal["relative", "absolute"] = Field(
        "relative", description="ε in units of each gradient's squared norm, or as it is"
    )


def project(g: Float[Tensor, " p"], memories: Float[Tensor, "t p"], how: Projection) -> Float[Tensor, " p"] | None:
    """GEM's: ``g + Gᵀv`` with ``v`` from :func:`dual`, as soon as one inner product of g and a row is below zero.

    Args:
        g: the gradient of a step.
        memories: G, the gradient on each memory; a row that is almost zero is passed over.
        how: margin and ridge.

    Returns:
        None where nothing is violated: the step is to be taken as it is.

    Raises:
        TrainingError: if a gradient is no longer finite.
    """
    products = _finite(memories @ g)
    if not bool((products < 0).any()):
        return None
    gram = (memories @ memories.T).double().cpu().numpy()
    constrains = np.diagonal(gram) >= NO_GRADIENT
    c, v = products.double().cpu().numpy()[constrains], np.zeros(len(gram))
    if not (c < 0).any():
        return None
    v[constrains] = dual(gram[np.ix_(constrains, constrains)], c, how)
    return g + torch.from_numpy(v).to(g) @ memories


def project_on_one(g: Float[Tensor, " p"], memory: Float[Tensor, " p"]) -> Float[Tensor, " p"] | None:
    """A-GEM's: g without its part against the one gradient, if there is one.

    Args:
        g: the gradient of a step.
        memory: the gradient on the memory.

    Returns:
        None where nothing is violated: the step is to be taken as it is.

    Raises:
        TrainingError: if a gradient is no longer finite.
    """
    product, square = _finite(memory @ g), memory @ memory
    if not bool((product < 0) & (square >= NO_GRADIENT)):
        return None
    return g - product / square * memory


def dual(gram: Float[np.ndarray, "t t"], products: Float[np.ndarray, " t"], how: Projection) -> Float[np.ndarray, " t"]:
    """v that minimises ``½ vᵀ(GGᵀ + R)v + (Gg)ᵀv`` under ``v ≥ γ``: a non-negative least-squares problem in v - γ.

    It is solved for gradients of norm 1, so that neither the solution nor a relative ridge depends on a row's length.

    Args:
        gram: GGᵀ in float64, its diagonal above zero; rows may depend on each other.
        products: Gg.
        how: margin and ridge.
    """
    squares = np.diagonal(gram)
    norms = np.sqrt(squares)
    q = gram + how.ridge * np.diag(squares if how.ridge_unit == "relative" else np.ones_like(squares))
    q /= np.outer(norms, norms)
    least = how.margin * norms if how.margin_mode == "bound" else np.zeros_like(norms)
    values, vectors = np.linalg.eigh(q)
    spans = values > len(q) * np.finfo(np.float64).eps * values[-1]
    roots, axes = np.sqrt(values[spans]), vectors.T[spans]
    above, _ = nnls(roots[:, None] * axes, -(axes @ (products / norms + q @ least)) / roots, maxiter=100 * len(q))
    v: Float[np.ndarray, " t"] = (least + above) / norms + (how.margin if how.margin_mode == "added" else 0.0)
    return v


def _finite(products: Tensor) -> Tensor:
    if not bool(products.isfinite().all()):
        got = [round(x, 4) for x in products.flatten().tolist()]
        raise TrainingError("train", "inner products of gradients", "finite", got, "Lower lr")
    return products
