"""What every method knows of what it was taught: its classes with their names, its tasks, and the images' contents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from perdure.data import LabelledImages, Task
from perdure.data.display import display_name
from perdure.data.images import KEY_BYTES
from perdure.data.reading import Reading
from perdure.errors import ConfigError, StreamError, UnknownNameError, did_you_mean
from perdure.learned import Stateful, learned
from perdure.types import ClassId


class Taught(Stateful):
    """A class is its name: its id and its column of the scores are given once, when its first task comes, and stay."""

    classes_: list[int] = learned("classes", int, "class ids by column, in order of arrival", least=None, distinct=True)
    names_: list[str] = learned("classes", str, "their names: folders'", distinct=True)
    displays_: list[str] = learned(
        "classes", str, "their names for people; none where a task gave no names", merges="first"
    )
    value_range_: list[float] = learned("2", float, "black and white of deep images; 0, 0: of their type")
    tasks_seen_: int = learned("", int, "tasks learned", tells="tasks")
    n_taught_: int = learned("", int, "different images taught", tells="taught", merges="pooled")
    taught_: Tensor = learned(f"taught, {KEY_BYTES}", torch.uint8, "the hash of each one's content", merges="pooled")

    @property
    def class_names(self) -> dict[ClassId, str]:
        """Every class id's name, in order of arrival."""
        return dict(zip(self.classes_, self.names_, strict=True))

    @property
    def unnamed(self) -> frozenset[ClassId]:
        """The class ids whose task gave no names: they are called by their ids."""
        return frozenset(c for c, shown in zip(self.classes_, self.displays_, strict=True) if not shown)

    @property
    def taught_keys(self) -> Shaped[np.ndarray, " n"]:
        """(n,) ``S16``: the content hashes of the images taught, as :attr:`perdure.data.LabelledImages.keys`."""
        keys: np.ndarray = self.taught_.numpy().view(f"S{KEY_BYTES}")[:, 0]
        return keys

    @property
    def reading(self) -> Reading:
        """How image files become RGB: as those it was taught."""
        low, high = self.value_range_
        return Reading((low, high)) if low < high else Reading()

    def columns(self, labels: np.ndarray) -> Int[Tensor, " n"]:
        """The score column of each label.

        Args:
            labels: (n,) class ids, all of them seen.
        """
        ids = np.asarray(self.classes_, dtype=np.int64)
        ascending = np.argsort(ids)
        return torch.from_numpy(ascending[np.searchsorted(ids, labels, sorter=ascending)])

    def rename_class(self, old: str, new: str) -> None:
        """Gives a class another name, as when its folder has one; its id and what was learned of it stay.

        Args:
            old: its name so far.
            new: no other class's.

        Raises:
            UnknownNameError: if no class is called so.
            ConfigError: if another class has the new name, or it is empty.
        """
        where = f"{type(self).__name__}.rename_class"
        if old not in self.names_:
            raise UnknownNameError(where, "old", "a class's name", old, did_you_mean(old, self.names_))
        if not new or (new in self.names_ and new != old):
            raise ConfigError(where, "new", "a name that no class has yet", new, "Choose another name")
        at = self.names_.index(old)
        # of several data sets, a name begins with its set's, which is not displayed
        (of, _, own), (of_new, _, own_new) = old.partition("/"), new.partition("/")
        display = own_new if of == of_new and own_new and self.displays_[at] == display_name(own) else new
        self.names_ = [*self.names_[:at], new, *self.names_[at + 1 :]]
        self.displays_ = [*self.displays_[:at], display_name(display), *self.displays_[at + 1 :]]

    def _pooled(self, other: Self) -> dict[str, Any]:
        """The values of all that is declared ``merges="pooled"``, for the images of both methods together; written on
        by methods that declare more of it."""
        new = torch.from_numpy(~np.isin(other.taught_keys, self.taught_keys))
        taught = torch.cat([self.taught_, other.taught_[new]])
        return {"taught_": taught, "n_taught_": len(taught)}

    def _require_next(self, task: Task, where: str) -> None:
        """Refuses a task that is not the next one, or that means another class by a known id or name."""
        if not isinstance(task, Task):
            hint = "Fit the tasks of a stream one after another: for task in stream: method.fit_task(task)"
            raise StreamError(where, "task", "one task of a stream", type(task).__name__, hint)
        if task.index != self.tasks_seen_:
            must_be = f"{self.tasks_seen_} (the next unseen task)"
            hint = (
                "Fit the tasks in order, or load the checkpoint of the task before; "
                "for a stream that goes on from this method: load_stream(data, known=method)"
            )
            raise StreamError(where, "task.index", must_be, task.index, hint)
        if self.tasks_seen_:
            self._require_reading(task.train, where, "value_range of the task's images")
        names, ids = self.class_names, {name: c for c, name in self.class_names.items()}
        for c, name in self._names_of(task).items():
            hint = "A class keeps its id for ever: load_stream(data, known=method) numbers new ones on from those known"
            if names.get(c, name) != name:
                raise StreamError(where, f"name of class {c}", f"{names[c]!r}, as it was taught", name, hint)
            if ids.get(name, c) != c:
                raise StreamError(where, f"id of class {name!r}", f"{ids[name]}, as it was taught", c, hint)

    def _require_taught(self, names: Sequence[str], where: str) -> None:
        """Refuses a class that was not taught, by its name."""
        for name in names:
            if name not in self.names_:
                hint = did_you_mean(name, self.names_)
                raise UnknownNameError(where, "candidate", "a class that was taught, by its name", name, hint)

    def _require_reading(self, images: LabelledImages, where: str, name: str) -> None:
        """Refuses files that become RGB by another range than those it was taught; images in memory are RGB."""
        mine, theirs = self.reading, getattr(images.source, "reading", self.reading)
        if mine != theirs:
            hint = "Load them with that value_range, or convert all images to one range"
            must_be = f"{mine.value_range}, as of those that were taught"
            raise StreamError(where, name, must_be, theirs.value_range, hint)

    def _names_of(self, task: Task) -> dict[ClassId, str]:
        """The task's class names; where it gives none, those known, and else the ids."""
        known = self.class_names
        return {c: task.class_names.get(c, known.get(c, str(c))) for c in task.classes}

    def _meet(self, task: Task) -> None:
        """Gives the task's new classes their columns."""
        seen = set(self.classes_)
        new = [c for c in task.classes if c not in seen]
        names = self._names_of(task)
        self.value_range_ = list(task.train.reading.value_range or self.value_range_)
        self.classes_ = [*self.classes_, *new]
        self.names_ = [*self.names_, *(names[c] for c in new)]
        shown = {**task.class_names, **task.display_names}
        given = {c: text for c, text in task.display_names.items() if text != display_name(names[c])}  # from a file
        known = zip(self.classes_, self.displays_, strict=False)
        self.displays_ = [*(given.get(c, text) for c, text in known), *(shown.get(c, "") for c in new)]

    def _count(self, task: Task) -> None:
        """Remembers the task's images by their contents."""
        _, first = np.unique(task.train.keys, return_index=True)
        keys = task.train.keys[np.sort(first)]
        new = keys[~np.isin(keys, self.taught_keys)]
        self.taught_ = torch.cat([self.taught_, torch.from_numpy(new.view(np.uint8).reshape(-1, KEY_BYTES))])
        self.n_taught_ = len(self.taught_)
        self.tasks_seen_ += 1
