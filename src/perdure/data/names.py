"""What folders and files are called: text in any script, in natural order, and the way back to the disk."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from perdure.errors import DataError


def shown(path: str | Path) -> str:
    """A path, or a part of one, as text that any file can hold.

    A disk keeps names as bytes. They are read as UTF-8 whatever the machine's own encoding; where they are not, a byte
    becomes ``\\xe9`` and a backslash becomes two, so that :func:`on_disk` finds the way back.

    Args:
        path: as the system gives it; bytes that it cannot read are lone surrogates.
    """
    try:
        raw = os.fsencode(path)
    except UnicodeEncodeError:  # text that was never on this machine's disk
        return str(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def typed(text: str) -> str:
    """Text from a command line: as it is, or as :func:`shown` where it holds what no file can.

    Args:
        text: with lone surrogates where the system could not read a byte.
    """
    return text if _encodes(text, "utf-8") else shown(text)


def on_disk(text: str | Path) -> Path:
    """Where a path is that somebody wrote down: as it stands, as UTF-8, or as :func:`shown` wrote it.

    Args:
        text: a path; ``~`` is the home folder.

    Returns:
        The first of these that exists; the first that this machine can name if none does.
    """
    ways = [str(text)]
    if _encodes(ways[0], "utf-8"):
        raw = ways[0].encode()
        ways.append(os.fsdecode(raw))
        ways.append(os.fsdecode(re.sub(rb"\\(\\|x[0-9a-f]{2})", _unescaped, raw)))
    # not Path.expanduser: it fails where a name starts with ~ and is no user's
    paths = [Path(os.path.expanduser(way)) for way in dict.fromkeys(ways) if _encodes(way, None)]
    return next((path for path in paths if os.path.lexists(path)), paths[0])


def name_of(path: Path) -> str:
    """What a class or domain is called by its folder: as :func:`shown`, and composed (NFC) wherever the disk is."""
    return unicodedata.normalize("NFC", shown(path.name))


def named(folders: Iterable[Path]) -> dict[str, Path]:
    """Folders by :func:`name_of`, in natural order.

    Args:
        folders: of classes or of domains.

    Raises:
        DataError: if two of them have one name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        name = name_of(folder)
        if name in found:
            twins = [f"{shown(p)} (on the disk {os.fsencode(p.name)!r})" for p in (found[name], folder)]
            raise DataError("data", f"the folders that are called {name!r}", "one", twins, "Merge or rename them")
        found[name] = folder
    return {name: found[name] for name in in_natural_order(found)}


def in_natural_order(names: Iterable[str]) -> list[str]:
    """Sorted: numbers in names as numbers (``day 2`` before ``day 10``) where every name holds one; else as plain text.

    Args:
        names: in any order.
    """
    plain = sorted(names)
    if not all(re.search(r"\d", name) for name in plain):
        return plain
    return sorted(plain, key=_with_numbers)


def _with_numbers(name: str) -> list[Any]:
    # text stands at even places and numbers at odd ones, so that like is compared with like
    return [int(piece) if i % 2 else piece for i, piece in enumerate(re.split(r"(\d+)", name))]


def _unescaped(found: re.Match[bytes]) -> bytes:
    return b"\\" if found[1] == b"\\" else bytes.fromhex(found[1][1:].decode())


def _encodes(text: str, encoding: str | None) -> bool:
    """Whether an encoding, or (None) this machine's file system, can hold a text."""
    try:
        os.fsencode(text) if encoding is None else text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
