"""Two classifiers' scores as one: added by a learned share or by a gate, and a loss that weighs old and new classes.

Source: Chen, Wu, Han, Jia & Jiang, "PromptFusion: Decoupling Stability and Plasticity for Continual Learning", ECCV
    2024 (arXiv 2303.07223). The two are its Stabilizer, a prompted CLIP, and its Booster, a prompted ViT.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.config import Config
from perdure.modules.heads import float64

Sign = Literal["code", "figure"]


class LearnedShare(nn.Module):
    """z = (1 - sigmoid(lambda)) z_S + sigmoid(lambda) z_B, with a learned lambda.

    Args:
        sign: ``figure`` gives sigmoid(lambda) to z_S instead.
    """

    def __init__(self, sign: Sign) -> None:
        super().__init__()
        self.sign, self.balance = sign, nn.Parameter(torch.ones(1))

    def forward(self, stable: Float[Tensor, "b c"], boost: Float[Tensor, "b c"]) -> Float[Tensor, "b c"]:
        share = torch.sigmoid(self.balance if self.sign == "code" else -self.balance).to(stable)
        return (1 - share) * stable + share * boost

    def trained(
        self, unit: Tensor, stable: Float[Tensor, "b c"], boost: Float[Tensor, "b c"], before: nn.Module | None,
        rng: torch.Generator,
    ) -> tuple[Float[Tensor, "b c"], Float[Tensor, ""]]:  # fmt: skip
        """z in training, and what is added to the loss: nothing."""
        return self(stable, boost), stable.new_zeros(())

    def asks(self, embeddings: Float[Tensor, "b d"]) -> Bool[Tensor, " b"]:
        """Whether the booster is asked: always."""
        return torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)

    def tested(
        self, stable: Float[Tensor, "b c"], boost: Float[Tensor, "asked c"], asked: Bool[Tensor, " b"]
    ) -> Float[Tensor, "b c"]:
        """z in tests."""
        return self(stable, boost)


class Lite(Config):
    """A gate decides image by image whether the booster is asked at all: z = z_S + g z_B."""

    rate: float = Field(0.4, ge=0, le=1, description="share of images for which it should be asked (gamma)")
    rate_weight: float = Field(0.3, ge=0, description="of (mean g - gamma)² beside the cross-entropy (Lambda)")
    distil: float = Field(0.1, ge=0, description="of the KL divergence from the last task's gate (Delta)")
    temperature: float = Field(3.0, gt=0, description="of the Gumbel softmax in training (tau)")
    hidden: int = Field(100, ge=1, description="units of the gate's hidden layer")


class Gate(nn.Module):
    """Two logits of an embedding, (ask, do not), by one hidden layer with tanh.

    Args:
        dim: of an embedding.
        config: its settings.
        rng: where the initial weights come from, U(±1/√n) as in ``torch.nn.Linear``.
    """

    def __init__(self, dim: int, config: Lite, rng: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.hidden = nn.utils.skip_init(nn.Linear, dim, config.hidden)
        self.out = nn.utils.skip_init(nn.Linear, config.hidden, 2)
        for layer in (self.hidden, self.out):
            for values in layer.parameters():
                nn.init.uniform_(values, -(layer.in_features**-0.5), layer.in_features**-0.5, generator=rng)

    def forward(self, embeddings: Float[Tensor, "b d"]) -> Float[Tensor, "b 2"]:
        hidden = torch.tanh(F.linear(embeddings, self.hidden.weight.to(embeddings), self.hidden.bias.to(embeddings)))
        return F.linear(hidden, self.out.weight.to(embeddings), self.out.bias.to(embeddings))

    def trained(
        self, unit: Float[Tensor, "b d"], stable: Float[Tensor, "b c"], boost: Float[Tensor, "b c"],
        before: nn.Module | None, rng: torch.Generator,
    ) -> tuple[Float[Tensor, "b c"], Float[Tensor, ""]]:  # fmt: skip
        """z = z_S + g z_B in training, and what is added to the loss.

        Args:
            unit: embeddings of length 1.
            stable: z_S.
            boost: z_B.
            before: the last task's gate; None in the first task.
            rng: a CPU generator.
        """
        logits = self(unit)
        asked = self.drawn(logits, rng)
        with torch.no_grad():
            known = None if before is None else before(unit)
        return stable + asked[:, None] * boost, self.loss(asked, logits, known)

    def asks(self, embeddings: Float[Tensor, "b d"]) -> Bool[Tensor, " b"]:
        """Whether the booster is asked, without noise. In float64: an image's answer must not depend on its batch.

        Args:
            embeddings: of any length.
        """
        logits = self(F.normalize(float64(embeddings), dim=1))
        return (logits[:, 0] >= logits[:, 1]).to(embeddings.device)

    def tested(
        self, stable: Float[Tensor, "b c"], boost: Float[Tensor, "asked c"], asked: Bool[Tensor, " b"]
    ) -> Float[Tensor, "b c"]:
        """z in tests.

        Args:
            stable: z_S.
            boost: z_B of those images alone for which it was asked.
            asked: from :meth:`asks`.
        """
        fused = stable.clone()
        fused[asked] += boost
        return fused

    def drawn(self, logits: Float[Tensor, "b 2"], rng: torch.Generator) -> Float[Tensor, " b"]:
        """g: 1 or 0 with Gumbel noise, and the gradient of the softmax that it came from.

        Args:
            logits: from :meth:`forward`.
            rng: a CPU generator.
        """
        noise = -torch.empty(logits.shape).exponential_(generator=rng).log()
        soft = ((logits + noise.to(logits)) / self.config.temperature).softmax(1)[:, 0]
        return (soft >= 0.5).to(soft) + (soft - soft.detach())

    def loss(
        self, asked: Float[Tensor, " b"], logits: Float[Tensor, "b 2"], before: Float[Tensor, "b 2"] | None
    ) -> Float[Tensor, ""]:
        """What is added to the cross-entropy.

        Args:
            asked: from :meth:`drawn`.
            logits: from :meth:`forward`.
            before: those of the last task's gate, without gradient; None in the first task.
        """
        c = self.config
        rate = c.rate_weight * (asked.mean() - c.rate).square()
        if before is None:
            return rate
        new, old = (F.log_softmax(x / 2, dim=1) for x in (logits, before))
        return rate + c.distil * F.kl_div(new, old, reduction="batchmean", log_target=True)


class ClassWeights(nn.Module):
    """What old and new classes weigh in the loss: theta / sigmoid(beta), theta = t / 2, and sigmoid(alpha).

    Args:
        task: t, counted from 0; in task 0 all weigh 1.
        n_old: classes of earlier tasks; their beta is new at every task.
        n_new: the task's new classes.
        alpha: of the last task's new classes: one row for all images, or one row for each place in a batch. A new
            class goes on from that of the same place in the last task, and from 1 where there was none.
    """

    def __init__(self, task: int, n_old: int, n_new: int, alpha: Float[Tensor, "rows _last"]) -> None:
        super().__init__()
        self.theta = task / 2
        self.alpha = nn.Parameter(torch.cat([alpha, alpha.new_ones(len(alpha), n_new)], dim=1)[:, :n_new])
        self.beta = nn.Parameter(alpha.new_ones(len(alpha), n_old))

    def forward(self) -> Float[Tensor, "rows classes"]:
        return torch.cat([self.theta / torch.sigmoid(self.beta), torch.sigmoid(self.alpha)], dim=1)

    def loss(self, logits: Float[Tensor, "b classes"], columns: Int[Tensor, " b"]) -> Float[Tensor, ""]:
        """The cross-entropy, each image's multiplied with its class's weight; a mean over images, not over weights.

        Args:
            logits: of all classes seen.
            columns: the true ones.
        """
        each = F.cross_entropy(logits, columns, reduction="none")
        if not self.theta:
            return each.mean()
        rows = self()
        weights = rows.expand(len(columns), -1) if len(rows) == 1 else rows[: len(columns)]
        return (weights.gather(1, columns[:, None])[:, 0] * each).mean()

    @property
    def learned_alpha(self) -> Float[Tensor, "rows _new"]:
        """What the next task goes on from; empty behind task 0, in which nothing of it learns."""
        return self.alpha.detach().cpu()[:, : None if self.theta else 0]
