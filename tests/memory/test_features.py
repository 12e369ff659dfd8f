"""The feature store: each feature computed once, served bit for bit, whatever happens to the process or the disk."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from in_child import in_child
from perdure import Backbone, FeatureStore
from perdure.data import ArraySource, FileSource, LabelledImages, Preprocess
from perdure.data.images import content_key
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError, ConfigError, NonFiniteError, StorageError
from perdure.memory import features as features_module
from perdure.memory import shelf as shelf_module
from perdure.memory.shelf import RECORD, ShelfIndex
from perdure.modules.ssf import ScaleShift

N, SIDE = 11, 4
ROW_BYTES = 3 * SIDE * SIDE * 4


class Pixels:
    """A backbone whose features are the pixels; ``fail_at`` images in, it raises ``failure`` once."""

    name, precision, dim, batch_size, shares_stem = "pixels", "float32", 3 * SIDE * SIDE, 4, False
    preprocess = Preprocess(image_size=SIDE, crop_pct=1.0)

    def __init__(self, shelf: str = "pixels") -> None:
        self.shelf, self.passes = shelf, 0
        self.fail_at, self.failure = -1, RuntimeError("planned")

    def features(self, images: torch.Tensor) -> torch.Tensor:
        if 0 <= self.fail_at <= self.passes:
            self.fail_at = -1
            raise self.failure
        self.passes += len(images)
        return images.flatten(1).float() / 255


def images(n: int = N, seed: int = 0) -> LabelledImages:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    return LabelledImages(ArraySource(pixels, f"noise{seed}"), np.arange(n))


def true(data: LabelledImages) -> torch.Tensor:
    return torch.cat([Pixels().features(x) for _, x in data.batches(Pixels.preprocess, 5)])


def only(directory: Path, suffix: str) -> Path:
    (path,) = directory.glob(f"*/*{suffix}")
    return path


def size_of(directory: Path) -> int:
    return sum(p.stat().st_size for suffix in ("rows", "index") for p in directory.glob(f"*/*.{suffix}"))


# --- served bit for bit ---


def test_a_hit_equals_a_miss_and_the_live_backbone(backbone: Backbone, store: FeatureStore, tmp_path: Path) -> None:
    data = images(5)
    miss = store.features(backbone, data)[:]
    hit = store.features(backbone, data)[:]
    elsewhere = FeatureStore(store.directory).features(backbone, data)[:]
    assert backbone.passes.images == 5
    live = torch.cat([backbone.features(x) for _, x in data.batches(backbone.preprocess, 2)])
    assert torch.equal(miss, live)
    assert torch.equal(hit, miss)
    assert torch.equal(elsewhere, miss)
    assert miss.dtype == torch.float32
    assert miss.std() > 0


def test_a_folder_may_be_given_as_text(backbone: Backbone, store: FeatureStore) -> None:
    data = images()
    rows = store.features(backbone, data)[:]
    before = backbone.passes.images
    assert torch.equal(FeatureStore(str(store.directory)).features(backbone, data)[:], rows)
    assert backbone.passes.images == before


def test_rows_are_read_in_any_order(store: FeatureStore) -> None:
    data = images()
    found = store.features(Pixels(), data)
    assert len(found) == N
    assert torch.equal(found[np.array([7, 0, 7])], true(data)[[7, 0, 7]])
    assert torch.equal(found[2:5], true(data)[2:5])
    assert found[np.arange(0)].shape == (0, Pixels.dim)
    assert [len(b) for b in found.batches(4)] == [4, 4, 3]
    assert torch.equal(torch.cat(list(found.batches(4))), true(data))


def test_what_is_served_may_be_changed(store: FeatureStore) -> None:
    found = store.features(Pixels(), images())
    found[:].zero_()
    assert torch.equal(found[:], true(images()))


def test_nothing_costs_nothing(store: FeatureStore) -> None:
    backbone = Pixels()
    found = store.features(backbone, images().subset(np.arange(0)))
    assert len(found) == 0
    assert list(found.batches()) == []
    assert backbone.passes == 0


@pytest.mark.parametrize("chunk", [1, 3, 4, 100])
def test_rows_are_checked_some_at_a_time_and_none_is_left_out(
    chunk: int, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf_module, "CHUNK_ROWS", chunk)
    backbone, data = Pixels(), images()
    store.features(backbone, data)
    path = only(store.directory, ".rows")
    content = bytearray(path.read_bytes())
    for row in (2, 3, N - 1):
        content[row * ROW_BYTES] ^= 1
    path.write_bytes(content)
    index = ShelfIndex(store.directory / "pixels", Pixels.dim)
    assert index.missing(data.keys).tolist() == [2, 3, N - 1]
    assert torch.equal(store.features(backbone, data)[:], true(data))
    assert backbone.passes == N + 3


def test_rows_come_a_thousand_and_some_at_a_time(store: FeatureStore) -> None:
    data = images(2).subset(np.arange(1030) % 2)
    assert [len(rows) for rows in store.features(Pixels(), data).batches()] == [1024, 6]


# --- addressed by content ---


def test_order_split_and_labels_do_not_matter(store: FeatureStore) -> None:
    backbone, data = Pixels(), images()
    store.features(backbone, data)
    order = np.random.default_rng(1).permutation(N)
    assert torch.equal(store.features(backbone, data.subset(order))[:], true(data)[order])
    assert torch.equal(store.features(backbone, data.of_classes([3, 8]))[:], true(data)[[3, 8]])
    relabelled = LabelledImages(data.source, np.zeros(N, np.int64))
    assert torch.equal(store.features(backbone, relabelled)[:], true(data))
    assert backbone.passes == N


def test_a_copy_costs_nothing_and_a_new_image_one_pass(store: FeatureStore, tmp_path: Path) -> None:
    def folder(*names: str) -> LabelledImages:
        paths = [tmp_path / n for n in names]
        keys = np.array([content_key(p.read_bytes()) for p in paths], dtype="S16")
        return LabelledImages(FileSource(paths, keys), np.zeros(len(paths), np.int64))

    for row, name in enumerate(["a.png", "b.png", "new.png"]):
        images().source.read(row).save(tmp_path / name)
    shutil.copy(tmp_path / "b.png", tmp_path / "copy of b.png")
    backbone = Pixels()
    store.features(backbone, folder("a.png", "b.png"))
    assert backbone.passes == 2
    found = store.features(backbone, folder("copy of b.png", "a.png"))
    assert backbone.passes == 2
    assert torch.equal(found[:], true(images())[[1, 0]])
    found = store.features(backbone, folder("a.png", "new.png", "b.png"))
    assert backbone.passes == 3
    assert torch.equal(found[:], true(images())[[0, 2, 1]])


def test_the_same_image_twice_is_one_pass(store: FeatureStore) -> None:
    backbone = Pixels()
    twice = images().subset(np.array([4, 4, 2, 4]))
    assert torch.equal(store.features(backbone, twice)[:], true(images())[[4, 4, 2, 4]])
    assert backbone.passes == 2


def test_keys_may_end_in_zero_bytes(store: FeatureStore) -> None:
    data = images(4)
    data.source.keys = np.array([b"a" + bytes(15), b"a" + bytes(14) + b"b", b"b" * 16, b"c" * 16], dtype="S16")
    backbone = Pixels()
    for _ in range(2):
        assert torch.equal(store.features(backbone, data)[:], true(data))
    assert backbone.passes == 4


@pytest.mark.parametrize("change", ["weights", "preset", "precision", "name"])
def test_another_fingerprint_is_another_entry(change: str, store: FeatureStore) -> None:
    data = images(2)
    plain = Backbone.load("test_vit", pretrained=False, device="cpu")
    first = store.features(plain, data)[:]
    options = {"preset": {"preset": "lamda"}, "precision": {"precision": "bfloat16"}}.get(change, {})
    if change == "preset":  # a ViT takes one size only
        other = Backbone(plain.model, name=plain.name, preprocess=Preprocess(160, mean=(0, 0, 0)), device="cpu")
    else:
        other = Backbone.load("test_vit", pretrained=False, device="cpu", **options)
    if change == "name":
        other.name = "another"
    if change == "weights":
        with torch.no_grad():
            other.model.norm.bias[0] += 1
    second = store.features(other, data)[:]
    assert other.passes.images == 2
    assert len(list(store.directory.iterdir())) == 2
    assert torch.equal(first, second) == (change == "name")
    assert torch.equal(store.features(plain, data)[:], first)


def test_weights_edited_after_the_first_look_are_another_entry(backbone: Backbone, store: FeatureStore) -> None:
    data = images(2)
    first = store.features(backbone, data)[:]
    with torch.no_grad():
        backbone.model.norm.bias[0] += 1
    second = store.features(backbone, data)[:]
    torch.testing.assert_close(second[:, 0], first[:, 0] + 1)
    with torch.no_grad():
        backbone.model.norm.bias[0] -= 1


# --- interrupted ---


@pytest.mark.parametrize("failure", [RuntimeError("planned"), KeyboardInterrupt("planned")])
def test_a_fill_that_fails_is_resumed(failure: BaseException, store: FeatureStore) -> None:
    backbone, data = Pixels(), images()
    backbone.fail_at, backbone.failure = 8, failure
    with pytest.raises(type(failure), match="planned"):
        store.features(backbone, data)
    assert backbone.passes == 8
    assert torch.equal(store.features(backbone, data)[:], true(data))
    assert backbone.passes == N


def test_a_killed_fill_is_resumed(tmp_path: Path) -> None:
    def progress(event: Any) -> None:
        sys.stdout.write(f"{event.done}\n")
        if event.done == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    killed = in_child(lambda: FeatureStore(tmp_path / "s", progress=progress).features(Pixels(), images()))
    assert killed == (-signal.SIGKILL, "0\n4\n8\n")
    backbone, data = Pixels(), images()
    assert torch.equal(FeatureStore(tmp_path / "s").features(backbone, data)[:], true(data))
    assert backbone.passes == N - 8


def test_two_processes_fill_at_once(tmp_path: Path) -> None:
    def fill() -> None:
        other = os.fork()
        store = FeatureStore(tmp_path / "s", progress=lambda event: time.sleep(0.05))
        data = images().subset(np.roll(np.arange(N), 5 if other else 0))
        sys.stdout.write(f"{torch.equal(store.features(Pixels(), data)[:], true(data))}\n")
        if other:
            assert os.waitpid(other, 0) == (other, 0)

    assert in_child(fill) == (0, "True\nTrue\n")
    assert len(list((tmp_path / "s").glob("*/*.rows"))) == 2
    backbone, data = Pixels(), images()
    assert torch.equal(FeatureStore(tmp_path / "s").features(backbone, data)[:], true(data))
    assert backbone.passes == 0


def test_threads_share_a_store(store: FeatureStore) -> None:
    backbone, data = Pixels(), images()
    together = threading.Barrier(4)

    def serve(_: int) -> torch.Tensor:
        together.wait()
        return store.features(backbone, data)[:]

    with ThreadPoolExecutor(4) as pool:
        assert all(torch.equal(found, true(data)) for found in pool.map(serve, range(4)))
    assert backbone.passes == N


# --- damaged ---


def stores(store: FeatureStore) -> list[FeatureStore]:
    return [store, FeatureStore(store.directory)]


@pytest.mark.parametrize("row", [0, 6, N - 1])
@pytest.mark.parametrize("which", [0, 1], ids=["same process", "another process"])
def test_a_corrupt_row_is_never_served(row: int, which: int, store: FeatureStore) -> None:
    backbone, data = Pixels(), images()
    store.features(backbone, data)
    path = only(store.directory, ".rows")
    content = bytearray(path.read_bytes())
    content[row * ROW_BYTES + 17] ^= 0x40
    path.write_bytes(content)
    for _ in range(2):
        assert torch.equal(stores(store)[which].features(backbone, data)[:], true(data))
        assert backbone.passes == N + 1


@pytest.mark.parametrize("kept", [0, 1, 2.5, N - 0.1])
@pytest.mark.parametrize("suffix", [".rows", ".index"])
@pytest.mark.parametrize("which", [0, 1], ids=["same process", "another process"])
def test_a_truncated_file_costs_the_lost_rows_once(kept: float, suffix: str, which: int, store: FeatureStore) -> None:
    backbone, data = Pixels(), images()
    store.features(backbone, data)
    each = ROW_BYTES if suffix == ".rows" else RECORD.itemsize
    os.truncate(only(store.directory, suffix), int(kept * each))
    for _ in range(2):
        assert torch.equal(stores(store)[which].features(backbone, data)[:], true(data))
        assert backbone.passes == N + N - int(kept)


@pytest.mark.parametrize("suffix", [".rows", ".index"])
@pytest.mark.parametrize("which", [0, 1], ids=["same process", "another process"])
def test_a_lost_file_is_made_again(suffix: str, which: int, store: FeatureStore) -> None:
    backbone, data = Pixels(), images()
    store.features(backbone, data)
    only(store.directory, suffix).unlink()
    for _ in range(2):
        assert torch.equal(stores(store)[which].features(backbone, data)[:], true(data))
        assert backbone.passes == 2 * N


def test_garbage_in_the_index_is_never_served(store: FeatureStore) -> None:
    backbone, data = Pixels(), images()
    store.features(backbone, data)
    path = only(store.directory, ".index")
    content = bytearray(path.read_bytes())
    content[2 * RECORD.itemsize + 3] ^= 0x40  # a key
    content[5 * RECORD.itemsize + 17] ^= 0x40  # a checksum
    path.write_bytes(content)
    for _ in range(2):
        assert torch.equal(FeatureStore(store.directory).features(backbone, data)[:], true(data))
        assert backbone.passes == N + 2


@pytest.mark.parametrize("emptied", [False, True])
def test_a_segment_evicted_between_look_up_and_check_counts_as_missing(emptied: bool, store: FeatureStore) -> None:
    data = images()
    store.features(Pixels(), data)
    index = ShelfIndex(store.directory / "pixels", Pixels.dim)
    rows = only(store.directory, ".rows")
    rows.write_bytes(b"") if emptied else rows.unlink()
    assert index.missing(data.keys).tolist() == list(range(N))
    assert emptied or index.features(data.keys) is None


def test_rows_that_vanish_again_and_again_are_reported(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ShelfIndex, "features", lambda self, keys: None)
    with pytest.raises(StorageError, match=r"kept until they are read, but got 'evicted three times'\. Raise"):
        store.features(Pixels(), images())


# --- bounded ---


@pytest.fixture
def one_segment_per_fill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_module, "SEGMENT_BYTES", 1)


def aged(directory: Path, clock: Iterator[int]) -> None:
    """Puts every segment's last use into the past, in the order of their use."""
    for path in sorted(directory.glob("*/*.index"), key=lambda p: p.stat().st_mtime_ns):
        os.utime(path, (at := next(clock), at))


@pytest.mark.usefixtures("one_segment_per_fill")
def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    each = N * (ROW_BYTES + RECORD.itemsize)
    store, clock = FeatureStore(tmp_path / "s", cache_bytes=2 * each + 10), itertools.count(10**9)
    backbones = [Pixels("one"), Pixels("two")]  # the bound is on all shelves together
    a, b, c = (images(seed=s) for s in range(3))
    store.features(backbones[0], a)
    aged(store.directory, clock)
    store.features(backbones[1], b)
    aged(store.directory, clock)
    store.features(backbones[0], a)  # now b is the oldest
    aged(store.directory, clock)
    store.features(backbones[0], c)
    assert size_of(store.directory) == 2 * each
    passes = [x.passes for x in backbones]
    store.features(backbones[0], a)
    store.features(backbones[0], c)
    assert [x.passes for x in backbones] == passes == [2 * N, N]
    store.features(backbones[1], b)
    assert backbones[1].passes == 2 * N


@pytest.mark.usefixtures("one_segment_per_fill")
def test_what_was_just_served_stays(tmp_path: Path) -> None:
    backbone, data = Pixels(), images()
    store = FeatureStore(tmp_path / "s", cache_bytes=N * (ROW_BYTES + RECORD.itemsize))
    store.features(backbone, data)
    for path in store.directory.glob("*/*.index"):
        os.utime(path, (1, 1))
    FeatureStore(store.directory).features(backbone, images(seed=1))
    assert size_of(store.directory) <= 2 * store.cache_bytes
    found = store.features(backbone, data)
    assert size_of(store.directory) <= store.cache_bytes
    passes = backbone.passes
    assert torch.equal(store.features(backbone, data)[:], true(data))
    assert torch.equal(found[:], true(data))
    assert backbone.passes == passes


def test_one_process_keeps_the_bound_too(tmp_path: Path) -> None:
    each = N * (ROW_BYTES + RECORD.itemsize)
    store, backbone = FeatureStore(tmp_path / "s", cache_bytes=each + each // 2), Pixels()
    for seed in range(3):
        data = images(seed=seed)
        assert torch.equal(store.features(backbone, data)[:], true(data))
        assert size_of(store.directory) <= store.cache_bytes


@pytest.mark.parametrize("emptied", ["one by one", "as a whole"])
def test_features_stay_readable_after_their_files_are_gone(emptied: str, store: FeatureStore) -> None:
    found = store.features(Pixels(), images())
    if emptied == "as a whole":
        shutil.rmtree(store.directory)
    else:
        for path in store.directory.glob("*/*"):
            path.unlink()
    assert torch.equal(found[:], true(images()))
    backbone = Pixels()
    assert torch.equal(store.features(backbone, images())[:], true(images()))
    assert backbone.passes == N


def test_a_cache_too_small_for_the_data_is_refused_before_work(tmp_path: Path) -> None:
    store, backbone = FeatureStore(tmp_path / "s", cache_bytes=1000), Pixels()
    needed = N * (ROW_BYTES + RECORD.itemsize)
    with pytest.raises(StorageError) as error:
        store.features(backbone, images())
    message = str(error.value)
    assert f"cache_bytes must be at least {needed} for 11 items, but got 1000. Raise PERDURE_CACHE_BYTES" in message
    assert backbone.passes == 0
    assert not store.directory.exists()


# --- full disk ---


def test_a_full_disk_is_noticed_before_work(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, data = Pixels(), images()
    store.features(backbone, data.subset(np.arange(4)))
    needed = 7 * (ROW_BYTES + RECORD.itemsize)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed - 1))
    with pytest.raises(StorageError) as error:
        store.features(backbone, data)
    assert f"must be at least {needed} bytes for 7 items, but got {needed - 1}. Free some space" in str(error.value)
    assert str(store.directory) in str(error.value)
    assert backbone.passes == 4
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=needed))
    store.features(backbone, data)
    assert backbone.passes == N


def test_a_disk_that_fills_up_keeps_what_is_stored(tmp_path: Path) -> None:
    def fill() -> None:
        import resource  # which Windows lacks

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(9.5 * ROW_BYTES), resource.RLIM_INFINITY))
        backbone, store = Pixels(), FeatureStore(tmp_path / "s")
        for _ in range(2):
            try:
                store.features(backbone, images())
            except StorageError as error:
                sys.stdout.write(f"{backbone.passes} {error}\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, (int(2.5 * ROW_BYTES), resource.RLIM_INFINITY))

    status, told = in_child(fill)
    assert status == 0, told
    first, second = told.splitlines()  # and nothing more: no file was left open
    assert first.startswith("11 FeatureStore: disk must be writable, but got ")
    assert "pixels" in first
    assert "Free some space or set PERDURE_CACHE to another disk; what is stored is kept ([Errno 27] Fi" in first
    assert second.startswith("14 FeatureStore: disk must be writable")  # the 8 images stored were not computed again
    backbone, data = Pixels(), images()
    assert torch.equal(FeatureStore(tmp_path / "s").features(backbone, data)[:], true(data))
    assert backbone.passes == N - 8


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=rf"disk must be writable, but got '{tmp_path}/file/s/pixels'"):
        FeatureStore(tmp_path / "file" / "s").features(Pixels(), images())


# --- refused ---


def test_the_features_of_a_thawed_backbone_are_not_kept(backbone: Backbone, store: FeatureStore) -> None:
    with pytest.raises(BackboneError, match="'one with trainable parameters'"):
        store.features(backbone.thawed_copy(), images())
    assert not store.directory.exists()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_their_image(bad: float, backbone: Backbone, store: FeatureStore) -> None:
    data = images(3)
    before, view = backbone.embed, backbone.preprocess.pixels(data.source.read(2))
    at_fault = backbone.preprocess.normalise(torch.from_numpy(view)[None])

    def embed(x: torch.Tensor) -> torch.Tensor:
        out = before(x)
        broken = (backbone.preprocess.normalise(x) == at_fault).flatten(1).all(1)
        out[broken, 5] = bad
        return out

    backbone.embed = embed  # type: ignore[method-assign]
    with pytest.raises(NonFiniteError, match=r"features of image noise0\[2\] must be finite, but got nan"):
        store.features(backbone, data)
    with pytest.raises(NonFiniteError, match=r"noise0\[2\]"):
        store.features(backbone, data.subset(np.array([1, 2, 0])))
    good = store.features(backbone, data.subset(np.array([1, 0])))
    assert torch.isfinite(good[:]).all()


@pytest.mark.parametrize("given", [0, -5, "1e9", "many", "", 2.5])
def test_a_bound_that_is_no_number_of_bytes(given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError) as error:
        FeatureStore(tmp_path, cache_bytes=given)
    assert f"cache_bytes must be a positive whole number, but got {given!r}" in str(error.value)
    monkeypatch.setenv("PERDURE_CACHE_BYTES", str(given))
    with pytest.raises(ConfigError, match="cache_bytes"):
        FeatureStore(tmp_path)


def test_the_environment_says_where_and_how_much(
    own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert FeatureStore().directory == own_cache / "features"
    assert FeatureStore().cache_bytes == 20 * 10**9
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("PERDURE_CACHE_BYTES", "123456")
    store = FeatureStore()
    assert store.cache_bytes == 123456
    assert FeatureStore(cache_bytes=99).cache_bytes == 99
    store.features(Pixels(), images())
    assert len(list((tmp_path / "elsewhere" / "features" / "pixels").glob("*.rows"))) == 1


def test_progress_is_reported_for_missing_images_alone(tmp_path: Path) -> None:
    heard: list[tuple[str, int, int]] = []
    store = FeatureStore(tmp_path / "s", progress=lambda event: heard.append((event.stage, event.done, event.total)))
    store.features(Pixels(), images().subset(np.arange(3)), label="train features")
    assert heard == [("train features", 0, 3), ("train features", 3, 3)]
    heard.clear()
    store.features(Pixels(), images())
    assert heard == [("features", 0, 8), ("features", 4, 8), ("features", 8, 8)]
    heard.clear()
    store.features(Pixels(), images())
    assert heard == []


def test_features_of_several_backbones_come_side_by_side(backbone: Backbone, tmp_path: Path) -> None:
    data, view = synthetic_dataset([0, 1], train_per_class=6, test_per_class=1).train, backbone.view()
    draw = torch.Generator().manual_seed(0)
    view.insert("outputs", lambda site: ScaleShift(site.n_out, draw)).requires_grad_(False)
    store = FeatureStore(tmp_path / "both")
    rows = list(store.side_by_side([backbone, view], data, label="both"))
    assert all(len(pair) == 2 for pair in rows)
    for found, of in zip(map(torch.cat, zip(*rows, strict=True)), (backbone, view), strict=True):
        assert torch.equal(found, store.features(of, data)[:])
    assert not torch.equal(rows[0][0], rows[0][1])
