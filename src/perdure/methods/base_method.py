"""What every method is: it learns one task at a time, scores images, and its learned attributes are its checkpoint.

An author writes ``_learn`` and ``_scores`` of a :class:`Method`, or ``_learn_features`` and ``_scores_from_features``
of a :class:`FeatureMethod`, and nothing else. Two rules make interrupted work harmless: attributes that end in ``_``
are learned and are the whole state; and a learned tensor is replaced, never changed in place, so that a task which
fails half way is undone by putting the old references back. What is learned is declared in the class body.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from perdure.backbone import Backbone, require_kind
from perdure.config import MethodConfig
from perdure.data import Candidate, LabelledImages, Task
from perdure.data.photographs import Images, photographs
from perdure.errors import NotFittedError
from perdure.learned import Sizes, learned_constant
from perdure.memory import Exemplars, FeatureStore
from perdure.methods.base_settings import made
from perdure.methods.base_taught import Taught
from perdure.registry import Registry
from perdure.tags import Tags as Tags
from perdure.types import Event

C = TypeVar("C", bound=MethodConfig)
INITIAL, TRAINING = 2**32 - 1, 2**32 - 2  # random streams; those of tasks are their indices


class Method(Taught, abc.ABC, Generic[C]):
    """Learns one task at a time.

    Args:
        backbone: a frozen backbone; it is never changed.
        config: the method's settings, as its ``Config`` or as plain values by key; its defaults if not given.
        seed: of everything random in the method.
        store: where frozen features are kept; the machine's default store if not given.
        settings: settings by key, over those of ``config``: ``RanPAC(backbone, projection_dim=2000)``.

    Raises:
        BackboneError: for a backbone that is not of the kind that ``tags.backbone`` needs.
        ConfigError: if ``config`` is another method's, or :meth:`setup` leaves out a module or a constant that the
            class declares.
        RecipeError: with every bad setting.
    """

    Config: ClassVar[type[MethodConfig]]
    tags: ClassVar[Tags] = Tags()

    origin_: str = learned_constant("a hash of the backbone it was given")

    def __init__(
        self,
        backbone: Backbone,
        config: C | Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
        **settings: Any,
    ) -> None:
        self.backbone, self.seed = require_kind(backbone, self.tags.backbone, type(self).__name__), seed
        self.config: C = made(self.Config, config, settings, type(self).__name__)  # type: ignore[assignment]
        self.store = store if store is not None else FeatureStore()
        self._empty()
        self.origin_ = self.backbone.identity
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
    def promises(self) -> Tags:
        """Its tags, with these settings."""
        return self.tags

    def require_names(self, classes: Sequence[Candidate]) -> None:
        """Refuses classes whose names the method cannot read or tell apart, before anything is learned.

        Raises:
            StreamError, BackboneError: naming the first of them.
        """

    def fit_task(self, task: Task) -> Self:
        """Learns one task. If it fails, whatever the reason, the method is as it was before.

        Args:
            task: the next task of the stream; its classes may have been seen before.

        Raises:
            StreamError: if this is not the next unseen task, or a class's id or name is known as another's.
        """
        self._require_next(task, f"{type(self).__name__}.fit_task")
        before = self._snapshot()
        try:
            self._meet(task)
            self._learn(task, self._generator(task.index))
            self._lay_out()
            self._count(task)
        except BaseException:
            self._restore(before)
            raise
        return self

    def scores(self, images: Images) -> Float[Tensor, "b classes"]:
        """Column j scores class ``classes_[j]``; higher is likelier. An image's row is the same in any batch.

        Args:
            images: photographs, as files' paths, PIL images, uint8 arrays or several of them in a list; labelled
                images; or a tensor (b, 3, s, s) of the backbone's eval view, uint8 or floats normalised already.

        Raises:
            NotFittedError: before the first task.
            DataError, DataNotFoundError: naming the photograph that cannot be read.
            ShapeError: for arrays and tensors of another shape, type or range.
        """
        given = self._given(images, "scores")
        if isinstance(given, LabelledImages):
            chunks = list(self._scores_of(given))
            return torch.cat(chunks) if chunks else torch.zeros(0, len(self.classes_))
        with torch.no_grad():
            return self._scores(given)

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """The scores of a whole data set, in order, some rows at a time; equal to :meth:`scores` of its images.

        Raises:
            NotFittedError: before the first task.
            StreamError: for files that are read by another ``value_range`` than those that were taught.
        """
        self._require_ready("scores_of", data)
        yield from self._scores_of(data)

    def scores_among(self, data: LabelledImages, candidates: Sequence[Candidate]) -> Iterator[Float[Tensor, "b n"]]:
        """Like :meth:`scores_of`, among other classes: column j scores ``candidates[j]``, known by its name.

        Raises:
            NotFittedError, StreamError: as :meth:`scores_of`.
            UnknownNameError: naming the first candidate that was not taught, unless it promises an ``open_vocabulary``.
        """
        self._require_ready("scores_among", data)
        if not self.promises.open_vocabulary:
            self._require_taught([c.name for c in candidates], f"{type(self).__name__}.scores_among")
        yield from self._scores_among(data, candidates)

    @property
    def _test_batch(self) -> int:
        """Images that pass together in :meth:`scores_of`."""
        return self.backbone.batch_size

    def predict(self, images: Images) -> Int[Tensor, " n"]:
        """Class ids; equal scores go to the class seen first.

        Args:
            images: as for :meth:`scores`.

        Raises:
            NotFittedError, DataError, DataNotFoundError, ShapeError: as :meth:`scores`.
        """
        return torch.tensor(self.classes_)[self._best(images, "predict")]

    def predict_names(self, images: Images, *, display: bool = False) -> list[str]:
        """Class names: those of the folders they were taught from.

        Args:
            images: as for :meth:`scores`.
            display: give the names for people instead.

        Raises:
            NotFittedError, DataError, DataNotFoundError, ShapeError: as :meth:`scores`.
        """
        names = [shown if display and shown else name for shown, name in zip(self.displays_, self.names_, strict=True)]
        return [names[column] for column in self._best(images, "predict_names").tolist()]

    def _best(self, images: Images, what: str) -> Int[Tensor, " n"]:
        """The column of each image's highest score."""
        given = self._given(images, what)
        chunks = self._scores_of(given) if isinstance(given, LabelledImages) else [self.scores(given)]
        return torch.cat([torch.zeros(0, dtype=torch.long), *(s.cpu().argmax(1) for s in chunks)])

    def _given(self, images: Images, what: str) -> LabelledImages | Num[Tensor, "b 3 s s"]:
        self._require_fitted(what)
        where = f"{type(self).__name__}.{what}"
        if isinstance(images, LabelledImages):
            self._require_reading(images, where, "value_range of the images")
        return photographs(images, self.backbone.preprocess, where, self.reading)

    def members_of(self, data: LabelledImages) -> dict[str, Iterator[Float[Tensor, "b classes"]]]:
        """What the method's members would answer each alone: name to scores, like :meth:`scores_of`; {} without any.

        Args:
            data: the images, in order.

        Raises:
            NotFittedError: before the first task.
            StreamError: as :meth:`scores_of`.
        """
        self._require_ready("members_of", data)
        return self._members_of(data)

    def selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"] | None:
        """How often each prompt is chosen for ``data``, as shares of 1; None for a method that does not choose.

        Raises:
            NotFittedError: before the first task.
        """
        self._require_fitted("selection_of")
        return self._selection_of(data)

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

    def _scores_among(self, data: LabelledImages, candidates: Sequence[Candidate]) -> Iterator[Float[Tensor, "b n"]]:
        """Written anew by methods that are open-vocabulary; here, the columns of the classes of these names."""
        columns = [self.names_.index(candidate.name) for candidate in candidates]
        yield from (scores[:, columns] for scores in self._scores_of(data))

    def _members_of(self, data: LabelledImages) -> dict[str, Iterator[Float[Tensor, "b classes"]]]:
        """Written anew by methods in which several decide, where no image has to pass again for it."""
        return {}

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

    def _require_ready(self, what: str, data: LabelledImages) -> None:
        self._require_fitted(what)
        self._require_reading(data, f"{type(self).__name__}.{what}", "value_range of the images")

    def _require_fitted(self, what: str) -> None:
        if not self.tasks_seen_:
            hint = "Call fit_task(task) first, or load a checkpoint"
            raise NotFittedError(f"{type(self).__name__}.{what}", "tasks seen", "at least 1", 0, hint)


methods: Registry[type[Method[Any]]] = Registry("method", "perdure.methods", "perdure.methods")
