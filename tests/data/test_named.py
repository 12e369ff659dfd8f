"""Named data sets: offline where they can be, a clear way out where they cannot."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from perdure.data import load_dataset, named
from perdure.errors import DataError, DataNotFoundError


def idx(path: Path, header: int, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(bytes(header) + values.tobytes()))


@pytest.fixture
def fashion(tmp_path: Path) -> Path:
    """A tiny Fashion-MNIST in ``$PERDURE_DATA``: 20 train and 10 test images."""
    folder = tmp_path / "data" / "fashion-mnist"
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 10)):
        idx(folder / f"{part}-images-idx3-ubyte.gz", 16, rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        idx(folder / f"{part}-labels-idx1-ubyte.gz", 8, (np.arange(n) % 10).astype(np.uint8))
    return folder


@pytest.fixture
def no_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named, "DEBIAN_FASHION_MNIST", tmp_path / "no" / "package")


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails where torchvision would open a URL: faster than waiting for a name server."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("the network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_digits_are_there_offline() -> None:
    data = load_dataset("digits")
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.train.classes == data.test.classes == tuple(range(10))
    assert data.class_names[7] == "7"
    assert not set(data.train.keys.tolist()) & set(data.test.keys.tolist())
    assert data.train.source.read(0).size == (8, 8)


def test_every_fifth_digit_is_for_testing_and_sixteen_is_white() -> None:
    data, (images, labels) = load_dataset("digits"), load_digits(return_X_y=True)
    for part, rows in ((data.train, [1, 2, 3, 4, 6]), (data.test, [0, 5, 10])):
        for i, row in enumerate(rows):
            pixels = np.asarray(part.source.read(i))[..., 0]
            assert np.abs(pixels - images[row].reshape(8, 8) * 255 / 16).max() < 1
            assert part.labels[i] == labels[row]
            assert pixels.max() == images[row].max() * 255 // 16
    assert np.asarray(data.train.source.read(1)).max() == 255


def test_fashion_mnist_is_read_from_the_data_folder(fashion: Path) -> None:
    data = load_dataset("fashion-mnist")
    assert (len(data.train), len(data.test)) == (20, 10)
    assert data.train.labels.tolist() == [*range(10)] * 2
    assert data.class_names[9] == "Ankle boot"
    first = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)[0]
    assert (np.asarray(data.train.source.read(0))[..., 0] == first).all()


def test_fashion_mnist_is_read_from_debians_package(fashion: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = fashion.rename(fashion.parent / "package")
    monkeypatch.setattr(named, "DEBIAN_FASHION_MNIST", package)
    assert len(load_dataset("fashion-mnist").test) == 10


@pytest.mark.parametrize("damage", ["cut", "garbled", "no gzip", "wrong size", "missing"])
def test_damaged_fashion_mnist_is_named(fashion: Path, damage: str) -> None:
    file = fashion / "t10k-images-idx3-ubyte.gz"
    good = file.read_bytes()
    bad = {
        "cut": good[:-50],
        "garbled": good[:10] + b"\xff" * 200 + good[210:],
        "no gzip": b"hello",
        "wrong size": gzip.compress(bytes(17)),
    }
    file.unlink() if damage == "missing" else file.write_bytes(bad[damage])
    with pytest.raises(DataError) as caught:
        load_dataset("fashion-mnist")
    assert repr(str(fashion)) in str(caught.value)
    assert "dataset-fashion-mnist" in str(caught.value)


def test_labels_that_do_not_match_the_images_are_refused(fashion: Path) -> None:
    idx(fashion / "t10k-labels-idx1-ubyte.gz", 8, np.zeros(9, np.uint8))
    with pytest.raises(DataError, match=r"one per image, \(10,\), but got \(9,\)"):
        load_dataset("fashion-mnist")


@pytest.mark.usefixtures("no_debian", "no_download")
def test_missing_fashion_mnist_tells_both_ways(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        load_dataset("fashion-mnist")
    message = str(caught.value)
    assert str(tmp_path / "data") in message
    assert "Connect to the network" in message
    assert "dataset-fashion-mnist" in message


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_tells_both_ways(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataNotFoundError) as caught:
        load_dataset(name)
    message = str(caught.value)
    assert f"{name} must be in {tmp_path / 'data'}" in message
    assert "the network is unreachable" in message
    assert "root/{train,test}/<class>/" in message


def test_what_torchvision_finds_becomes_a_data_set(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        classes = ("cat", "dog")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            self.data = np.full((4 if train else 2, 32, 32, 3), int(train), np.uint8)
            self.targets = [0, 1] * (2 if train else 1)

    monkeypatch.setattr(named, "CIFAR10", Fake)
    data = load_dataset("cifar10")
    assert (len(data.train), len(data.test), data.class_names) == (4, 2, {0: "cat", 1: "dog"})


def test_the_data_folder_lies_in_the_cache_by_default(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_DATA")
    assert named.data_dir() == own_cache / "data"
