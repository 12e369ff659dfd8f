"""What prompt methods hold: the defaults of their training, and tests in which an image's query is computed once.

Queries are the pooled features of the same frozen backbone without prompts. Those of test images are kept in the
feature store, and so is the patch embedding where that is a network itself. An image is tested on its own; published
protocols in which a test batch chooses together are a section, :class:`Vote`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.backbone.vit import check_vit
from perdure.config import Config
from perdure.data import LabelledImages, Task
from perdure.errors import ConfigError
from perdure.memory import Features, FeatureStore
from perdure.modules.prompts import cosine_match, unit
from perdure.train.batches import Batch, Queries
from perdure.train.settings import Adam, Augment, Constant, ImageTraining
from perdure.types import Event

Logits = Literal["current", "seen"]
Draw = Callable[[], Tensor]  # () -> (n, d) new keys
Scorer = Callable[[Tensor, Tensor], Tensor]  # (b, n, d) embedded images, (b, d) queries -> (b, classes)


class Vote(Config):
    """A published test: the images of a batch choose together, so that results depend on its composition."""

    batch_size: int = Field(16, ge=1, description="images that choose together")
    order: Literal["stored", "class_sorted", "shuffled"] = Field(
        "stored", description="in which test images form batches; class_sorted uses their labels"
    )


# what several prompt methods have among their settings
TRAIN = ImageTraining(
    lr=1e-3, epochs=5, batch_size=16, optimizer=Adam(), schedule=Constant(), clip_norm=1.0,
    augment=Augment(min_scale=0.5),
)  # fmt: skip
LOGITS: Any = Field("current", description="classes in the training loss: the task's own, or all seen")
QUERY_VIEW: Any = Field(
    "augmented", description="clean takes training queries from the eval view: cached, but changes results"
)
HEADS_APART = {"check_remembers_every_task": "its loss never compares classes of two tasks; within one it remembers"}
VOTE: Any = Field(None, description="test images that choose together, as published; none: each alone")


class TrainedKeys(Config):
    """Keys are pulled to the queries of their task's training images."""

    name: Literal["sgd"] = "sgd"
    pull: float = Field(1.0, ge=0, description="weight of the keys' own loss (lambda)")
    pull_over: Literal["mean", "sum"] = Field("mean", description="of the batch; the sum is b times as much")
    query_view: Queries = QUERY_VIEW
    learns: ClassVar[bool] = True

    def first(self, draw: Draw, mean_query: Draw, n: int) -> Float[Tensor, "n d"]:
        """A new task's keys: as drawn."""
        return draw()

    def loss(self, batch: Batch, embedded: Tensor, backbone: Backbone, keys: Float[Tensor, "k d"]) -> Tensor:
        """Minus the weighted cosines of a batch's queries with its task's keys.

        Args:
            batch: of training images.
            embedded: their inputs of block 0.
            backbone: the frozen one.
            keys: of the task.
        """
        match = cosine_match(batch.queries(backbone, embedded), keys).sum(1)
        return -self.pull * (match.sum() if self.pull_over == "sum" else match.mean())


class MeanKeys(Config):
    """A key is at once where training strives to: the mean of its task's normalised queries."""

    name: Literal["mean"] = "mean"
    query_view: ClassVar[None] = None
    learns: ClassVar[bool] = False

    def first(self, draw: Draw, mean_query: Draw, n: int) -> Float[Tensor, "n d"]:
        """A new task's keys: its mean query, n times."""
        return mean_query().float().expand(n, -1)

    def loss(self, batch: Batch, embedded: Tensor, backbone: Backbone, keys: Tensor) -> Tensor:
        """Zero: nothing pulls."""
        return embedded.new_zeros(())


Keys: TypeAlias = TrainedKeys | MeanKeys


def require_room(where: str, pool: int | None, needed: int, task: Task) -> None:
    """Checks that a pool has the slots that a task needs.

    Args:
        where: the method.
        pool: slots in all; None: no limit.
        needed: with the new task.
        task: the new one.

    Raises:
        ConfigError: if it has fewer.
    """
    if pool is not None and needed > pool:
        must_be = f"at least {needed} for task {task.index}"
        raise ConfigError(where, "pool", must_be, pool, f"Set method.pool={needed} or more")


def require_blocks(where: str, backbone: Backbone, **settings: Sequence[int]) -> None:
    """Checks settings that name blocks.

    Args:
        where: the method.
        backbone: a Vision Transformer.
        settings: blocks, counted from 0, by the setting's name.

    Raises:
        ConfigError: for a block that the backbone does not have, or one named twice.
    """
    n = len(backbone.vit.blocks)
    for name, blocks in settings.items():
        if len(set(blocks)) < len(blocks) or not set(blocks) <= set(range(n)):
            must_be = f"distinct and from 0 to {n - 1} ({backbone.name} has {n} blocks)"
            raise ConfigError(where, name, must_be, list(blocks), f"Set method.{name}")


def columns_in_loss(columns: Tensor, logits: Logits) -> Tensor | None:
    """The score columns that a task's training compares, ascending; None: all.

    Args:
        columns: (n,) of the task's images.
        logits: ``current`` or ``seen``.
    """
    return columns.unique() if logits == "current" else None


def learning(*parts: nn.Module) -> list[nn.Parameter]:
    """The parameters of these parts that have not been frozen, in order."""
    return [p for part in parts for p in part.parameters() if p.requires_grad]


def embedded_batches(
    backbone: Backbone, store: FeatureStore, data: LabelledImages, size: int, order: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, Float[Tensor, "b n d"]]]:
    """Positions and the inputs of block 0 of eval views, by batch.

    Args:
        backbone: a frozen Vision Transformer.
        store: where the outputs of stems are kept.
        data: images.
        size: images per batch.
        order: of positions; None: as stored.
    """
    if (stored := store.tokens(backbone, data)) is not None:
        positions = np.arange(len(data)) if order is None else order
        for start in range(0, len(positions), size):
            at = positions[start : start + size]
            yield at, stored(at)
        return
    for at, images in data.batches(backbone.preprocess, size, order):
        with torch.no_grad():
            tokens = backbone.embed_tokens(images)
        yield at, tokens


class PromptTests:
    """Scores images by a method's scorer, with stored queries where there are any.

    Args:
        backbone: a frozen Vision Transformer.
        store: where queries and the outputs of stems are kept.
        scorer: (b, n, d) embedded images and (b, d) queries to (b, classes) scores, without gradient.
        queries: whether the scorer looks at queries; it gets none otherwise.
        vote: batches that pass together, to choose together or for another reason.
        seed: of a shuffled order.

    Raises:
        BackboneError: for another architecture.
    """

    def __init__(
        self,
        backbone: Backbone,
        store: FeatureStore,
        scorer: Scorer,
        *,
        queries: bool = True,
        vote: Vote | None = None,
        seed: int = 0,
    ) -> None:
        check_vit(backbone.model, backbone.name)
        self.backbone, self.store, self.scorer, self.queries = backbone, store, scorer, queries
        self.order = vote.order if vote else "stored"
        self.together = vote.batch_size if vote else None
        self.seed = seed

    def scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Scores of one batch, on the CPU.

        Args:
            images: as for :meth:`perdure.Backbone.features`.
        """
        with torch.no_grad():
            embedded = self.backbone.embed_tokens(images)
            return self._scored(embedded, self.queries_of(embedded) if self.queries else None)

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """Scores of a data set, in its order.

        Args:
            data: images; their labels are looked at only by the order ``class_sorted``, a published protocol.
        """
        order, size = self._order(data), self.together or self.backbone.batch_size
        queries = self._queries(data) if self.queries else None
        parts, done = [], 0
        for positions, embedded in embedded_batches(self.backbone, self.store, data, size, order):
            with torch.no_grad():
                known = None if queries is None else queries[positions].to(embedded.device)
                scores = self._scored(embedded, known)
            done += len(positions)
            self.store.progress(Event("testing", done, len(data)))
            if order is None:
                yield scores
            else:
                parts.append(scores)
        if order is not None and len(order):
            yield torch.cat(parts)[torch.from_numpy(np.argsort(order, kind="stable"))]

    def mean_query(self, data: LabelledImages, *, normed: bool = False) -> Float[Tensor, "1 d"]:
        """The mean of a task's normalised queries, float64, on the CPU.

        Args:
            data: the task's training images.
            normed: whether the mean gets length 1 itself.
        """
        queries = self.store.features(self.backbone, data, label="train queries")
        rows = torch.cat([unit(rows.double()) for rows in queries.batches()])
        return unit(rows.sum(0, keepdim=True)) if normed else rows.mean(0, keepdim=True)

    def shares(self, data: LabelledImages, n_slots: int, choose: Callable[[Tensor], Tensor]) -> Float[Tensor, " slots"]:
        """The share of picks that each slot gets.

        Args:
            data: images.
            n_slots: how many slots there are.
            choose: (b, d) queries to slots; it gets those of a batch together, as votes need.
        """
        queries, order, counts = self._queries(data), self._order(data), torch.zeros(n_slots)
        for at in torch.from_numpy(np.arange(len(data)) if order is None else order).split(self.together or len(data)):
            slots = choose(queries[at.numpy()].to(self.backbone.device))
            counts += torch.bincount(slots.flatten().cpu(), minlength=n_slots)
        return counts / counts.sum().clamp(min=1)

    def queries_of(self, embedded: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """The pooled features of the frozen backbone without prompts.

        Args:
            embedded: inputs of block 0.
        """
        return self.backbone.features_of_patches(embedded.flatten(1))

    def _queries(self, data: LabelledImages) -> Features:
        return self.store.features(self.backbone, data, label="test queries")

    def _order(self, data: LabelledImages) -> np.ndarray | None:
        if self.order == "class_sorted":
            return np.argsort(data.labels, kind="stable")
        return np.random.default_rng(self.seed).permutation(len(data)) if self.order == "shuffled" else None

    def _scored(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"] | None) -> Tensor:
        known = embedded.new_empty(0, self.backbone.dim) if queries is None else queries
        if self.together:
            return self.scorer(embedded, known).cpu()
        if queries is None:
            return self.backbone.in_batches(lambda part: self.scorer(part, known), embedded).cpu()
        return self.backbone.in_batches(self.scorer, embedded, known).cpu()
