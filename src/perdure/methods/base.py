"""What every method is: it learns one task at a time, scores images, and its learned attributes are its checkpoint.

An author writes ``_learn`` and ``_scores`` of a :class:`Method`, or ``_learn_features`` and ``_scores_from_features``
of a :class:`FeatureMethod`, and nothing else. Two rules make interrupted work harmless: attributes that end in ``_``
are learned and are the whole state; and a learned tensor is replaced, never changed in place, so that a task which
fails half way is undone by putting the old references back.
"""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.config import MethodConfig
from perdure.data import LabelledImages, Task
from perdure.errors import CheckpointError, NotFittedError, ShapeError, StreamError
from perdure.memory import Exemplars, Features, FeatureStore
from perdure.registry import Registry
from perdure.tags import Tags as Tags
from perdure.types import Event

C = TypeVar("C", bound=MethodConfig)
INITIAL, TRAINING = 2**32 - 1, 2**32 - 2  # random streams; those of tasks are their indices
State = dict[str, Any]


class Method(abc.ABC, Generic[C]):
    """Learns one task at a time.

    Args:
        backbone: a frozen backbone; it is never changed.
        config: the method's settings; its defaults if not given.
        seed: of everything random in the method.
        store: where frozen features are kept; the machine's default store if not given.
    """

    Config: ClassVar[type[MethodConfig]]
    tags: ClassVar[Tags] = Tags()

    def __init__(
        self, backbone: Backbone, config: C | None = None, *, seed: int = 0, store: FeatureStore | None = None
    ) -> None:
        self.backbone, self.seed = backbone, seed
        self.config: C = config if config is not None else self.Config()  # type: ignore[assignment]
        self.store = store if store is not None else FeatureStore()
        self.classes_: list[int] = []  # column -> class id, in order of arrival
        self.tasks_seen_: int = 0
        self.setup()

    def setup(self) -> None:
        """Makes what is learned, empty, and all else that a task needs, from ``backbone``, ``config`` and ``seed``."""

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
        for done, images in data.batches(self.backbone.preprocess, self._test_batch):
            self.store.progress(Event("testing", int(done[-1]) + 1, len(data)))
            with torch.no_grad():
                yield self._scores(images)

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
        """How often each prompt is chosen for ``data``, as shares of 1; None for a method that does not choose."""
        return None

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

    def state_dict(self) -> State:
        """Everything learned: tensors, module states, and plain values."""
        return {k: v.state_dict() if isinstance(v, nn.Module) else v for k, v in self._learned().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> Self:
        """Takes over a state written by :meth:`state_dict`; if it is refused, the method is as it was before.

        Raises:
            CheckpointError: if its entries are not this method's.
        """
        mine = self._learned()
        if mine.keys() != state.keys():
            hint = f"It was written by another method than {type(self).__name__}"
            raise CheckpointError("load_state_dict", "entries", str(sorted(mine)), sorted(state), hint)
        before, key = self._snapshot(), "entries"
        try:
            self._make_room(state)
            for key, value in state.items():
                self._take(key, value)
        except BaseException as error:
            self._restore(before)
            if isinstance(error, CheckpointError) or not isinstance(error, Exception):
                raise
            got, hint = f"{error} ".splitlines()[0].rstrip(), "Load it with the backbone it was written with"
            raise CheckpointError("load_state_dict", key, "of this backbone", got, hint) from error
        return self

    def _make_room(self, state: Mapping[str, Any]) -> None:
        """Makes as many parts as ``state``, whose entries have this method's names, holds; may refuse it."""

    def _take(self, key: str, value: Any) -> None:
        mine = getattr(self, key)
        if isinstance(mine, nn.Module):
            mine.load_state_dict(value)
            return
        if mine is not None and (like := _kind(mine)) != (given := _kind(value)):
            raise CheckpointError("load_state_dict", key, f"of the kind {like}", given, "Load what state_dict gave")
        setattr(self, key, value)

    @abc.abstractmethod
    def _learn(self, task: Task, rng: torch.Generator) -> None:
        """Learns ``task``; ``classes_`` already holds its classes. All randomness comes from ``rng``."""

    @abc.abstractmethod
    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Scores of a batch, without changing anything."""

    def _generator(self, stream: int) -> torch.Generator:
        """A CPU generator for one purpose, independent of the global one and of the other purposes'."""
        words = np.random.SeedSequence([self.seed, stream]).generate_state(2, np.uint32)
        return torch.Generator().manual_seed(int(words[0]) << 31 | int(words[1]) >> 1)

    def _initial(self, part: int = 0) -> torch.Generator:
        """For initial values, of one part or of several."""
        return self._generator(INITIAL - part)

    def _learned(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k.endswith("_")}

    def _require_fitted(self, what: str) -> None:
        if not self.tasks_seen_:
            hint = "Call fit_task(task) first, or load a checkpoint"
            raise NotFittedError(f"{type(self).__name__}.{what}", "tasks seen", "at least 1", 0, hint)

    def _snapshot(self) -> dict[str, Any]:
        learned = self._learned()
        states = {k: copy.deepcopy(v.state_dict()) for k, v in learned.items() if isinstance(v, nn.Module)}
        return {**learned, "states": states}

    def _restore(self, before: dict[str, Any]) -> None:
        states = before.pop("states")
        for key in self._learned().keys() - before.keys():
            delattr(self, key)
        for key, value in before.items():
            setattr(self, key, value)
            if key in states:
                value.load_state_dict(states[key])


def _kind(value: Any) -> str:
    """Of a state's entry, as it comes back from a file."""
    kinds = {Tensor: "tensor", Mapping: "mapping", (list, tuple): "list", str: "text", (int, float): "number"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "nothing")  # type: ignore[arg-type]


class FeatureMethod(Method[C]):
    """A method that decides from frozen features alone, and so reads them from the store."""

    @property
    def embedder(self) -> Backbone:
        """Whose features they are; after the first task it must not change."""
        return self.backbone

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        features = self.store.features(self.embedder, task.train, label="train features")
        self._learn_features(features, self.columns(task.train.labels), rng)

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._scores_from_features(self.embedder.features(images).cpu())

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """As in :class:`Method`, with one backbone pass per image ever."""
        self._require_fitted("scores_of")
        for batch in self.store.features(self.embedder, data, label="test features").batches():
            with torch.no_grad():
                yield self._scores_from_features(batch)

    @abc.abstractmethod
    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        """Learns from a task's features, row i belonging to score column ``columns[i]``."""

    @abc.abstractmethod
    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        """Scores of a batch of features, without changing anything."""


methods: Registry[type[Method[Any]]] = Registry("method", "perdure.methods", "perdure.methods")
