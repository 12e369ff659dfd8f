"""A method that scores classes by their names, taught or not, and one that keeps the names that it is asked about."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from perdure.config import MethodConfig
from perdure.data import Candidate, LabelledImages, Task
from perdure.learned import learned
from perdure.methods import Method, Tags

KNOWN: dict[bytes, str] = {}
"""What an image shows, by its content: planted by a test, so that the answers to come are known."""


def direction(name: str) -> Tensor:
    """(8,) a direction of a name's own, as a text tower would give."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    vector = torch.tensor(np.random.default_rng(seed).normal(size=8), dtype=torch.float32)
    return vector / vector.norm()


class Reader(Method[MethodConfig]):
    """Sees in an image what :data:`KNOWN` says, and scores names by their likeness to it.

    What it is asked is written down.
    """

    Config = MethodConfig
    tags: ClassVar = Tags(class_names=True, open_vocabulary=True, extra_data="a planted table")

    texts_: list[str] = learned("classes", str, "what classes are called for people")
    asked: list[tuple[Candidate, ...]]
    passed: list[int]

    def setup(self) -> None:
        """Nothing asked."""
        self.asked, self.passed = [], []

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        shown = {**dict(zip(self.classes_, self.texts_, strict=False)), **task.display_names}
        self.texts_ = [shown[c] for c in self.classes_]

    def _seen(self, data: LabelledImages) -> Tensor:
        return torch.stack([torch.zeros(8), *(direction(KNOWN.get(key, "nothing")) for key in data.keys.tolist())])[1:]

    def _scores(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), len(self.classes_))

    def _scores_of(self, data: LabelledImages) -> Iterator[Tensor]:
        self.passed.append(len(data))
        yield from (self._seen(data) @ torch.stack([direction(name) for name in self.names_]).T).split(3)

    def _scores_among(self, data: LabelledImages, candidates: Sequence[Candidate]) -> Iterator[Tensor]:
        self.asked.append(tuple(candidates))
        yield from (self._seen(data) @ torch.stack([direction(c.name) for c in candidates]).T).split(4)


def show(images: LabelledImages, names: Sequence[str]) -> None:
    """Plants what images show.

    Args:
        images: any.
        names: of each, the class that it is taken for.
    """
    KNOWN.update(zip(images.keys.tolist(), names, strict=True))


def reachable(thing: Any, seen: set[int] | None = None) -> Iterator[str]:
    """Every text that an object leads to, through attributes, mappings and lists."""
    seen = set() if seen is None else seen
    if isinstance(thing, str):
        yield thing
    if isinstance(thing, str | bytes | int | float | type | None) or callable(thing) or id(thing) in seen:
        return
    seen.add(id(thing))
    inner: list[Any] = [getattr(thing, name, None) for name in getattr(type(thing), "__slots__", ())]
    inner += list(getattr(thing, "__dict__", {}).values())
    if isinstance(thing, dict):
        inner += [*thing, *thing.values()]
    if isinstance(thing, list | tuple | set | frozenset):
        inner += list(thing)
    for each in inner:
        yield from reachable(each, seen)
