"""Images of earlier tasks that are shown again: how many are kept, which, and how many of them every step takes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from perdure.backbone import Backbone
from perdure.config import Config
from perdure.data import LabelledImages
from perdure.memory import Exemplars, FeatureStore
from perdure.memory.exemplars import Policy
from perdure.train.batches import Kept


class Budget(Config):
    """What is kept of earlier tasks, chosen at the end of each."""

    policy: Policy = Field(
        "herding", description="which images: those whose mean is a class's, any of a class, or any of all seen"
    )
    n_per_class: int = Field(20, ge=1, description="images kept of each class")
    n_images: int | None = Field(None, ge=1, description="images kept in all; then n_per_class is not used")

    def make(self) -> Exemplars:
        """An empty memory."""
        each = self.n_per_class if self.n_images is None else None
        return Exemplars(self.policy, n_images=self.n_images, n_per_class=each)


class Memory(Budget):
    """What is kept, and how many of it every step takes."""

    per_step: int = Field(16, ge=1, description="kept images in every step, drawn anew without repetition")


def kept(exemplars: Exemplars, columns_of: Callable[[np.ndarray], Int[Tensor, " n"]], per_step: int) -> Kept | None:
    """What a session takes beside a task's own images; None where nothing is kept yet.

    Args:
        exemplars: the memory.
        columns_of: labels to score columns, a method's ``columns``.
        per_step: kept images in every step.
    """
    images = exemplars.images()
    return Kept(images, columns_of(images.labels), per_step) if len(images) else None


def keep(
    exemplars: Exemplars, data: LabelledImages, rng: torch.Generator, backbone: Backbone, store: FeatureStore
) -> None:
    """Keeps some of a task's images, once it is learned.

    Herding goes by features of the backbone that never changes. They cost one pass per image ever, whatever learns;
    those of a part that has just learned would have to be computed again at every task.

    Args:
        exemplars: the memory.
        data: the task's images.
        rng: a CPU generator.
        backbone: the frozen one.
        store: of features; asked by herding alone.

    Raises:
        ConfigError: if the budget does not allow one image per class.
        DataError: naming the image, if a file is gone or changed.
    """
    exemplars.add(data, rng, lambda images: store.features(backbone, images, label="herding features"))
