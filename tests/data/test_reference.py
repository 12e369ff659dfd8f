"""Reference data: images in any folders, sentences in lines, and one hash of both."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perdure.data import LabelledImages, Reference
from perdure.data.display import imagenet_sentences
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import ConfigError, DataError, DataNotFoundError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three images, one of them deep below."""
    root = tmp_path / "pictures"
    for i, place in enumerate(("b.png", "a/deep/c.jpg", "a/d.png")):
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (40 * i, 9, 9)).save(root / place)
    (root / "notes.txt").write_text("not an image")
    return root


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    file = tmp_path / "sentences.txt"
    file.write_text("a dog runs.\n\n  two cats sleep. \n", encoding="utf-8")
    return file


def test_images_lie_anywhere_and_sentences_in_lines(folder: Path, sentences: Path) -> None:
    found = Reference.load(folder, sentences)
    names = [found.images.name(i).rpartition("pictures/")[2] for i in range(3)]
    assert names == ["b.png", "a/d.png", "a/deep/c.jpg"]
    assert found.images.labels.tolist() == [0, 0, 0]
    assert (found.sentences, found.lines, found.may_be_cut) == (("a dog runs.", "two cats sleep."), (1, 3), False)
    assert Reference.load(str(folder), str(sentences)).fingerprint == found.fingerprint


def test_the_hash_is_of_contents_and_order() -> None:
    images = synthetic_dataset(range(2), train_per_class=2).train
    known = Reference(images, ["one", "two"])
    assert Reference(LabelledImages(images.source, images.labels + 1), ["one", "two"]).fingerprint == known.fingerprint
    others = [
        Reference(images.subset(np.array([1, 0, 2, 3])), ["one", "two"]), Reference(images, ["two", "one"]),
        Reference(images.subset(np.arange(3)), ["one", "two"]), Reference(images, ["one two"]),
    ]  # fmt: skip
    assert len({known.fingerprint, *(each.fingerprint for each in others)}) == 5
    assert known.lines == (1, 2)


def test_imagenet_needs_no_file(folder: Path) -> None:
    found = Reference.load(folder, "imagenet")
    assert found.sentences == tuple(imagenet_sentences())
    assert found.may_be_cut
    assert (len(found.sentences), found.sentences[0]) == (2000, "tench, Tinca tinca")
    assert found.sentences[1000].startswith("tench, Tinca tinca: freshwater")


def test_places_where_nothing_is_are_refused(folder: Path, sentences: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="nowhere"):
        Reference.load(tmp_path / "nowhere", sentences)
    with pytest.raises(DataNotFoundError, match=r"sentences must be an existing text file, but got 'imgnet'"):
        Reference.load(folder, "imgnet")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataNotFoundError, match=r"images must be a folder of images, but got '.*empty'"):
        Reference.load(empty, sentences)
    sentences.write_text("\n \n")
    with pytest.raises(ConfigError, match=r"must be a file of sentences, but got '.*sentences\.txt'"):
        Reference.load(folder, sentences)
    sentences.write_bytes(b"caf\xe9")
    with pytest.raises(ConfigError, match=r"a text file in UTF-8 that can be read, but got '.*sentences\.txt'"):
        Reference.load(folder, sentences)
    (folder / "b.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"b\.png: not an image"):
        Reference.load(folder, "imagenet")


def test_no_image_and_no_sentence_are_refused() -> None:
    images = synthetic_dataset(range(1)).train
    with pytest.raises(ConfigError, match="sentences must be at least one, but got 0"):
        Reference(images, [])
    with pytest.raises(ConfigError, match="images must be at least one, but got 0"):
        Reference(images.subset(np.arange(0)), ["one"])
