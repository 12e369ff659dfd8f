"""How an image file becomes RGB pixels: one rule for training, tests, exemplars and predictions.

- Only the raster formats of :data:`SUFFIXES` are opened, whatever a file is called; of an animation, the first frame.
- The image is turned as its EXIF orientation says.
- What is transparent is laid on white.
- Deep images are scaled by the range of their type, not clipped: 16-bit grey by 0 to 65535 (12-bit TIFF: 4095), 32-bit
  integers as 16 bit, floating point by 0 to 1. A value outside is refused; ``value_range`` gives another range.
- 16-bit colour is read by its upper 8 bits, which is all that Pillow gives: ``value_range`` refuses such an image.
- Grey, palette, CMYK, YCbCr and LAB become RGB as Pillow converts them. Colour profiles are not applied.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import functools
import hashlib
import math
from collections.abc import Iterator, Mapping
from numbers import Real
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from PIL import Image, ImageChops, UnidentifiedImageError

from perdure.errors import ConfigError, DataError

try:
    from pillow_heif import HeifImageFile
except ImportError:  # an extra of the installation
    HeifImageFile = None

KEY_BYTES: Final = 16
DECODE_THREADS: Final = 2
READING: Final = "1"
"""The rule's version: raised whenever some file's pixels change, so that no feature of an older reading is served."""

SUFFIXES: Final[Mapping[str, tuple[str, ...]]] = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
"""The formats that are read, by Pillow's names, and what their files are called."""

OTHER_SUFFIXES: Final = {
    ".ai", ".arw", ".bpg", ".cr2", ".cr3", ".dcm", ".dds", ".dng", ".emf", ".eps", ".exr", ".fits", ".hdr", ".heics",
    ".ico", ".icns", ".j2c", ".j2k", ".jp2", ".jpf", ".jpx", ".jxl", ".jxr", ".nef", ".orf", ".pcx", ".pef", ".ps",
    ".psb", ".psd", ".qoi", ".raf", ".raw", ".rw2", ".sgi", ".srw", ".svg", ".svgz", ".tga", ".wmf", ".xcf",
}  # fmt: skip
"""What image files are called that are not read."""

EXTRA: Final = "install it with pip install 'perdure[heic]'"
ORIENTATION: Final = 0x0112  # the EXIF tag
PHOTOMETRIC: Final = 262  # the TIFF tag; 0: the lowest value is white
BITS: Final = 258  # the TIFF tag: of each sample
TURNS: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

UNREADABLE: Final = (OSError, ValueError, SyntaxError, EOFError, RuntimeError, Image.DecompressionBombError)
"""What Pillow and its plug-ins raise for a file that they cannot decode."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Those of :data:`SUFFIXES` that can be read here."""
    Image.init()
    return tuple(f for f in SUFFIXES if f in Image.OPEN or (f == "HEIF" and HeifImageFile is not None))


@functools.cache
def suffixes() -> frozenset[str]:
    """What files are called that can be read here, in small letters."""
    return frozenset(suffix for name in formats() for suffix in SUFFIXES[name])


def open_image(file: Path | str | IO[bytes]) -> Image.Image:
    """Opens an image file of a known format; nothing is decoded yet.

    Args:
        file: its path, or its bytes as a file.

    Raises:
        OSError, ValueError: as ``PIL.Image.open``, for whatever is no image of one of :func:`formats`.
    """
    try:
        return Image.open(file, formats=[name for name in formats() if name in Image.OPEN])
    except UnidentifiedImageError:
        if HeifImageFile is None or kind_of(_head(file)) != "HEIF":
            raise
        return HeifImageFile(file)  # the plug-in's opener is not registered: that would change Pillow for everyone


def kind_of(head: bytes) -> str | None:
    """The format of an image by its first 16 bytes, for those of :data:`SUFFIXES` that cannot be taken for a text."""
    if head[4:8] == b"ftyp":
        is_avif, is_heif = head[8:12] in (b"avif", b"avis"), head[8:11] in (b"hei", b"hev", b"mif", b"msf")
        return "AVIF" if is_avif else "HEIF" if is_heif else None
    starts = {b"\xff\xd8\xff": "JPEG", b"\x89PNG": "PNG", b"GIF8": "GIF", b"II*\0": "TIFF", b"MM\0*": "TIFF"}
    found = [name for start, name in starts.items() if head.startswith(start)]
    return found[0] if found else "WEBP" if head[:4] == b"RIFF" and head[8:12] == b"WEBP" else None


def why_not_read(path: Path) -> str | None:
    """Why a file that looks like an image is not read here, and what to do; ``None`` if it looks like none.

    Args:
        path: a file whose suffix is none of :func:`suffixes`.
    """
    suffix = path.suffix.lower()
    for name in SUFFIXES.keys() - set(formats()):
        if suffix in SUFFIXES[name]:
            return missing(name)
    if suffix in OTHER_SUFFIXES:
        return f"{suffix} files are not read; convert them to PNG or JPEG"
    try:
        kind = kind_of(_head(path))
    except OSError:
        return None
    if kind is None or kind not in formats():
        return kind and missing(kind)
    return f"it is a {kind} image by its content, but not by its name; rename it to end in {SUFFIXES[kind][0]}"


def _head(file: Path | str | IO[bytes]) -> bytes:
    if isinstance(file, str | Path):
        with open(file, "rb") as opened:
            return opened.read(16)
    file.seek(0)
    head = file.read(16)
    file.seek(0)
    return head


def missing(name: str) -> str:
    """What to do to read files of a format of :data:`SUFFIXES` that cannot be read here."""
    return f"HEIC files need pillow-heif; {EXTRA}" if name == "HEIF" else f"{name} files need Pillow 11.3 or newer"


@contextlib.contextmanager
def readable(name: str, hint: str) -> Iterator[None]:
    """Around the reading of a file.

    Args:
        name: what to call the image.
        hint: what to do if it cannot be read.

    Raises:
        DataError: naming the image, in place of what Pillow or :class:`Reading` raises.
    """
    try:
        yield
    except DataError as error:
        raise DataError("data", f"{error.name} {name}", error.must_be, error.got, error.hint) from error
    except UNREADABLE as error:
        raise DataError("data", "image file", "readable", name, f"{hint} ({error})") from error


@dc.dataclass(frozen=True, slots=True)
class Reading:
    """The rule, with the one thing about it that a data set decides.

    Args:
        value_range: the values of deep images that are black and white; ``None``: the range of their type.

    Raises:
        ConfigError: unless these are two finite numbers, the lower one first.
    """

    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        given = self.value_range
        if given is None:
            return
        numbers = isinstance(given, list | tuple) and len(given) == 2 and all(isinstance(v, Real) for v in given)
        if not (numbers and all(map(math.isfinite, given)) and given[0] < given[1]):
            must_be, hint = "two finite numbers, the lower one first", "Give black and white, e.g. [0, 4095]"
            raise ConfigError("stream", "value_range", must_be, given, hint)
        object.__setattr__(self, "value_range", (float(given[0]), float(given[1])))

    @property
    def salt(self) -> bytes:
        """Hashed before a file's bytes into its content key: the same file under another range is another image."""
        return b"" if self.value_range is None else f"value_range {self.value_range}\n".encode()

    def opened(self, file: Path | str | IO[bytes]) -> Image.Image:
        """An image file, RGB.

        Args:
            file: its path, or its bytes as a file.

        Raises:
            OSError, ValueError: as for :func:`open_image`, and for a file that is damaged.
            DataError: as for :meth:`rgb`.
        """
        with open_image(file) as image:
            return self.rgb(image)

    def rgb(self, image: Image.Image) -> Image.Image:
        """An image as Pillow opened it, RGB; the image itself stays as it is.

        Args:
            image: of any mode. What a file of it says (orientation, transparency, depth) is heeded.

        Raises:
            DataError: for values that the range does not hold, or a range for 16-bit colour.
        """
        stored, tags = stored_as(image), getattr(image, "tag_v2", {})
        image.load()
        inverted, highest = tags.get(PHOTOMETRIC) == 0, 4095 if tags.get(BITS) == (12,) else 65535
        transparent = image.info.get("transparency")
        image = _turned(image)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return self._scaled(image, highest, inverted, transparent)
        if self.value_range is not None and ";16" in stored:
            hint = "Convert it to 8 bits, or leave stream.value_range out"
            raise DataError("data", "the image", "8-bit, grey or floating point for a value_range", stored, hint)
        if image.mode == "La":  # grey, multiplied by its opacity; Pillow cannot convert it
            grey, opacity = image.split()
            return ImageChops.add(grey, ImageChops.invert(opacity)).convert("RGB")
        if not image.has_transparency_data:
            return image.convert("RGB")
        if (decoded := _as_decoded(transparent, stored)) != transparent:
            image = image.copy()
            image.info["transparency"] = decoded
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")

    def _scaled(self, image: Image.Image, highest: int, inverted: bool, transparent: Any) -> Image.Image:
        """A deep grey image, its range stretched over black to white."""
        values = np.asarray(image)
        black, white = self.value_range or (0, 1 if image.mode == "F" else highest)
        low, high = values.min(), values.max()  # NaN if there is one
        if not (black <= low and high <= white):
            hint = "Set stream.value_range where the data are loaded that are taught, e.g. value_range=[0, 4095]"
            got = f"{low:g} to {high:g}"
            raise DataError("data", "the values of the image", f"within {black:g} to {white:g}", got, hint)
        grey = np.rint((values.astype(np.float64) - black) * (255 / (white - black))).astype(np.uint8)
        grey = 255 - grey if inverted else grey
        if transparent is not None:
            grey[values == transparent] = 255
        return Image.fromarray(grey).convert("RGB")


def content_key(data: bytes, reading: Reading | None = None) -> bytes:
    """The 16-byte BLAKE2b hash that names an image by its content, and by how that is read."""
    digest = hashlib.blake2b((reading or Reading()).salt, digest_size=KEY_BYTES)
    digest.update(data)
    return digest.digest()


def stored_as(image: Image.Image) -> str:
    """How the file holds a pixel, in Pillow's words (``RGB;16B``, ``L;2``), which name the bits where they differ.

    Args:
        image: not loaded yet; once it is, Pillow no longer tells, and this is empty.
    """
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else None
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments or "")


def _turned(image: Image.Image) -> Image.Image:
    """As its EXIF orientation says."""
    # Pillow's exif_transpose writes the EXIF anew, which fails for some that cameras make, and copies upright images
    orientation = None
    with contextlib.suppress(Exception):  # a damaged EXIF is no reason to refuse a picture
        orientation = image.getexif().get(ORIENTATION)
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def _as_decoded(transparent: Any, stored: str) -> Any:
    """PNG's transparent colour, which Pillow gives as the file holds it, in the 8 bits that it decodes to."""
    if isinstance(transparent, tuple) and ";16" in stored:
        return tuple(v >> 8 for v in transparent)
    return transparent * {"L;2": 85, "L;4": 17}.get(stored, 1) if isinstance(transparent, int) else transparent
