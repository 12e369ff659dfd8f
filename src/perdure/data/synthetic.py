"""A small made-up data set for tests, docs and ``perdure check``: no file, no network, learnable in seconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perdure.data.datasets import Dataset, datasets
from perdure.data.images import ArraySource, LabelledImages


@datasets.register("synthetic")
def synthetic() -> Dataset:
    """Six classes of striped colour patches, 8 train and 4 test images each."""
    return synthetic_dataset(range(6))


def synthetic_dataset(
    class_ids: Sequence[int],
    *,
    train_per_class: int | Sequence[int] = 8,
    test_per_class: int = 4,
    side: int = 32,
    seed: int = 0,
    shift: float = 0.0,
) -> Dataset:
    """One colour and one stripe direction per class, plus noise.

    Args:
        class_ids: any distinct integers, in any order.
        train_per_class: images per class, or one count for each class.
        test_per_class: images per class.
        side: of the square images, pixels.
        seed: of the noise.
        shift: brightness added to every pixel (0 to 255), to make another domain of the same classes.
    """
    rng = np.random.default_rng(seed)
    counts = [train_per_class] * len(class_ids) if isinstance(train_per_class, int) else list(train_per_class)
    train = [_patches(k, n, len(class_ids), side, shift, rng) for k, n in enumerate(counts)]
    test = [_patches(k, test_per_class, len(class_ids), side, shift, rng) for k in range(len(class_ids))]

    def labelled(patches: list[np.ndarray], title: str) -> LabelledImages:
        labels = np.repeat(np.asarray(class_ids, dtype=np.int64), [len(p) for p in patches])
        return LabelledImages(ArraySource(np.concatenate(patches), title), labels)

    names = {int(c): f"pattern {c}" for c in class_ids}
    return Dataset("synthetic", labelled(train, "synthetic/train"), labelled(test, "synthetic/test"), names)


def _patches(k: int, n: int, n_classes: int, side: int, shift: float, rng: np.random.Generator) -> np.ndarray:
    """(n, side, side, 3) uint8 images of the k-th class."""
    y, x = np.mgrid[:side, :side] / side
    angle = np.pi * k / n_classes
    stripes = np.sin(2 * np.pi * 3 * (x * np.cos(angle) + y * np.sin(angle)))  # (side, side)
    hue = 2 * np.pi * k / n_classes + np.array([0.0, 2.1, 4.2])
    colour = 128 + 90 * np.cos(hue)  # (3,)
    clean = colour + 40 * stripes[..., None] + shift  # (side, side, 3)
    noisy = clean + rng.normal(0, 12, (n, side, side, 3))
    return noisy.clip(0, 255).astype(np.uint8)
