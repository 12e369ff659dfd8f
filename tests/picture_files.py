"""Image files that Pillow does not write, byte by byte: deep and transparent PNG and TIFF; a world without HEIC."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import pytest

from perdure.data import reading

TIFF_TYPES = {3: "H", 4: "I"}


def png(bits: int, colour: int, row: bytes, width: int, transparent: bytes = b"") -> bytes:
    """A PNG of one row.

    Args:
        bits: of a sample.
        colour: PNG's colour type: 0 grey, 2 RGB, 4 grey and alpha, 6 RGBA.
        row: the samples.
        width: pixels.
        transparent: content of the tRNS chunk.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, bits, colour, 0, 0, 0))
    colour_key = chunk(b"tRNS", transparent) if transparent else b""
    return b"\x89PNG\r\n\x1a\n" + header + colour_key + chunk(b"IDAT", zlib.compress(b"\0" + row)) + chunk(b"IEND", b"")


def tiff(bits: int, data: bytes, width: int, *, photometric: int = 1, kind: int = 1, samples: int = 1, extra: int = -1):
    """A little-endian TIFF of one row, uncompressed.

    Args:
        bits: of a sample.
        data: the samples.
        width: pixels.
        photometric: 0: the lowest value is white, 1: it is black, 2: RGB, 8: LAB.
        kind: of a sample, 1 unsigned, 2 signed, 3 floating point.
        samples: of a pixel.
        extra: what the last sample of a pixel is: 1 alpha that colours were multiplied by, 2 alpha; -1: a colour.
    """
    start = 8 + 2 + 12 * 11 + 4
    tags = [
        (256, 4, [width]), (257, 4, [1]), (258, 3, [bits] * samples), (259, 3, [1]), (262, 3, [photometric]),
        (273, 4, [start + 32]), (277, 3, [samples]), (278, 4, [1]), (279, 4, [len(data)]), (338, 3, [max(extra, 0)]),
        (339, 3, [kind] * samples),
    ]  # fmt: skip
    entries, behind = b"", b""
    for tag, type_, values in tags:
        if tag == 338 and extra < 0:
            continue
        value = struct.pack(f"<{len(values)}{TIFF_TYPES[type_]}", *values)
        if len(value) > 4:
            value, behind = struct.pack("<I", start + len(behind)), behind + value
        entries += struct.pack("<HHI", tag, type_, len(values)) + value.ljust(4, b"\0")
    directory = struct.pack("<H", len(entries) // 12) + entries + b"\0" * 4
    return (b"II*\0" + struct.pack("<I", 8) + directory).ljust(start, b"\0") + behind.ljust(32, b"\0") + data


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As where pillow-heif is not installed."""
    found = (reading.formats, reading.suffixes)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "HeifImageFile", None)
        for cached in found:
            cached.cache_clear()
        yield
    for cached in found:
        cached.cache_clear()
