"""Image folders: which files there are, what they contain, and whether each can be decoded."""

from __future__ import annotations

import dataclasses as dc
import io
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from perdure.data.images import DECODE_THREADS, KEY_BYTES, UNREADABLE, content_key
from perdure.errors import DataError, DataNotFoundError

IMAGE_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dc.dataclass(frozen=True, slots=True)
class CheckedFile:
    """One file after the check: its content hash, and why it cannot be decoded, if it cannot."""

    path: Path
    key: bytes
    problem: str | None


def folders_in(root: Path) -> list[Path]:
    """The visible sub-folders of ``root``, sorted by name."""
    return sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))


def images_in(folder: Path) -> list[Path]:
    """The visible image files directly in ``folder``, sorted by name."""
    return sorted(p for p in folder.iterdir() if _is_image(p))


def class_folders(root: Path) -> list[Path]:
    """The sub-folders of ``root``, one per class, sorted by name.

    Raises:
        DataNotFoundError: if the folder is missing or holds no folder.
    """
    require_folder(root)
    folders = folders_in(root)
    if not folders:
        hint = "Put each class's images into a sub-folder named after the class"
        raise DataNotFoundError("data", "folder", "one sub-folder per class", str(root), hint)
    return folders


def class_files(root: Path) -> dict[str, list[Path]]:
    """Class name to image files for ``root/<class>/…``.

    Raises:
        DataNotFoundError: if the folder is missing, holds no class folder, or a class folder holds no image.
    """
    files = {folder.name: images_in(folder) for folder in class_folders(root)}
    empty = [str(root / name) for name, images in files.items() if not images]
    if empty:
        nested = any(folders_in(Path(folder)) for folder in empty)
        hint = (
            "These hold folders: for root/<domain>/<class>/ set stream.scenario=domain" if nested else "Fill or remove"
        )
        raise DataNotFoundError("data", "class folders", "folders with at least one image", empty, hint)
    return files


def require_folder(root: Path) -> None:
    """Refuses a path that is no folder.

    Raises:
        DataNotFoundError: if ``root`` is missing or a file.
    """
    if not root.is_dir():
        hint = "Check the path; relative paths start at the current directory"
        raise DataNotFoundError("data", "folder", "an existing folder", str(root), hint)


def check_files(paths: Sequence[Path], known_good: KnownGood | None = None) -> list[CheckedFile]:
    """Hashes every file and decodes those whose content was never decoded before.

    JPEG files are decoded at an eighth of their size: the whole bit stream is read, at a fraction of the cost.

    Args:
        paths: the files, in any order.
        known_good: contents that were decoded before; new ones are added.
    """
    memo = known_good or KnownGood(None)

    def check(path: Path) -> CheckedFile:
        try:
            data = path.read_bytes()
        except OSError as error:
            return CheckedFile(path, b"\0" * KEY_BYTES, error.strerror or str(error))
        key = content_key(data)
        return CheckedFile(path, key, None if key in memo else _decoding_problem(data))

    checked: list[CheckedFile] = []
    with ThreadPoolExecutor(DECODE_THREADS) as pool:
        for start in range(0, len(paths), 1024):  # a future for every file of a large folder would fill the memory
            checked += pool.map(check, paths[start : start + 1024])
    memo.add(c.key for c in checked if c.problem is None)
    return checked


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
    bad = [f"{f.path}: {f.problem}" for f in files if f.problem is not None]
    if bad:
        hint = "Repair or remove them, or set skip_corrupt=true to leave them out and record it"
        name = f"each of {len(files)} image files" if len(files) > 1 else "the image file"
        must_be = f"readable ({len(bad)} {'is' if len(bad) == 1 else 'are'} not)"
        raise DataError("data", name, must_be, bad if len(bad) > 1 else bad[0], hint)


def _decoding_problem(data: bytes) -> str | None:
    if not data:
        return "empty file"
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.draft("RGB", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except UnidentifiedImageError:
        return "not an image of a known format"
    except UNREADABLE as error:
        return (str(error) or type(error).__name__).splitlines()[0][:120]
    return None


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and os.path.isfile(path)
