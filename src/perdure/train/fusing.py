"""How PROOF trains: what learns in a task, what stands still, and what its released code does to both."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.config import MethodConfig
from perdure.modules.cross_modal import CrossModal
from perdure.train.batches import Rows
from perdure.train.replay import Budget
from perdure.train.session import Session
from perdure.train.settings import SGD, EpochCosine, Optimizer, Schedule, Training
from perdure.types import Progress

MOST = math.log(100)


class FusedTraining(Training):
    """Of the newest projections and prompts, of the fusion and of the logit scale."""

    lr: float = Field(1e-3, gt=0, description="peak learning rate")
    epochs: int = Field(5, ge=1, description="passes over the images of a task and those kept")
    batch_size: int = Field(64, ge=1, description="images per step")
    optimizer: Optimizer = Field(SGD(weight_decay=0.05), description="new at every task")
    schedule: Schedule = Field(EpochCosine(), description="of the learning rate")
    accumulate: Literal[1] = Field(1, description="a step's images pass together: they are compared with one another")
    texts: Literal["ensemble", "first"] = Field("ensemble", description="all templates, or, as released, the first")
    pairs: Literal["one_positive", "multi_positive"] = Field(
        "one_positive", description="whether texts of an image's class count as wrong where they stand for other images"
    )
    freeze_old_text: bool = Field(True, description="false, as released: all text projections learn")
    decay_frozen: bool = Field(False, description="true, as released with PyTorch 1: what stands still decays")
    hold_scale: bool = Field(True, description="the logit scale stays below 100 without decay; false: as released")


class Fusing(MethodConfig):
    """Settings of a method that fuses names, prototypes and images."""

    train: FusedTraining = Field(FusedTraining(), description="on cached embeddings")
    memory: Budget = Field(Budget(), description="images kept of earlier tasks")
    n_prompts: int = Field(3, ge=0, description="context prompts of each task")
    dropout: float = Field(0.1, ge=0, lt=1, description="of attention weights and the fusion's outputs")
    fusion: Literal["per_sample", "batch_mean"] = Field(
        "per_sample", description="fused rows of each image, or, as released, their mean over a batch, in tests too"
    )
    score_mode: Literal["cosine", "reference"] = Field(
        "cosine", description="a test's three terms: cosines times the logit scale, or inner products, as released"
    )
    projected: float = Field(1.0, ge=0, description="weight of the projected term in a test's scores")
    normalise_tests: bool = Field(True, description="false, as released: only training normalises projected images")


class Learner:
    """What learns in one task, and what of it is a plain tensor in the state.

    Args:
        network: gets a new projection on each side, which learns; of the text side's, all may.
        contexts: prompts of earlier tasks.
        log_scale: where the logit scale starts.
        rng: a CPU generator; new prompts are N(0, 1).
    """

    def __init__(
        self,
        network: CrossModal,
        contexts: Float[Tensor, "tasks prompts d"],
        log_scale: Float[Tensor, ""],
        rng: torch.Generator,
    ) -> None:
        self.network, self.rng = network, rng
        for side in (network.image, network.text):
            side.add(rng)
        device = network.fusion.norm.weight.device
        self.old = nn.Parameter(contexts.to(device, copy=True), requires_grad=False)
        self.new = nn.Parameter(torch.randn(1, *contexts.shape[1:], generator=rng).to(device))
        self.log_scale = nn.Parameter(log_scale.to(device, copy=True))

    @property
    def contexts(self) -> Float[Tensor, "tasks prompts d"]:
        """The prompts of all tasks, with gradient to the new ones."""
        return torch.cat([self.old, self.new])

    @property
    def scale(self) -> Float[Tensor, ""]:
        """The logit scale, with gradient."""
        return self.log_scale.exp()

    def run(
        self, loss: Callable[[Int[Tensor, " b"]], Tensor], n: int, c: FusedTraining, progress: Progress
    ) -> tuple[Float[Tensor, "tasks prompts d"], Float[Tensor, ""]]:
        """Trains.

        Args:
            loss: of the rows at some positions.
            n: how many rows there are.
            c: the settings.
            progress: called after every step.

        Returns:
            The prompts and the logarithm of the scale, for the state.
        """
        image, text = list(self.network.image.parts), list(self.network.text.parts)
        texts = text[-1:] if c.freeze_old_text else text
        rest = [*image[:-1], *text[: -len(texts)]]
        still = [self.old, *(p for part in rest for p in part.parameters())] if c.decay_frozen else []

        def no_gradient() -> None:
            for p in still:  # the optimiser passes over a parameter without any
                p.grad = torch.zeros_like(p)

        def hold() -> None:
            if c.hold_scale:
                self.log_scale.data.clamp_(max=MOST)

        fast, scale = [image[-1], *texts, self.network.fusion, self.new, *still], [self.log_scale]
        kinds = {"fast": fast, "undecayed": scale} if c.hold_scale else {"fast": [*fast, *scale]}
        session = Session(Rows(n, c), c, self.rng, stage="learning to fuse", progress=progress, **kinds)
        session.run(loss, after_backward=no_gradient, after_step=hold)
        return self.contexts.detach().cpu(), self.log_scale.detach().cpu()
