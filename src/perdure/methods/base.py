"""What a method's file starts from: ``Method``, and two kinds of it with most of the work done."""

from __future__ import annotations

import abc
import dataclasses as dc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from perdure.backbone import Backbone
from perdure.data import LabelledImages, Task
from perdure.learned import learned_module
from perdure.memory import Features
from perdure.methods.base_method import INITIAL as INITIAL
from perdure.methods.base_method import TRAINING as TRAINING
from perdure.methods.base_method import C as C
from perdure.methods.base_method import Method as Method
from perdure.methods.base_method import methods as methods
from perdure.modules.heads import GrowingLinear
from perdure.tags import Tags as Tags
from perdure.train.batches import Batch, Queries
from perdure.train.prompting import PromptTests
from perdure.train.session import on_images
from perdure.train.settings import ImageTraining


class FeatureMethod(Method[C]):
    """A method that decides from frozen features alone, and so reads them from the store."""

    @property
    def embedder(self) -> Backbone:
        """Whose features they are; after the first task it must not change."""
        return self.backbone

    def _adapt(self, task: Task) -> None:
        """Called before a task's features are taken; for methods whose embedder adapts to the first task."""

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        self._adapt(task)
        features = self.store.features(self.embedder, task.train, label="train features")
        self._learn_features(features, self.columns(task.train.labels), rng)

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._scores_from_features(self.embedder.features(images).cpu())

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """One backbone pass per image ever."""
        for batch in self.store.features(self.embedder, data, label="test features").batches():
            with torch.no_grad():
                yield self._scores_from_features(batch)

    @abc.abstractmethod
    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        """Learns from a task's features, row i belonging to score column ``columns[i]``."""

    @abc.abstractmethod
    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Scores of a batch of features, without changing anything."""


class PromptMethod(Method[C]):
    """A method that lays prompts beside an image's tokens in a frozen backbone; ``setup`` makes its ``tests``."""

    head_: Any = learned_module(GrowingLinear.STATE, "the classifier")
    tests: PromptTests

    @property
    def promises(self) -> Tags:
        """As every method's; an image's scores depend on the test batch where images choose together."""
        return dc.replace(self.tags, depends_on_test_batch=self.tests.together is not None)

    def _train(
        self,
        task: Task,
        config: ImageTraining,
        rng: torch.Generator,
        loss: Callable[[Batch], Tensor],
        learns: Iterable[Any],
        queries: Queries | None = None,
    ) -> None:
        """Trains modules and parameters on a task's images; see :func:`perdure.train.session.on_images`."""
        on_images(
            self.backbone, task.train, self.columns(task.train.labels), config, rng, self.store, fast=learns,
            stage="learning prompts", prompted=True, queries=queries,
        ).run(loss)  # fmt: skip

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self.tests.scores(images)

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        return self.tests.scores_of(data)
