"""Several data sets in one stream, each one's classes told apart from the others'.

Whether another set has a class of the same name must not be known before that set comes, so every class's name begins
with its set's short name, ``cifar10/airplane``, from the first set on. Display names stay as they are: ``airplane``.
"""

from __future__ import annotations

import dataclasses as dc
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from perdure.data.datasets import Dataset, datasets
from perdure.data.images import LabelledImages
from perdure.data.names import name_of, on_disk, shown
from perdure.data.order import order_classes
from perdure.data.stream import Stream, class_incremental, task_sizes
from perdure.errors import SplitError

HINT = (
    "Remove them: tasks, or base and increment, are of each set, order_seed shuffles within each, "
    "and the sets come in the order given"
)


def short_name(data: str | Path) -> str:
    """What a data set is called among others: its registered name, or its folder's last part.

    Args:
        data: a registered name or a folder, as for :func:`perdure.data.load_stream`.
    """
    path = on_disk(data)
    aliases = {} if path.exists() else datasets.aliases()
    return aliases.get(str(data)) or name_of(Path(os.path.abspath(path)))


def require_several(data: str | Path | None, sets: Sequence[str | Path] | None, **of_one: object) -> None:
    """Refuses what does not fit together: exactly one of both is given, and a stream over sets has no key of one set.

    Args:
        data: one data set.
        sets: several.
        of_one: what can be asked of one data set alone, by name; none of it where it is None, or ``class``.

    Raises:
        SplitError: if it does not.
    """
    if (data is None) == (sets is None):
        given = {"data": data, "datasets": sets}
        hint = "Write data: NAME for one data set, or datasets: [NAME, NAME] for several"
        raise SplitError("stream", "data", "given, or datasets, and not both", given, hint)
    if sets is None:
        return
    if isinstance(sets, str | Path) or not sets:
        raise SplitError("stream", "datasets", "a list of data sets", sets, "Write e.g. [cifar10, fashion-mnist]")
    asked = {key: value for key, value in of_one.items() if value not in (None, "class")}
    if asked:
        raise SplitError("stream", "keys of one data set", "absent with datasets", asked, HINT)
    count = Counter(map(short_name, sets))
    if twins := [shown(each) for each in sets if count[short_name(each)] > 1]:
        hint = "Name each set once; rename a folder that is called like another"
        raise SplitError("stream", "datasets", "of different names (a folder's is its last part)", twins, hint)


def told_apart(sets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Data sets with ids numbered on from set to set, and every class's name behind its set's.

    Args:
        sets: by short name, in order; their display names stay.

    Returns:
        The same; each has the names of all classes, so that whoever numbers them anew numbers all alike.
    """
    names: dict[int, str] = {}
    displays: dict[int, str] = {}
    own: dict[str, dict[int, int]] = {}
    for name, each in sets.items():
        own[name] = {c: len(names) + i for i, c in enumerate(sorted(each.class_names))}
        names |= {own[name][c]: f"{name}/{called}" for c, called in each.class_names.items()}
        displays |= {own[name][c]: called for c, called in {**each.class_names, **each.display_names}.items()}

    def of(images: LabelledImages, ids: Mapping[int, int]) -> LabelledImages:
        labels = np.array([ids[c] for c in images.labels.tolist()], dtype=np.int64)
        return LabelledImages(images.source, labels, images.rows)

    return {
        name: dc.replace(
            each,
            train=of(each.train, own[name]),
            test=of(each.test, own[name]),
            class_names=names,
            display_names=displays,
        )
        for name, each in sets.items()
    }


def any_given(asked: Mapping[str, object]) -> list[str]:
    """The names of what is not None."""
    return [key for key, value in asked.items() if value is not None]


def one_after_another(
    sets: Mapping[str, Dataset], cut: Mapping[str, Any], order_seed: int | None, first: int
) -> Stream:
    """The tasks of one data set, then those of the next.

    Args:
        sets: by short name, in order, as :func:`told_apart` gives them.
        cut: ``tasks``, or ``base`` and ``increment``, of each set, as for :func:`perdure.data.stream.task_sizes`; one
            task if nothing is asked for.
        order_seed: of the class order within each set; ``None`` keeps ascending ids.
        first: the first task's index.

    Raises:
        SplitError: if the split does not fit a set, which is named.
    """
    ways = cut if any_given(cut) else {"tasks": 1}
    streams: list[Stream] = []
    for name, each in sets.items():
        own = {c: each.class_names[c] for c in each.train.classes}
        sizes = task_sizes(len(own), **ways, where=f"stream, {name}")
        at = first + sum(map(len, streams))
        streams.append(class_incremental(each, sizes, order_classes(own, seed=order_seed), at, name))
    return Stream(
        tasks=[task for stream in streams for task in stream],
        tests=[stream.test(task.index) for stream in streams for task in stream],
        class_names={c: name for stream in streams for task in stream for c, name in task.class_names.items()},
        rule={
            "scenario": "class",
            "datasets": [[name, s.rule["groups"]] for name, s in zip(sets, streams, strict=True)],
        },
        quarantined=tuple(reason for stream in streams for reason in stream.quarantined),
        unread=tuple(reason for stream in streams for reason in stream.unread),
        notes=tuple(f"{name}: {note}" for name, each in sets.items() for note in each.notes),
    )
