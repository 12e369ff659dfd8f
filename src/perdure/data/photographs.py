"""What is handed to a prediction: photographs, which get the eval view, or a batch that has it already."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Num
from PIL import Image
from torch import Tensor

from perdure.data.folders import check_files, keys_of
from perdure.data.images import KEY_BYTES, ArraySource, FileSource, LabelledImages
from perdure.data.names import on_disk, shown
from perdure.data.preprocess import Preprocess
from perdure.data.reading import UNREADABLE, Reading, stored_as
from perdure.errors import DataError, DataNotFoundError, ShapeError, told

Photo: TypeAlias = str | bytes | os.PathLike | Image.Image | np.ndarray | Tensor
"""A file's path; a PIL image; or uint8 pixels, (h, w) grey or (h, w, c) or (c, h, w) with c = 1, 3 or 4 (RGBA)."""

Images: TypeAlias = Photo | Iterable[Photo] | LabelledImages
"""One photograph, several of any kinds, labelled images, or a batch tensor (b, 3, s, s) that has the eval view."""

CHANNELS: Final = (1, 3, 4)
WIDE: Final = 8
"""How far normalised values may reach: times those of black or white. Noise from a Gaussian stays within."""
PIXELS: Final = "uint8 pixels of 0 to 255"
OTHER_TYPES: Final = {
    "float": "Multiply values of 0 to 1 by 255, round and convert to uint8",
    "bool": "Multiply by 255 and convert to uint8",
    "int": "Scale the values to 0 to 255 where they go further, and convert to uint8",
}
SEVERAL: Final = "For several photographs give a list, such as list(images)"


class PhotoSource:
    """Photographs in memory, of any sizes. They are held as they were given, and become RGB when they are read.

    PIL images whose file was not read so far are loaded at once: two threads must not load the same image. They become
    RGB at once where a loaded image does not tell enough: how many bits a file's pixels have is needed for that.

    Args:
        photos: PIL images, and uint8 arrays of shape (h, w), (h, w, 3) or (h, w, 4).
        names: what to call each in a message.
        where: the function that refuses, in a message.
        reading: how they become RGB.

    Raises:
        DataError: naming the PIL image that cannot be decoded, or whose values are outside the range.
    """

    def __init__(
        self, photos: Sequence[Image.Image | np.ndarray], names: Sequence[str], where: str, reading: Reading
    ) -> None:
        self._photos: list[Image.Image | np.ndarray] = list(photos)
        self._names, self.reading, keys = names, reading, []
        for row, photo in enumerate(photos):
            try:
                if isinstance(photo, Image.Image) and ";" in stored_as(photo):
                    self._photos[row] = np.asarray(reading.rgb(photo))
                keys.append(self._pixels(row).keys[0])
            except DataError as error:
                raise DataError(where, f"{names[row]}: {error.name}", error.must_be, error.got, error.hint) from error
            except (*UNREADABLE, AssertionError, AttributeError) as error:  # the last two: its file was closed
                hint = f"Keep its file open until then, or give the file's path ({told(error)})"
                raise DataError(where, names[row], "an image that Pillow can decode", repr(photo), hint) from error
        self.keys = np.array(keys, dtype=f"S{KEY_BYTES}")

    def read(self, row: int) -> Image.Image:
        """Photograph ``row``, RGB."""
        photo = self._photos[row]
        return self.reading.rgb(photo if isinstance(photo, Image.Image) else Image.fromarray(photo))

    def bytes_of(self, row: int) -> bytes:
        """Photograph ``row`` as PNG, which loses nothing."""
        return self._pixels(row).bytes_of(0)

    def name(self, row: int) -> str:
        """The photograph's place in what was given."""
        return self._names[row]

    def _pixels(self, row: int) -> ArraySource:
        """An image's key and its file come from its RGB pixels, by the same rule as those of a data set's arrays."""
        return ArraySource(np.asarray(self.read(row))[None], self._names[row])


def photographs(
    images: Images, preprocess: Preprocess, where: str, reading: Reading | None = None
) -> LabelledImages | Num[Tensor, "b 3 s s"]:
    """Labelled images, all of class 0, for whatever is a photograph; a batch in the eval view as it is.

    Everything is looked at before anything is returned: a photograph that cannot be used stops the prediction before
    it begins. Files are read as a data set's are, and have the same keys.

    Args:
        images: photographs; or a tensor (b, 3, s, s), uint8 or floating point that is normalised already.
        preprocess: the eval view, with s as its ``image_size``.
        where: the function that was called, for messages.
        reading: how image files become RGB.

    Raises:
        DataNotFoundError: naming a file that is missing, or is a folder or an address.
        DataError: naming the files that cannot be decoded, or what is no photograph at all.
        ShapeError: for arrays and tensors of another shape, type or range; what they must be is told.
    """
    if isinstance(images, LabelledImages):
        return images
    if isinstance(images, Tensor) and images.ndim == 4:
        return _eval_view(images, preprocess, where)
    if isinstance(images, Photo):
        return _labelled([images], ["images"], where, reading or Reading())
    if not isinstance(images, Iterable) or isinstance(images, Mapping | Set | io.IOBase):
        must_be, hint = "one photograph, or a list of them", "Give paths, PIL images or uint8 arrays"
        raise DataError(where, "images", must_be, type(images).__name__, hint)
    photos = list(images)
    return _labelled(photos, [f"images[{i}]" for i in range(len(photos))], where, reading or Reading())


def _eval_view(images: Tensor, preprocess: Preprocess, where: str) -> Num[Tensor, "b 3 s s"]:
    """The batch itself, if it can be one of the eval view."""
    size, shape = preprocess.image_size, tuple(images.shape)
    if shape[1:] != (3, size, size):
        must_be, hint = f"of shape (batch, 3, {size}, {size}), the eval view", f"{SEVERAL}: they get the eval view"
        raise ShapeError(where, "images", must_be, shape, hint)
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        got, hint = _type_and_hint(images)
        raise ShapeError(where, "images", f"{PIXELS}, or normalised floats", got, hint)
    black, white = ((end - np.array(preprocess.mean)) / np.array(preprocess.std) for end in (0, 1))
    most = WIDE * float(np.abs([black, white]).max())
    low, high = (float(v) for v in images.detach().aminmax()) if images.numel() else (0.0, 0.0)
    if most < max(-low, high) < math.inf:  # the backbone tells which image is not finite
        must_be = f"{PIXELS}, or normalised floats within ±{most:.3g}"
        hint = "These look like pixels of 0 to 255: give them as uint8, or normalise them"
        raise ShapeError(where, "images", must_be, f"floats from {low:.4g} to {high:.4g}", hint)
    if _unnormalised(images, preprocess, low, high):
        must_be, hint = "normalised, if they are floats", "These are pixels of 0 to 1: give uint8, or normalise them"
        raise ShapeError(where, "images", must_be, f"floats from {low:.4g} to {high:.4g}", hint)
    return images


def _unnormalised(images: Tensor, preprocess: Preprocess, low: float, high: float) -> bool:
    """Whether floats of 0 to 1 are pixels divided by 255, which only some eval views leave so."""
    if not (0 <= low < high <= 1) or (preprocess.mean, preprocess.std) == ((0, 0, 0), (1, 1, 1)):
        return False
    some = images.detach()[:8].cpu().double()
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (preprocess.mean, preprocess.std))

    def are_pixels(values: Tensor) -> bool:
        return bool(((255 * values).round() - 255 * values).abs().max() < 0.01)

    return are_pixels(some) and not are_pixels(some * std + mean)


def _labelled(photos: Sequence[Photo], names: Sequence[str], where: str, reading: Reading) -> LabelledImages:
    """The photographs in their order: those in files, and those in memory."""
    files: list[Path] = []
    held: list[Image.Image | np.ndarray] = []
    of_files: list[int] = []
    of_held: list[int] = []
    for i, (photo, name) in enumerate(zip(photos, names, strict=True)):
        if isinstance(photo, str | bytes | os.PathLike):
            files.append(_file(photo, name, where))
            of_files.append(i)
            continue
        if isinstance(photo, np.ndarray | Tensor):
            held.append(_array(photo, name, where))
        elif isinstance(photo, Image.Image):
            _require_pixels((photo.height, photo.width), name, where)
            held.append(photo)
        else:
            hint = "Give a path, a PIL image or a uint8 array; a list in a list is none"
            raise DataError(where, name, "a photograph", type(photo).__name__, hint)
        of_held.append(i)
    checked = check_files(files, reading=reading)
    named = zip([names[i] for i in of_files], checked, strict=True)
    bad = [f"{name}: {file.complaint}" for name, file in named if file.problem is not None]
    if bad:
        hint = "Repair them or leave them out"
        raise DataError(where, "images", "readable image files", bad if len(bad) > 1 else bad[0], hint)
    in_files = LabelledImages(FileSource(files, keys_of(checked), reading), np.zeros(len(files), dtype=np.int64))
    in_memory = PhotoSource(held, [names[i] for i in of_held], where, reading)
    both = in_files.joined(LabelledImages(in_memory, np.zeros(len(held), dtype=np.int64)))
    return both.subset(np.argsort([*of_files, *of_held]))


def _file(path: str | bytes | os.PathLike, name: str, where: str) -> Path:
    found = on_disk(os.fsdecode(path))
    if os.path.isfile(found):
        return found
    text = shown(os.fsdecode(path))
    must_be, hint = "an existing file", "Check the path; relative paths start at the current directory"
    if "://" in text:
        must_be, hint = "a file on this machine", "Download it, and give the file's path"
    elif text and os.path.isdir(found):
        must_be, hint = "a file, not a folder", "Give a list of its files, such as sorted(Path(folder).glob('*.jpg'))"
    elif isinstance(path, bytes):
        hint = "For a file's content give PIL.Image.open(io.BytesIO(content))"
    raise DataNotFoundError(where, name, must_be, text if len(text) <= 200 else f"{text[:200]}…", hint)


def _array(array: np.ndarray | Tensor, name: str, where: str) -> np.ndarray:
    """Pixels as Pillow takes them, (h, w), (h, w, 3) or (h, w, 4), without a copy."""
    shape = tuple(array.shape)
    if str(array.dtype).removeprefix("torch.") != "uint8":
        got, hint = _type_and_hint(array)
        raise ShapeError(where, name, PIXELS, got, hint)
    pixels = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    first, last = len(shape) == 3 and shape[0] in CHANNELS, len(shape) == 3 and shape[-1] in CHANNELS
    if first and last:
        must_be = "an array whose first or last axis alone can be channels (1, 3 or 4)"
        hint = "Both can here: give a PIL image, such as Image.fromarray(array) of (height, width, channels)"
        raise ShapeError(where, name, must_be, shape, hint)
    if not (first or last or len(shape) == 2):
        must_be = "one photograph of shape (h, w), (h, w, c) or (c, h, w) with c = 1, 3 or 4"
        raise ShapeError(where, name, must_be, shape, SEVERAL if len(shape) != 3 else "Choose or reorder its axes")
    _require_pixels(shape, name, where)
    pixels = np.moveaxis(pixels, 0, 2) if first else pixels
    return pixels[..., 0] if pixels.shape[2:] == (1,) else pixels


def _type_and_hint(array: np.ndarray | Tensor) -> tuple[str, str]:
    dtype = str(array.dtype).removeprefix("torch.")
    hint = next((hint for kind, hint in OTHER_TYPES.items() if kind in dtype), SEVERAL)
    return f"{dtype} of shape {tuple(array.shape)}", hint


def _require_pixels(shape: tuple[int, ...], name: str, where: str) -> None:
    if 0 in shape:
        raise ShapeError(where, name, "of at least one pixel", shape, "Leave empty images out")
