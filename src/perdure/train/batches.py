"""Where a training's batches come from: a task's images, in the cheapest form that will do."""

from __future__ import annotations

import contextlib
import dataclasses as dc
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal, Protocol, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.data import LabelledImages
from perdure.data.preprocess import Preprocess
from perdure.errors import ConfigError, DataError
from perdure.memory import Features, FeatureStore
from perdure.modules.augment import random_crop_flip, random_window_flip
from perdure.train.settings import Augment, ImageTraining, Training

MIN_BATCHES = 4
Queries = Literal["augmented", "clean"]
NO_IMAGES = torch.empty(0, 3, 1, 1, dtype=torch.uint8)
P = TypeVar("P")
B = TypeVar("B", covariant=True)


class Source(Protocol[P, B]):
    """What a session trains on.

    ``plan`` draws an epoch, ``batch`` makes one of its batches: an epoch that was left can be gone on with, for the
    plan drawn again from the same generator is the same.
    """

    def open(self) -> contextlib.AbstractContextManager[object]:
        """Entered for as long as the session trains."""
        ...

    def plan(self, rng: torch.Generator) -> Sequence[P]:
        """What each batch of the next epoch is made from."""
        ...

    def batch(self, plan: P, rng: torch.Generator) -> B:
        """One batch."""
        ...


@dc.dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """One training batch, in the cheapest form that holds what the training needs."""

    positions: Int[Tensor, " b"]  # of the images; kept ones behind the task's own
    columns: Int[Tensor, " b"]  # on the backbone's device
    images: UInt8[Tensor, "_b 3 s s"]  # augmented; none where one of the next two is there
    tokens: Float[Tensor, "b n d"] | None  # the input of block 0, where no view changes it
    rows: Float[Tensor, "b d"] | None  # pooled features, where nothing of the backbone learns either; or stored queries
    n_new: int  # images of the task; the others are kept ones

    def features(self, backbone: Backbone) -> Float[Tensor, "b d"]:
        """Pooled features, with gradient where something in ``backbone`` learns."""
        if self.rows is not None:
            return self.rows
        if self.tokens is not None:
            return backbone.pool(backbone.walk(self.tokens))
        return backbone.embed(self.images)

    def embedded(self, backbone: Backbone) -> Float[Tensor, "b n d"]:
        """The input of block 0, without gradient: what prompts are laid beside."""
        if self.tokens is not None:
            return self.tokens
        with torch.no_grad():
            return backbone.embed_tokens(self.images)

    def queries(self, backbone: Backbone, embedded: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """The pooled features of the frozen backbone without prompts, without gradient.

        Args:
            backbone: the frozen one.
            embedded: from :meth:`embedded`, which this pass and the prompted one share.
        """
        return self.rows if self.rows is not None else backbone.features_of_patches(embedded.flatten(1))


@dc.dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """Images of earlier tasks of which every step takes some.

    Args:
        images: as kept; see :class:`perdure.memory.Exemplars`.
        columns: of their classes.
        per_step: how many a step takes, all different; all of them where there are fewer.
    """

    images: LabelledImages
    columns: Int[Tensor, " m"]
    per_step: int


class TaskImages:
    """The batches of a task's images, and of kept ones beside them.

    What does not change from epoch to epoch comes from the store: pooled features where nothing of the backbone learns,
    the output of a stem that is a network itself where that stem stands still. All else is decoded once.

    Args:
        backbone: whose eval view, size and device they are for.
        data: the task's images.
        columns: of their classes.
        config: batch size, order, augmentation.
        store: of features.
        learned: every parameter that the training changes.
        prompted: whether tokens are needed, because prompts pass beside them.
        queries: which views' pooled features are wanted as well: ``clean``, the eval views', comes from the store.
        kept: images that every step takes some of besides.

    Raises:
        ConfigError: if images are to be resized to less than the backbone's size, or if images that are stored class
            by class are not to be shuffled.
    """

    def __init__(
        self,
        backbone: Backbone,
        data: LabelledImages,
        columns: Int[Tensor, " n"],
        config: ImageTraining,
        store: FeatureStore,
        learned: Iterable[nn.Parameter],
        *,
        prompted: bool = False,
        queries: Queries | None = None,
        kept: Kept | None = None,
    ) -> None:
        self.backbone, self.config, self.kept, self.n_new = backbone, config, kept, len(data)
        _require_mixed(columns, config)
        self.data = data.joined(kept.images) if kept else data
        self.columns = torch.cat([columns, kept.columns]) if kept else columns
        self._view, self._pixels = _training_view(backbone.preprocess, config.augment), NO_IMAGES
        self._rows: Features | None = None
        self._tokens: Callable[[np.ndarray], Tensor] | None = None
        learned, still = list(learned), not config.augment.changes_views
        rows_serve = still and not prompted and not backbone.holds(learned)
        if rows_serve or queries == "clean" or (queries is not None and still):
            self._rows = store.features(backbone, self.data, label="train features")
        if still and not rows_serve and not backbone.holds(learned, stem=True):
            self._tokens = store.tokens(backbone, self.data)
        self._needs_pixels = self._tokens is None and not rows_serve

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The images are decoded while it is entered, if they are needed.

        Raises:
            StorageError: if the temporary directory cannot hold the decoded images.
            DataError: naming the image, if one cannot be read.
        """
        if not self._needs_pixels:
            yield
            return
        with self.data.decoded(self._view) as self._pixels:
            yield
        self._pixels = NO_IMAGES

    def plan(self, rng: torch.Generator) -> list[Tensor]:
        """Each batch's positions; kept images follow, counted on from the task's last."""
        plans = planned(self.n_new, self.config, rng)
        if not self.kept or not len(self.kept.images):
            return plans
        n, k = len(self.kept.images), self.kept.per_step
        return [torch.cat([plan, self.n_new + torch.randperm(n, generator=rng)[:k]]) for plan in plans]

    def batch(self, plan: Int[Tensor, " b"], rng: torch.Generator) -> Batch:
        """One batch."""
        device, images, tokens, rows = self.backbone.device, self._pixels[:0], None, None
        if self._rows is not None:
            rows = self._rows[plan.numpy()].to(device)
        if self._tokens is not None:
            tokens = self._tokens(plan.numpy())
        if self._needs_pixels:
            images = self._augmented(self._pixels[plan].to(device), rng)
        return Batch(plan, self.columns[plan].to(device), images, tokens, rows, int((plan < self.n_new).sum()))

    def _augmented(self, images: UInt8[Tensor, "b 3 h w"], rng: torch.Generator) -> UInt8[Tensor, "b 3 s s"]:
        how = self.config.augment
        if how.resize is not None:
            return random_window_flip(images, rng, side=self.backbone.preprocess.image_size, flip=how.flip)
        if how.changes_views:
            return random_crop_flip(images, rng, min_scale=how.min_scale, flip=how.flip)
        return images


class Rows:
    """Batches of positions alone, for a training on rows that the caller holds.

    Args:
        n: how many.
        config: batch size and order.
    """

    def __init__(self, n: int, config: Training) -> None:
        self.n, self.config = n, config

    def open(self) -> contextlib.AbstractContextManager[object]:
        """Nothing to prepare."""
        return contextlib.nullcontext()

    def plan(self, rng: torch.Generator) -> list[Tensor]:
        """Each batch's positions."""
        return planned(self.n, self.config, rng)

    def batch(self, plan: Int[Tensor, " b"], rng: torch.Generator) -> Int[Tensor, " b"]:
        """The positions."""
        return plan


def planned(n: int, config: Training, rng: torch.Generator) -> list[Tensor]:
    """An epoch's positions by batch.

    Args:
        n: how many positions there are.
        config: batch size, whether to shuffle, what to do with a last, smaller batch.
        rng: a CPU generator.

    Raises:
        DataError: if ``drop_last`` leaves nothing.
    """
    order = torch.randperm(n, generator=rng) if config.shuffle else torch.arange(n)
    parts = list(order.split(config.batch_size))
    few = config.drop_last == "never" or (config.drop_last == "from_4_batches" and len(parts) < MIN_BATCHES)
    if few or len(parts[-1]) == config.batch_size:
        return parts
    if len(parts) == 1:
        hint = "Set train.drop_last=never or a smaller train.batch_size"
        raise DataError("train", "task", f"of {config.batch_size} images or more", n, hint)
    return parts[:-1]


def _require_mixed(columns: Int[Tensor, " n"], config: Training) -> None:
    """Images stored class by class, taken in their order, would be learned one class after the other."""
    runs = 1 + int((columns[1:] != columns[:-1]).sum())
    if not config.shuffle and 1 < len(columns.unique()) == runs and len(columns) > config.batch_size:
        must_be, hint = "true where images are stored class by class", "Set train.shuffle=true"
        raise ConfigError("train", "shuffle", must_be, config.shuffle, hint)


def _training_view(view: Preprocess, augment: Augment) -> Preprocess:
    """What images are decoded to before they are augmented."""
    if augment.resize is None:
        return view
    if augment.resize < view.image_size:
        must_be, hint = f"at least the backbone's {view.image_size}", "Raise train.augment.resize, or leave it out"
        raise ConfigError("train", "augment.resize", must_be, augment.resize, hint)
    return dc.replace(view, image_size=augment.resize, crop_mode="squash", crop_pct=1.0)
