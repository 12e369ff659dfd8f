"""A prompt method that does nothing but what prompt methods share, and a stream for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from perdure import Backbone, FeatureStore, Stream, Task
from perdure.backbone import Prompt
from perdure.config import MethodConfig
from perdure.data import LabelledImages
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods.base import PromptMethod
from perdure.modules.heads import GrowingLinear, HeadInit, linear_scores
from perdure.modules.losses import masked_cross_entropy
from perdure.modules.prompts import TaskBlocks
from perdure.train.batches import Batch, Queries
from perdure.train.prompting import LOGITS, QUERY_VIEW, TRAIN, VOTE, Logits, PromptTests, Vote, columns_in_loss
from perdure.train.settings import ImageTraining

IDS = [70, -3, 12, 5, 8, 1]
STILL = {"flip": False, "min_scale": 1.0}  # every view is the eval view


class PlainConfig(MethodConfig):
    """One batch is six images; a test's votes can be asked for."""

    train: ImageTraining = Field(TRAIN.but(batch_size=6, epochs=2), description="of tokens and head")
    head_init: HeadInit = Field("normal_0.02", description="initial weights of new classes")
    logits: Logits = LOGITS
    query_view: Queries = QUERY_VIEW
    vote: Vote | None = VOTE
    on_train_queries: bool = Field(True, description="whether training takes queries")


class Seen(NamedTuple):
    """A training batch, and what was made of it."""

    embedded: Tensor  # (b, n, d)
    queries: Tensor | None  # (b, d)
    columns: Tensor  # (b,)
    stored: Tensor | None  # (b, d) queries that came with the batch


class Plain(PromptMethod[PlainConfig]):
    """A prompt token per task; what it reads in a test is shifted by the batch's mean query where the batch votes."""

    Config = PlainConfig
    uses_queries: ClassVar[bool] = True

    def setup(self) -> None:
        self.head_ = GrowingLinear(self.backbone.dim).to(self.backbone.device)
        self.tokens_ = TaskBlocks().to(self.backbone.device)
        self.batches: list[Seen] = []
        self.tested: list[Tensor] = []
        self.tests = PromptTests(
            self.backbone, self.store, self._test_logits,
            queries=self.uses_queries, vote=self.config.vote, seed=self.seed,
        )  # fmt: skip

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, columns = self.config, self.columns(task.train.labels)
        self.head_.grow(len(self.classes_), rng, c.head_init)
        self.tokens_.add(torch.randn(1, self.backbone.dim, generator=rng))
        compared, wanted = columns_in_loss(columns, c.logits), c.on_train_queries and self.uses_queries

        def loss(batch: Batch) -> Tensor:
            embedded = batch.embedded(self.backbone)
            queries = batch.queries(self.backbone, embedded) if wanted else None
            self.batches.append(Seen(embedded, queries, batch.columns, batch.rows))
            return masked_cross_entropy(self.head_(self._prompted(embedded).float()), batch.columns, compared)

        self._train(task, c.train, rng, loss, [self.head_, self.tokens_.newest], c.query_view if wanted else None)

    def _test_logits(self, embedded: Tensor, queries: Tensor) -> Tensor:
        self.tested.append(queries)
        shift = queries.mean(0) if self.promises.depends_on_test_batch else 0
        return linear_scores(self._prompted(embedded) + shift, self.head_)

    def _prompted(self, embedded: Tensor) -> Tensor:
        return self.backbone.pool(self.backbone.walk(embedded, {0: Prompt(self.tokens_()[None], stays=True)}))


class WithoutQueries(Plain):
    """As above, but no query is ever asked for."""

    uses_queries: ClassVar[bool] = False


def three_tasks() -> Stream:
    """Three tasks of two classes, twelve training and eight test images each."""
    return class_incremental(synthetic_dataset(IDS, train_per_class=6, test_per_class=4), [2, 2, 2], IDS)


def mixed(task: Task) -> Task:
    """The same task, its images in turn by class, as they must be stored where nothing shuffles them."""
    n = len(task.train)
    return Task(task.index, task.train.subset(np.arange(n).reshape(len(task.classes), -1).T.ravel()), task.classes)


def plain(
    vit: Backbone,
    kind: type[Plain] = Plain,
    *,
    seed: int = 0,
    store: FeatureStore | None = None,
    augment: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    **config: Any,
) -> Plain:
    """The method, with settings of its sections given by themselves."""
    sections = {"train": {**(train or {}), "augment": augment or {}}}
    return kind(vit, PlainConfig(**sections, **config), seed=seed, store=store)


def pixels(vit: Backbone, data: LabelledImages) -> Tensor:
    """The eval views of all images of ``data``."""
    return torch.cat([x for _, x in data.batches(vit.preprocess, 64)])


def passes(vit: Backbone, what: Callable[[], object]) -> int:
    """How many images ``what`` sends through the backbone."""
    before = vit.passes.images
    what()
    return vit.passes.images - before
