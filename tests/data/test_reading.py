"""How files become RGB: turned, laid on white, scaled by their range, and nothing but known formats opened."""

from __future__ import annotations

import importlib.util
import io
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, UnidentifiedImageError

from perdure.data import reading
from perdure.data.reading import Reading, formats, kind_of, open_image, suffixes, why_not_read
from perdure.errors import ConfigError, DataError
from picture_files import png, tiff, without_heic  # noqa: F401

LOSSY = 30  # grey levels by which a photograph's format may miss a flat colour
BACK = {  # what a camera does to an upright scene that it stores under this orientation
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def pixels(file: bytes, **settings: Any) -> np.ndarray:
    return np.asarray(Reading(**settings).opened(io.BytesIO(file)))


def saved(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def scene() -> Image.Image:
    """Four colours, no two corners alike, higher than wide."""
    corners = np.array([[[200, 30, 30], [30, 200, 30]], [[30, 30, 200], [200, 200, 30]]], dtype=np.uint8)
    return Image.fromarray(corners.repeat(48, 0).repeat(32, 1))


def heic(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    pytest.importorskip("pillow_heif").from_pillow(image).save(file, quality=95, **options)
    return file.getvalue()


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
@pytest.mark.parametrize("orientation", BACK)
def test_every_orientation_is_turned_once(name: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = scene() if BACK[orientation] is None else scene().transpose(BACK[orientation])
    file = heic(stored, exif=exif.tobytes()) if name == "HEIF" else saved(stored, name, exif=exif)
    found, wanted = pixels(file).astype(int), np.asarray(scene()).astype(int)
    assert found.shape == wanted.shape
    for y, x in ((24, 16), (24, 48), (72, 16), (72, 48)):
        assert np.abs(found[y, x] - wanted[y, x]).max() <= LOSSY


def test_an_image_without_a_file_is_turned_too_and_stays_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(saved(scene(), "PNG", exif=exif)))
    for bare in (image, image.resize((10, 20))):
        before = bare.size
        assert Reading().rgb(bare).size == before[::-1]
        assert bare.size == before
        assert bare.getexif()[0x0112] == 6


@pytest.mark.filterwarnings("ignore:.*EXIF data")  # Pillow's
@pytest.mark.parametrize("exif", [b"Exif\0\0no directory at all", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0"])
def test_a_damaged_exif_is_no_reason_to_refuse(exif: bytes) -> None:
    file = saved(scene(), "JPEG", exif=exif, dpi=(72, 72))  # without a resolution Pillow looks into the EXIF at once
    assert (pixels(file) == np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))).all()


def test_an_unknown_orientation_turns_nothing() -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert pixels(saved(scene(), "PNG", exif=exif)).shape == (96, 64, 3)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK"])
@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "BMP", "GIF", "WEBP"])
def test_what_is_opaque_and_of_eight_bits_is_read_as_pillow_converts_it(name: str, mode: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)).convert(mode)
    if (mode, name) in (("P", "JPEG"), *(("CMYK", other) for other in ("PNG", "BMP", "GIF", "WEBP"))):
        return
    file = saved(noise, name)
    assert (pixels(file) == np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))).all()


def test_lab_becomes_rgb() -> None:
    assert pixels(tiff(8, bytes([128, 0, 0]), 1, photometric=8, samples=3))[0, 0].tolist() == [119, 119, 119]


def black_on_nothing(mode: str) -> Image.Image:
    """Left half black, right half transparent."""
    image = Image.new("RGBA", (32, 16))
    image.paste((0, 0, 0, 255), (0, 0, 16, 16))
    return image.convert(mode)


def palette(transparency: int | bytes) -> bytes:
    image = Image.new("P", (32, 16), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.paste(0, (0, 0, 16, 16))
    return saved(image, "PNG", transparency=transparency)


TRANSPARENT = {
    "PNG RGBA": lambda: saved(black_on_nothing("RGBA"), "PNG"),
    "PNG LA": lambda: saved(black_on_nothing("LA"), "PNG"),
    "PNG palette, one entry": lambda: palette(1),
    "PNG palette, bytes": lambda: palette(b"\xff\0"),
    "PNG grey": lambda: saved(Image.fromarray(np.repeat(np.array([[0, 9]], np.uint8), 16, 1)), "PNG", transparency=9),
    "PNG grey, 1 bit": lambda: png(1, 0, b"\0\0\xff\xff", 32, b"\0\1"),
    "PNG grey, 2 bits": lambda: png(2, 0, b"\0\0\0\0" + b"\x55" * 4, 32, b"\0\1"),
    "PNG grey, 4 bits": lambda: png(4, 0, b"\0" * 8 + b"\x33" * 8, 32, b"\0\3"),
    "PNG grey, 16 bits": lambda: png(16, 0, b"\0\0" * 16 + b"\x30\x40" * 16, 32, b"\x30\x40"),
    "PNG RGB": lambda: png(8, 2, b"\0\0\0" * 16 + b"\4\5\6" * 16, 32, b"\0\4\0\5\0\6"),
    "PNG RGB, 16 bits": lambda: png(16, 2, b"\0" * 96 + b"\x30\x40" * 48, 32, b"\x30\x40" * 3),
    "PNG grey and alpha, 16 bits": lambda: png(16, 4, b"\0\0\xff\xff" * 16 + b"\x30\0\0\0" * 16, 32),
    "PNG RGBA, 16 bits": lambda: png(16, 6, (b"\0" * 6 + b"\xff\xff") * 16 + b"\0" * 8 * 16, 32),
    "GIF": lambda: saved(black_on_nothing("RGBA"), "GIF"),
    "WEBP": lambda: saved(black_on_nothing("RGBA"), "WEBP", lossless=True),
    "AVIF": lambda: saved(black_on_nothing("RGBA"), "AVIF"),
    "HEIF": lambda: heic(black_on_nothing("RGBA")),
    "TIFF RGBA": lambda: saved(black_on_nothing("RGBA"), "TIFF"),
    "TIFF LA": lambda: saved(black_on_nothing("LA"), "TIFF"),
    "TIFF La": lambda: tiff(8, b"\0\xff" * 16 + b"\0\0" * 16, 32, samples=2, extra=1),
    "TIFF RGBa": lambda: tiff(8, b"\0\0\0\xff" * 16 + b"\0" * 64, 32, photometric=2, samples=4, extra=1),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSPARENT)
def test_what_is_transparent_is_white(name: str) -> None:
    found = pixels(TRANSPARENT[name]()).astype(int)
    assert found.shape[1] == 32
    lossy = LOSSY if name in ("AVIF", "HEIF") else 0
    assert found[:, :14].max() <= lossy, "black"
    assert found[:, 18:].min() >= 255 - lossy, "white"


@pytest.mark.parametrize("file", [b"\0\x80", b"\x40\x80"])
def test_what_is_half_transparent_is_mixed_with_white(file: bytes) -> None:
    """Premultiplied: 0 of 128 and 64 of 128 are black and mid-grey, each half opaque."""
    assert pixels(tiff(8, file, 1, samples=2, extra=1))[0, 0].tolist() == [127 + file[0]] * 3
    grey = Image.new("LA", (1, 1), (2 * file[0], 128))
    assert np.abs(pixels(saved(grey, "PNG")).astype(int) - 127 - file[0]).max() <= 1


def test_a_transparent_colour_stays_as_it_is_told() -> None:
    image = Image.open(io.BytesIO(TRANSPARENT["PNG RGB, 16 bits"]()))
    assert np.asarray(Reading().rgb(image))[0, -1].tolist() == [255] * 3
    assert image.info["transparency"] == (0x3040,) * 3


@pytest.mark.parametrize("error", reading.UNREADABLE)
def test_whatever_a_decoder_raises_names_the_file(error: type[Exception]) -> None:
    with (
        pytest.raises(DataError, match=r"readable, but got 'x\.heic'\. Repair it \(broken\)"),
        reading.readable("x.heic", "Repair it"),
    ):
        raise error("broken")


def test_an_opaque_alpha_changes_nothing() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    file = saved(Image.fromarray(np.dstack([colours, np.full((40, 40), 255, np.uint8)])), "PNG")
    assert (pixels(file) == colours).all()


def test_a_palette_with_alpha_of_its_own_is_laid_on_white() -> None:
    assert np.asarray(Reading().rgb(Image.new("PA", (1, 1)))).tolist() == [[[255, 255, 255]]]
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 0], "RGBA")
    assert np.asarray(Reading().rgb(image)).min() == 255


THREE = np.array([0, 25700, 65535])
FLOATS = np.array([0, 0.4, 1])
DEEP = {
    "PNG, 16 bits": lambda: png(16, 0, THREE.astype(">u2").tobytes(), 3),
    "PNG, 16-bit RGB": lambda: png(16, 2, THREE.repeat(3).astype(">u2").tobytes(), 3),
    "TIFF, 16 bits": lambda: tiff(16, THREE.astype("<u2").tobytes(), 3),
    "TIFF, 16 bits, white first": lambda: tiff(16, (65535 - THREE).astype("<u2").tobytes(), 3, photometric=0),
    "TIFF, 16-bit RGB": lambda: tiff(16, THREE.repeat(3).astype("<u2").tobytes(), 3, photometric=2, samples=3),
    "TIFF, 12 bits": lambda: tiff(12, b"\0\x06\x46\xff\xf0", 3),
    "TIFF, 32 bits": lambda: tiff(32, THREE.astype("<i4").tobytes(), 3, kind=2),
    "TIFF, floats": lambda: tiff(32, FLOATS.astype("<f4").tobytes(), 3, kind=3),
    "PGM, 16 bits": lambda: b"P5 3 1 65535\n" + THREE.astype(">u2").tobytes(),
    "PGM of its own range": lambda: b"P5 3 1 1000\n" + np.array([0, 392, 1000], ">u2").tobytes(),
    "PFM": lambda: b"Pf\n3 1\n-1.0\n" + FLOATS.astype("<f4").tobytes(),
}


@pytest.mark.parametrize("name", DEEP)
def test_deep_images_are_scaled_by_the_range_of_their_type(name: str) -> None:
    found = pixels(DEEP[name]())
    assert found[0, :, 0].tolist() == [0, 102 if name.endswith("floats") or name == "PFM" else 100, 255]
    assert (found == found[..., :1]).all()


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_every_order_of_bytes_is_read(mode: str) -> None:
    image = Image.new(mode, (1, 1), 25700)
    assert np.asarray(Reading().rgb(image)).tolist() == [[[100, 100, 100]]]


def grey(values: list[float], kind: str) -> bytes:
    return tiff(8 * int(kind[2]), np.array(values, kind).tobytes(), len(values), kind={"u": 1, "i": 2, "f": 3}[kind[1]])


@pytest.mark.parametrize(
    ("values", "kind", "settings", "shown"),
    [
        ([0, 70000], "<i4", {}, "within 0 to 65535, but got '0 to 70000'"),
        ([-5, 5], "<i2", {}, "within 0 to 65535, but got '-5 to 5'"),
        ([0, 2.5], "<f4", {}, "within 0 to 1, but got '0 to 2.5'"),
        ([-0.25, 1], "<f4", {}, "within 0 to 1, but got '-0.25 to 1'"),
        ([0, np.nan], "<f4", {}, "but got 'nan to nan'"),
        ([0, np.inf], "<f4", {"value_range": (0, 9)}, "within 0 to 9, but got '0 to inf'"),
        ([0, 4096], "<u2", {"value_range": (0, 4095)}, "within 0 to 4095, but got '0 to 4096'"),
        ([99, 200], "<u2", {"value_range": (100, 200)}, "within 100 to 200, but got '99 to 200'"),
    ],
)
def test_values_outside_the_range_are_refused(values: list[float], kind: str, settings: Any, shown: str) -> None:
    with pytest.raises(DataError, match=r"Set stream\.value_range .*, e\.g\. value_range=\[0, 4095\]") as caught:
        pixels(grey(values, kind), **settings)
    assert shown in str(caught.value)


@pytest.mark.parametrize(
    ("values", "kind", "given"),
    [
        ([0, 1638, 4095], "<u2", (0, 4095)),
        ([-100, 0, 150], "<i4", [-100, 150]),
        ([-1, -0.2, 1], "<f4", (-1, 1)),
        ([1e5, 180_000, 3e5], "<i4", (1e5, 3e5)),
        ([0, 1638, 4095], "<u2", (np.int64(0), np.float32(4095))),
    ],
)
def test_a_range_that_is_given_is_black_to_white(values: list[float], kind: str, given: Any) -> None:
    assert pixels(grey(values, kind), value_range=given)[0, :, 0].tolist() == [0, 102, 255]


def test_a_range_leaves_eight_bits_alone_and_refuses_deep_colour() -> None:
    file = saved(scene(), "PNG")
    assert (pixels(file, value_range=(0, 4095)) == pixels(file)).all()
    for name in ("PNG, 16-bit RGB", "TIFF, 16-bit RGB"):
        with pytest.raises(DataError, match=r"for a value_range, but got 'RGB;16[BL]'"):
            pixels(DEEP[name](), value_range=(0, 4095))


@pytest.mark.parametrize("given", [(0, 0), (2, 1), (0, np.inf), (np.nan, 1), (1,), (0, 1, 2), 4095, ("0", 9)])
def test_a_range_is_two_numbers(given: Any) -> None:
    with pytest.raises(ConfigError, match="stream: value_range must be two finite numbers") as caught:
        Reading(given)
    assert repr(given) in str(caught.value)


def test_a_range_makes_other_images() -> None:
    salts = {Reading(given).salt for given in (None, (0, 1), (0, 2), (-1, 1), [0, 2.0])}
    assert len(salts) == 4
    assert Reading().salt == b""
    assert Reading([0, 2]) == Reading((0.0, 2.0))  # type: ignore[arg-type]


def frames(name: str, **options: Any) -> bytes:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    return saved(first, name, save_all=True, append_images=[second], **options)


@pytest.mark.parametrize("name", ["GIF", "MPO", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_read(name: str) -> None:
    red = pixels(frames(name)).astype(int)
    assert np.abs(red - [255, 0, 0]).max() <= LOSSY


def test_only_known_raster_formats_are_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(scene(), "EPS")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", pytest.fail)
    for other in (file, saved(scene(), "ICO"), saved(scene(), "PCX"), saved(scene(), "TGA"), b"<svg/>", b""):
        with pytest.raises(UnidentifiedImageError):
            open_image(io.BytesIO(other))


def test_heic_is_read_without_changing_pillow(tmp_path: Path) -> None:
    path = tmp_path / "photo.heic"
    path.write_bytes(heic(scene()))
    before = "HEIF" in Image.OPEN
    for file in (path, str(path), io.BytesIO(path.read_bytes())):
        found = np.asarray(Reading().opened(file)).astype(int)
        assert np.abs(found[24, 16] - [200, 30, 30]).max() <= LOSSY
    assert ("HEIF" in Image.OPEN) == before
    assert {".heic", ".heif"} <= suffixes()
    assert why_not_read(tmp_path / "other.jp2") is not None


@pytest.mark.usefixtures("without_heic")
def test_without_the_plug_in_heic_is_told(tmp_path: Path) -> None:
    path = tmp_path / "photo.HEIC"
    start = struct.pack(">I", 28) + b"ftypheic" + b"\0" * 16
    path.write_bytes(start)
    assert "HEIF" not in formats()
    assert not {".heic", ".heif"} & suffixes()
    assert "pip install 'perdure[heic]'" in str(why_not_read(path))
    assert "pip install 'perdure[heic]'" in str(why_not_read(path.rename(tmp_path / "photo")))
    with pytest.raises(UnidentifiedImageError):
        open_image(io.BytesIO(start))


def test_a_format_that_pillow_lacks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "formats", lambda: ("PNG", "HEIF"))
    assert why_not_read(tmp_path / "x.avif") == "AVIF files need Pillow 11.3 or newer"


@pytest.mark.parametrize("name", ["JPEG", "PNG", "GIF", "TIFF", "WEBP", "AVIF"])
def test_an_image_under_another_name_is_told(name: str, tmp_path: Path) -> None:
    for suffix in ("", ".part", ".txt"):
        path = tmp_path / f"photo{suffix}"
        path.write_bytes(saved(scene(), name))
        told = str(why_not_read(path))
        assert f"it is a {name} image by its content" in told
        assert told.endswith(reading.SUFFIXES[name][0])


def test_what_looks_like_no_image_is_passed_over(tmp_path: Path) -> None:
    others = {"README": b"P3 is a BMP", "notes.txt": b"", "labels.csv": b"RIFF", "clip.mp4": b"\0\0\0 ftypmp42"}
    for name, content in others.items():
        (tmp_path / name).write_bytes(content)
        assert why_not_read(tmp_path / name) is None
    assert why_not_read(tmp_path / "gone") is None
    assert kind_of(b"MM\0*") == "TIFF"
    assert kind_of(b"\0\0\0\x18ftypmif1") == "HEIF"
    assert why_not_read(tmp_path / "drawing.SVG") == ".svg files are not read; convert them to PNG or JPEG"


def test_the_plug_in_need_not_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # importing it fails
    spec = importlib.util.spec_from_file_location("reading_alone", str(reading.__file__))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "reading_alone", module)
    spec.loader.exec_module(module)
    assert module.formats() == tuple(name for name in module.SUFFIXES if name != "HEIF")
