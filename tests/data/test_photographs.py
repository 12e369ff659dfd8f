"""What is handed to a prediction becomes labelled images, or stays a batch in the eval view, or is refused."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.data import ArraySource, LabelledImages, Preprocess
from perdure.data import photographs as module
from perdure.data.images import content_key
from perdure.data.photographs import photographs
from perdure.data.reading import Reading
from perdure.errors import DataError, DataNotFoundError, PerdureError, ShapeError
from picture_files import png, tiff

S = 16
VIEW = Preprocess(S)
WHERE = "SimpleCIL.predict"


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, dtype=np.uint8)


RGB = noise(20, 24, 3)


class Plain:
    """A path of another library."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __fspath__(self) -> Any:
        return self.path


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A photograph in a file."""
    path = tmp_path / "photo.png"
    Image.fromarray(RGB).save(path)
    return path


def given(images: Any) -> LabelledImages:
    """What becomes of photographs."""
    found = photographs(images, VIEW, WHERE)
    assert isinstance(found, LabelledImages)
    assert found.labels.tolist() == [0] * len(found)
    assert [found.name(i) for i in range(len(found))] == [found.source.name(int(r)) for r in found.rows]
    return found


def rgb(images: LabelledImages) -> list[np.ndarray]:
    """The photographs' own pixels."""
    return [np.asarray(images.source.read(int(row))) for row in images.rows]


def refused(error: type[PerdureError], images: Any) -> str:
    """The refusal's text."""
    with pytest.raises(error) as caught:
        photographs(images, VIEW, WHERE)
    assert type(caught.value) is error
    return str(caught.value)


@pytest.mark.parametrize(
    "kind",
    [str, Path, np.str_, os.fsencode, lambda path: Plain(str(path)), lambda path: Plain(os.fsencode(path))],
    ids=["text", "Path", "np.str_", "bytes", "PathLike of text", "PathLike of bytes"],
)
def test_a_path_of_any_kind_is_one_photograph(kind: Callable[[Path], Any], file: Path) -> None:
    photo = given(kind(file))
    assert photo.keys.tolist() == [content_key(file.read_bytes())]  # the key it has in a data set
    assert photo.name(0) == str(file)
    assert photo.bytes_of(0) == file.read_bytes()
    assert (rgb(photo)[0] == RGB).all()


def test_a_file_is_found_by_the_name_that_is_shown_and_shown_by_it(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.png")
    Image.fromarray(RGB).save(path)
    shown = given(path).name(0)
    assert shown.endswith("caf\\xe9.png")
    assert (rgb(given(shown))[0] == RGB).all()
    path.write_bytes(b"no image")
    assert repr(f"images: {shown}: not an image of a known format") in refused(DataError, path)
    path.unlink()
    assert repr(shown) in refused(DataNotFoundError, path)


def test_a_path_may_start_at_home_or_here(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(file.parent))
    assert given("~/photo.png").name(0) == str(file)
    monkeypatch.chdir(file.parent)
    assert (rgb(given("photo.png"))[0] == RGB).all()
    file.rename("a name without an ending")
    assert (rgb(given("a name without an ending"))[0] == RGB).all()


@pytest.mark.parametrize(
    ("photo", "pixels"),
    [
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(RGB).convert("RGBA"), RGB),
        (Image.fromarray(RGB[..., 0]), RGB[..., [0, 0, 0]]),
        (RGB, RGB),
        (RGB[::-1, ::2], RGB[::-1, ::2]),
        (RGB.transpose(2, 0, 1), RGB),
        (RGB[..., 1], RGB[..., [1, 1, 1]]),
        (RGB[..., :1], RGB[..., [0, 0, 0]]),
        (RGB[None, ..., 2], RGB[..., [2, 2, 2]]),
        (np.dstack([RGB, np.full((20, 24), 255, np.uint8)]), RGB),
        (np.dstack([RGB, np.full((20, 24), 255, np.uint8)]).transpose(2, 0, 1), RGB),
        (torch.from_numpy(RGB), RGB),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(RGB[..., 0]), RGB[..., [0, 0, 0]]),
        (noise(1, 5), noise(1, 5)[..., None].repeat(3, 2)),
    ],
)
def test_a_photograph_in_memory(photo: Any, pixels: np.ndarray) -> None:
    one = given(photo)
    assert len(one) == 1
    assert one.name(0) == "images"
    assert one.source.read(0).mode == "RGB"
    assert (rgb(one)[0] == pixels).all()
    assert one.keys.tolist() == ArraySource(pixels[None].copy(), "a data set").keys.tolist()
    with Image.open(io.BytesIO(one.bytes_of(0))) as stored:
        assert (np.asarray(stored) == pixels).all()


@pytest.mark.parametrize(
    "content",
    [
        tiff(12, b"\0\x06\x46\xff\xf0", 3),
        png(2, 0, b"\x70", 2, b"\0\1"),
        png(16, 2, b"\0\0\x75\x30\xff\xff", 1, b"\0\0\x75\x30\xff\xff"),
    ],
    ids=["TIFF of 12 bits", "PNG of 2 bits, one value transparent", "PNG of 16 bits, one colour transparent"],
)
def test_a_pil_image_looks_like_its_file_whatever_the_file_holds(content: bytes) -> None:
    """Once it is loaded, Pillow no longer tells how many bits the file has for a pixel."""
    opened = given(Image.open(io.BytesIO(content)))
    file = np.asarray(Reading().opened(io.BytesIO(content)))
    for _ in range(2):
        assert (rgb(opened)[0] == file).all()
    assert opened.keys.tolist() == ArraySource(file[None], "a data set").keys.tolist()


def test_a_pil_image_in_cmyk_is_turned_once(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg", exif=exif)
    with Image.open(tmp_path / "a.jpg") as opened:
        assert (rgb(given(opened))[0] == rgb(given(tmp_path / "a.jpg"))[0]).all()


def test_a_12_bit_image_that_was_loaded_before_still_tells_its_range() -> None:
    image = Image.open(io.BytesIO(tiff(12, b"\0\x06\x46\xff\xf0", 3)))
    image.load()
    assert rgb(given(image))[0][0, :, 0].tolist() == [0, 100, 255]


def test_a_pil_image_outside_its_range_is_named_by_its_place() -> None:
    told = refused(DataError, [RGB, Image.new("F", (2, 2), 9.5)])
    assert f"{WHERE}: images[1]: the values of the image must be within 0 to 1, but got '9.5 to 9.5'." in told


def test_pil_images_and_arrays_become_rgb_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recorded(self: Reading, image: Image.Image) -> Image.Image:
        seen.append(image.mode)
        return Image.new("RGB", image.size, "white")

    monkeypatch.setattr(Reading, "rgb", recorded)
    found = given([Image.new("CMYK", (4, 4)), np.zeros((5, 6, 4), np.uint8), np.zeros((4, 5, 6), np.uint8)])
    assert seen == ["CMYK", "RGBA", "RGBA"]  # once each at the door, for the keys
    assert all((pixels == 255).all() for pixels in rgb(found))
    assert found.keys[1] == found.keys[2] == given(np.full((5, 6, 3), 255, np.uint8)).keys[0]


def test_a_list_of_all_kinds_keeps_its_order(file: Path) -> None:
    second = file.with_name("second.png")
    Image.fromarray(RGB // 2).save(second)
    mixed: list[Any] = [RGB // 3, file, Image.fromarray(RGB // 4), str(second), torch.from_numpy(RGB // 5), file]
    found = given(mixed)
    wanted = [RGB // 3, RGB, RGB // 4, RGB // 2, RGB // 5, RGB]
    assert all((a == b).all() for a, b in zip(rgb(found), wanted, strict=True))
    assert [found.name(i) for i in range(6)] == [
        "images[0]", str(file), "images[2]", str(second), "images[4]", str(file)
    ]  # fmt: skip
    assert len(set(found.keys.tolist())) == 5
    (_, views), *others = found.batches(VIEW, 6)
    assert not others
    assert all((views[i].numpy() == VIEW.pixels(Image.fromarray(w))).all() for i, w in enumerate(wanted))


def test_an_iterator_is_a_list_of_photographs_and_nothing_is_none(file: Path) -> None:
    assert len(given(photo for photo in (file, RGB))) == 2
    assert len(given((RGB,))) == 1
    assert len(given(file.parent.glob("*.png"))) == 1
    for nothing in ([], (), iter([])):
        found = given(nothing)
        assert len(found) == 0
        assert found.keys.shape == (0,)
        assert list(found.batches(VIEW, 4)) == []


def test_labelled_images_stay_what_they_are() -> None:
    images = LabelledImages(ArraySource(noise(2, 5, 5), "noise"), np.array([4, 7]))
    assert photographs(images, VIEW, WHERE) is images


def test_a_pil_image_is_loaded_at_the_door(file: Path) -> None:
    with Image.open(file) as image:
        found = given([image, image])
        file.unlink()
        assert (rgb(found)[1] == RGB).all()


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(2, 3, S, S, dtype=torch.uint8),
        torch.zeros(0, 3, S, S, dtype=torch.uint8),
        torch.zeros(0, 3, S, S),
        *(torch.randn(2, 3, S, S, generator=torch.Generator().manual_seed(0)).to(dtype) for dtype in DTYPES),
        torch.full((1, 3, S, S), 8.0),
        torch.full((1, 3, S, S), -8.0).requires_grad_(),
        # the backbone says which image is not finite
        torch.tensor([300.0, torch.nan]).repeat(1, 3, S, S // 2),
        torch.tensor([300.0, torch.inf]).repeat(1, 3, S, S // 2),
        torch.tensor([0.0, -torch.inf]).repeat(1, 3, S, S // 2),
    ],
)
def test_a_batch_in_the_eval_view_stays_what_it_is(batch: torch.Tensor) -> None:
    assert photographs(batch, VIEW, WHERE) is batch


@pytest.mark.parametrize(
    ("mean", "std", "most"),
    [((0.0,) * 3, (1.0,) * 3, 8.0), ((0.5,) * 3, (0.25,) * 3, 16.0), ((0.8, 0.5, 0.5), (0.5, 0.5, 0.1), 40.0)],
)
def test_how_far_normalised_values_may_reach_follows_the_view(mean: Any, std: Any, most: float) -> None:
    view = Preprocess(S, mean=mean, std=std)
    for sign in (1, -1):
        batch = torch.zeros(2, 3, S, S)
        batch[1, 2, 0, 0] = sign * most * 0.999
        assert photographs(batch, view, WHERE) is batch
        with pytest.raises(ShapeError, match=rf"normalised floats within ±{most:g}, but got 'floats from "):
            photographs(batch * 1.01, view, WHERE)


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (
            torch.from_numpy(noise(2, 3, S, S)).float(),
            "images must be uint8 pixels of 0 to 255, or normalised floats within ±8, but got 'floats from 0 to 255'. "
            "These look like pixels of 0 to 255: give them as uint8, or normalise them.",
        ),
        (torch.full((1, 3, S, S), 200.0).half(), "but got 'floats from 200 to 200'"),
        (
            torch.zeros(2, 3, S, S, dtype=torch.int64),
            "images must be uint8 pixels of 0 to 255, or normalised floats, but got 'int64 of shape (2, 3, 16, 16)'. "
            "Scale the values to 0 to 255 where they go further, and convert to uint8.",
        ),
        (torch.zeros(1, 3, S, S, dtype=torch.bool), "but got 'bool of shape (1, 3, 16, 16)'. Multiply by 255"),
        (
            torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
            "images must be of shape (batch, 3, 16, 16), the eval view, but got (2, 3, 32, 32). "
            "For several photographs give a list, such as list(images): they get the eval view.",
        ),
        (torch.zeros(2, S, S, 3, dtype=torch.uint8), "(batch, 3, 16, 16), the eval view, but got (2, 16, 16, 3)"),
        (torch.zeros(2, 3, S, S + 1), "the eval view, but got (2, 3, 16, 17)"),
        (torch.zeros(2, 1, S, S), "the eval view, but got (2, 1, 16, 16)"),
    ],
)
def test_another_batch_is_refused(batch: torch.Tensor, told: str) -> None:
    text = refused(ShapeError, batch)
    assert text.startswith(f"{WHERE}: images must be ")
    assert told in text


ONE = "must be one photograph of shape (h, w), (h, w, c) or (c, h, w) with c = 1, 3 or 4, but got "
PIXELS = "must be uint8 pixels of 0 to 255, but got "
LIST = "For several photographs give a list, such as list(images)."
EITHER = (
    "must be an array whose first or last axis alone can be channels (1, 3 or 4), but got {}. Both can here: give a "
    "PIL image, such as Image.fromarray(array) of (height, width, channels)."
)


@pytest.mark.parametrize(
    ("photo", "told"),
    [
        (np.zeros((8, 9, 3)), f"{PIXELS}'float64 of shape (8, 9, 3)'. Multiply values of 0 to 1 by 255, round and "),
        (torch.zeros(3, 8, 9), f"{PIXELS}'float32 of shape (3, 8, 9)'. Multiply values of 0 to 1 by 255, round and "),
        (torch.zeros(3, 8, 9).bfloat16(), f"{PIXELS}'bfloat16 of shape (3, 8, 9)'. Multiply values of 0 to 1 by 255,"),
        (np.zeros((8, 9), bool), f"{PIXELS}'bool of shape (8, 9)'. Multiply by 255 and convert to uint8."),
        (np.zeros((8, 9), int), f"{PIXELS}'int64 of shape (8, 9)'. Scale the values to 0 to 255 where they go further"),
        (np.zeros((8, 9), np.uint16), f"{PIXELS}'uint16 of shape (8, 9)'. Scale the values to 0 to 255 where they go"),
        (np.array(["a.jpg", "b.jpg"]), f"{PIXELS}'<U5 of shape (2,)'. {LIST}"),
        (np.array([RGB, None], object), f"{PIXELS}'object of shape (2,)'. {LIST}"),
        (noise(2, 8, 9, 3), f"{ONE}(2, 8, 9, 3). {LIST}"),
        (noise(5), f"{ONE}(5,). {LIST}"),
        (noise(8, 9, 2), f"{ONE}(8, 9, 2). Choose or reorder its axes."),
        (noise(8, 3, 9), f"{ONE}(8, 3, 9). Choose or reorder its axes."),
        (noise(3, 5, 3), EITHER.format((3, 5, 3))),
        (noise(3, 200, 4), EITHER.format((3, 200, 4))),
        (torch.from_numpy(noise(1, 28, 1)), EITHER.format((1, 28, 1))),
        (noise(0, 9), "must be of at least one pixel, but got (0, 9). Leave empty images out."),
        (noise(3, 0, 9), "must be of at least one pixel, but got (3, 0, 9). "),
        (Image.new("RGB", (4, 0)), "must be of at least one pixel, but got (0, 4). "),
    ],
)
def test_another_array_is_refused_alone_and_in_a_list(photo: Any, told: str) -> None:
    assert f"{WHERE}: images {told}" in refused(ShapeError, photo)
    assert f"{WHERE}: images[1] {told}" in refused(ShapeError, [RGB, photo])


def test_a_batch_in_a_list_is_refused() -> None:
    told = refused(ShapeError, [RGB, torch.zeros(2, 3, S, S, dtype=torch.uint8)])
    assert f"images[1] {ONE}(2, 3, 16, 16). {LIST}" in told


@pytest.mark.parametrize("bad", [None, 3, {"a": 1}, {"a"}, io.BytesIO(b"x")])
def test_what_is_no_photograph_is_refused(bad: Any) -> None:
    kind = type(bad).__name__
    told = f"must be one photograph, or a list of them, but got '{kind}'. Give paths, PIL images or uint8 arrays."
    assert refused(DataError, bad) == f"{WHERE}: images {told}"
    told = f"images[1] must be a photograph, but got '{kind}'. Give a path, a PIL image or a uint8 array; "
    assert f"{WHERE}: {told}" in refused(DataError, [RGB, bad])


def test_a_list_in_a_list_is_refused() -> None:
    assert "images[0] must be a photograph, but got 'list'" in refused(DataError, [["a.jpg"]])
    images = LabelledImages(ArraySource(noise(2, 5, 5), "noise"), np.array([4, 7]))
    assert "images[0] must be a photograph, but got 'LabelledImages'" in refused(DataError, [images])


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("nowhere.jpg", "an existing file, but got 'nowhere.jpg'. Check the path; relative paths start at the current"),
        (Path("nowhere.jpg"), "an existing file, but got 'nowhere.jpg'."),
        ("", "an existing file, but got ''."),
        ("nul\0.jpg", "an existing file, but got 'nul\\x00.jpg'."),
        ("~nobody-of-that-name/a.jpg", "an existing file, but got '~nobody-of-that-name/a.jpg'."),
        ("https://a.org/b.jpg", "a file on this machine, but got 'https://a.org/b.jpg'. Download it, and give the"),
        (os.curdir, "a file, not a folder, but got '.'. Give a list of its files, such as sorted(Path(folder).glob("),
        (b"GIF89a" + b"x" * 999, f"an existing file, but got 'GIF89a{'x' * 194}…'. For a file's content give "),
    ],
)
def test_a_path_of_no_file_is_refused_alone_and_in_a_list(path: Any, told: str) -> None:
    assert f"{WHERE}: images must be {told}" in refused(DataNotFoundError, path)
    assert f"{WHERE}: images[1] must be {told}" in refused(DataNotFoundError, [RGB, path])


def test_files_that_are_no_images_are_all_named(file: Path) -> None:
    text, cut = file.with_name("notes.jpg"), file.with_name("cut.png")
    text.write_text("no image")
    cut.write_bytes(file.read_bytes()[:-200])
    told = f"images must be readable image files, but got 'images: {text}: not an image of a known format'. Repair"
    assert f"{WHERE}: {told}" in refused(DataError, text)
    told = refused(DataError, [text, RGB, file, cut])
    assert f"\n    images[0]: {text}: not an image of a known format\n    images[3]: {cut}: " in told
    assert str(file) not in told


def test_a_pil_image_that_cannot_be_decoded_is_named(file: Path) -> None:
    with Image.open(file) as closed:
        pass
    told = "must be an image that Pillow can decode, but got '<PIL.PngImagePlugin.PngImageFile image mode=RGB "
    hint = "Keep its file open until then, or give the file's path ("
    assert f"{WHERE}: images {told}" in refused(DataError, closed)
    assert hint in refused(DataError, closed)
    cut = Image.open(io.BytesIO(file.read_bytes()[:-200]))
    assert f"{WHERE}: images[1] {told}" in refused(DataError, [RGB, cut])
    assert f"{hint}OSError: " in refused(DataError, [RGB, cut])


def test_nothing_is_decoded_where_something_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reading, "rgb", lambda self, image: pytest.fail("read"))
    monkeypatch.setattr(module, "check_files", lambda files, **rest: pytest.fail("read"))
    refused(ShapeError, [file, Image.fromarray(RGB), RGB, RGB / 255])


@pytest.mark.parametrize(("mean", "std"), [((0.5,) * 3, (0.5,) * 3), ((0.48, 0.46, 0.41), (0.23, 0.22, 0.23))])
def test_pixels_divided_by_255_are_not_taken_for_normalised_ones(mean: Any, std: Any) -> None:
    view = Preprocess(image_size=8, mean=mean, std=std)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(128, 256, (2, 3, 8, 8), dtype=np.uint8))
    with pytest.raises(ShapeError, match=r"normalised, if they are floats, but got 'floats from 0\.5\d* to 1'\. These"):
        photographs(pixels / 255, view, WHERE)
    normalised = view.normalise(pixels)
    assert photographs(normalised, view, WHERE) is normalised  # bright ones are from 0 to 1 too
    plain = Preprocess(image_size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    assert len(photographs(pixels / 255, plain, WHERE)) == 2
    assert len(photographs(torch.zeros(1, 3, 8, 8), view, WHERE)) == 1
