"""Reference data: images without labels and sentences, for methods that learn from them beside their tasks.

The images are all those of a folder and of the folders in it, whatever these are called; the sentences stand in a text
file, one in a line, or are ImageNet's by the name ``imagenet``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

import numpy as np

from perdure.data.display import imagenet_sentences
from perdure.data.folders import KnownGood, cache_dir, check_files, folders_in, images_in, keys_of, refuse_corrupt
from perdure.data.images import FileSource, LabelledImages
from perdure.data.layout import require_folder
from perdure.data.names import on_disk, shown
from perdure.data.reading import READING
from perdure.data.texts import Texts
from perdure.errors import ConfigError, DataNotFoundError, told

IMAGENET: Final = "imagenet"
"""The sentences that need no file: ImageNet's 1000 names, and the same with their definitions."""


class Reference:
    """Images without labels, and sentences.

    Args:
        images: their labels are not looked at.
        sentences: any texts.
        lines: the line of each sentence in its file, for messages; counted from 1 if not given.
        may_be_cut: a sentence that is too long for a text tower loses its last words, and is not refused.

    Raises:
        ConfigError: if there is no image or no sentence.
    """

    def __init__(
        self,
        images: LabelledImages,
        sentences: Sequence[str],
        *,
        lines: Sequence[int] | None = None,
        may_be_cut: bool = False,
    ) -> None:
        for name, given in (("images", images), ("sentences", sentences)):
            if not len(given):
                raise ConfigError("Reference", name, "at least one", 0, "Give other reference data")
        self.images = LabelledImages(images.source, np.zeros(len(images), np.int64), images.rows)
        self.sentences, self.may_be_cut = tuple(sentences), may_be_cut
        self.lines = tuple(lines) if lines is not None else tuple(range(1, len(self.sentences) + 1))

    @property
    def fingerprint(self) -> str:
        """Hash of the images' contents and of the sentences, in order."""
        content = self.images.keys.tobytes() + b"\0" + Texts(self.sentences).keys.tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    @classmethod
    def load(cls, images: str | Path, sentences: str | Path) -> Self:
        """Reference data from the disk.

        Args:
            images: a folder, in which images lie anywhere.
            sentences: a text file of one sentence per line, or ``imagenet``.

        Raises:
            DataNotFoundError: if there is no such folder or file, or no image in the folder.
            DataError: naming every image that cannot be read.
            ConfigError: for a file that cannot be read as text, or has no sentence in it.
        """
        require_places(images, sentences)
        root = on_disk(images)
        paths = _images_below(root)
        if not paths:
            hint = "Give a folder with images in it, or in folders below"
            raise DataNotFoundError("reference", "images", "a folder of images", shown(root), hint)
        files = check_files(paths, KnownGood(cache_dir() / f"decoded-{READING}.keys"))
        refuse_corrupt(files)
        found = LabelledImages(FileSource(paths, keys_of(files)), np.zeros(len(paths), np.int64))
        if str(sentences) == IMAGENET:
            return cls(found, imagenet_sentences(), may_be_cut=True)
        told_in = _sentences_in(on_disk(sentences))
        return cls(found, [text for _, text in told_in], lines=[line for line, _ in told_in])


def require_places(images: str | Path, sentences: str | Path) -> None:
    """Refuses places where no reference data can be.

    Args:
        images: as for :meth:`Reference.load`.
        sentences: as for :meth:`Reference.load`.

    Raises:
        DataNotFoundError: if there is no such folder or file.
    """
    require_folder(on_disk(images))
    if str(sentences) != IMAGENET and not on_disk(sentences).is_file():
        hint = f"Check the path, or write sentences: {IMAGENET}, which needs no file"
        raise DataNotFoundError("reference", "sentences", "an existing text file", shown(sentences), hint)


def _images_below(folder: Path) -> list[Path]:
    """All images in a folder and in those below it, in the order of their names."""
    return images_in(folder) + [path for inner in folders_in(folder) for path in _images_below(inner)]


def _sentences_in(file: Path) -> list[tuple[int, str]]:
    """Each line that is not blank, with its number."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        hint = f"Save it as UTF-8 ({told(error)})"
        raise ConfigError(
            "reference", "sentences", "a text file in UTF-8 that can be read", shown(file), hint
        ) from error
    found = [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError("reference", "sentences", "a file of sentences", shown(file), "Write one in every line")
    return found
