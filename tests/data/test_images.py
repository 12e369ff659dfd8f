"""Labelled images: keys, labels, and batches that do not depend on threads."""

from __future__ import annotations

import io
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.data import ArraySource, FileSource, LabelledImages, Preprocess, images
from perdure.data.folders import check_files, keys_of
from perdure.data.images import content_key
from perdure.data.reading import Reading
from perdure.errors import DataError, StorageError
from picture_files import tiff

VIEW = Preprocess(image_size=16, crop_pct=1.0)


def pixels(n: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, *shape), dtype=np.uint8)


def in_memory(n: int = 7) -> LabelledImages:
    return LabelledImages(ArraySource(pixels(n, 16, 16, 3), "noise"), np.arange(n) % 3)


def in_files(folder: Path, n: int = 4) -> tuple[LabelledImages, list[Path]]:
    paths = [folder / f"{i}.png" for i in range(n)]
    for path, image in zip(paths, pixels(n, 16, 16, 3), strict=True):
        Image.fromarray(image).save(path)
    return LabelledImages(FileSource(paths, keys_of(check_files(paths))), np.zeros(n, int)), paths


def decoders() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("decode")]


def test_copies_share_a_key_and_other_content_does_not(tmp_path: Path) -> None:
    _, paths = in_files(tmp_path, 2)
    copy = Path(shutil.copy(paths[0], tmp_path / "copy.png"))
    first, second, again = keys_of(check_files([*paths, copy]))
    assert first == again
    assert first != second


def test_array_keys_depend_on_pixels_and_shape() -> None:
    flat = pixels(1, 4, 9)
    a, b = ArraySource(np.stack([flat[0], flat[0], 255 - flat[0]]), "a"), ArraySource(flat.reshape(1, 9, 4), "b")
    assert a.keys[0] == a.keys[1]
    assert len({a.keys[0], a.keys[2], b.keys[0]}) == 3


def test_grey_arrays_read_as_rgb() -> None:
    grey = pixels(1, 5, 6)
    rgb = np.asarray(ArraySource(grey, "grey").read(0))
    assert rgb.shape == (5, 6, 3)
    assert (rgb == grey[0][..., None]).all()


@pytest.mark.parametrize("bad", [np.zeros((2, 4, 4, 3)), np.zeros((2, 4, 4, 4), np.uint8), np.zeros((2, 4), np.uint8)])
def test_arrays_must_be_uint8_images(bad: np.ndarray) -> None:
    with pytest.raises(DataError, match="noise: pixels") as caught:
        ArraySource(bad, "noise")
    assert f"{bad.dtype} {bad.shape}" in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "shown"), [(np.array([0.5, 1.0]), "float64"), (np.array(["a", "b"]), "<U1"), (np.arange(3), r"\(3,\)")]
)
def test_labels_must_be_integers_one_per_image(labels: np.ndarray, shown: str) -> None:
    with pytest.raises(DataError, match=f"labels must be .*{shown}"):
        LabelledImages(ArraySource(pixels(2, 4, 4), "noise"), labels)


def test_labels_may_be_a_list() -> None:
    labels: Any = [3, -1]
    assert LabelledImages(ArraySource(pixels(2, 4, 4), "noise"), labels).labels.tolist() == labels


def test_any_integers_are_class_ids_and_stay_as_they_are() -> None:
    ids = np.array([2**62, -7, 0, -7])
    data = LabelledImages(ArraySource(pixels(4, 4, 4), "noise"), ids)
    assert data.labels.tolist() == ids.tolist()
    assert data.classes == (-7, 0, 2**62)
    assert data.of_classes([-7]).rows.tolist() == [1, 3]


def test_subset_keeps_the_order_asked_for() -> None:
    data = in_memory()
    part = data.subset(np.array([5, 1, 3])).subset(np.array([2, 0]))
    assert part.rows.tolist() == [3, 5]
    assert part.labels.tolist() == data.labels[[3, 5]].tolist()
    assert part.name(1) == "noise[5]"
    assert part.keys.tolist() == data.keys[[3, 5]].tolist()


def test_fingerprint_tells_content_labels_and_order() -> None:
    data = in_memory()
    relabelled = LabelledImages(data.source, data.labels + 1)
    reversed_ = data.subset(np.arange(len(data))[::-1])
    assert data.fingerprint == in_memory().fingerprint
    assert len({data.fingerprint, relabelled.fingerprint, reversed_.fingerprint, in_memory(6).fingerprint}) == 4


@pytest.mark.parametrize("positions", [None, np.array([6, 0, 0, 3])])
def test_batches_keep_order_and_positions(positions: np.ndarray | None) -> None:
    data = in_memory()
    batches = list(data.batches(VIEW, 3, positions))
    wanted = list(range(7)) if positions is None else positions.tolist()
    assert np.concatenate([p for p, _ in batches]).tolist() == wanted
    assert [len(x) for _, x in batches] == ([3, 3, 1] if positions is None else [3, 1])
    direct = np.stack([VIEW.pixels(data.source.read(i)) for i in wanted])
    assert torch.equal(torch.cat([x for _, x in batches]), torch.from_numpy(direct))


@pytest.mark.parametrize("threads", [1, 5])
def test_batches_do_not_depend_on_threads(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    two = [x for _, x in in_memory().batches(VIEW, 2)]
    monkeypatch.setattr(images, "DECODE_THREADS", threads)
    assert all(torch.equal(a, b) for a, b in zip(two, (x for _, x in in_memory().batches(VIEW, 2)), strict=True))


def test_nothing_to_read_gives_no_batch() -> None:
    assert list(in_memory().batches(VIEW, 2, np.empty(0, dtype=int))) == []


def test_closing_early_leaves_no_thread() -> None:
    batches = in_memory(64).batches(VIEW, 2)
    next(batches)
    assert decoders()
    batches.close()
    assert not decoders()


def test_a_file_that_goes_away_is_named(tmp_path: Path) -> None:
    data, paths = in_files(tmp_path)
    paths[2].unlink()
    with pytest.raises(DataError) as caught:
        list(data.batches(VIEW, 2))
    assert repr(str(paths[2])) in str(caught.value)
    assert "No such file" in str(caught.value)
    assert not decoders()


def test_a_file_that_is_overwritten_by_something_huge_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, paths = in_files(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 16 × 16 is more than twice that: a bomb to Pillow
    with pytest.raises(DataError, match="decompression bomb") as caught:
        data.source.read(1)
    assert str(paths[1]) in str(caught.value)


@pytest.mark.parametrize("n", [1, 7, 150])
def test_decoded_images_are_those_of_the_batches(n: int) -> None:
    """More than one batch of decoding, and several epochs over the result."""
    data = in_memory(n)
    wanted = torch.cat([x for _, x in data.batches(VIEW, 64)])
    with data.decoded(VIEW) as pixels_:
        assert (pixels_.shape, pixels_.dtype) == ((n, 3, 16, 16), torch.uint8)
        for seed in range(3):
            order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
            for positions in order.split(4):
                assert torch.equal(pixels_[positions], wanted[positions])


def test_decoding_reads_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    data, read = in_memory(), []
    monkeypatch.setattr(data.source, "read", lambda row, own=data.source.read: read.append(row) or own(row))
    with data.subset(np.array([5, 1, 5])).decoded(VIEW) as pixels_:
        _ = [pixels_[torch.arange(3)] for _ in range(4)]
        assert torch.equal(pixels_[0], pixels_[2])
        assert not torch.equal(pixels_[0], pixels_[1])
    assert sorted(read) == [1, 5, 5]


def test_writing_to_decoded_images_does_not_reach_the_data() -> None:
    data = in_memory(2)
    before = next(data.batches(VIEW, 2))[1]
    with data.decoded(VIEW) as pixels_:
        pixels_.zero_()
    assert torch.equal(next(data.batches(VIEW, 2))[1], before)


def test_no_images_decode_to_none() -> None:
    with in_memory().subset(np.arange(0)).decoded(VIEW) as pixels_:
        assert pixels_.shape == (0, 3, 16, 16)


def test_decoded_images_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with in_memory().decoded(VIEW) as pixels_:
        held = pixels_.clone()
    with pytest.raises(KeyError, match="planned"), in_memory().decoded(VIEW):
        raise KeyError("planned")
    assert list(tmp_path.iterdir()) == []
    assert held.any()


def test_an_unreadable_image_is_named_while_decoding(tmp_path: Path) -> None:
    data, paths = in_files(tmp_path)
    paths[3].unlink()
    with pytest.raises(DataError) as caught, data.decoded(VIEW):
        pass
    assert str(paths[3]) in str(caught.value)
    assert not decoders()


class Halting(io.FileIO):
    """A file that takes no more than a thousand bytes at once, as a disk may."""

    def write(self, data: Any) -> int:
        return super().write(bytes(data)[:1000])


def test_what_is_written_by_halves_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = in_memory(70)
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Halting(tmp_path / "halting", "w+"))
    with data.decoded(VIEW) as pixels_:
        assert torch.equal(pixels_, torch.cat([x for _, x in data.batches(VIEW, 64)]))


@pytest.mark.parametrize(("n", "most"), [(64, 1000), (200, 60_000), (66, 64 * 768 + 100)])
def test_a_full_disk_is_told_with_what_is_needed(
    n: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, half way, and on the last few bytes; a limit on the size of files stands for the disk's."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        with pytest.raises(StorageError) as caught, in_memory(n).decoded(VIEW):
            pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    told = str(caught.value)
    assert f"free space for images must be at least {n * 768} bytes, but got {str(tmp_path)!r}" in told
    assert "set TMPDIR" in told
    assert "File too large" in told
    assert not decoders()


def test_joined_images_come_one_set_after_the_other(tmp_path: Path) -> None:
    files, paths = in_files(tmp_path)
    array = in_memory(5).subset(np.array([4, 0, 2]))
    both = array.joined(files.subset(np.array([3, 1])))
    again = both.joined(array)
    assert both.keys.tolist() == [*array.keys, files.keys[3], files.keys[1]]
    assert both.labels.tolist() == [*array.labels, 0, 0]
    assert [both.name(i) for i in range(5)] == ["noise[4]", "noise[0]", "noise[2]", str(paths[3]), str(paths[1])]
    assert both.bytes_of(3) == paths[3].read_bytes()
    assert again.keys.tolist() == [*both.keys, *array.keys]
    parts = [x for data in (array, files.subset(np.array([3, 1])), array) for _, x in data.batches(VIEW, 8)]
    assert torch.equal(torch.cat([x for _, x in again.batches(VIEW, 3)]), torch.cat(parts))


def test_joining_reads_nothing_and_names_who_cannot_be_read(tmp_path: Path) -> None:
    files, paths = in_files(tmp_path)
    for path in paths:
        path.unlink()
    both = in_memory(2).joined(files)
    with pytest.raises(DataError, match="readable") as caught:
        both.source.read(3)
    assert str(paths[1]) in str(caught.value)
    with pytest.raises(DataError, match="readable") as caught:
        both.bytes_of(4)
    assert str(paths[2]) in str(caught.value)


def test_the_bytes_of_a_file_are_taken_whatever_its_hash_ends_in(tmp_path: Path) -> None:
    """NumPy drops the zero bytes at the end of a key."""
    path, n = tmp_path / "file", 0
    while not content_key(str(n).encode()).endswith(b"\0"):
        n += 1
    path.write_text(str(n))
    source = FileSource([path], keys_of(check_files([path])))
    assert source.bytes_of(0) == str(n).encode()
    path.write_text("other")
    with pytest.raises(DataError, match="unchanged") as caught:
        source.bytes_of(0)
    assert str(path) in str(caught.value)


def deep(folder: Path) -> Path:
    """A TIFF of 0, 1638 and 4095, 16 bits each."""
    path = folder / "deep.tif"
    path.write_bytes(tiff(16, np.array([0, 1638, 4095], "<u2").tobytes(), 3))
    return path


def read_with(path: Path, *given: Any) -> LabelledImages:
    how = Reading(*given)
    return LabelledImages(FileSource([path], keys_of(check_files([path], reading=how)), how), np.zeros(1, int))


def test_files_are_read_by_the_rule(tmp_path: Path) -> None:
    path = deep(tmp_path)
    plain, ranged = read_with(path), read_with(path, (0, 4095))
    assert [np.asarray(d.source.read(0))[0, :, 0].tolist() for d in (plain, ranged)] == [[0, 6, 16], [0, 102, 255]]
    assert plain.keys[0] != ranged.keys[0]
    assert (plain.reading, ranged.reading, in_memory().reading) == (Reading(), Reading((0, 4095)), Reading())
    assert FileSource([path], plain.keys).reading == Reading()


def test_the_bytes_of_a_file_decode_to_the_same_under_the_default(tmp_path: Path) -> None:
    path = deep(tmp_path)
    plain, ranged = read_with(path), read_with(path, (0, 4095))
    assert plain.bytes_of(0) == path.read_bytes()
    for data in (plain, ranged):
        again = Reading().opened(io.BytesIO(data.bytes_of(0)))
        assert np.array_equal(np.asarray(again), np.asarray(data.source.read(0)))
    path.write_bytes(path.read_bytes() + b"more")
    for data in (plain, ranged):
        with pytest.raises(DataError, match="unchanged") as caught:
            data.bytes_of(0)
        assert str(path) in str(caught.value)


def test_a_file_of_values_outside_the_range_is_named(tmp_path: Path) -> None:
    path = deep(tmp_path)
    source = FileSource([path], np.zeros(1, "S16"), Reading((0, 4000)))
    with pytest.raises(DataError, match="within 0 to 4000, but got '0 to 4095'") as caught:
        source.read(0)
    assert f"the values of the image {path} must be" in str(caught.value)
    assert "stream.value_range" in str(caught.value)


def test_joined_images_are_read_each_in_its_way(tmp_path: Path) -> None:
    ranged, other = read_with(deep(tmp_path), (0, 4095)), read_with(deep(tmp_path), (0, 5000))
    both = in_memory(2).joined(ranged).joined(ranged)
    assert both.reading == Reading((0, 4095))
    assert np.asarray(both.source.read(3))[0, :, 0].tolist() == [0, 102, 255]
    assert in_memory(2).joined(in_memory(3)).reading == Reading()
    with pytest.raises(DataError, match="value_range of both sets must be one") as caught:
        both.joined(other)
    assert "(0.0, 4095.0)" in str(caught.value)
    assert "(0.0, 5000.0)" in str(caught.value)
