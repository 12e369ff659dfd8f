"""Data sets known by name. Each is read from this machine where it can be, else downloaded by torchvision."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100, FashionMNIST

from perdure.data.datasets import Dataset, datasets
from perdure.data.folders import cache_dir
from perdure.data.images import ArraySource, LabelledImages
from perdure.errors import DataError, DataNotFoundError

Arrays: TypeAlias = tuple[np.ndarray, np.ndarray]
"""(n, h, w[, 3]) uint8 pixels and (n,) integer labels."""

DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")


@datasets.register("digits")
def digits() -> Dataset:
    """scikit-learn's bundled 8×8 handwritten digits, offline: 1797 images, every fifth for testing."""
    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    test = np.arange(len(labels)) % 5 == 0
    names = [str(i) for i in range(10)]
    return dataset_of_arrays("digits", (pixels[~test], labels[~test]), (pixels[test], labels[test]), names)


@datasets.register("fashion-mnist")
def fashion_mnist() -> Dataset:
    """Fashion-MNIST (MIT), 70 000 product images: Debian's ``dataset-fashion-mnist`` if installed, else a download."""
    for folder in (data_dir() / "fashion-mnist", DEBIAN_FASHION_MNIST):
        if (folder / "train-images-idx3-ubyte.gz").is_file():
            train, test = (_read_idx(folder, part) for part in ("train", "t10k"))
            return dataset_of_arrays("fashion-mnist", train, test, FashionMNIST.classes)
    return _torchvision("fashion-mnist", FashionMNIST, "install Debian's package dataset-fashion-mnist")


@datasets.register("cifar10")
def cifar10() -> Dataset:
    """CIFAR-10, 60 000 photographs of 10 classes, downloaded by torchvision on first use."""
    return _torchvision("cifar10", CIFAR10, "give a folder root/{train,test}/<class>/")


@datasets.register("cifar100")
def cifar100() -> Dataset:
    """CIFAR-100, 60 000 photographs of 100 classes, downloaded by torchvision on first use."""
    return _torchvision("cifar100", CIFAR100, "give a folder root/{train,test}/<class>/")


def data_dir() -> Path:
    """Where named data sets are looked for and downloaded to: ``$PERDURE_DATA``, else ``data`` in the cache."""
    given = os.environ.get("PERDURE_DATA")
    return Path(given).expanduser() if given else cache_dir() / "data"


def dataset_of_arrays(name: str, train: Arrays, test: Arrays, class_names: Sequence[str]) -> Dataset:
    """A data set of images in memory; class id ``i`` is called ``class_names[i]``.

    Raises:
        DataError: if pixels are not uint8 images, labels do not match them, or a label has no name.
    """
    parts = [LabelledImages(ArraySource(pixels, name), labels) for pixels, labels in (train, test)]
    return Dataset(name, parts[0], parts[1], dict(enumerate(class_names)))


def _torchvision(name: str, kind: Any, other_way: str) -> Dataset:
    root = data_dir()
    try:
        train, test = (kind(str(root), train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError) as error:
        hint = f"Connect to the network (torchvision said: {error}), or {other_way}"
        raise DataNotFoundError("data", name, f"in {root} or downloadable", "neither", hint) from error
    arrays = [(np.asarray(part.data), np.asarray(part.targets)) for part in (train, test)]
    return dataset_of_arrays(name, arrays[0], arrays[1], train.classes)


def _read_idx(folder: Path, part: str) -> Arrays:
    try:
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
            pixels = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 28, 28)
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
            labels = np.frombuffer(file.read(), np.uint8, offset=8)
    except (OSError, ValueError, EOFError, zlib.error) as error:
        hint = f"Install the package dataset-fashion-mnist again ({error})"
        raise DataError("data", "fashion-mnist", "four readable gzip files", str(folder), hint) from error
    return pixels, labels
