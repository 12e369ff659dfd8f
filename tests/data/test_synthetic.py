"""The made-up data set: any ids, the same pixels for the same seed, classes that differ."""

from __future__ import annotations

import numpy as np

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
