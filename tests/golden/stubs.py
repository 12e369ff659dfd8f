"""Known features in place of a backbone's, so that golden numbers can be computed by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure.config import MethodConfig
from perdure.data import LabelledImages, Preprocess, Task
from perdure.methods import FeatureMethod
from perdure.types import no_progress


class KnownFeatures:
    """What a store serves: a length, indexing, and small batches."""

    def __init__(self, rows: Tensor) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, positions: np.ndarray | slice) -> Tensor:
        return self._rows[positions]

    def batches(self, size: int = 7) -> Iterator[Tensor]:
        yield from self._rows.split(size)


class KnownSource:
    """An image source whose image i has features[i]; it has no pixels."""

    def __init__(self, features: Any) -> None:
        self.features = torch.as_tensor(features, dtype=torch.float64)
        self.keys = np.arange(len(self.features)).astype("S16")


class StubStore:
    progress = staticmethod(no_progress)

    def features(self, backbone: object, data: LabelledImages, *, label: str = "") -> KnownFeatures:
        return KnownFeatures(data.source.features[data.rows])


class StubBackbone:
    shelf, identity, batch_size, preprocess = "stub", "stub", 4, Preprocess(image_size=8)
    device = torch.device("cpu")

    def __init__(self, dim: int) -> None:
        self.dim = dim


def known(features: Any, labels: Sequence[int] | np.ndarray | None = None) -> LabelledImages:
    """A data set with these features; labels are 0 if they do not matter."""
    source = KnownSource(features)
    return LabelledImages(source, np.zeros(len(source.keys), np.int64) if labels is None else np.asarray(labels))


def untaught(method: type[FeatureMethod], dim: int, config: MethodConfig | None = None, seed: int = 0) -> Any:
    return method(StubBackbone(dim), config, seed=seed, store=StubStore())


def teach(method: Any, *tasks: tuple[Any, Any]) -> Any:
    """Fits (features, labels) pairs as the next tasks; a task's classes arrive in order of appearance."""
    for features, labels in tasks:
        data = known(features, labels)
        method.fit_task(Task(method.tasks_seen_, data, tuple(dict.fromkeys(data.labels.tolist()))))
    return method


def scores(method: Any, features: Any) -> Tensor:
    return torch.cat(list(method.scores_of(known(features))))


def predicted(method: Any, features: Any) -> list[int]:
    return method.predict(known(features)).tolist()


def clusters(
    n_classes: int, per_class: int, dim: int, *, noise: float = 0.5, seed: int = 0
) -> tuple[Tensor, np.ndarray]:
    """Float64 features around one random centre per class, sorted by class, and their labels."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n_classes).repeat_interleave(per_class)
    centres = torch.randn(n_classes, dim, generator=rng, dtype=torch.float64)
    spread = noise * torch.randn(len(labels), dim, generator=rng, dtype=torch.float64)
    return centres[labels] + spread, labels.numpy()


def cut(features: Tensor, labels: np.ndarray, groups: Sequence[Sequence[int]]) -> list[tuple[Tensor, np.ndarray]]:
    """One (features, labels) pair per group of classes."""
    parts = [np.concatenate([np.flatnonzero(labels == c) for c in group]) for group in groups]
    return [(features[torch.from_numpy(p)], labels[p]) for p in parts]
