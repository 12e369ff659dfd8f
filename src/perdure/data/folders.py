"""Image folders: which files there are, what they contain, and whether each can be decoded."""

from __future__ import annotations

import dataclasses as dc
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import UnidentifiedImageError

from perdure.data.names import shown
from perdure.data.reading import (
    DECODE_THREADS,
    KEY_BYTES,
    READING,
    UNREADABLE,
    Reading,
    content_key,
    formats,
    kind_of,
    missing,
    open_image,
    suffixes,
    why_not_read,
)
from perdure.errors import DataError


@dc.dataclass(frozen=True, slots=True)
class CheckedFile:
    """One file after the check: its content hash, and why it cannot be decoded, if it cannot."""

    path: Path
    key: bytes
    problem: str | None

    @property
    def complaint(self) -> str:
        """The file and its problem, as a report shows them."""
        return f"{shown(self.path)}: {self.problem}"


def cache_dir() -> Path:
    """Where downloads and features are kept: ``$PERDURE_CACHE``, else ``~/.cache/perdure``."""
    return Path(os.environ.get("PERDURE_CACHE", "~/.cache/perdure")).expanduser()


def folders_in(root: Path) -> list[Path]:
    """The visible sub-folders of ``root``, sorted by name."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """The visible image files directly in ``folder``, sorted by name."""
    return sorted(p for p in folder.iterdir() if _is_image(p))


def unread_in(folder: Path) -> dict[Path, str]:
    """The visible files directly in ``folder`` that look like images but are not read here, each with what to do."""
    others = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".") and not _is_image(p))
    return {path: reason for path in others if (reason := why_not_read(path)) is not None}


def check_files(
    paths: Sequence[Path], known_good: KnownGood | None = None, reading: Reading | None = None
) -> list[CheckedFile]:
    """Hashes every file and decodes those whose content was never decoded before.

    JPEG files are decoded at an eighth of their size: the whole bit stream is read, at a fraction of the cost.

    Args:
        paths: the files, in any order.
        known_good: contents that were decoded before; new ones are added.
        reading: how the files become RGB; one that it refuses has a problem.
    """
    rule = reading or Reading()
    memo = known_good or KnownGood(None)

    def check(path: Path) -> CheckedFile:
        try:
            data = path.read_bytes()
        except OSError as error:
            return CheckedFile(path, b"\0" * KEY_BYTES, error.strerror or str(error))
        key = content_key(data, rule)
        return CheckedFile(path, key, None if key in memo else _decoding_problem(data, rule))

    checked: list[CheckedFile] = []
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for start in range(0, len(paths), 1024):  # a future for every file of a large folder would fill the memory
            checked += pool.map(check, paths[start : start + 1024])
    memo.add(c.key for c in checked if c.problem is None)
    return checked


def check_classes(per_class: Mapping[str, list[Path]], reading: Reading | None = None) -> dict[str, list[CheckedFile]]:
    """Checks every file of every class; contents that decoded in an earlier run are only hashed.

    Args:
        per_class: class name to image files.
        reading: how the files become RGB.

    Returns:
        Class name to checked files, in the same order.
    """
    flat = [path for paths in per_class.values() for path in paths]
    checked = iter(check_files(flat, KnownGood(cache_dir() / f"decoded-{READING}.keys"), reading))
    return {name: [next(checked) for _ in paths] for name, paths in per_class.items()}


class KnownGood:
    """Content hashes of files that decoded, kept in one append-only file so that no file is decoded twice.

    Args:
        path: the file; ``None`` keeps them in memory only.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        data = path.read_bytes() if path is not None and path.exists() else b""
        self._keys = {data[i : i + KEY_BYTES] for i in range(0, len(data) - KEY_BYTES + 1, KEY_BYTES)}

    def __contains__(self, key: bytes) -> bool:
        return key in self._keys

    def add(self, keys: Iterable[bytes]) -> None:
        """Adds hashes; a full or read-only disk only costs the memory of them."""
        new = sorted(set(keys) - self._keys)
        self._keys.update(new)
        if self._path is None or not new:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "ab") as file:
                torn = -file.tell() % KEY_BYTES  # a write that a kill cut short must not shift every later key
                file.write(b"\0" * torn + b"".join(new))
        except OSError:
            self._path = None


def keys_of(files: Sequence[CheckedFile]) -> np.ndarray:
    """(n,) ``S16`` content hashes of checked files."""
    return np.array([f.key for f in files], dtype=f"S{KEY_BYTES}")


def refuse_corrupt(files: Sequence[CheckedFile]) -> None:
    """Stops a run before it starts if any file cannot be decoded.

    Raises:
        DataError: naming every corrupt file.
    """
    bad = [f.complaint for f in files if f.problem is not None]
    if bad:
        hint = "Repair or remove them, or set skip_corrupt=true to leave them out and record it"
        name = f"each of {len(files)} image files" if len(files) > 1 else "the image file"
        must_be = f"readable ({len(bad)} {'is' if len(bad) == 1 else 'are'} not)"
        raise DataError("data", name, must_be, bad if len(bad) > 1 else bad[0], hint)


def _decoding_problem(data: bytes, reading: Reading) -> str | None:
    if not data:
        return "empty file"
    try:
        with open_image(io.BytesIO(data)) as image:
            if image.format in ("JPEG", "MPO"):
                image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            reading.rgb(image)
    except UnidentifiedImageError:
        kind = kind_of(data[:16])
        return missing(kind) if kind is not None and kind not in formats() else "not an image of a known format"
    except DataError as error:
        return f"{error.name} must be {error.must_be}, but got {error.got}. {error.hint}"
    except UNREADABLE as error:
        return (str(error) or type(error).__name__).splitlines()[0][:120].rstrip(".")
    return None


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in suffixes() and not path.name.startswith(".") and os.path.isfile(path)
