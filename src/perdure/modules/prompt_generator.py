"""A block's prompt generator: prompt tokens made from the tokens that enter the block, scaled and shifted by task.

Source: Jung et al., "Generating Instance-level Prompts for Rehearsal-free Continual Learning" (ICCV 2023), section 4.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from perdure.errors import ShapeError

MixerInit = Literal["zeros", "normal_1e-2"]


class PromptGenerator(nn.Module):
    """LayerNorm, a token mixer W, c from n tokens to m, and FiLM from a task embedding to a scale and a shift.

    Args:
        n_tokens: tokens of the block's input (n), prefix tokens included; fixed for good.
        n_prompts: prompt tokens to make (m).
        dim: width D.
        embedding_dim: width e of a task embedding.
        mixer_init: W and c of zeros, which keeps all m prompts equal for ever, or W from N(0, 0.01²) and c of zeros.
        rng: where initial values come from.
    """

    def __init__(
        self, n_tokens: int, n_prompts: int, dim: int, embedding_dim: int, mixer_init: MixerInit, rng: torch.Generator
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        mixer = torch.zeros(n_prompts, n_tokens)
        if mixer_init == "normal_1e-2":
            mixer = 0.01 * torch.randn(n_prompts, n_tokens, generator=rng)
        self.mixer_weight = nn.Parameter(mixer)  # W
        self.mixer_bias = nn.Parameter(torch.zeros(n_prompts))  # c
        bound = embedding_dim**-0.5
        film = bound * (2 * torch.rand(2 * dim, embedding_dim + 1, generator=rng) - 1)
        self.film_weight = nn.Parameter(film[:, :-1].clone())
        self.film_bias = nn.Parameter(film[:, -1].clone())

    def set_learning(self, *, mixer: bool) -> None:
        """Norm and FiLM learn; whether the token mixer does too is said here."""
        self.requires_grad_(True)
        self.mixer_weight.requires_grad_(mixer)
        self.mixer_bias.requires_grad_(mixer)

    def modulation(self, embeddings: Float[Tensor, "s e"]) -> tuple[Float[Tensor, "s d"], Float[Tensor, "s d"]]:
        """Scale γ and shift β of each task embedding, both of length 1."""
        raw = F.linear(embeddings, self.film_weight, self.film_bias)
        scale, shift = raw.chunk(2, dim=1)
        return over_its_length(scale), over_its_length(shift)

    def forward(
        self, x: Float[Tensor, "b n d"], scale: Float[Tensor, "r d"], shift: Float[Tensor, "r d"]
    ) -> Float[Tensor, "b m d"]:
        """γ ⊙ (W norm(x) + c) + β.

        Args:
            x: the block's input without any prompt.
            scale: γ; r is b, or 1 for all images alike.
            shift: β.

        Raises:
            ShapeError: if there are not n tokens.
        """
        n = self.mixer_weight.shape[1]
        if x.shape[1] != n:
            hint = "Use the image size of training: it is fixed in the token mixers"
            raise ShapeError("PromptGenerator", "tokens of an image", f"{n}", x.shape[1], hint)
        # not matmul: its kernel, and so the last bits, depend on whether the mixer still learns
        mixed = torch.bmm(self.mixer_weight.expand(len(x), -1, -1), self.norm(x)) + self.mixer_bias[:, None]
        return scale[:, None] * mixed + shift[:, None]


class PromptGenerators(nn.ModuleList):
    """A generator for each of the first blocks.

    Args:
        n_blocks: how many.
        shape: see :class:`PromptGenerator`, as what follows.
    """

    def __init__(self, n_blocks: int, *shape: Any) -> None:
        super().__init__(PromptGenerator(*shape) for _ in range(n_blocks))

    @property
    def each(self) -> list[PromptGenerator]:
        """In the order of blocks."""
        return [generator for generator in self if isinstance(generator, PromptGenerator)]

    def set_learning(self, *, mixer: bool) -> None:
        """As of one."""
        for generator in self.each:
            generator.set_learning(mixer=mixer)

    def of(
        self, embeddings: Float[Tensor, "s e"], slots: Int[Tensor, " b"] | None = None
    ) -> list[Callable[[Tensor], Tensor]]:
        """What makes each block's prompts from its input; the modulation is computed once per embedding.

        Args:
            embeddings: of the tasks in question; one serves all images.
            slots: each image's row of ``embeddings``.
        """
        made: list[Callable[[Tensor], Tensor]] = []
        for generator in self.each:
            scale, shift = generator.modulation(embeddings)
            if slots is not None:
                scale, shift = scale[slots], shift[slots]
            made.append(functools.partial(generator, scale=scale, shift=shift))
        return made


def over_its_length(rows: Float[Tensor, "s d"]) -> Float[Tensor, "s d"]:
    """Rows over their Euclidean length, taken as a constant: the gradient keeps its radial part, so lengths learn.

    ``F.normalize`` gives the same values, but its gradient has no radial part.
    """
    length = rows.detach().norm(dim=1, keepdim=True)
    return rows / length.clamp(min=1e-12)
