"""Exemplars: what is kept, in which order, within which budget; and that it is the very images that came."""

from __future__ import annotations

import copy
import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from perdure import Backbone, FeatureStore
from perdure.data import ArraySource, FileSource, LabelledImages, Preprocess
from perdure.data.folders import check_files, keys_of
from perdure.data.reading import Reading
from perdure.errors import CheckpointError, ConfigError, DataError, UnknownNameError
from perdure.memory import Exemplars
from perdure.memory.exemplars import RECORD_BYTES, herding
from perdure.run.checkpoint import load_state, save_state, tensor_bytes
from picture_files import tiff

SIDE = 4
VIEW = Preprocess(image_size=16, crop_pct=0.875)
POLICIES = ("herding", "random", "reservoir")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(counts: dict[int, int], seed: int = 0) -> LabelledImages:
    """Noise, so many of each class."""
    n = sum(counts.values())
    pixels = np.random.default_rng(seed).integers(0, 256, (n, SIDE, SIDE, 3), dtype=np.uint8)
    return LabelledImages(ArraySource(pixels, f"noise{seed}"), np.repeat(list(counts), list(counts.values())))


def in_files(folder: Path, suffix: str = "jpg", n: int = 6) -> tuple[LabelledImages, list[Path]]:
    """Photographs, as large as they come."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 5, 7, 3), dtype=np.uint8)
    paths = [folder / f"{i}.{suffix}" for i in range(n)]
    for path, array in zip(paths, pixels, strict=True):
        Image.fromarray(array).resize((90, 61)).save(path)
    return LabelledImages(FileSource(paths, keys_of(check_files(paths))), np.arange(n) % 2), paths


def pixels_as_features(data: LabelledImages) -> Tensor:
    rows = [np.asarray(data.source.read(int(row)), dtype=np.float32).ravel() for row in data.rows]
    return torch.from_numpy(np.stack(rows))


def counts(kept: Exemplars) -> dict[int, int]:
    return dict(Counter(kept.labels.tolist()))


def filled(policy: Any, *tasks: LabelledImages, seed: int = 0, **budget: int) -> Exemplars:
    kept, generator = Exemplars(policy, **budget), rng(seed)
    for task in tasks:
        kept.add(task, generator, pixels_as_features)
    return kept


def bits(state: Any) -> list[tuple[str, torch.dtype, list[Any]]]:
    return [(key, value.dtype, value.tolist()) for key, value in state.items()]


# herding


def by_definition(rows: Tensor, n: int) -> list[int]:
    """iCaRL's algorithm 4 as it is printed."""
    mean, chosen = rows.mean(0), []
    for k in range(1, n + 1):
        left = [i for i in range(len(rows)) if i not in chosen]
        gaps = [float((mean - (rows[i] + rows[chosen].sum(0)) / k).norm()) for i in left]
        chosen.append(left[int(np.argmin(gaps))])
    return chosen


@pytest.mark.parametrize("normalised", [True, False])
def test_herding_follows_its_definition(normalised: bool) -> None:
    rows = torch.randn(30, 5, generator=rng(), dtype=torch.float64) + 1
    rows = F.normalize(rows, dim=1) if normalised else rows
    assert herding(rows, 30).tolist() == by_definition(rows, 30)
    assert herding(rows, 4).tolist() == by_definition(rows, 30)[:4]


def test_herding_by_hand() -> None:
    """The mean of 0, 1 and 5 is 2: 1 is nearest, then the mean of 1 and 5 is nearer than that of 1 and 0."""
    assert herding(torch.tensor([[0.0], [1.0], [5.0]]), 3).tolist() == [1, 2, 0]


def test_equally_good_rows_are_chosen_in_their_order() -> None:
    assert herding(torch.ones(4, 2), 4).tolist() == [0, 1, 2, 3]


def test_each_class_is_herded_on_its_normalised_features() -> None:
    data = images({3: 12, -1: 9}).subset(np.random.default_rng(1).permutation(21))
    kept = filled("herding", data, n_per_class=4)
    for c in (3, -1):
        own = data.of_classes([c])
        chosen = by_definition(F.normalize(pixels_as_features(own).double(), dim=1), 4)
        assert kept.images().of_classes([c]).keys.tolist() == own.keys[chosen].tolist()


def test_herding_without_features_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"features_of must be given for herding, but got None\. Pass e\.g\."):
        Exemplars("herding", n_images=4).add(images({0: 4}), rng())


# budgets


@pytest.mark.parametrize("policy", ["herding", "random"])
def test_a_budget_in_all_is_shared_and_the_first_seen_get_the_rest(policy: str) -> None:
    kept = filled(policy, images({7: 20, 2: 20}), n_images=11)
    assert (counts(kept), kept.classes, len(kept)) == ({7: 6, 2: 5}, (7, 2), 11)
    kept.add(images({5: 20}, 1), rng(), pixels_as_features)
    assert list(counts(kept).items()) == [(7, 4), (2, 4), (5, 3)]


@pytest.mark.parametrize("policy", ["herding", "random"])
def test_a_class_smaller_than_its_share_is_kept_whole_and_leaves_the_rest_unused(policy: str) -> None:
    data = images({1: 2, 0: 20})
    kept = filled(policy, data, n_images=10)
    assert counts(kept) == {1: 2, 0: 5}
    assert sorted(kept.images().of_classes([1]).keys) == sorted(data.of_classes([1]).keys)
    assert counts(filled(policy, data, n_per_class=100)) == {1: 2, 0: 20}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_budget_per_class_grows_with_the_classes(policy: str) -> None:
    kept = filled(policy, images({0: 9, 1: 2}), images({2: 9}, 1), n_per_class=3)
    assert counts(kept) == {0: 3, 1: 2, 2: 3}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_budget_in_bytes_holds_and_is_nearly_used(policy: str) -> None:
    tasks = images({0: 30, 1: 30}), images({2: 30}, 1)
    largest = max(len(data.bytes_of(i)) for data in tasks for i in range(len(data))) + RECORD_BYTES
    for n_bytes in (3 * largest, 5000, 10**6):
        kept = filled(policy, *tasks, total_bytes=n_bytes)
        assert kept.nbytes <= n_bytes
        assert kept.nbytes + largest > n_bytes or len(kept) == 90
        assert set(counts(kept)) == {0, 1, 2}
        assert policy == "reservoir" or max(counts(kept).values()) - min(counts(kept).values()) <= 1


@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_cut_is_what_was_chosen_last(policy: str) -> None:
    kept = filled(policy, images({0: 20}), n_images=8)
    before = kept.images().keys.tolist()
    kept.add(images({1: 1}, 1), rng(1), pixels_as_features)
    after = kept.images().of_classes([0]).keys.tolist()
    assert 0 < len(after) < 8
    assert after == before[: len(after)]


@pytest.mark.parametrize("policy", POLICIES)
def test_images_lie_class_by_class_in_order_of_choice(policy: str) -> None:
    kept = filled(policy, images({7: 9, 2: 9}), images({-3: 9, 2: 4}, 1), n_images=12)
    n = counts(kept)
    assert kept.classes == (7, 2, -3)
    assert kept.labels.tolist() == [7] * n[7] + [2] * n[2] + [-3] * n[-3]
    for c in kept.classes:
        order = kept.order[kept.labels == c].tolist()
        assert order == sorted(order)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_class_keeps_one_where_the_budget_allows_it(policy: str) -> None:
    tasks = [images({0: 300}), *(images({c: 1}, c) for c in (1, 2, 3))]
    assert counts(filled(policy, *tasks, n_images=4)) == dict.fromkeys(range(4), 1)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_budget_below_one_image_per_class_is_refused_and_changes_nothing(policy: str) -> None:
    kept = filled(policy, images({0: 5, 1: 5}), n_images=2)
    before = bits(kept.state_dict())
    with pytest.raises(ConfigError, match=r"n_images must be enough for one .* of 3 classes, but got 2\. Raise it"):
        kept.add(images({2: 5}, 1), rng(), pixels_as_features)
    assert bits(kept.state_dict()) == before
    with pytest.raises(ConfigError, match=r"total_bytes must be enough for one .* of 2 classes, but got 150\. Raise"):
        filled(policy, images({0: 5, 1: 5}), total_bytes=150)


@pytest.mark.parametrize("budget", [{}, {"n_images": 0}, {"n_per_class": -1}, {"n_images": 4, "total_bytes": 9}])
def test_one_budget_is_given(budget: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="exactly one number, at least 1") as caught:
        Exemplars("random", **budget)
    assert repr(budget) in str(caught.value)


def test_an_unknown_policy_is_refused_with_close_matches() -> None:
    with pytest.raises(UnknownNameError, match=r"'reservior'\. Did you mean 'reservoir'"):
        Exemplars("reservior", n_images=4)  # type: ignore[arg-type]


# chance


def test_every_image_of_a_stream_is_as_likely_in_a_reservoir() -> None:
    """One class after the other, and large batches and small: 8 of 40 stay, each with probability 1/5."""
    data, often, times = images({0: 40}), Counter[bytes](), 400
    for seed in range(times):
        generator, kept = rng(seed), Exemplars("reservoir", n_images=8)
        for rows in np.split(np.arange(40), [3, 20, 22]):
            kept.add(data.subset(rows), generator)
        assert len(kept) == 8
        often.update(kept.images().keys.tolist())
    deviation = (times * 0.2 * 0.8) ** 0.5
    assert all(abs(often[key] - times * 0.2) < 4 * deviation for key in data.keys.tolist())


def test_a_reservoir_keeps_more_of_frequent_classes_and_a_random_draw_does_not() -> None:
    tasks = images({0: 300}), images({1: 30}, 1)
    assert counts(filled("reservoir", *tasks, n_images=60))[0] > 45
    assert counts(filled("random", *tasks, n_images=60)) == {0: 30, 1: 30}


@pytest.mark.parametrize("policy", ["random", "reservoir"])
def test_the_generator_decides(policy: str) -> None:
    one, same, other = (filled(policy, images({0: 30}), n_images=5, seed=seed) for seed in (0, 0, 1))
    assert bits(one.state_dict()) == bits(same.state_dict())
    assert set(one.images().keys) != set(other.images().keys)


# classes that come again


def test_a_class_that_comes_again_is_herded_from_what_is_kept_and_what_is_new() -> None:
    day, night = images({0: 12, 1: 12}), images({1: 12}, 1)
    kept = filled("herding", day, n_per_class=5)
    other, among = kept.images().of_classes([0]).keys.tolist(), kept.images().of_classes([1]).joined(night)
    kept.add(night, rng(), pixels_as_features)
    chosen = by_definition(F.normalize(pixels_as_features(among).double(), dim=1), 5)
    assert kept.images().of_classes([1]).keys.tolist() == among.keys[chosen].tolist()
    assert kept.images().of_classes([0]).keys.tolist() == other
    assert kept.classes == (0, 1)


@pytest.mark.parametrize("policy", ["random", "reservoir"])
def test_a_class_that_comes_again_has_images_of_both_times(policy: str) -> None:
    day, night = images({0: 20}), images({0: 20}, 1)
    kept = set(filled(policy, day, night, n_per_class=10).images().keys)
    assert kept & set(day.keys)
    assert kept & set(night.keys)


# the images


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "gif", "webp"])
def test_kept_images_and_their_views_are_those_of_the_files(suffix: str, tmp_path: Path) -> None:
    """Nothing is resized, cropped or compressed twice."""
    data, paths = in_files(tmp_path, suffix)
    kept = filled("random", data, n_per_class=3)
    files = {key: path.read_bytes() for key, path in zip(data.keys, paths, strict=True)}
    assert b"".join(files[key] for key in kept.images().keys) == bytes(kept.files.numpy())
    assert kept.nbytes == sum(map(len, files.values())) + 6 * RECORD_BYTES
    for path in paths:
        path.unlink()
    assert_same_views(data_from(files, data), kept.images())


def data_from(files: dict[bytes, bytes], data: LabelledImages) -> dict[bytes, np.ndarray]:
    """By key, what Pillow makes of a file."""
    return {key: np.asarray(Image.open(io.BytesIO(files[key])).convert("RGB")) for key in data.keys}


def assert_same_views(originals: dict[bytes, np.ndarray], kept: LabelledImages) -> None:
    assert len(kept) == len(originals)
    with kept.decoded(VIEW) as pixels:
        for position, key in enumerate(kept.keys):
            assert np.array_equal(np.asarray(kept.source.read(position)), originals[key])
            assert np.array_equal(pixels[position], VIEW.pixels(Image.fromarray(originals[key])))


@pytest.mark.parametrize("shape", [(9, 6), (9, 6, 3)])
def test_images_of_arrays_are_kept_without_loss(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    data = LabelledImages(ArraySource(pixels, "noise"), np.arange(8) % 2)
    originals = {key: np.asarray(data.source.read(row)) for row, key in enumerate(data.keys)}
    assert_same_views(originals, filled("reservoir", data, n_images=8).images())


def test_features_of_kept_images_cost_no_pass(backbone: Backbone, store: FeatureStore, tmp_path: Path) -> None:
    data, _ = in_files(tmp_path)
    known = dict(zip(data.keys, store.features(backbone, data)[:], strict=True))
    passes = backbone.passes.images
    kept = Exemplars("herding", n_per_class=2)
    kept.add(data, rng(), lambda d: store.features(backbone, d))
    for row, key in zip(store.features(backbone, kept.images())[:], kept.images().keys, strict=True):
        assert torch.equal(row, known[key])
    assert backbone.passes.images == passes


def test_a_file_that_changed_is_not_kept(tmp_path: Path) -> None:
    data, paths = in_files(tmp_path)
    paths[3].write_bytes(paths[2].read_bytes())
    kept = Exemplars("random", n_images=100)
    with pytest.raises(DataError, match="unchanged since the data were checked") as caught:
        kept.add(data, rng())
    assert str(paths[3]) in str(caught.value)
    assert len(kept) == 0


def test_a_damaged_file_in_a_state_is_named(tmp_path: Path) -> None:
    kept = filled("random", in_files(tmp_path)[0], n_images=4)
    kept.files = torch.where(torch.arange(len(kept.files)) < kept.ends[0], 0, kept.files).to(torch.uint8)
    again = kept.images()
    with pytest.raises(DataError, match=r"but got 'exemplars\[0\]'\. Load an earlier state"):
        again.source.read(0)
    assert again.source.read(1).size == (90, 61)


def test_images_given_out_stay_as_they_are(tmp_path: Path) -> None:
    """Whatever is added later: someone may be reading them."""
    kept = filled("random", in_files(tmp_path)[0], n_images=4)
    given, before = kept.images(), kept.images().bytes_of(3)
    kept.add(images({8: 5, 9: 5}), rng(), None)
    assert given.bytes_of(3) == before
    assert len(given) == 4


# the state


def test_adding_replaces_every_tensor_and_changes_none() -> None:
    kept = filled("random", images({0: 9}), n_images=6)
    held = dict(kept.named_buffers())
    before = copy.deepcopy(held)
    kept.add(images({1: 9}, 1), rng())
    assert bits(held) == bits(before)
    assert all(held[name] is not buffer for name, buffer in kept.named_buffers())


@pytest.mark.parametrize("policy", POLICIES)
def test_a_state_on_disk_goes_on_with_the_same_bits(policy: str, tmp_path: Path) -> None:
    first, second = images({0: 9, 4: 9}), images({4: 9, 2**40: 9}, 1)
    straight, budget = filled(policy, first, n_images=7), {"n_images": 7}
    save_state(tmp_path, {"exemplars_": straight.state_dict()})
    resumed = filled(policy, images({1: 3}, 5), **budget)  # what it held before does not matter
    resumed.load_state_dict(load_state(tmp_path)["exemplars_"])
    assert bits(resumed.state_dict()) == bits(straight.state_dict())
    for each in (straight, resumed):
        each.add(second, rng(3), pixels_as_features)
    assert bits(resumed.state_dict()) == bits(straight.state_dict())
    assert tensor_bytes(straight.state_dict()) == straight.nbytes
    assert sum(p.numel() for p in straight.parameters()) == 0


@pytest.mark.parametrize(("name", "change"), [("labels", lambda t: t[1:]), ("files", lambda t: t[:-1])])
def test_a_state_that_does_not_fit_together_is_refused(name: str, change: Any) -> None:
    kept = filled("random", images({0: 9}), n_images=6)
    state = {**kept.state_dict()}
    before, state[name] = bits(state), change(state[name])
    with pytest.raises(CheckpointError, match="with whole files") as caught:
        kept.load_state_dict(state)
    assert str(len(state[name])) in str(caught.value)
    assert bits(kept.state_dict()) == before


def test_nothing_is_kept_of_nothing() -> None:
    empty = images({0: 3}).subset(np.arange(0))
    kept = filled("random", empty, n_images=3)
    assert (len(kept), kept.nbytes, kept.classes, len(kept.images())) == (0, 0, (), 0)
    kept.load_state_dict(Exemplars("random", n_images=3).state_dict())
    assert len(kept.images().keys) == 0


def test_files_stay_on_the_cpu_whatever_moves_them() -> None:
    kept = Exemplars("random", n_images=3).to("meta")
    assert kept.files.device.type == kept.labels.device.type == "cpu"


def test_kept_images_of_a_range_of_values_look_as_they_did(tmp_path: Path) -> None:
    path, how = tmp_path / "deep.tif", Reading((0, 4095))
    path.write_bytes(tiff(16, np.array([0, 1638, 4095], "<u2").tobytes(), 3))
    source = FileSource([path], keys_of(check_files([path], reading=how)), how)
    kept = filled("random", LabelledImages(source, np.zeros(1, int)), n_images=1)
    path.unlink()
    assert np.asarray(kept.images().source.read(0))[0, :, 0].tolist() == [0, 102, 255]
    assert kept.images().keys.tolist() == source.keys.tolist()


def test_kept_photographs_are_turned_as_the_files_were(tmp_path: Path) -> None:
    exif, path = Image.Exif(), tmp_path / "0.jpg"
    exif[0x0112] = 6
    Image.new("RGB", (40, 20)).save(path, exif=exif)
    data = LabelledImages(FileSource([path], keys_of(check_files([path]))), np.zeros(1, int))
    assert filled("random", data, n_images=1).images().source.read(0).size == (20, 40)


# merging


@pytest.mark.parametrize("policy", POLICIES)
def test_two_are_merged_within_the_budget_in_turn(policy: Any) -> None:
    first, second = images({4: 6, 2: 6}, 1), images({4: 6, 2: 6}, 2)
    mine, theirs = filled(policy, first, n_images=6, seed=1), filled(policy, second, n_images=6, seed=2)
    before = bits(theirs.state_dict())
    own, others = ([set(kept.images().keys[kept.labels == c].tolist()) for c in (4, 2)] for kept in (mine, theirs))
    mine.merge(theirs)
    assert bits(theirs.state_dict()) == before
    assert len(mine) == 6
    assert set(mine.images().keys.tolist()) <= set().union(*own, *others)
    if policy == "herding":  # 0 of either, 1 of either: the first choices
        assert counts(mine) == {4: 3, 2: 3}
        assert [order.tolist() for order in mine.order.split(3)] == [[0, 0, 1]] * 2
    elif policy == "reservoir":
        drawn = torch.cat([filled(policy, data, n_images=6, seed=s).order for s, data in ((1, first), (2, second))])
        assert mine.order.sort().values.tolist() == drawn.sort().values.tolist()[:6]
    mine.add(images({9: 3}, 3), rng(), pixels_as_features)
    assert counts(mine)[9] > 0


def test_an_image_of_both_is_kept_once() -> None:
    data = images({0: 3}, 1)
    mine, theirs = filled("random", data, n_images=9), filled("random", data, images({1: 2}, 2), n_images=9)
    mine.merge(theirs)
    assert counts(mine) == {0: 3, 1: 2}
    small = filled("random", data, n_images=1)
    with pytest.raises(ConfigError, match=r"n_images must be enough for one image of each of 2 classes, but got 1"):
        small.merge(theirs)
