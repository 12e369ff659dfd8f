"""What the common checks work on: a method class, a tiny backbone, and small made-up streams."""

from __future__ import annotations

import copy
import dataclasses as dc
import functools
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from perdure.backbone import Backbone
from perdure.backbone.clip import tiny_clip
from perdure.backbone.tiny import small_vit
from perdure.config import laid_over
from perdure.data import LabelledImages, Reference, Stream, Task
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import PerdureError
from perdure.memory import FeatureStore
from perdure.methods import Method
from perdure.methods.base_reference import ReferenceMethod
from perdure.tags import BACKBONES

CLASS_IDS = (100, -7, 42, 5, 2**40, 13)  # any integers in any order: an id is never a column


class CheckFailedError(PerdureError):
    """A method breaks a promise that every method makes."""


def tiny_backbone() -> Backbone:
    """timm's ``test_vit`` with random weights: 64 px, 64 features, a millisecond per image."""
    return small_vit()


FITTING: Final = {**dict.fromkeys(BACKBONES, tiny_backbone), "towers": tiny_clip}
"""What methods are checked on, by what they need for a backbone."""


@dc.dataclass(frozen=True)
class Subject:
    """A method class under test.

    Args:
        kind: the method class.
        folder: for the feature stores of this check.
        make_backbone: makes a fresh backbone.
        shared: what its checks share, by name: a backbone, and fits.
    """

    kind: type[Method[Any]]
    folder: Path
    make_backbone: Callable[[], Backbone] = tiny_backbone
    shared: dict[str, Any] = dc.field(default_factory=dict)

    @property
    def backbone(self) -> Backbone:
        """The one that all checks share that do not look at what becomes of it."""
        if "backbone" not in self.shared:
            self.shared["backbone"] = self.make_backbone()
        backbone: Backbone = self.shared["backbone"]
        return backbone

    def method(
        self, *, seed: int = 0, learns: bool = False, backbone: Backbone | None = None, **settings: object
    ) -> Method[Any]:
        """A fresh, untrained method with the class's small configuration.

        Args:
            seed: the method's.
            learns: with the settings of a learning check.
            backbone: its backbone; by default the one that checks share, which a sound method leaves as it is.
            settings: others, wherever in its sections they are; those that the method does not have are left out.
        """
        tags = self.kind.tags
        config = self.kind.Config(**laid_over(tags.small, tags.learns if learns else {}))
        if settings:
            config = self.kind.Config(**_with(config.model_dump(), settings))
        store = FeatureStore(self.folder)
        return self.kind(backbone or self.backbone, config, seed=seed, store=store, **reference_for(self.kind))

    def fitted(self, stream: Stream, upto: int | None = None, method: Method[Any] | None = None) -> Method[Any]:
        """A method fitted on the stream's tasks up to and without ``upto`` (all by default), from where it is."""
        m = method if method is not None else self.method()
        for task in stream[m.tasks_seen_ : upto]:
            m.fit_task(task)
        return m

    def fail(self, check: str, must_be: str, got: object, hint: str) -> CheckFailedError:
        """The error that says which promise is broken."""
        return CheckFailedError(f"{self.kind.__name__}.{check}", "method", must_be, got, hint)


def reference_for(kind: type[Method[Any]]) -> dict[str, Reference]:
    """Made-up reference data by keyword, for a method that takes them; nothing for any other.

    Args:
        kind: the method's class.
    """
    return {"reference": small_reference()} if issubclass(kind, ReferenceMethod) else {}


@functools.cache
def small_reference() -> Reference:
    """Made-up images and sentences, for methods that learn from reference data."""
    images = synthetic_dataset(range(3), train_per_class=4, seed=7).train
    return Reference(images, [f"a picture of some {word}" for word in ("stripes", "dots", "rings", "waves", "noise")])


def small_stream(
    sizes: Sequence[int] = (2, 2, 2),
    *,
    train_per_class: int | Sequence[int] = 6,
    test_per_class: int = 3,
    ids: Sequence[int] = CLASS_IDS,
) -> Stream:
    """A synthetic stream in which classes arrive in the order of ``ids``."""
    dataset = synthetic_dataset(ids[: sum(sizes)], train_per_class=train_per_class, test_per_class=test_per_class)
    return class_incremental(dataset, sizes, ids[: sum(sizes)])


def named_task(
    index: int,
    images: LabelledImages,
    classes: Sequence[int] | None = None,
    domain: str | None = None,
    *,
    word: str = "pattern",
) -> Task:
    """A task of some images, with the names that the made-up classes have.

    Args:
        index: of the task.
        images: its images.
        classes: their classes; in the images' order if not given.
        domain: as for :class:`Task`.
        word: what the names begin with.
    """
    ids = tuple(classes) if classes is not None else tuple(dict.fromkeys(images.labels.tolist()))
    names = {c: f"{word} {c}" for c in ids}
    return Task(index, images, ids, domain, class_names=names, display_names=names)


def pixels(method: Method[Any], data: LabelledImages) -> Tensor:
    """All images of ``data`` in the method's eval view, (n, 3, h, w) uint8."""
    return torch.cat([images for _, images in data.batches(method.backbone.preprocess, 64)])


def frozen_state(method: Method[Any]) -> dict[str, Any]:
    """A copy of the method's state that later learning cannot reach."""
    return copy.deepcopy(method.state_dict())


def equal(a: Any, b: Any) -> bool:
    """Whether two states are the same, tensors bit for bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return bool(a == b)


def global_rngs() -> dict[str, object]:
    """The states of the global generators of torch, NumPy and Python, comparable with ``==``."""
    numpy_state = np.random.get_state(legacy=False)
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(numpy_state["state"]["pos"]) + numpy_state["state"]["key"].tobytes().hex(),
        "random": random.getstate(),
    }


@contextmanager
def scrambled_global_rngs(seed: int) -> Iterator[None]:
    """Sets every global random generator to something arbitrary, and restores them afterwards."""
    before = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _with(values: Mapping[str, Any], settings: Mapping[str, object]) -> dict[str, Any]:
    """``values`` with the keys of ``settings`` replaced, in sections too."""
    return {
        key: _with(value, settings) if isinstance(value, Mapping) else settings.get(key, value)
        for key, value in values.items()
    }
