"""What the prompt methods share: a frozen Vision Transformer, queries from it, one training loop, honest testing.

A method writes which prompts a task begins with (``_begin_task``), the features of a training batch with its own loss
term (``_train_features``) and the features of test images (``_test_features``); its file is then the paper.

Queries are the pooled features of the same frozen backbone without prompts. Those of test images are computed once and
kept in the feature store; those of training images too where the view is deterministic. In training, the query pass
and the prompted pass share the patch embedding. Where that is a network itself (``Backbone.has_stem``, the built-in
backbone's case), its output for deterministic views is kept as well.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses as dc
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.data import LabelledImages, Task
from perdure.errors import DataError
from perdure.memory import Features, FeatureStore
from perdure.methods.base import Method
from perdure.methods.base_prompt_config import PromptConfig
from perdure.modules.augment import random_crop_flip
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.modules.losses import masked_cross_entropy
from perdure.train.loop import scaled_lr, shuffled, train
from perdure.types import Event

MIN_BATCHES = 4


@dc.dataclass(frozen=True, slots=True, eq=False)
class PromptBatch:
    """One training batch."""

    embedded: Tensor  # (b, n, d) input of block 0, without gradient
    queries: Tensor  # (b, d) float32; no rows where the method takes none in training
    columns: Tensor  # (b,) score columns


P = TypeVar("P", bound=PromptConfig)
Views = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]  # positions -> embedded views, queries


class PromptMethod(Method[P]):
    """A method that learns prompts and a head on a frozen Vision Transformer.

    Args:
        backbone: a frozen Vision Transformer that the block walk knows.
        config: the method's settings.
        seed: of everything random.
        store: where queries are kept.

    Raises:
        BackboneError: for another architecture.
    """

    uses_queries: ClassVar[bool] = True

    def __init__(
        self, backbone: Backbone, config: P | None = None, *, seed: int = 0, store: FeatureStore | None = None
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        self.n_blocks = len(backbone.vit.blocks)
        self.head_ = GrowingLinear(backbone.dim).to(backbone.device)

    @property
    def depends_on_test_batch(self) -> bool:
        """Whether the settings let test images choose together."""
        return getattr(self.config, "select_eval", "instance") == "batch_vote"

    def optimizer_options(self) -> dict[str, Any]:
        """What :func:`perdure.train.loop.train` is told besides the common settings."""
        return {}

    def learning(self) -> list[nn.Parameter]:
        """Everything that learns in the present task: what the optimiser gets."""
        modules = [v for v in self._learned().values() if isinstance(v, nn.Module)]
        return [p for m in modules for p in m.parameters() if p.requires_grad]

    @abc.abstractmethod
    def _begin_task(self, task: Task, rng: torch.Generator) -> None:
        """Makes and freezes prompts for the new task; the head has its new columns already."""

    @abc.abstractmethod
    def _train_features(self, batch: PromptBatch) -> tuple[Float[Tensor, "b d"], Float[Tensor, ""]]:
        """What the head reads, and the method's own term of the loss."""

    @abc.abstractmethod
    def _test_features(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """What the head reads; ``queries`` has no rows if the method uses none."""

    def _end_task(self, task: Task) -> None:
        """Called when the task is learned."""

    def _takes_train_queries(self) -> bool:
        """Whether training batches need queries."""
        return self.uses_queries

    # --- training

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c = self.config
        self.head_.grow(len(self.classes_), rng, c.head_init)
        self.head_.requires_grad_(True)
        self._begin_task(task, rng)
        columns = self.columns(task.train.labels).to(self.backbone.device)
        current = torch.unique(columns)
        per_epoch = len(self._batches(torch.arange(len(task.train))))

        def loss(batch: PromptBatch) -> Tensor:
            features, term = self._train_features(batch)
            logits = self.head_(features.float())
            return masked_cross_entropy(logits, batch.columns, current if c.train_logits == "current" else None) + term

        with self._views(task.train) as views, torch.enable_grad():
            epochs = (self._epoch(views, columns, rng, e) for e in range(c.epochs))
            train(
                loss, self.learning(), epochs,
                n_steps=c.epochs * per_epoch, n_epochs=c.epochs,
                lr=scaled_lr(c.lr, c.batch_size) if c.scale_lr else c.lr,
                optimizer=c.optimizer, schedule=c.schedule, milestone=c.milestone,
                weight_decay=c.weight_decay, clip_norm=c.clip_norm, **self.optimizer_options(),
            )  # fmt: skip
        self._end_task(task)

    @contextlib.contextmanager
    def _views(self, data: LabelledImages) -> Iterator[Views]:
        """Training batches by position; whatever is the same in every epoch comes from the store."""
        c, backbone, augments, wanted = self.config, self.backbone, self._augments, self._takes_train_queries()
        queries = self._stored_queries(data)
        patches = self.store.patches(backbone, data) if backbone.has_stem and not augments else None
        with (
            contextlib.nullcontext(torch.empty(0))
            if patches is not None
            else data.decoded(backbone.preprocess) as pixels
        ):

            @torch.no_grad()
            def views(positions: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
                if patches is not None:
                    embedded = self._tokens(patches, positions.numpy())
                else:
                    images = pixels[positions].to(backbone.device)
                    cut = random_crop_flip(images, rng, min_scale=c.min_scale, flip=c.flip) if augments else images
                    embedded = backbone.embed_tokens(cut)
                if queries is not None:
                    return embedded, queries[positions.numpy()].to(backbone.device)
                return embedded, self._queries(embedded if wanted else embedded[:0])

            yield views

    @property
    def _augments(self) -> bool:
        return self.config.flip or self.config.min_scale < 1

    def _stored_queries(self, data: LabelledImages) -> Features | None:
        """Queries of training images from the store, where their view is the eval view or is said to be."""
        fixed = self.config.query_view == "clean" or not self._augments
        return self.store.features(self.backbone, data) if fixed and self._takes_train_queries() else None

    def _epoch(self, views: Views, columns: Tensor, rng: torch.Generator, e: int) -> Iterator[PromptBatch]:
        n, done = len(columns), e * len(columns)
        order = next(shuffled(n, n, rng)) if self.config.shuffle else torch.arange(n)
        for positions in self._batches(order):
            embedded, queries = views(positions, rng)
            yield PromptBatch(embedded, queries, columns[positions.to(columns.device)])
            done += len(positions)
            self.store.progress(Event("learning prompts", done, self.config.epochs * n))

    def _batches(self, order: Int[Tensor, " n"]) -> list[Tensor]:
        """An epoch's positions by batch.

        Raises:
            DataError: if ``drop_last`` leaves nothing.
        """
        c, parts = self.config, list(order.split(self.config.batch_size))
        few = c.drop_last == "never" or (c.drop_last == "from_4_batches" and len(parts) < MIN_BATCHES)
        if few or len(parts[-1]) == c.batch_size:
            return parts
        if len(parts) == 1:
            hint = "Set method.drop_last=never or a smaller batch_size"
            raise DataError(type(self).__name__, "task", f"of {c.batch_size} images or more", len(order), hint)
        return parts[:-1]

    # --- testing

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        with torch.no_grad():
            return self._score(self.backbone.embed_tokens(images), None)

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """As in :class:`Method`; every image's query is computed once, however many tasks follow.

        Args:
            data: images; their labels are looked at only by ``eval_order=class_sorted``, a published protocol.
        """
        self._require_fitted("scores_of")
        order, c = self._test_order(data), self.config
        size: int = c.eval_batch if self.depends_on_test_batch else self.backbone.batch_size  # type: ignore[attr-defined]
        queries = self.store.features(self.backbone, data, label="test queries") if self.uses_queries else None
        parts, done = [], 0
        for positions, embedded in self._embedded(data, size, order):
            with torch.no_grad():
                scores = self._score(embedded, None if queries is None else queries[positions])
            done += len(positions)
            self.store.progress(Event("testing", done, len(data)))
            if order is None:
                yield scores
            else:
                parts.append(scores)
        if order is not None and len(order):
            yield torch.cat(parts)[torch.from_numpy(np.argsort(order, kind="stable"))]

    def _test_order(self, data: LabelledImages) -> np.ndarray | None:
        how = getattr(self.config, "eval_order", "stored") if self.depends_on_test_batch else "stored"
        if how == "class_sorted":
            return np.argsort(data.labels, kind="stable")
        return np.random.default_rng(self.seed).permutation(len(data)) if how == "shuffled" else None

    def _shares(
        self, data: LabelledImages, n_slots: int, choose: Callable[[Tensor], Tensor]
    ) -> Float[Tensor, " slots"]:
        """The share of picks that each slot gets in a test; ``choose`` gets queries by its batches, as votes need."""
        queries, order = self.store.features(self.backbone, data, label="test queries"), self._test_order(data)
        counts, size = torch.zeros(n_slots), getattr(self.config, "eval_batch", len(data))
        for at in torch.from_numpy(np.arange(len(data)) if order is None else order).split(size):
            slots = choose(queries[at.numpy()].to(self.backbone.device))
            counts += torch.bincount(slots.flatten().cpu(), minlength=n_slots)
        return counts / counts.sum().clamp(min=1)

    def _embedded(
        self, data: LabelledImages, size: int, order: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, Float[Tensor, "b n d"]]]:
        """Positions and embedded eval views by batch; stored where the patch embedding is a network itself."""
        if self.backbone.has_stem:
            patches = self.store.patches(self.backbone, data)
            order = np.arange(len(data)) if order is None else order
            for start in range(0, len(order), size):
                positions = order[start : start + size]
                yield positions, self._tokens(patches, positions)
            return
        for positions, images in data.batches(self.backbone.preprocess, size, order):
            with torch.no_grad():
                embedded = self.backbone.embed_tokens(images)
            yield positions, embedded

    def _tokens(self, patches: Features, positions: np.ndarray) -> Float[Tensor, "b n d"]:
        return patches[positions].view(-1, *self.backbone.tokens_shape).to(self.backbone.device)

    def _score(self, embedded: Float[Tensor, "b n d"], queries: Tensor | None) -> Float[Tensor, "b classes"]:
        if queries is None:
            queries = self._queries(embedded if self.uses_queries else embedded[:0])
        queries = queries.to(self.backbone.device)
        if self.depends_on_test_batch:
            return self._test_logits(embedded, queries).cpu()
        if not self.uses_queries:
            return self.backbone.in_batches(lambda part: self._test_logits(part, queries), embedded).cpu()
        return self.backbone.in_batches(self._test_logits, embedded, queries).cpu()

    def _test_logits(self, embedded: Tensor, queries: Tensor) -> Float[Tensor, "b classes"]:
        """Scores of the seen classes."""
        return linear_scores(self._test_features(embedded, queries), self.head_)

    def _queries(self, embedded: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """The pooled features of the frozen backbone without prompts."""
        if not len(embedded):
            return embedded.new_empty(0, self.backbone.dim)
        with torch.no_grad():
            return self.backbone.in_batches(lambda part: self.backbone.pool(self.backbone.walk(part)), embedded)
