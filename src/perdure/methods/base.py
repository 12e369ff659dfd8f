"""What every method is: it learns one task at a time, scores images, and its learned attributes are its checkpoint.

An author writes ``_learn`` and ``_scores`` of a :class:`Method`, or ``_learn_features`` and ``_scores_from_features``
of a :class:`FeatureMethod`, and nothing else. Two rules make interrupted work harmless: attributes that end in ``_``
are learned and are the whole state; and a learned tensor is replaced, never changed in place, so that a task which
fails half way is undone by putting the old references back. What is learned is declared in the class body.
"""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from perdure.backbone import Backbone, require_kind
from perdure.config import MethodConfig
from perdure.data import LabelledImages, Task
from perdure.errors import NotFittedError, ShapeError, StreamError
from perdure.learned import Sizes, Stateful, learned, learned_module
from perdure.memory import Exemplars, Features, FeatureStore
from perdure.modules.heads import GrowingLinear
from perdure.registry import Registry
from perdure.tags import Tags as Tags
from perdure.train.batches import Batch, Queries
from perdure.train.prompting import PromptTests
from perdure.train.session import on_images
from perdure.train.settings import ImageTraining
from perdure.types import Event

C = TypeVar("C", bound=MethodConfig)
INITIAL, TRAINING = 2**32 - 1, 2**32 - 2  # random streams; those of tasks are their indices


class Method(Stateful, abc.ABC, Generic[C]):
    """Learns one task at a time.

    Args:
        backbone: a frozen backbone; it is never changed.
        config: the method's settings; its defaults if not given.
        seed: of everything random in the method.
        store: where frozen features are kept; the machine's default store if not given.

    Raises:
        BackboneError: for a backbone that is not of the kind that ``tags.backbone`` needs.
        ConfigError: if :meth:`setup` leaves out a module or a constant that the class declares.
    """

    Config: ClassVar[type[MethodConfig]]
    tags: ClassVar[Tags] = Tags()

    classes_: list[int] = learned("classes", int, "class ids by column, in order of arrival", least=None, distinct=True)
    tasks_seen_: int = learned("", int, "tasks learned", tells="tasks")

    def __init__(
        self, backbone: Backbone, config: C | None = None, *, seed: int = 0, store: FeatureStore | None = None
    ) -> None:
        require_kind(backbone, self.tags.backbone, type(self).__name__)
        self.backbone, self.seed = backbone, seed
        self.config: C = config if config is not None else self.Config()  # type: ignore[assignment]
        self.store = store if store is not None else FeatureStore()
        self._empty()
        self.setup()
        self._require_made()
        for part in self._learned().values():
            if isinstance(part, nn.Module):
                part.to(backbone.device)

    def sizes(self) -> Sizes:
        """What names in the declared shapes stand for, beside classes, tasks and d. Asked before :meth:`setup`."""
        return {}

    def _known_sizes(self) -> Sizes:
        return {"d": self.backbone.dim, **self.sizes()}

    def setup(self) -> None:
        """Makes the modules that are learned, and all else that a task needs, from ``backbone``, ``config``, ``seed``.

        Declared tensors, lists and numbers are there already, with no class and no task in them. The modules come to
        the backbone's device by themselves.
        """

    @property
    def depends_on_test_batch(self) -> bool:
        """Whether, with these settings, an image's scores depend on the images tested with it."""
        return self.tags.depends_on_test_batch

    def fit_task(self, task: Task) -> Self:
        """Learns one task. If it fails, whatever the reason, the method is as it was before.

        Args:
            task: the next task of the stream; its classes may have been seen before.

        Raises:
            StreamError: if this is not the next unseen task.
        """
        if task.index != self.tasks_seen_:
            must_be = f"{self.tasks_seen_} (the next unseen task)"
            hint = "Fit the tasks in order, or load the checkpoint of the task before"
            raise StreamError(f"{type(self).__name__}.fit_task", "task.index", must_be, task.index, hint)
        before = self._snapshot()
        try:
            seen = set(self.classes_)
            self.classes_ = [*self.classes_, *(c for c in task.classes if c not in seen)]
            self._learn(task, self._generator(task.index))
            self._lay_out()
            self.tasks_seen_ += 1
        except BaseException:
            self._restore(before)
            raise
        return self

    def scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Column j scores class ``classes_[j]``; higher is likelier. An image's row is the same in any batch.

        Args:
            images: uint8 pixels of the backbone's eval view, or floating point already normalised.

        Raises:
            NotFittedError: before the first task.
            ShapeError: if ``images`` is not a batch of RGB images.
        """
        self._require_fitted("scores")
        if images.ndim != 4 or images.shape[1] != 3:
            name, must_be = f"{type(self).__name__}.scores", "of shape (batch, 3, height, width)"
            raise ShapeError(name, "images", must_be, tuple(images.shape), "Stack RGB images")
        with torch.no_grad():
            return self._scores(images)

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """The scores of a whole data set, in order, some rows at a time; equal to :meth:`scores` of its images.

        Raises:
            NotFittedError: before the first task.
        """
        self._require_fitted("scores_of")
        yield from self._scores_of(data)

    @property
    def _test_batch(self) -> int:
        """Images that pass together in :meth:`scores_of`."""
        return self.backbone.batch_size

    def predict(self, images: Num[Tensor, "b 3 h w"] | LabelledImages) -> Int[Tensor, " n"]:
        """Class ids of a batch of images or of a whole data set; equal scores go to the class seen first.

        Raises:
            NotFittedError: before the first task.
        """
        chunks = self.scores_of(images) if isinstance(images, LabelledImages) else [self.scores(images)]
        ids = torch.tensor(self.classes_)
        return ids[torch.cat([torch.zeros(0, dtype=torch.long), *(s.cpu().argmax(1) for s in chunks)])]

    def selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"] | None:
        """How often each prompt is chosen for ``data``, as shares of 1; None for a method that does not choose.

        Raises:
            NotFittedError: before the first task.
        """
        self._require_fitted("selection_of")
        return self._selection_of(data)

    def columns(self, labels: np.ndarray) -> Int[Tensor, " n"]:
        """The score column of each label.

        Args:
            labels: (n,) class ids, all of them seen.
        """
        ids = np.asarray(self.classes_, dtype=np.int64)
        ascending = np.argsort(ids)
        return torch.from_numpy(ascending[np.searchsorted(ids, labels, sorter=ascending)])

    def learned_parameters(self) -> int:
        """How many numbers were fitted and are used in a prediction: trained parameters, or a closed-form head."""
        return sum(p.numel() for m in self._learned().values() if isinstance(m, nn.Module) for p in m.parameters())

    @property
    def n_exemplars(self) -> int:
        """How many training images are kept, in all :class:`~perdure.memory.Exemplars` that were learned."""
        modules = [m for v in self._learned().values() if isinstance(v, nn.Module) for m in v.modules()]
        return sum(len(m) for m in modules if isinstance(m, Exemplars))

    @abc.abstractmethod
    def _learn(self, task: Task, rng: torch.Generator) -> None:
        """Learns ``task``; ``classes_`` already holds its classes. All randomness comes from ``rng``."""

    @abc.abstractmethod
    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Scores of a batch, without changing anything."""

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """Scores of a data set; written anew by methods that keep something of every image."""
        for done, images in data.batches(self.backbone.preprocess, self._test_batch):
            self.store.progress(Event("testing", int(done[-1]) + 1, len(data)))
            with torch.no_grad():
                yield self._scores(images)

    def _selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"] | None:
        """Written anew by methods that choose."""
        return None

    def _generator(self, stream: int) -> torch.Generator:
        """A CPU generator for one purpose, independent of the global one and of the other purposes'."""
        words = np.random.SeedSequence([self.seed, stream]).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)

    def _initial(self, part: int = 0) -> torch.Generator:
        """For initial values, of one part or of several."""
        return self._generator(INITIAL - part)

    def _require_fitted(self, what: str) -> None:
        if not self.tasks_seen_:
            hint = "Call fit_task(task) first, or load a checkpoint"
            raise NotFittedError(f"{type(self).__name__}.{what}", "tasks seen", "at least 1", 0, hint)


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
    def depends_on_test_batch(self) -> bool:
        """Whether, with these settings, test images pass together."""
        return self.tests.together is not None

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


methods: Registry[type[Method[Any]]] = Registry("method", "perdure.methods", "perdure.methods")
