"""The made-up data set: any ids, the same pixels for the same seed, classes that differ."""

from __future__ import annotations

import numpy as np
import pytest

from perdure.data import load_dataset
from perdure.data.synthetic import synthetic_dataset


def mean_colours(data, images) -> np.ndarray:
    """(classes, 3) mean colour of each class."""
    read = [np.asarray(images.source.read(int(r))).mean((0, 1)) for r in images.rows]
    return np.stack([np.mean([m for m, y in zip(read, images.labels, strict=True) if y == c], 0) for c in data])


def test_six_classes_by_name() -> None:
    data = load_dataset("synthetic")
    assert (len(data.train), len(data.test)) == (48, 24)
    assert data.train.classes == tuple(range(6))


def test_ids_are_taken_as_they_come() -> None:
    ids = [2**60, -4, 17]
    data = synthetic_dataset(ids, train_per_class=[1, 2, 3], test_per_class=2)
    assert data.train.labels.tolist() == [2**60, -4, -4, 17, 17, 17]
    assert data.test.labels.tolist() == [2**60, 2**60, -4, -4, 17, 17]
    assert data.class_names == {c: f"pattern {c}" for c in ids}


def test_the_seed_decides_the_pixels() -> None:
    one, again, other = (synthetic_dataset(range(3), seed=s).train.fingerprint for s in (0, 0, 1))
    assert one == again
    assert one != other


def test_train_and_test_share_no_image_but_their_colours() -> None:
    data = synthetic_dataset(range(4))
    assert not set(data.train.keys.tolist()) & set(data.test.keys.tolist())
    train, test = mean_colours(range(4), data.train), mean_colours(range(4), data.test)
    distance = np.linalg.norm(train[:, None] - test[None], axis=-1)
    assert (distance.argmin(1) == np.arange(4)).all()


def test_shift_makes_another_domain() -> None:
    plain, bright = (synthetic_dataset(range(2), shift=s) for s in (0.0, 60.0))
    gain = mean_colours(range(2), bright.train) - mean_colours(range(2), plain.train)
    assert (gain.mean(1) > 25).all()
    assert plain.train.source.read(0).size == (32, 32)


def test_colours_stripes_and_noise_are_as_told() -> None:
    data = synthetic_dataset(range(3), train_per_class=30, side=24)
    hue = 2 * np.pi * np.arange(3)[:, None] / 3 + np.array([0.0, 2.1, 4.2])
    np.testing.assert_allclose(mean_colours(range(3), data.train), 128 + 90 * np.cos(hue), atol=4)
    images = np.stack([np.asarray(data.train.source.read(i)).astype(float) for i in range(90)]).reshape(
        3, 30, 24, 24, 3
    )
    y, x = np.mgrid[:24, :24] / 24
    for k in range(3):
        stripes = np.sin(6 * np.pi * (x * np.cos(np.pi * k / 3) + y * np.sin(np.pi * k / 3)))
        middle = int(np.abs(images[k].mean((0, 1, 2)) - 128).argmin())  # of a channel that 0 and 255 do not cut
        part = images[k, ..., middle]
        assert np.polyfit(stripes.ravel(), part.mean(0).ravel(), 1)[0] == pytest.approx(40, abs=3)
        assert (part - part.mean(0)).std() == pytest.approx(12, rel=0.1)
