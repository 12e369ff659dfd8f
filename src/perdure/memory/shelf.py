"""One shelf of the feature store: segments of rows with an index, as :mod:`perdure.memory.features` describes them."""

from __future__ import annotations

import contextlib
import dataclasses as dc
import mmap
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perdure.data.images import KEY_BYTES
from perdure.errors import StorageError

RECORD = np.dtype([("key", f"S{KEY_BYTES}"), ("crc", "<u4")])
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


class ShelfIndex:
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
        found = np.flatnonzero(known)
        # in the order of the files: rows read at random would bring whole files into memory
        found = found[np.lexsort((self._row[at[found]], self._segment[at[found]]))]
        for chunk in (found[i : i + CHUNK_ROWS] for i in range(0, len(found), CHUNK_ROWS)):
            known[chunk] = self._intact(at[chunk])
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
            try:
                mapped = _map(path.with_suffix(".rows"))
            except (FileNotFoundError, ValueError):  # evicted by another process a moment ago, or emptied
                continue
            rows = _rows_of(mapped, self._dim)[self._row[at[here]]]
            found = np.array([zlib.crc32(r) for r in rows], dtype=np.uint32)
            intact[here] = found == self._crc[at[here]]
            with open(path, "r+b") as index:
                for row in self._row[at[here & ~intact]]:
                    index.seek(int(row) * RECORD.itemsize)
                    index.write(np.array((TOMBSTONE, 0), RECORD).tobytes())
        return intact


class SegmentWriter:
    """Appends rows, then their records, to one segment.

    Args:
        segment: its path without suffix.
    """

    def __init__(self, segment: Path) -> None:
        self._rows, self._index = segment.with_suffix(".rows"), segment.with_suffix(".index")

    def append(self, keys: np.ndarray, rows: Float[np.ndarray, "b d"]) -> None:
        """Adds one batch; a record reaches the disk after its row.

        Raises:
            StorageError: if the disk does not take it; what was stored before stays.
        """
        records = np.empty(len(keys), RECORD)
        records["key"], records["crc"] = keys, [zlib.crc32(r) for r in rows]
        with writing(self._rows.parent):
            for path, data in ((self._rows, rows.astype("<f4").tobytes()), (self._index, records.tobytes())):
                with open(path, "ab") as file:
                    file.write(data)


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns the system's complaint about a full or read-only disk into ours.

    Raises:
        StorageError: naming the folder.
    """
    try:
        yield
    except OSError as error:
        hint = f"Free some space or set PERDURE_CACHE to another disk; what is stored is kept ({error})"
        raise StorageError("FeatureStore", "disk", "writable", str(folder), hint) from error


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
