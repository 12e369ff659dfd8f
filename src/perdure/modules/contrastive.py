"""The loss that a CLIP is trained with, between images and the texts of their classes."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def contrastive(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    columns: Int[Tensor, " b"],
    scale: float | Float[Tensor, ""],
    *,
    multi_positive: bool = False,
) -> Float[Tensor, ""]:
    """Half the sum of two cross-entropies: each image among the batch's texts, and each text among its images.

    Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021.

    Args:
        images: of length 1.
        texts: of length 1, each image's class's.
        columns: of the images' classes.
        scale: of the cosines.
        multi_positive: an image's pairs are all texts of its class, and their probabilities are added; else its own
            alone, and others of its class count as wrong.
    """
    logits, pairs = scale * images @ texts.T, torch.eye(len(images), dtype=torch.bool, device=images.device)
    if multi_positive:
        pairs = columns[:, None] == columns
    ways = [x.logsumexp(1) - x.masked_fill(~pairs, -torch.inf).logsumexp(1) for x in (logits, logits.T)]
    return (ways[0].mean() + ways[1].mean()) / 2
