"""Data sets from folders: ids, splits, domains, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from perdure.data import ArraySource, Dataset, LabelledImages, load_dataset, load_stream
from perdure.data.datasets import datasets, domain_datasets, folder_dataset
from perdure.data.folders import cache_dir
from perdure.data.named import data_dir
from perdure.errors import DataError, DataNotFoundError, SplitError, UnknownNameError


def fill(folder: Path, **classes: int) -> Path:
    """A folder with so many images of each class, no two alike."""
    for name, n in classes.items():
        (folder / name).mkdir(parents=True)
        for i in range(n):
            colour = (len(name) * 7 % 256, ord(name[0]), i)
            Image.new("RGB", (8, 8), colour).save(folder / name / f"{i:02}.png")
    return folder


def names(images: LabelledImages, class_id: int) -> list[str]:
    """The file names of one class, sorted."""
    of_class = images.of_classes([class_id])
    return sorted(Path(of_class.name(i)).name for i in range(len(of_class)))


def flat(labels: list[int]) -> LabelledImages:
    return LabelledImages(ArraySource(np.zeros((len(labels), 2, 2), np.uint8), "flat"), np.array(labels))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder for images, apart from the cache."""
    return tmp_path / "root"


def test_labels_need_names() -> None:
    with pytest.raises(DataError, match=r"test labels.*\[-5\].*Known class ids: \[3\]"):
        Dataset("x", flat([3]), flat([3, -5]), {3: "three"})


@pytest.mark.parametrize(("test", "shown"), [([3, 4], "'four'"), ([4, 5], "four\n    five")])
def test_test_classes_must_occur_in_train(test: list[int], shown: str) -> None:
    with pytest.raises(DataError, match=shown):
        Dataset("x", flat([3]), flat(test), {3: "three", 4: "four", 5: "five"})


def test_split_folders_are_read_as_they_are(root: Path) -> None:
    fill(root / "train", b=3, a=2)
    fill(root / "test", b=1)
    data = load_dataset(root)
    assert data.class_names == {0: "a", 1: "b"}
    assert (len(data.train), len(data.test)) == (5, 1)
    assert names(data.train, 1) == ["00.png", "01.png", "02.png"]
    assert data.test.labels.tolist() == [1]
    assert data.quarantined == ()


def test_val_stands_in_only_where_there_is_no_test(root: Path) -> None:
    fill(root / "train", a=2)
    fill(root / "val", a=5)
    assert len(load_dataset(root).test) == 5
    fill(root / "test", a=1)
    assert len(load_dataset(root).test) == 1


def test_test_folders_without_train_are_named(root: Path) -> None:
    fill(root / "train", a=2)
    fill(root / "test", a=1, zebra=1)
    with pytest.raises(DataError, match="'zebra'"):
        load_dataset(root)


def test_the_split_is_seeded_and_holds_out_a_fifth(root: Path) -> None:
    fill(root, a=20)
    one, again, other = load_dataset(root), load_dataset(root), load_dataset(root, split_seed=1)
    assert (len(one.train), len(one.test)) == (16, 4)
    assert one.test.fingerprint == again.test.fingerprint
    assert one.test.fingerprint != other.test.fingerprint
    assert not set(names(one.train, 0)) & set(names(one.test, 0))
    assert len(load_dataset(root, test_fraction=0.5).test) == 10


def test_the_split_is_the_one_that_published_numbers_stand_on(root: Path) -> None:
    fill(root, cat=10, dog=10, emu=8)
    drawn = {seed: load_dataset(root, split_seed=seed) for seed in (0, 1)}
    held_out = {seed: [names(data.test, c) for c in (0, 1)] for seed, data in drawn.items()}
    assert held_out == {
        0: [["05.png", "06.png"], ["05.png", "09.png"]],
        1: [["02.png", "05.png"], ["01.png", "07.png"]],
    }
    assert len(names(drawn[0].test, 2)) == 2, "a fifth of eight, rounded"
    kept = [Path(drawn[0].train.name(i)).name for i in range(8)]
    assert kept == [f"{i:02}.png" for i in range(10) if i not in (5, 6)], "in the order of the files"
    assert drawn[0].train.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 6


def test_what_is_left_out_is_the_same_wherever_it_is_asked_for() -> None:
    """Defaults stand in several signatures; a run, a script and a domain must cut alike."""
    told = inspect.signature(load_dataset).parameters
    assert {n: told[n].default for n in ("test_fraction", "split_seed", "skip_corrupt")} == {
        **{"test_fraction": 0.2, "split_seed": 0, "skip_corrupt": False}
    }
    for function in (folder_dataset, domain_datasets, load_stream):
        for name, parameter in inspect.signature(function).parameters.items():
            if name in told and name != "data":
                assert parameter.default == told[name].default, (function.__name__, name)


def test_a_home_folder_is_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.setenv("PERDURE_DATA", "~/images")
    assert data_dir() == Path.home() / "images"


def test_a_new_class_leaves_the_others_split_alone(root: Path) -> None:
    fill(root, cat=10, dog=10)
    before = load_dataset(root)
    fill(root, ant=10)
    after = load_dataset(root)
    assert after.class_names == {0: "ant", 1: "cat", 2: "dog"}
    for old, new in ((0, 1), (1, 2)):
        assert names(before.test, old) == names(after.test, new)


@pytest.mark.parametrize("fraction", [0.2, 0.99])
def test_a_one_image_class_stays_in_train(root: Path, fraction: float) -> None:
    fill(root, lone=1, many=10)
    data = load_dataset(root, test_fraction=fraction)
    assert (names(data.train, 0), names(data.test, 0)) == (["00.png"], [])
    assert len(data.train.of_classes([1])) >= 1


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_test_fraction_must_be_a_fraction(root: Path, fraction: float) -> None:
    with pytest.raises(SplitError, match=f"test_fraction.*{fraction}"):
        load_dataset(fill(root, a=5), test_fraction=fraction)


def test_nothing_need_be_held_out(root: Path) -> None:
    assert len(load_dataset(fill(root, a=5), test_fraction=0).test) == 0


def test_an_unknown_name_is_shown_with_its_neighbour() -> None:
    with pytest.raises(UnknownNameError, match=r"'digit'.*Did you mean 'digits'"):
        load_dataset("digit")


def test_a_missing_folder_is_no_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="digits"):
        load_dataset(tmp_path / "digits")


def test_known_names_are_listed() -> None:
    assert {"cifar10", "cifar100", "digits", "fashion-mnist", "synthetic"} <= set(datasets.names())


def test_domains_share_their_class_ids(root: Path) -> None:
    fill(root / "photo", cat=5, dog=5)
    fill(root / "sketch", ant=5, dog=5)
    domains = domain_datasets(root)
    assert list(domains) == ["photo", "sketch"]
    assert domains["photo"].train.classes == (1, 2)
    assert domains["sketch"].train.classes == (0, 2)
    assert domains["photo"].class_names == domains["sketch"].class_names == {0: "ant", 1: "cat", 2: "dog"}


def test_domains_may_be_split_themselves(root: Path) -> None:
    fill(root / "photo" / "train", cat=3)
    fill(root / "photo" / "test", cat=2)
    fill(root / "sketch", cat=10)
    sizes = {name: (len(d.train), len(d.test)) for name, d in domain_datasets(root).items()}
    assert sizes == {"photo": (3, 2), "sketch": (8, 2)}


def test_no_domain_is_refused(tmp_path: Path) -> None:
    for root in (tmp_path / "missing", tmp_path):
        with pytest.raises(DataNotFoundError, match="sub-folder per domain") as caught:
            domain_datasets(root)
        assert repr(str(root)) in str(caught.value)


def test_the_cache_has_a_home_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PERDURE_CACHE")
    assert cache_dir() == Path.home() / ".cache" / "perdure"


def test_real_images_split_into_tasks_without_loss(shared_data: Path) -> None:
    data = load_dataset(shared_data / "cifar10")
    assert (len(data.train), len(data.test), len(data.class_names)) == (2000, 600, 10)


def test_every_corrupt_file_of_every_domain_is_named(root: Path) -> None:
    for domain in ("day", "night"):
        for name in ("cat", "dog"):
            folder = root / domain / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (len(name) * 9, 3, len(domain))).save(folder / "good.png")
        (root / domain / "cat" / f"bad_{domain}.png").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        domain_datasets(root)
    assert "bad_day.png" in str(caught.value)
    assert "bad_night.png" in str(caught.value)
    quarantined = [q for d in domain_datasets(root, skip_corrupt=True).values() for q in d.quarantined]
    assert len(quarantined) == 2
