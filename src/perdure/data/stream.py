"""Tasks and streams: how a data set arrives piece by piece.

A :class:`Task` holds what a method may see: its own training images. It holds no test data, no future classes and no
count of what is to come. The tests live in the :class:`Stream`, and only the evaluator asks for them.
"""

from __future__ import annotations

import dataclasses as dc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from perdure.data.datasets import Dataset
from perdure.data.images import LabelledImages
from perdure.errors import SplitError, StreamError
from perdure.types import ClassId


@dc.dataclass(frozen=True, slots=True)
class Task:
    """One step of a stream, as a method sees it.

    Args:
        index: position in the stream, from 0.
        train: its labelled images.
        classes: the class ids present, in their order of arrival.
        domain: the domain's name in a domain-incremental stream.
        class_names: its own classes' names, no others'; may be left out, and a method then takes the ids.
        display_names: the same for people.
        dataset: in a stream over several data sets, the short name of the one that it is from.

    Raises:
        StreamError: if there is no image, ``classes`` are not exactly the labels' classes, or names are not theirs.
    """

    index: int
    train: LabelledImages
    classes: tuple[ClassId, ...]
    domain: str | None = None
    class_names: Mapping[ClassId, str] = dc.field(default_factory=dict)
    display_names: Mapping[ClassId, str] = dc.field(default_factory=dict)
    dataset: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(map(_plain, self.classes)))
        if not len(self.train):
            raise StreamError("Task", "train", "at least one image", 0, "Leave empty tasks out of the stream")
        if set(self.classes) != set(self.train.classes) or len(set(self.classes)) != len(self.classes):
            must_be = f"the labels' classes {self.train.classes}, each once"
            raise StreamError("Task", "classes", must_be, self.classes, "Take the classes from the labels")
        for name in ("class_names", "display_names"):
            given = {_plain(c): str(text) for c, text in getattr(self, name).items()}
            if given and given.keys() != set(self.classes):
                hint = "Name the task's own classes: it knows of no others"
                raise StreamError("Task", name, f"of the classes {self.classes}", given, hint)
            object.__setattr__(self, name, given)
        if len(set(self.class_names.values())) < len(self.class_names):
            hint = "Give one class all images of that name"
            raise StreamError("Task", "class_names", "distinct", dict(self.class_names), hint)


def _plain(class_id: ClassId) -> ClassId:
    """A number of NumPy's as Python's own: a state holds no others."""
    return int(class_id) if isinstance(class_id, np.integer) else class_id


@dc.dataclass(frozen=True, slots=True)
class Candidate:
    """A class by its name, taught or not, among which images are to be scored.

    Args:
        name: the class's name; in a stream over several data sets it begins with its set's.
        text: its display name: what people, and models that read texts, are shown.
        dataset: the short name of its data set, where there are several.
    """

    name: str
    text: str
    dataset: str | None = None


class Stream(Sequence[Task]):
    """An immutable sequence of tasks with their tests beside them.

    Args:
        tasks: the tasks, their indices one after another: from 0, or from where a method stands that is to go on.
        tests: one set of test images per task.
        class_names: every class id's name.
        rule: how the data were cut, in plain values; part of the fingerprint.
        quarantined: corrupt files left out on request, with the reason.
        unread: files that look like images but cannot be read here, with what to do.
        notes: what a person should know of how the folder was read, in sentences.

    Raises:
        StreamError: if the tasks do not follow one another.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tests: Sequence[LabelledImages],
        class_names: Mapping[ClassId, str],
        rule: Mapping[str, object],
        quarantined: tuple[str, ...] = (),
        unread: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
    ) -> None:
        self._tasks, self._tests = tuple(tasks), tuple(tests)
        self.first: int = tasks[0].index if tasks else 0
        if (indices := [t.index for t in tasks]) != list(range(self.first, self.first + len(tasks))):
            raise StreamError("Stream", "indices of the tasks", "one after another", indices, "Number them on")
        self.class_names, self.rule, self.quarantined = dict(class_names), dict(rule), quarantined
        self.display_names = {c: name for t in tasks for c, name in t.display_names.items()}
        texts = {**self.class_names, **self.display_names}
        found = {name: Candidate(name, texts[c], t.dataset) for t in tasks for c, name in t.class_names.items()}
        self.candidates = tuple(found.values())  # the classes of all tasks, by their names
        self.notes = notes
        self.unread = unread
        parts = [json.dumps(self.rule, sort_keys=True)]
        parts += [f"{t.classes}{t.train.fingerprint}{x.fingerprint}" for t, x in zip(tasks, tests, strict=True)]
        self.fingerprint: str = hashlib.blake2b("\n".join(parts).encode(), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # int -> Task, slice -> tuple of tasks
        return self._tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self._tasks)

    def test(self, index: int) -> LabelledImages:
        """The test images of the task of that index.

        Raises:
            StreamError: if there is no such task.
        """
        last = self.first + len(self) - 1
        if not self.first <= index <= last:
            hint = "Ask for the index of a task of this stream"
            raise StreamError("Stream.test", "index", f"between {self.first} and {last}", index, hint)
        return self._tests[index - self.first]


def task_sizes(
    n_classes: int,
    *,
    tasks: int | None = None,
    base: int | None = None,
    increment: int | None = None,
    sizes: Sequence[int] | None = None,
    where: str = "stream",
) -> list[int]:
    """How many classes each task brings. Exactly one way of asking must be used.

    Args:
        n_classes: classes there are.
        tasks: this many tasks, as even as possible, larger ones first.
        base: classes of the first task; 0 (B0) means ``increment``.
        increment: classes of every later task; the last may be smaller.
        sizes: the list itself.
        where: what errors start with.

    Raises:
        SplitError: if no way or several ways are given, or the classes do not suffice.
    """
    ways = [tasks is not None, base is not None or increment is not None, sizes is not None]
    if sum(ways) != 1:
        given = {"tasks": tasks, "base": base, "increment": increment, "sizes": sizes}
        hint = "Give tasks, or base and increment, or sizes"
        raise SplitError(where, "split", "asked for in exactly one way", given, hint)
    if tasks is not None:
        if not 1 <= tasks <= n_classes:
            hint = "Ask for fewer tasks or add classes"
            raise SplitError(where, "tasks", f"between 1 and the number of classes ({n_classes})", tasks, hint)
        return [n_classes // tasks + (i < n_classes % tasks) for i in range(tasks)]
    if sizes is not None:
        if not sizes or any(n < 1 for n in sizes) or sum(sizes) != n_classes:
            hint = "Correct the list"
            raise SplitError(where, "sizes", f"positive and sum to {n_classes} classes", list(sizes), hint)
        return list(sizes)
    if increment is None or increment < 1:
        raise SplitError(where, "increment", "at least 1", increment, "Give base and increment, e.g. 50 and 10")
    first = base or increment
    if not 1 <= first <= n_classes:
        raise SplitError(where, "base", f"at most the {n_classes} classes there are", first, "Lower it")
    left = n_classes - first
    return [first] + [increment] * (left // increment) + ([left % increment] if left % increment else [])


def class_incremental(
    dataset: Dataset, sizes: Sequence[int], order: Sequence[ClassId], first: int = 0, name: str | None = None
) -> Stream:
    """Cuts a data set into tasks of new classes.

    Args:
        dataset: the images.
        sizes: classes per task, summing to ``len(order)``.
        order: class ids in order of arrival.
        first: the first task's index.
        name: the data set's, told with every task where it is one of several.
    """
    ends = np.cumsum(sizes)
    groups = [tuple(order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    parts = [dataset.train.of_classes(group) for group in groups]
    tasks = [_task(i, dataset, *of, name=name) for i, of in enumerate(zip(parts, groups, strict=True), first)]
    tests = [dataset.test.of_classes(group) for group in groups]
    rule = {"scenario": "class", "groups": groups}
    return Stream(tasks, tests, dataset.class_names, rule, dataset.quarantined, dataset.unread, dataset.notes)


def domain_incremental(domains: Mapping[str, Dataset], first: int = 0) -> Stream:
    """One task per domain, in the order given; the classes come again and again.

    Args:
        domains: their images, class ids shared.
        first: the first task's index.
    """
    tasks = [_task(i, d, d.train, d.train.classes, name) for i, (name, d) in enumerate(domains.items(), first)]
    names = {c: n for d in domains.values() for c, n in d.class_names.items()}
    quarantined = tuple(q for d in domains.values() for q in d.quarantined)
    unread = tuple(u for d in domains.values() for u in d.unread)
    rule = {"scenario": "domain", "domains": list(domains)}
    notes = tuple(note for d in domains.values() for note in d.notes)
    return Stream(tasks, [d.test for d in domains.values()], names, rule, quarantined, unread, notes)


def _task(
    index: int,
    dataset: Dataset,
    train: LabelledImages,
    classes: tuple[ClassId, ...],
    domain: str | None = None,
    name: str | None = None,
) -> Task:
    """A task that knows the names of its own classes alone."""
    names, displays = dataset.class_names, {**dataset.class_names, **dataset.display_names}
    mine, shown = ({c: each[c] for c in classes} for each in (names, displays))
    return Task(index, train, classes, domain, mine, shown, name)
