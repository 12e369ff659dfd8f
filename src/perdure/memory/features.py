"""FeatureStore: every frozen feature is computed once, kept on disk, and served bit for bit.

Features are addressed by content: the backbone's ``shelf``, then image hash. So a feature is shared between methods,
seeds, class orders, splits, and between an image folder and its copy; an image added to a folder costs one pass.

On disk, a *shelf* (one directory per backbone, another for its patches where a method asks for them) holds *segments*,
pairs of append-only files: ``*.rows`` with float32 rows and ``*.index`` with a (hash, checksum) record per row, written
after it. A process only appends to its own segment, so processes share a shelf without locks; a record exists only when
its row is complete, so a killed fill resumes where it was. Segments are evicted whole, least recently used first.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import json
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perdure.backbone import Backbone, Prompt, TwoTowers
from perdure.backbone.passes import finite
from perdure.backbone.settings import digest_of
from perdure.data import LabelledImages
from perdure.data.folders import cache_dir
from perdure.data.texts import Texts
from perdure.errors import ConfigError, NonFiniteError, StorageError
from perdure.memory.shelf import RECORD, Features, SegmentWriter, ShelfIndex, writing
from perdure.types import Event, Progress, no_progress

SEGMENT_BYTES = 1 << 28


@dc.dataclass(frozen=True, slots=True)
class _Kind:
    """What a shelf keeps of each image."""

    shelf: Path
    backbone: Backbone
    dim: int  # values per row
    compute: Callable[[Any], Float[Tensor, "b dim"]]  # of uint8 pixels, of rows of ``patches``, or of texts
    patches: Features | None = None  # of all images, where rows are computed from these

    def batches(self, data: LabelledImages | Texts, positions: np.ndarray) -> Iterator[tuple[np.ndarray, Any]]:
        """Positions and what ``compute`` takes."""
        size = self.backbone.batch_size
        if isinstance(data, LabelledImages) and self.patches is None:
            yield from data.batches(self.backbone.preprocess, size, positions)
            return
        for start in range(0, len(positions), size):
            here = positions[start : start + size]
            yield here, data[here] if isinstance(data, Texts) else self.patches[here]  # type: ignore[index]


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
        directory: str | Path | None = None,
        *,
        cache_bytes: int | None = None,
        progress: Progress = no_progress,
    ) -> None:
        self.directory = Path(directory) if directory else cache_dir() / "features"
        given = cache_bytes if cache_bytes is not None else os.environ.get("PERDURE_CACHE_BYTES", 20 * 10**9)
        if not str(given).isdecimal() or int(given) < 1:
            hint = "Give a number of bytes, e.g. 20000000000"
            raise ConfigError("FeatureStore", "cache_bytes", "a positive whole number", given, hint)
        self.cache_bytes, self.progress = int(given), progress
        self._mine: dict[Path, Path] = {}
        self._lock = threading.Lock()

    def features(self, backbone: Backbone, data: LabelledImages, *, label: str = "features") -> Features:
        """The backbone's features of ``data``, row i for image i; missing ones are computed and kept.

        A view with insertions on a backbone with a stem goes on from :meth:`patches`, which all views share.

        Args:
            backbone: a frozen backbone.
            data: the images.
            label: what to call this in progress reports.

        Raises:
            NonFiniteError: naming the image whose features are not finite.
            StorageError: if the disk or ``cache_bytes`` cannot hold the features; what is stored stays.
        """
        kind = _Kind(self.directory / backbone.shelf, backbone, backbone.dim, backbone.features)
        if backbone.shares_stem:
            patches = self.patches(backbone, data)
            kind = dc.replace(kind, compute=backbone.features_of_patches, patches=patches)
        return self._rows(kind, data, label)

    def texts(self, backbone: TwoTowers, texts: Sequence[str], *, label: str = "texts") -> Float[Tensor, "n d"]:
        """Raw embeddings of texts by a CLIP's text tower, row i for text i; missing ones are computed and kept.

        Args:
            backbone: whose text tower stands still.
            texts: any.
            label: what to call this in progress reports.

        Raises:
            BackboneError: for a text of too many tokens, with the text; before any is computed.
            NonFiniteError: naming the text whose embedding is not finite.
            StorageError: as for :meth:`features`.
        """
        tower = backbone.text
        tower.tokens(texts)  # refuses what is too long
        shelf = self.directory / f"{tower.shelf}-texts"
        kind = _Kind(shelf, backbone, tower.dim, lambda part: finite(tower.embeddings(part)))
        return self._rows(kind, Texts(texts), label)[:]

    def side_by_side(
        self, backbones: Iterable[Backbone], data: LabelledImages, *, label: str = "features"
    ) -> Iterator[tuple[Tensor, ...]]:
        """Several backbones' features of the same images, some images at a time.

        Args:
            backbones: whose; at least one.
            data: the images.
            label: what to call this in progress reports.
        """
        stored = [self.features(backbone, data, label=label).batches() for backbone in backbones]
        yield from zip(*stored, strict=True)

    def patches(self, backbone: Backbone, data: LabelledImages, *, label: str = "patches") -> Features:
        """The input of a frozen Vision Transformer's first block, row i for image i, its tokens side by side.

        Worth its place only where ``backbone.has_stem``: many times larger than features, and elsewhere cheap to
        compute.

        Args:
            backbone: a frozen Vision Transformer.
            data: the images.
            label: what to call this in progress reports.

        Returns:
            Rows of n * d values, to be viewed as ``backbone.tokens_shape``.

        Raises:
            StorageError: as for :meth:`features`.
        """
        n, d = backbone.tokens_shape
        shelf = self.directory / f"{backbone.stem_shelf}-patches"

        def compute(images: Tensor) -> Tensor:
            with torch.no_grad():
                return backbone.embed_tokens(images).flatten(1).float()

        return self._rows(_Kind(shelf, backbone, n * d, compute), data, label)

    def tokens(self, backbone: Backbone, data: LabelledImages) -> Callable[[np.ndarray], Tensor] | None:
        """What gives (b, n, d) inputs of a Vision Transformer's first block, on its device, by images' positions.

        Args:
            backbone: a frozen Vision Transformer.
            data: the images.

        Returns:
            None where a patch embedding is not worth its place here: compute it then.
        """
        if not backbone.has_stem:
            return None
        rows = self.patches(backbone, data)
        return lambda at: rows[at].view(-1, *backbone.tokens_shape).to(backbone.device)

    def outputs(
        self, backbone: Backbone, prompt: Float[Tensor, "p d"], data: LabelledImages, *, label: str = "tokens"
    ) -> Features:
        """A Vision Transformer's tokens behind its last block, before the final norm, with a prompt beside the image's.

        Args:
            backbone: a frozen Vision Transformer.
            prompt: p tokens that join those of every image before the first block, and stay; p may be 0.
            data: the images.
            label: what to call this in progress reports.

        Returns:
            Rows of (n + p) * d values, to be viewed as (n + p, d): prefix tokens, the prompt, patches.

        Raises:
            NonFiniteError: naming the image whose tokens are not finite.
            StorageError: as for :meth:`features`.
        """
        n, d = backbone.tokens_shape
        added = {0: Prompt(prompt[None].to(backbone.device), stays=True)}
        shelf = digest_of((backbone.shelf, "outputs"), {"prompt": prompt})

        def walked(embedded: Tensor) -> Tensor:
            out = backbone.walk(embedded, added, before_norm=True).before_norm
            return out.flatten(1).float()  # type: ignore[union-attr]  # asked for

        def compute(images: Tensor) -> Tensor:
            with torch.no_grad():
                embedded = backbone.embed_tokens(images) if patches is None else images.view(-1, n, d)
                return finite(backbone.in_batches(walked, embedded.to(backbone.device)))

        patches = self.patches(backbone, data) if backbone.has_stem else None
        return self._rows(_Kind(self.directory / shelf, backbone, (n + len(prompt)) * d, compute, patches), data, label)

    def _rows(self, kind: _Kind, data: LabelledImages | Texts, label: str) -> Features:
        with self._lock:
            keys = data.keys
            for _ in range(4):  # another process may evict a segment between the look-up and its opening
                index = ShelfIndex(kind.shelf, kind.dim)
                missing = index.missing(keys)
                if len(missing):
                    self._check_space(kind, len(data), len(missing))
                    self._fill(kind, data, missing, label)
                elif (found := index.features(keys)) is not None:  # only rows just checked are served
                    self._evict(keep=set(found.files))
                    return found
        hint = "Raise PERDURE_CACHE_BYTES, or give each process its own PERDURE_CACHE"
        raise StorageError("FeatureStore", "features", "kept until they are read", "evicted three times", hint)

    def _fill(self, kind: _Kind, data: LabelledImages | Texts, missing: np.ndarray, label: str) -> None:
        done, keys = 0, data.keys
        self.progress(Event(label, 0, len(missing)))
        try:
            writer = SegmentWriter(self._segment(kind))
            for positions, inputs in kind.batches(data, missing):
                try:
                    rows = kind.compute(inputs)
                except NonFiniteError as error:
                    raise NonFiniteError(data.name(int(positions[int(error.image)]))) from None
                writer.append(keys[positions], rows.cpu().numpy())
                done += len(positions)
                self.progress(Event(label, done, len(missing)))
        except BaseException:
            self._mine.pop(kind.shelf, None)  # its last row may be cut short: never append to it again
            raise

    def _segment(self, kind: _Kind) -> Path:
        """This process's own segment of the shelf, without suffix; a new one when it is full."""
        mine = self._mine.get(kind.shelf)
        if mine is None or not self._usable(mine, kind.dim):
            mine = self._mine[kind.shelf] = kind.shelf / uuid.uuid4().hex
            about = {"backbone": kind.backbone.name, "dim": kind.dim, "precision": kind.backbone.precision}
            with writing(kind.shelf):
                kind.shelf.mkdir(parents=True, exist_ok=True)
                (kind.shelf / "about.json").write_text(json.dumps(about), encoding="utf-8")
        return mine

    def _usable(self, segment: Path, dim: int) -> bool:
        """Whether a segment takes more rows: it is small, and has a record for every row."""
        try:
            rows, index = (segment.with_suffix(s).stat().st_size for s in (".rows", ".index"))
        except FileNotFoundError:
            return False
        limit = min(SEGMENT_BYTES, self.cache_bytes // 8)
        return rows < limit and rows * RECORD.itemsize == index * dim * 4

    def _check_space(self, kind: _Kind, n: int, n_missing: int) -> None:
        row_bytes = kind.dim * 4 + RECORD.itemsize
        if n * row_bytes > self.cache_bytes:
            must_be = f"at least {n * row_bytes} for {n} items"
            hint = "Raise PERDURE_CACHE_BYTES"
            raise StorageError("FeatureStore", "cache_bytes", must_be, self.cache_bytes, hint)
        disk = next(p for p in (kind.shelf, *kind.shelf.parents) if p.exists())
        free = shutil.disk_usage(disk).free
        if free < n_missing * row_bytes:
            must_be = f"at least {n_missing * row_bytes} bytes for {n_missing} items"
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
