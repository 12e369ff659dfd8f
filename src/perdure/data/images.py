"""Labelled images, decoded lazily, each known by a hash of its content."""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from perdure.data.names import shown
from perdure.data.preprocess import Preprocess
from perdure.data.reading import DECODE_THREADS, Reading, content_key, readable
from perdure.data.reading import KEY_BYTES as KEY_BYTES
from perdure.errors import DataError, StorageError

CHANGED = "It changed since the data were checked: restore or remove it"


class ImageSource(Protocol):
    """A fixed list of images, read one at a time."""

    @property
    def keys(self) -> np.ndarray:
        """(n,) ``S16``: each image's content hash."""
        ...

    def read(self, row: int) -> Image.Image:
        """Image ``row``, RGB."""
        ...

    def bytes_of(self, row: int) -> bytes:
        """A file's bytes that decode to exactly what :meth:`read` gives."""
        ...

    def name(self, row: int) -> str:
        """What to call image ``row`` in a message."""
        ...


class FileSource:
    """Images in files.

    Args:
        paths: the files.
        keys: (n,) ``S16`` content hashes of the files' bytes.
        reading: how they become RGB.
    """

    def __init__(self, paths: Sequence[Path], keys: np.ndarray, reading: Reading | None = None) -> None:
        self._paths, self.keys = [str(p) for p in paths], keys  # a Path takes five times the memory of its text
        self.reading = reading or Reading()

    def read(self, row: int) -> Image.Image:
        """Decodes file ``row`` to RGB.

        Raises:
            DataError: naming the file, if it is gone, cannot be decoded, or its values are outside the range.
        """
        with readable(self.name(row), CHANGED):
            return self.reading.opened(self._paths[row])

    def bytes_of(self, row: int) -> bytes:
        """File ``row`` as it is on disk; with a ``value_range``, a PNG of what it looks like.

        Raises:
            DataError: naming the file, if it is gone or is not the file whose key is known.
        """
        with readable(self.name(row), CHANGED):
            data = Path(self._paths[row]).read_bytes()
        if (
            content_key(data, self.reading).rstrip(b"\0") != self.keys[row]
        ):  # NumPy gives an item without its last zero bytes
            hint = "Restore it, or load the data again"
            raise DataError("data", "image file", "unchanged since the data were checked", self.name(row), hint)
        return data if self.reading == Reading() else _png(self.read(row))

    def name(self, row: int) -> str:
        """The file's path, as :func:`perdure.data.names.shown` writes it."""
        return shown(self._paths[row])


class ArraySource:
    """Images in memory.

    Args:
        pixels: (n, h, w) or (n, h, w, 3) uint8.
        title: prefix of the images' names in messages.

    Raises:
        DataError: if the array is not uint8 of that shape.
    """

    def __init__(self, pixels: np.ndarray, title: str) -> None:
        good = pixels.dtype == np.uint8 and (pixels.ndim == 3 or (pixels.ndim == 4 and pixels.shape[3] == 3))
        if not good:
            got = f"{pixels.dtype} {pixels.shape}"
            raise DataError(title, "pixels", "uint8 of shape (n, h, w) or (n, h, w, 3)", got, "Convert the array")
        self._pixels, self._title = pixels, title
        shape = str(pixels.shape[1:]).encode()
        self.keys = np.array([content_key(shape + image.tobytes()) for image in pixels], dtype=f"S{KEY_BYTES}")

    def read(self, row: int) -> Image.Image:
        """Image ``row``, RGB."""
        return Image.fromarray(self._pixels[row]).convert("RGB")

    def bytes_of(self, row: int) -> bytes:
        """Image ``row`` as PNG, which loses nothing."""
        return _png(Image.fromarray(self._pixels[row]))

    def name(self, row: int) -> str:
        """The data set and the row."""
        return f"{self._title}[{row}]"


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


class _JoinedSource:
    """The images of two labelled sets, one set after the other."""

    def __init__(self, first: LabelledImages, second: LabelledImages) -> None:
        self._parts = (first, second)
        ranges = {part.reading.value_range for part in self._parts} - {None}  # kept images are read as 8 bits already
        if len(ranges) > 1:
            hint = "Load both with one stream.value_range"
            raise DataError("LabelledImages", "value_range of both sets", "one", sorted(map(str, ranges)), hint)
        self.reading = Reading(*ranges)
        self.keys = np.concatenate([first.keys, second.keys])

    def _find(self, row: int) -> tuple[LabelledImages, int]:
        first, second = self._parts
        return (first, row) if row < len(first) else (second, row - len(first))

    def read(self, row: int) -> Image.Image:
        part, position = self._find(row)
        return part.source.read(int(part.rows[position]))

    def bytes_of(self, row: int) -> bytes:
        part, position = self._find(row)
        return part.bytes_of(position)

    def name(self, row: int) -> str:
        part, position = self._find(row)
        return part.name(position)


class LabelledImages:
    """Some rows of an image source and their class ids. Nothing is decoded before it is asked for.

    Args:
        source: where the images are.
        labels: (n,) class ids, any integers.
        rows: (n,) which image of the source each label belongs to; all of them, in order, by default.

    Raises:
        DataError: if labels are not whole numbers or do not match the images.
    """

    def __init__(self, source: ImageSource, labels: np.ndarray, rows: np.ndarray | None = None) -> None:
        self.source = source
        self.rows = np.arange(len(source.keys)) if rows is None else np.asarray(rows, dtype=np.int64)
        labels = np.asarray(labels)
        if labels.size and not np.issubdtype(labels.dtype, np.integer):
            raise DataError("LabelledImages", "labels", "integers", str(labels.dtype), "Use class ids, not names")
        if labels.shape != self.rows.shape:
            must_be = f"one per image, {self.rows.shape}"
            raise DataError("LabelledImages", "labels", must_be, labels.shape, "Match labels and images")
        self.labels = labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def keys(self) -> np.ndarray:
        """(n,) ``S16``: each image's content hash."""
        keys: np.ndarray = self.source.keys[self.rows]
        return keys

    @property
    def reading(self) -> Reading:
        """How the images' files become RGB; the default where they are no files."""
        reading: Reading = getattr(self.source, "reading", Reading())
        return reading

    @property
    def classes(self) -> tuple[int, ...]:
        """The class ids present, ascending."""
        return tuple(int(c) for c in np.unique(self.labels))

    @property
    def fingerprint(self) -> str:
        """Hash of the images' contents and labels, in order."""
        return hashlib.blake2b(self.keys.tobytes() + self.labels.tobytes(), digest_size=16).hexdigest()

    def name(self, position: int) -> str:
        """What to call the image at ``position`` in a message."""
        return self.source.name(int(self.rows[position]))

    def bytes_of(self, position: int) -> bytes:
        """The image at ``position`` as a file's bytes, which decode to the same pixels."""
        return self.source.bytes_of(int(self.rows[position]))

    def subset(self, positions: np.ndarray) -> LabelledImages:
        """The images at ``positions``, in that order."""
        return LabelledImages(self.source, self.labels[positions], self.rows[positions])

    def of_classes(self, classes: Sequence[int]) -> LabelledImages:
        """The images of ``classes``, in their present order."""
        return self.subset(np.flatnonzero(np.isin(self.labels, np.asarray(classes, dtype=np.int64))))

    def joined(self, other: LabelledImages) -> LabelledImages:
        """These images and then ``other``'s, wherever each of them are.

        Raises:
            DataError: if both are read with a ``value_range``, and not with the same.
        """
        return LabelledImages(_JoinedSource(self, other), np.concatenate([self.labels, other.labels]))

    def batches(
        self, preprocess: Preprocess, batch_size: int, positions: np.ndarray | None = None
    ) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Decodes ahead in threads and yields batches in order; the result does not depend on the threads.

        Args:
            preprocess: the eval view to apply.
            batch_size: images per batch; the last may be smaller.
            positions: which images, in which order; all of them by default.

        Yields:
            (positions, images): (b,) and (b, 3, image_size, image_size) uint8.

        Raises:
            DataError: naming the image, if one cannot be read.
        """
        order = np.arange(len(self)) if positions is None else positions
        chunks = deque(order[i : i + batch_size] for i in range(0, len(order), batch_size))

        def decode(position: int) -> np.ndarray:
            return preprocess.pixels(self.source.read(int(self.rows[position])))

        pool = ThreadPoolExecutor(DECODE_THREADS, thread_name_prefix="decode")
        ahead: deque[tuple[np.ndarray, list[Future[np.ndarray]]]] = deque()
        try:
            while chunks or ahead:
                while chunks and len(ahead) < 3:
                    chunk = chunks.popleft()
                    ahead.append((chunk, [pool.submit(decode, int(p)) for p in chunk]))
                chunk, futures = ahead.popleft()
                yield chunk, torch.from_numpy(np.stack([f.result() for f in futures]))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @contextlib.contextmanager
    def decoded(self, preprocess: Preprocess) -> Iterator[UInt8[Tensor, "n 3 s s"]]:
        """All images' eval views, decoded once into a temporary file and memory-mapped: for several epochs over them.

        Args:
            preprocess: the eval view.

        Raises:
            StorageError: if the temporary directory cannot hold them.
            DataError: naming the image, if one cannot be read.
        """
        shape = (len(self), 3, preprocess.image_size, preprocess.image_size)
        with tempfile.TemporaryFile(buffering=0) as file:  # closing would flush a buffer again, and fail again
            for _, images in self.batches(preprocess, 64):
                left = np.ascontiguousarray(images.numpy()).data.cast("B")
                try:
                    while left:
                        left = left[file.write(left) :]
                except OSError as error:
                    must_be, hint = f"at least {math.prod(shape)} bytes", f"Free some space or set TMPDIR ({error})"
                    got = tempfile.gettempdir()
                    raise StorageError("decoded", "free space for images", must_be, got, hint) from error
            pixels = np.memmap(file, np.uint8, "r+", shape=shape) if len(self) else np.empty(shape, np.uint8)
            yield torch.from_numpy(pixels)
