"""Tasks and streams: how a data set arrives piece by piece.

A :class:`Task` holds what a method may see: its own training images. It holds no test data, no future classes and no
count of what is to come. The tests live in the :class:`Stream`, and only the evaluator asks for them.
"""

from __future__ import annotations

import dataclasses as dc
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perdure.data.datasets import Dataset, domain_datasets, load_dataset
from perdure.data.images import LabelledImages
from perdure.errors import SplitError, StreamError, did_you_mean
from perdure.types import ClassId

SCENARIOS = ("class", "domain")


@dc.dataclass(frozen=True, slots=True)
class Task:
    """One step of a stream, as a method sees it.

    Args:
        index: position in the stream, from 0.
        train: its labelled images.
        classes: the class ids present, in their order of arrival.
        domain: the domain's name in a domain-incremental stream.

    Raises:
        StreamError: if there is no image, or ``classes`` are not exactly the labels' classes.
    """

    index: int
    train: LabelledImages
    classes: tuple[ClassId, ...]
    domain: str | None = None

    def __post_init__(self) -> None:
        if not len(self.train):
            raise StreamError("Task", "train", "at least one image", 0, "Leave empty tasks out of the stream")
        if set(self.classes) != set(self.train.classes) or len(set(self.classes)) != len(self.classes):
            must_be = f"the labels' classes {self.train.classes}, each once"
            raise StreamError("Task", "classes", must_be, self.classes, "Take the classes from the labels")


class Stream(Sequence[Task]):
    """An immutable sequence of tasks with their tests beside them.

    Args:
        tasks: the tasks, ``tasks[i].index == i``.
        tests: one set of test images per task.
        class_names: every class id's name.
        rule: how the data were cut, in plain values; part of the fingerprint.
        quarantined: corrupt files left out on request, with the reason.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        tests: Sequence[LabelledImages],
        class_names: Mapping[ClassId, str],
        rule: Mapping[str, object],
        quarantined: tuple[str, ...] = (),
    ) -> None:
        self._tasks, self._tests = tuple(tasks), tuple(tests)
        self.class_names, self.rule, self.quarantined = dict(class_names), dict(rule), quarantined
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
        """The test images of task ``index``."""
        return self._tests[index]


def task_sizes(
    n_classes: int,
    *,
    tasks: int | None = None,
    base: int | None = None,
    increment: int | None = None,
    sizes: Sequence[int] | None = None,
) -> list[int]:
    """How many classes each task brings. Exactly one way of asking must be used.

    Args:
        n_classes: classes there are.
        tasks: this many tasks, as even as possible, larger ones first.
        base: classes of the first task; 0 (B0) means ``increment``.
        increment: classes of every later task; the last may be smaller.
        sizes: the list itself.

    Raises:
        SplitError: if no way or several ways are given, or the classes do not suffice.
    """
    ways = [tasks is not None, base is not None or increment is not None, sizes is not None]
    if sum(ways) != 1:
        given = {"tasks": tasks, "base": base, "increment": increment, "sizes": sizes}
        hint = "Give tasks, or base and increment, or sizes"
        raise SplitError("stream", "split", "asked for in exactly one way", given, hint)
    if tasks is not None:
        if not 1 <= tasks <= n_classes:
            hint = "Ask for fewer tasks or add classes"
            raise SplitError("stream", "tasks", f"between 1 and the number of classes ({n_classes})", tasks, hint)
        return [n_classes // tasks + (i < n_classes % tasks) for i in range(tasks)]
    if sizes is not None:
        if not sizes or any(n < 1 for n in sizes) or sum(sizes) != n_classes:
            hint = "Correct the list"
            raise SplitError("stream", "sizes", f"positive and sum to {n_classes} classes", list(sizes), hint)
        return list(sizes)
    if increment is None or increment < 1:
        raise SplitError("stream", "increment", "at least 1", increment, "Give base and increment, e.g. 50 and 10")
    first = base or increment
    if not 1 <= first <= n_classes:
        raise SplitError("stream", "base", f"at most the {n_classes} classes there are", first, "Lower it")
    left = n_classes - first
    return [first] + [increment] * (left // increment) + ([left % increment] if left % increment else [])


def order_classes(
    class_names: Mapping[ClassId, str], *, seed: int | None = None, given: Sequence[int | str] | None = None
) -> list[ClassId]:
    """The order in which classes arrive.

    Args:
        class_names: every class id's name.
        seed: permutes the ascending ids with NumPy's legacy generator; 1993 is the field's order.
        given: the order itself, as ids or names; wins over ``seed``. Neither: ascending ids.

    Raises:
        SplitError: if ``given`` is not a permutation of all classes.
    """
    ids = sorted(class_names)
    if given is None:
        if seed is None:
            return ids
        return [ids[i] for i in np.random.RandomState(seed).permutation(len(ids))]
    by_name = {name: i for i, name in class_names.items()}
    order = []
    for item in given:
        if item not in class_names and item not in by_name:
            hint = did_you_mean(str(item), [*by_name, *map(str, ids)])
            raise SplitError("stream", "class_order", "class ids or names", item, hint)
        order.append(int(item) if item in class_names else by_name[str(item)])
    if sorted(order) != ids:
        missing = [class_names[i] for i in ids if i not in order]
        twice = sorted({class_names[i] for i in order if order.count(i) > 1})
        got = {"missing": missing, "twice": twice}
        raise SplitError("stream", "class_order", f"a permutation of all {len(ids)} classes", got, "Correct the list")
    return order


def class_incremental(dataset: Dataset, sizes: Sequence[int], order: Sequence[ClassId]) -> Stream:
    """Cuts a data set into tasks of new classes.

    Args:
        dataset: the images.
        sizes: classes per task, summing to ``len(order)``.
        order: class ids in order of arrival.
    """
    ends = np.cumsum(sizes)
    groups = [tuple(order[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    tasks = [Task(i, dataset.train.of_classes(group), group) for i, group in enumerate(groups)]
    tests = [dataset.test.of_classes(group) for group in groups]
    rule = {"scenario": "class", "groups": groups}
    return Stream(tasks, tests, dataset.class_names, rule, dataset.quarantined)


def domain_incremental(domains: Mapping[str, Dataset]) -> Stream:
    """One task per domain, in the order given; the classes come again and again."""
    tasks = [Task(i, d.train, d.train.classes, name) for i, (name, d) in enumerate(domains.items())]
    names = {c: n for d in domains.values() for c, n in d.class_names.items()}
    quarantined = tuple(q for d in domains.values() for q in d.quarantined)
    rule = {"scenario": "domain", "domains": list(domains)}
    return Stream(tasks, [d.test for d in domains.values()], names, rule, quarantined)


def load_stream(
    data: str | Path,
    *,
    tasks: int | None = None,
    base: int | None = None,
    increment: int | None = None,
    sizes: Sequence[int] | None = None,
    order_seed: int | None = 1993,
    class_order: Sequence[int | str] | None = None,
    scenario: Literal["class", "domain"] = "class",
    test_fraction: float = 0.2,
    split_seed: int = 0,
    train_per_class: int | None = None,
    test_per_class: int | None = None,
    skip_corrupt: bool = False,
) -> Stream:
    """A stream from a data set's name or any image folder.

    Args:
        data: a name ``perdure ls data`` lists, or a folder.
        tasks: split into this many tasks; or give ``base`` and ``increment``, or ``sizes``, as for :func:`task_sizes`.
        base: see :func:`task_sizes`.
        increment: see :func:`task_sizes`.
        sizes: see :func:`task_sizes`.
        order_seed: seed of the class order, 1993 by default; ``None`` keeps ascending ids.
        class_order: the order itself, ids or names.
        scenario: ``class`` for new classes per task, ``domain`` for ``root/<domain>/<class>/``.
        test_fraction: share held out per class where the folder has no test part.
        split_seed: seed of that split and of the draws below.
        train_per_class: keep at most this many training images of each class, drawn with ``split_seed``.
        test_per_class: the same for test images.
        skip_corrupt: leave corrupt files out and record them in ``Stream.quarantined``.

    Raises:
        UnknownNameError, DataNotFoundError, DataError: see :func:`perdure.data.datasets.load_dataset`.
        SplitError: if the split asked for does not fit the data.
    """
    _require_valid(scenario, order_seed=order_seed, split_seed=split_seed)
    folder: dict[str, Any] = {"test_fraction": test_fraction, "split_seed": split_seed, "skip_corrupt": skip_corrupt}
    draw = (train_per_class, test_per_class, split_seed)
    if scenario == "domain":
        given = {"tasks": tasks, "base": base, "increment": increment, "sizes": sizes, "class_order": class_order}
        asked = [k for k, v in given.items() if v is not None]
        if asked:
            hint = "Remove them: each domain folder is one task"
            raise SplitError("stream", "split keys", "absent for scenario=domain", asked, hint)
        domains = domain_datasets(Path(data).expanduser(), **folder)
        return domain_incremental({name: _thin(domain, *draw) for name, domain in domains.items()})
    dataset = _thin(load_dataset(data, **folder), *draw)
    names = {c: dataset.class_names[c] for c in dataset.train.classes}
    groups = task_sizes(len(names), tasks=tasks, base=base, increment=increment, sizes=sizes)
    return class_incremental(dataset, groups, order_classes(names, seed=order_seed, given=class_order))


def _require_valid(scenario: str, **seeds: int | None) -> None:
    for name, value in seeds.items():
        if value is not None and not 0 <= value < 2**32:
            raise SplitError("stream", name, "between 0 and 2**32 - 1", value, "Choose another seed")
    if scenario not in SCENARIOS:
        raise SplitError("stream", "scenario", f"one of {SCENARIOS}", scenario, did_you_mean(scenario, SCENARIOS))


def _thin(dataset: Dataset, train: int | None, test: int | None, seed: int) -> Dataset:
    def draw(images: LabelledImages, at_most: int | None, part: int) -> LabelledImages:
        if at_most is None:
            return images
        if at_most < 1:
            name = ("train_per_class", "test_per_class")[part]
            raise SplitError("stream", name, "at least 1", at_most, "Leave it out to keep every image")
        keep = [np.empty(0, dtype=np.int64)]
        for c in images.classes:
            of_class = np.flatnonzero(images.labels == c)
            # seeded by name: a folder's class ids move when a class is added, and no draw may move with them
            rng = np.random.default_rng([seed, part, *dataset.class_names[c].encode()])
            keep.append(np.sort(rng.permutation(of_class)[:at_most]))
        return images.subset(np.concatenate(keep))

    return dc.replace(dataset, train=draw(dataset.train, train, 0), test=draw(dataset.test, test, 1))
