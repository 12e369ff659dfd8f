"""Joint: a linear probe retrained after every task on the cached features of all images seen so far.

Source: multinomial logistic regression on frozen features, as in Kornblith, Shlens & Le, "Do Better ImageNet Models
    Transfer Better?", CVPR 2019, section 3. The rival every practitioner has; no continual-learning paper's method.
Use when: features of old images may be kept.
Deviations:
- From the paper: AdamW on standardised features in mini-batches stands for L-BFGS.
- Learning rate and epochs are of no paper: ``benchmarks/search_baselines.py`` found them on held-out training images.
Relations: the upper reference on a frozen backbone; RanPAC reaches about as much and keeps nothing per image.
Cost: F is a frozen forward pass. Any image: F once ever. ``train.epochs`` epochs of a linear head per task.
    State: 4 d + 8 bytes per training image.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.config import MethodConfig
from perdure.learned import learned, learned_module
from perdure.memory import Features
from perdure.methods.base import FeatureMethod, Tags, methods
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.train.batches import Rows
from perdure.train.session import Session
from perdure.train.settings import AdamW, Training

TRAIN = Training(lr=3e-4, epochs=20, batch_size=128, optimizer=AdamW(weight_decay=1e-2))


class JointConfig(MethodConfig):
    """Settings of the linear probe."""

    train: Training = Field(TRAIN, description="of the head, on all cached features, at every task")


@methods.register("joint")
class Joint(FeatureMethod[JointConfig]):
    """Logistic regression on everything seen, from scratch at every task."""

    Config = JointConfig
    tags: ClassVar = Tags(keeps_data=True, learns={"train": {"lr": 0.03}})

    features_: Tensor = learned("images, d", torch.float32, "of every image seen")
    columns_: Tensor = learned("images", torch.long, "of every image seen", below="classes")
    mean_: Tensor = learned("d", torch.float32, "mean of all features")
    scale_: Tensor = learned("d", torch.float32, "their standard deviation")
    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "the head")

    def setup(self) -> None:
        """No head."""
        self.head_ = GrowingLinear(self.backbone.dim)

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
        def loss(rows: Tensor) -> Tensor:
            x = self._standardised(self.features_[rows]).to(self.backbone.device)
            return F.cross_entropy(head(x), self.columns_[rows].to(x.device))

        c = self.config.train
        rows = Rows(len(self.columns_), c)
        Session(rows, c, rng, fast=head.parameters(), stage="linear probe", progress=self.store.progress).run(loss)

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return linear_scores(self._standardised(features), self.head_)

    def _standardised(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return (features - self.mean_) / self.scale_
