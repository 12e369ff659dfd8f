"""Data as a method that has been taught already would number them, without what it was taught.

A folder's class ids are positions among its sorted names, and move when a class is added. A method's do not: a class
that it knows by name keeps its id, and new ones take the next that are free.
"""

from __future__ import annotations

import dataclasses as dc
import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Shaped

from perdure.data.datasets import Dataset
from perdure.data.images import LabelledImages
from perdure.data.reading import Reading
from perdure.types import ClassId


class Known(Protocol):
    """What is asked of a method that a stream is to go on from."""

    tasks_seen_: int

    @property
    def reading(self) -> Reading:
        """How image files become RGB."""
        ...

    @property
    def class_names(self) -> dict[ClassId, str]:
        """Every class id's name."""
        ...

    @property
    def unnamed(self) -> frozenset[ClassId]:
        """The class ids that were taught without a name: no folder is meant by them."""
        ...

    @property
    def taught_keys(self) -> Shaped[np.ndarray, " n"]:
        """The content hashes of all images it was taught."""
        ...


def continuing(dataset: Dataset, known: Known, include_known: bool) -> Dataset:
    """What of a data set is new to a method, under the method's ids.

    A new class keeps all its training images, as it would in a stream that is known from the start. Images that were
    taught are left out of the tests too: a folder that is split anew when it has grown may hold them out today.

    Args:
        dataset: all there is now.
        known: the method.
        include_known: keep new images of known classes.
    """
    ids = {name: c for c, name in known.class_names.items() if c not in known.unnamed}
    free = itertools.count(max([-1, *known.class_names]) + 1)
    now = {old: ids[name] if name in ids else next(free) for old, name in sorted(dataset.class_names.items())}
    wanted = {new for old, new in now.items() if include_known or dataset.class_names[old] not in ids}

    def of(images: LabelledImages, classes: set[ClassId], again: set[ClassId]) -> LabelledImages:
        """``again``: the classes whose images may have been taught."""
        labels = np.array([now[c] for c in images.labels.tolist()], dtype=np.int64)
        new: Bool[np.ndarray, " n"] = ~np.isin(images.keys, known.taught_keys) | np.isin(labels, list(again))
        keep = new & np.isin(labels, list(classes))
        return LabelledImages(images.source, labels[keep], images.rows[keep])

    train = of(dataset.train, wanted, wanted - set(ids.values()))
    taught_next = set(train.classes)

    def renumbered(names: Mapping[ClassId, str]) -> dict[ClassId, str]:
        return {now[c]: name for c, name in names.items() if now[c] in taught_next}

    return dc.replace(
        dataset,
        train=train,
        test=of(dataset.test, taught_next, set()),
        class_names=renumbered(dataset.class_names),
        display_names=renumbered(dataset.display_names),
    )


def renamed(parts: Iterable[Dataset], known: Known) -> list[str]:
    """The new classes of which a method was taught half of the training images, or more, under other names.

    Args:
        parts: of the data, each as :func:`continuing` gave it.
        known: the method.
    """
    taught, there = Counter[str](), Counter[str]()
    for part in parts:
        names = [part.class_names[c] for c in part.train.labels.tolist()]
        again: Bool[np.ndarray, " n"] = np.isin(part.train.keys, known.taught_keys)
        there.update(names)
        taught.update(name for name, was in zip(names, again.tolist(), strict=True) if was)
    return sorted(f"{name} ({n} of {there[name]})" for name, n in taught.items() if 2 * n >= there[name])
