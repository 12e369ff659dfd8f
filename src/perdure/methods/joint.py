"""Joint: a linear probe retrained after every task on the cached features of all images seen so far.

Source: the rival every practitioner has (multinomial logistic regression on frozen features, as in Kornblith, Shlens &
    Le, "Do Better ImageNet Models Transfer Better?", CVPR 2019, section 3); no continual-learning paper's method.
Deviations: none; AdamW on standardised features in mini-batches stands for L-BFGS. Learning rate and epochs come from
    the search in ``benchmarks/search_baselines.py``, on held-out training images.
Use when: features of old images may be kept. Relations: the upper reference for methods on a frozen backbone; RanPAC
    reaches about as much without keeping anything per image.
Cost: one pass per image ever; keeps 4 d + 8 bytes per training image; ``epochs`` epochs of a linear head per task.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.backbone import Backbone
from perdure.config import MethodConfig
from perdure.memory import Features, FeatureStore
from perdure.methods.base import FeatureMethod, Tags, methods
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.train.loop import shuffled, train


class JointConfig(MethodConfig):
    """Settings of the linear probe."""

    lr: float = Field(3e-4, gt=0, description="peak learning rate of AdamW")
    epochs: int = Field(20, ge=1, description="passes over all cached features, per task")
    batch_size: int = Field(128, ge=1, description="features per step")
    weight_decay: float = Field(1e-2, ge=0, description="of weights and biases")


@methods.register("joint")
class Joint(FeatureMethod[JointConfig]):
    """Logistic regression on everything seen, from scratch at every task."""

    Config = JointConfig
    tags: ClassVar = Tags(keeps_data=True, learns={"lr": 0.03})

    def __init__(
        self,
        backbone: Backbone,
        config: JointConfig | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        self.features_ = torch.zeros(0, backbone.dim)  # (n, d) of every image seen
        self.columns_ = torch.zeros(0, dtype=torch.long)  # (n,)
        self.mean_ = torch.zeros(backbone.dim)
        self.scale_ = torch.ones(backbone.dim)
        self.head_ = GrowingLinear(backbone.dim)

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        self.features_ = torch.cat([self.features_, *features.batches()])
        self.columns_ = torch.cat([self.columns_, columns])
        self.mean_ = self.features_.double().mean(0).float()
        # a dimension that never varies is left alone
        deviation = (self.features_ - self.mean_).double().square().mean(0).sqrt().float()
        self.scale_ = torch.where(deviation > 0, deviation, 1.0)
        self.head_ = GrowingLinear(self.backbone.dim)
        self.head_.grow(len(self.classes_), rng)
        self._train(self.head_.to(self.backbone.device), rng)
        self.head_.cpu()

    def _train(self, head: GrowingLinear, rng: torch.Generator) -> None:
        c, device, n = self.config, self.backbone.device, len(self.columns_)

        def loss(rows: Tensor) -> Tensor:
            x = self._standardised(self.features_[rows]).to(device)
            return F.cross_entropy(head(x), self.columns_[rows].to(device))

        epochs: Iterator[Iterator[Tensor]] = (shuffled(n, c.batch_size, rng) for _ in range(c.epochs))
        n_steps = c.epochs * -(-n // c.batch_size)
        with torch.enable_grad():
            train(
                loss, head.parameters(), epochs,
                n_steps=n_steps, lr=c.lr, optimizer="adamw", weight_decay=c.weight_decay,
            )  # fmt: skip

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return linear_scores(self._standardised(features), self.head_)

    def _standardised(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return (features - self.mean_) / self.scale_
