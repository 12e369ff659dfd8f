"""Losses shared by methods."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.config import Config


def masked_cross_entropy(
    logits: Float[Tensor, "b classes"], columns: Int[Tensor, " b"], current: Int[Tensor, " c"] | None
) -> Float[Tensor, ""]:
    """Cross-entropy over the columns ``current`` alone; the other columns' weights get a gradient of exactly zero.

    Args:
        logits: of all classes seen.
        columns: the true ones, among ``current``.
        current: ascending, on any device; None: all columns.
    """
    if current is None:
        return F.cross_entropy(logits, columns)
    compared = current.to(columns.device)
    return F.cross_entropy(logits[:, compared], torch.searchsorted(compared, columns))


def distillation(teacher: Float[Tensor, "n c"], student: Float[Tensor, "n c"], temperature: float) -> Float[Tensor, ""]:
    """``T² * mean CE(softmax(teacher / T), softmax(student / T))``: its floor is the teacher's entropy, not zero.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015.

    Args:
        teacher: logits, row by row.
        student: logits of the same things.
        temperature: T.
    """
    return temperature**2 * F.cross_entropy(student / temperature, (teacher / temperature).softmax(1))


def norm_scaled(logits: Float[Tensor, "b c"], blocks: Float[Tensor, "c t"], tau: float) -> Float[Tensor, "b c"]:
    """``l / (tau nu)`` with nu the mean over tasks of (the norm of a task's logits + 1e-7); gradient flows through nu.

    Source: Zhang et al., "SLCA", ICCV 2023, its released code.

    Args:
        logits: of all classes.
        blocks: one-hot, each class's task.
        tau: temperature.
    """
    norms = (logits.square() @ blocks).clamp(min=1e-24).sqrt() + 1e-7
    return logits / (tau * norms.mean(1, keepdim=True))


def own_index_loss(rows: Float[Tensor, "n d"], temperature: float = 0.8) -> Float[Tensor, ""]:
    """Cross-entropy over the rows of ``M Mᵀ / temperature``, every row's target being itself: rows should differ.

    Source: Sun et al., "MOS", AAAI 2025, its released code; rows are not normalised.

    Args:
        rows: M, class means and features.
        temperature: of the inner products.
    """
    return F.cross_entropy(rows @ rows.T / temperature, torch.arange(len(rows), device=rows.device))


class Anchor(Config):
    """Holds logits at one level, about which cross-entropy says nothing: weight * mean (E + depth)².

    Source: Wang et al., "Isolation and Impartial Aggregation", AAAI 2023; ``softmin`` is in its released code.
    """

    form: Literal["softmin", "softmax"] = Field(
        "softmin",
        description="of E, of logits z: -log sum exp(-beta z) / beta, or -log sum exp(beta z) / beta",
    )
    weight: float = Field(0.1, ge=0, description="of (E + depth)² beside the cross-entropy (lambda)")
    depth: float = Field(10.0, ge=0, description="E is pulled to minus this (minus Delta)")
    beta: float = Field(1.0, gt=0, description="one over the temperature of E (not the vote's)")

    def energies(self, logits: Float[Tensor, "b c"]) -> Float[Tensor, " b"]:
        """E of every image."""
        sign = -1.0 if self.form == "softmin" else 1.0
        return -torch.logsumexp(sign * self.beta * logits, 1) / self.beta

    def loss(self, logits: Float[Tensor, "b c"]) -> Float[Tensor, ""]:
        """What is added to the cross-entropy."""
        return self.weight * (self.energies(logits) + self.depth).square().mean()


def separation(
    samples: Float[Tensor, "pairs m d"], own: Float[Tensor, "pairs d"], other: Float[Tensor, "pairs d"], margin: float
) -> Float[Tensor, ""]:
    """Mean of max(cos(sample, other) - cos(sample, own) + margin, 0); 0 without any.

    Args:
        samples: of each pair.
        own: the text of length 1 that a pair's samples belong to.
        other: the one that they are to be kept from.
        margin: least difference of the cosines.
    """
    if not samples.numel():
        return samples.sum()
    gaps = torch.einsum("pmd,pd->pm", F.normalize(samples, dim=-1), other - own)
    return F.relu(gaps + margin).mean()
