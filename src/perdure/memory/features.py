"""FeatureStore: every frozen feature is computed once, kept on disk, and served bit for bit.

Features are addressed by content: backbone fingerprint, then image hash. So a feature is shared between methods,
seeds, class orders, splits, and between an image folder and its copy; an image added to a folder costs one pass.

On disk, a *shelf* (one directory per backbone) holds *segments*, pairs of append-only files: ``*.rows`` with float32
rows and ``*.index`` with a (hash, checksum) record per row, written after it. A process only appends to its own
segment, so processes share a shelf without locks; a record exists only when its row is complete, so a killed fill
resumes where it was. Segments are evicted whole, least recently used first.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import json
import mmap
import os
import shutil
import sys
import threading
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perdure.backbone import Backbone
from perdure.data import LabelledImages
from perdure.data.datasets import cache_dir
from perdure.data.images import KEY_BYTES
from perdure.errors import ConfigError, NonFiniteError, StorageError
from perdure.types import Progress, no_progress

RECORD = np.dtype([("key", f"S{KEY_BYTES}"), ("crc", "<u4")])
SEGMENT_BYTES = 1 << 28
CHUNK_ROWS = 1024
TOMBSTONE = b""  # the key of a record whose row was found corrupt


@dc.dataclass(frozen=True, slots=True)
class Features:
    """Rows of a store, read from disk when asked for: memory does not grow with their number.

    Args:
        dim: values per row.
        files: the segments' row files.
        maps: the same files, mapped; they stay readable even if the store evicts them.
        segment: (n,) which file each row is in.
        row: (n,) which row of that file.
    """

    dim: int
    files: list[Path]
    maps: list[mmap.mmap]
    segment: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, positions: np.ndarray | slice) -> Float[Tensor, "n {self.dim}"]:
        """The features at ``positions``, float32, in that order."""
        segment, row = self.segment[positions], self.row[positions]
        out = np.empty((len(row), self.dim), dtype=np.float32)
        for s in np.unique(segment):
            here = segment == s
            out[here] = _rows_of(self.maps[s], self.dim)[row[here]]
            _release(self.maps[s])
        return torch.from_numpy(out)

    def batches(self, size: int = CHUNK_ROWS) -> Iterator[Float[Tensor, "b {self.dim}"]]:
        """All rows in order, ``size`` at a time."""
        for start in range(0, len(self), size):
            yield self[start : start + size]


class FeatureStore:
    """Frozen features on disk, shared by every run on this machine.

    Args:
        directory: where; ``$PERDURE_CACHE/features`` by default (``~/.cache/perdure/features`` if unset).
        cache_bytes: bound on all shelves together; ``$PERDURE_CACHE_BYTES`` or 20 GB by default.
        progress: called while features are computed.

    Raises:
        ConfigError: if ``cache_bytes`` is not a positive number.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        cache_bytes: int | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.directory = directory or cache_dir() / "features"
        given = cache_bytes if cache_bytes is not None else os.environ.get("PERDURE_CACHE_BYTES", 20 * 10**9)
        if not str(given).isdecimal() or int(given) < 1:
            hint = "Give a number of bytes, e.g. 20000000000"
            raise ConfigError("FeatureStore", "cache_bytes", "a positive whole number", given, hint)
        self.cache_bytes, self.progress = int(given), progress
        self._mine: dict[Path, Path] = {}
        self._lock = threading.Lock()

    def features(self, backbone: Backbone, data: LabelledImages, *, label: str = "features") -> Features:
        """The backbone's features of ``data``, row i for image i; missing ones are computed and kept.

        Args:
            backbone: a frozen backbone.
            data: the images.
            label: what to call this in progress reports.

        Raises:
            NonFiniteError: naming the image whose features are not finite.
            StorageError: if the disk or ``cache_bytes`` cannot hold the features; what is stored stays.
        """
        with self._lock:
            shelf, keys = self.directory / backbone.fingerprint, data.keys
            for _ in range(3):  # another process may evict a segment between the look-up and its opening
                missing = _Index(shelf, backbone.dim).missing(keys)
                if len(missing):
                    self._check_space(shelf, backbone, len(data), len(missing))
                    self._fill(shelf, backbone, data, missing, label)
                found = _Index(shelf, backbone.dim).features(keys)
                if found is not None:
                    self._evict(keep=set(found.files))
                    return found
        hint = "Raise PERDURE_CACHE_BYTES, or give each process its own PERDURE_CACHE"
        raise StorageError("FeatureStore", "features", "kept until they are read", "evicted three times", hint)

    def _fill(self, shelf: Path, backbone: Backbone, data: LabelledImages, missing: np.ndarray, label: str) -> None:
        done, keys = 0, data.keys
        self.progress(label, 0, len(missing))
        try:
            with _Writer(self._segment(shelf, backbone)) as writer:
                for positions, images in data.batches(backbone.preprocess, backbone.batch_size, missing):
                    try:
                        rows = backbone.features(images)
                    except NonFiniteError as error:
                        raise NonFiniteError(data.name(int(positions[int(error.image)]))) from None
                    writer.append(keys[positions], rows.cpu().numpy())
                    done += len(positions)
                    self.progress(label, done, len(missing))
        except BaseException as error:
            self._mine.pop(shelf, None)  # its last row may be cut short: never append to it again
            if not isinstance(error, OSError):
                raise
            hint = f"Free some space or set PERDURE_CACHE to another disk; {done} images were kept ({error})"
            raise StorageError("FeatureStore", "disk", "writable", str(shelf), hint) from error

    def _segment(self, shelf: Path, backbone: Backbone) -> Path:
        """This process's own segment of the shelf, without suffix; a new one when it is full."""
        mine = self._mine.get(shelf)
        rows = mine.with_suffix(".rows") if mine else None
        if mine is None or rows is None or not rows.exists() or rows.stat().st_size >= SEGMENT_BYTES:
            shelf.mkdir(parents=True, exist_ok=True)
            about = {"backbone": backbone.name, "dim": backbone.dim, "precision": backbone.precision}
            (shelf / "about.json").write_text(json.dumps(about))
            mine = self._mine[shelf] = shelf / uuid.uuid4().hex
        return mine

    def _check_space(self, shelf: Path, backbone: Backbone, n: int, n_missing: int) -> None:
        row_bytes = backbone.dim * 4 + RECORD.itemsize
        if n * row_bytes > self.cache_bytes:
            must_be = f"at least {n * row_bytes} for {n} images"
            hint = "Raise PERDURE_CACHE_BYTES"
            raise StorageError("FeatureStore", "cache_bytes", must_be, self.cache_bytes, hint)
        disk = next(p for p in (shelf, *shelf.parents) if p.exists())
        free = shutil.disk_usage(disk).free
        if free < n_missing * row_bytes:
            must_be = f"at least {n_missing * row_bytes} bytes for {n_missing} images"
            hint = "Free some space or set PERDURE_CACHE to another disk"
            raise StorageError("FeatureStore", f"free space on {disk}", must_be, free, hint)

    def _evict(self, keep: set[Path]) -> None:
        """Removes the least recently used segments until ``cache_bytes`` holds; those in ``keep`` stay."""
        used: list[tuple[float, int, Path]] = []
        for index in self.directory.glob("*/*.index"):
            with contextlib.suppress(FileNotFoundError):  # evicted by another process
                rows = index.with_suffix(".rows").stat().st_size
                used.append((index.stat().st_mtime, index.stat().st_size + rows, index))
        total = sum(size for _, size, _ in used)
        for _, size, index in sorted(used):
            if total <= self.cache_bytes:
                return
            if index.with_suffix(".rows") not in keep:
                index.unlink(missing_ok=True)
                index.with_suffix(".rows").unlink(missing_ok=True)
                total -= size


class _Index:
    """Everything a shelf holds: which image is in which row of which segment.

    Args:
        shelf: the directory.
        dim: values per row.
    """

    def __init__(self, shelf: Path, dim: int) -> None:
        self._dim = dim
        self._paths = sorted(shelf.glob("*.index"))
        records = [_complete_records(p, dim) for p in self._paths]
        everything = np.concatenate([np.empty(0, RECORD), *records])
        # the first of several equal keys wins, in the same order in every process
        self._keys, first = np.unique(everything["key"], return_index=True)
        self._segment = np.repeat(np.arange(len(records)), [len(r) for r in records])[first]
        self._row = np.concatenate([np.empty(0, np.int64), *(np.arange(len(r)) for r in records)])[first]
        self._crc = everything["crc"][first]

    def missing(self, keys: np.ndarray) -> np.ndarray:
        """Positions of the first image of each key that has no intact row; corrupt rows are struck out."""
        wanted, first = np.unique(keys, return_index=True)
        at, known = self._find(wanted)
        for start in range(0, int(known.sum()), CHUNK_ROWS):
            chunk = np.flatnonzero(known)[start : start + CHUNK_ROWS]
            known[chunk] &= self._intact(at[chunk])
        return np.sort(first[~known])

    def features(self, keys: np.ndarray) -> Features | None:
        """The rows of ``keys``, whose segments count as used now; None if some are gone."""
        at, known = self._find(keys)
        if not known.all():
            return None
        segments, local = np.unique(self._segment[at], return_inverse=True)
        paths = [self._paths[s] for s in segments]
        files = [p.with_suffix(".rows") for p in paths]
        try:
            for path in paths:
                os.utime(path)
            maps = [_map(f) for f in files]
        except FileNotFoundError:
            return None
        return Features(self._dim, files, maps, local, self._row[at])

    def _find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        at = np.searchsorted(self._keys, keys).clip(max=max(len(self._keys) - 1, 0))
        return at, self._keys[at] == keys if len(self._keys) else np.zeros(len(keys), bool)

    def _intact(self, at: np.ndarray) -> np.ndarray:
        intact = np.zeros(len(at), bool)
        for s in np.unique(self._segment[at]):
            here = self._segment[at] == s
            path = self._paths[s]
            mapped = _map(path.with_suffix(".rows"))
            rows = _rows_of(mapped, self._dim)[self._row[at[here]]]
            found = np.array([zlib.crc32(r) for r in rows], dtype=np.uint32)
            intact[here] = found == self._crc[at[here]]
            with open(path, "r+b") as index:
                for row in self._row[at[here & ~intact]]:
                    index.seek(int(row) * RECORD.itemsize)
                    index.write(np.array((TOMBSTONE, 0), RECORD).tobytes())
        return intact


class _Writer:
    """Appends rows, then their records, to one segment."""

    def __init__(self, segment: Path) -> None:
        self._rows = open(segment.with_suffix(".rows"), "ab")  # noqa: SIM115 - closed in __exit__
        self._index = open(segment.with_suffix(".index"), "ab")  # noqa: SIM115

    def __enter__(self) -> _Writer:
        return self

    def append(self, keys: np.ndarray, rows: Float[np.ndarray, "b d"]) -> None:
        records = np.empty(len(keys), RECORD)
        records["key"], records["crc"] = keys, [zlib.crc32(r) for r in rows]
        self._rows.write(rows.astype("<f4").tobytes())
        self._rows.flush()
        self._index.write(records.tobytes())
        self._index.flush()

    def __exit__(self, *_: object) -> None:
        self._rows.close()
        self._index.close()


def _map(path: Path) -> mmap.mmap:
    with open(path, "rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _rows_of(mapped: mmap.mmap, dim: int) -> np.ndarray:
    n = len(mapped) // (dim * 4)  # another process may be half way through a row
    return np.frombuffer(mapped, "<f4", count=n * dim).reshape(n, dim)


def _release(mapped: mmap.mmap) -> None:
    """Gives read pages back to the page cache, so that resident memory stays flat however much is read."""
    if sys.platform != "win32":
        mapped.madvise(mmap.MADV_DONTNEED)


def _complete_records(index: Path, dim: int) -> np.ndarray:
    try:
        data = index.read_bytes()
        rows = index.with_suffix(".rows").stat().st_size // (dim * 4)
    except FileNotFoundError:  # evicted by another process a moment ago
        return np.empty(0, RECORD)
    return np.frombuffer(data[: len(data) // RECORD.itemsize * RECORD.itemsize], RECORD)[:rows]
