"""Data sets by name or folder: train images, test images, class names."""

from __future__ import annotations

import dataclasses as dc
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from perdure.data.folders import (
    CheckedFile,
    KnownGood,
    check_files,
    class_files,
    folders_in,
    keys_of,
    refuse_corrupt,
)
from perdure.data.images import FileSource, LabelledImages
from perdure.errors import DataError, DataNotFoundError, SplitError, UnknownNameError, did_you_mean
from perdure.registry import Registry


@dc.dataclass(frozen=True)
class Dataset:
    """Images to learn from, images to test on, and what the class ids are called.

    Args:
        name: how it was asked for.
        train: images to learn from.
        test: images to test on.
        class_names: every class id's name.
        quarantined: corrupt files left out on request, with the reason.

    Raises:
        DataError: if a label has no name, or a test class never occurs in train.
    """

    name: str
    train: LabelledImages
    test: LabelledImages
    class_names: Mapping[int, str]
    quarantined: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for part, images in (("train", self.train), ("test", self.test)):
            nameless = sorted(set(images.classes) - set(self.class_names))
            if nameless:
                hint = f"Known class ids: {sorted(self.class_names)[:10]}"
                raise DataError(self.name, f"{part} labels", "class ids that have a name", nameless, hint)
        unseen = [self.class_names[c] for c in sorted(set(self.test.classes) - set(self.train.classes))]
        if unseen:
            got = unseen if len(unseen) > 1 else unseen[0]
            raise DataError(self.name, "test classes", "classes that train has", got, "Add train images or remove them")


datasets: Registry[Callable[[], Dataset]] = Registry("data set", "perdure.data", "perdure.datasets")


def cache_dir() -> Path:
    """Where downloads and features are kept: ``$PERDURE_CACHE``, else ``~/.cache/perdure``."""
    return Path(os.environ.get("PERDURE_CACHE", "~/.cache/perdure")).expanduser()


def load_dataset(
    data: str | Path, *, test_fraction: float = 0.2, split_seed: int = 0, skip_corrupt: bool = False
) -> Dataset:
    """A data set by registered name, or any image folder.

    Args:
        data: a name ``perdure ls data`` lists, or a folder ``root/{train,test}/<class>/…`` or ``root/<class>/…``.
        test_fraction: share of each class held out for testing where the folder has no test part.
        split_seed: seed of that split.
        skip_corrupt: leave corrupt files out and record them, rather than refuse to start.

    Raises:
        UnknownNameError: if it is neither a known name nor a path.
        SplitError: if ``test_fraction`` is not a fraction.
        DataNotFoundError: if the folder is missing or empty.
        DataError: naming every corrupt file, or test classes that train never has.
    """
    path = Path(data).expanduser()
    if not path.exists() and os.sep not in str(data):
        if str(data) not in datasets:
            hint = did_you_mean(str(data), datasets.names())
            raise UnknownNameError("data", "name", "a data set or an existing folder", str(data), hint)
        return datasets.get(str(data))()
    return folder_dataset(path, test_fraction=test_fraction, split_seed=split_seed, skip_corrupt=skip_corrupt)


def folder_dataset(
    root: Path,
    *,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    skip_corrupt: bool = False,
) -> Dataset:
    """An image folder as a data set; class ids follow the sorted class names.

    Args:
        root: ``root/{train,test}/<class>/…`` (``val`` serves where there is no ``test``) or ``root/<class>/…``.
        test_fraction: share of each class held out where there is no test part; a class of one image keeps it in train.
        split_seed: seed of that split.
        skip_corrupt: leave corrupt files out and record them.

    Raises:
        SplitError: if ``test_fraction`` is not a fraction.
        DataNotFoundError: if a folder is missing or empty.
        DataError: naming every corrupt file, or test classes that train never has.
    """
    _require_fraction(test_fraction)
    parts = _checked_parts(root)
    if not skip_corrupt:
        refuse_corrupt(_files_of(parts))
    return _dataset(str(root), parts, _ids([parts]), test_fraction, split_seed)


def split_parts(root: Path) -> dict[str, Path]:
    """The ``train`` and ``test`` folders (``val`` may stand for ``test``), or just the root as ``train``."""
    for test in ("test", "val"):
        if (root / "train").is_dir() and (root / test).is_dir():
            return {"train": root / "train", "test": root / test}
    return {"train": root}


def check_classes(per_class: Mapping[str, list[Path]]) -> dict[str, list[CheckedFile]]:
    """Checks every file of every class; contents that decoded in an earlier run are only hashed.

    Args:
        per_class: class name to image files.

    Returns:
        Class name to checked files, in the same order.
    """
    flat = [path for paths in per_class.values() for path in paths]
    checked = iter(check_files(flat, KnownGood(cache_dir() / "decoded.keys")))
    return {name: [next(checked) for _ in paths] for name, paths in per_class.items()}


def domain_datasets(
    root: Path, *, test_fraction: float = 0.2, split_seed: int = 0, skip_corrupt: bool = False
) -> dict[str, Dataset]:
    """One data set per domain, class ids shared: ``root/<domain>/<class>/…``, each domain split as a folder would be.

    Args:
        root: the folder of domains.
        test_fraction: as for :func:`folder_dataset`.
        split_seed: as for :func:`folder_dataset`.
        skip_corrupt: as for :func:`folder_dataset`.

    Raises:
        SplitError: if ``test_fraction`` is not a fraction.
        DataNotFoundError: if there is no domain, or a folder is missing or empty.
        DataError: naming every corrupt file, or a domain's test classes that its train never has.
    """
    if not root.is_dir() or not folders_in(root):
        hint = "Put each domain's classes into root/<domain>/<class>/"
        raise DataNotFoundError("data", "folder", "one sub-folder per domain", str(root), hint)
    _require_fraction(test_fraction)
    domains = {d.name: _checked_parts(d) for d in folders_in(root)}
    if not skip_corrupt:
        refuse_corrupt([f for parts in domains.values() for f in _files_of(parts)])
    ids = _ids(domains.values())
    return {n: _dataset(f"{root}/{n}", parts, ids, test_fraction, split_seed) for n, parts in domains.items()}


def _require_fraction(test_fraction: float) -> None:
    if not 0 <= test_fraction < 1:
        hint = "Give the share to hold out, e.g. 0.2"
        raise SplitError("data", "test_fraction", "at least 0 and below 1", test_fraction, hint)


def _checked_parts(root: Path) -> dict[str, dict[str, list[CheckedFile]]]:
    """``train`` and perhaps ``test``, each class name to its checked files."""
    files = {part: class_files(folder) for part, folder in split_parts(root).items()}
    return {part: check_classes(per_class) for part, per_class in files.items()}


def _files_of(parts: Mapping[str, Mapping[str, list[CheckedFile]]]) -> list[CheckedFile]:
    return [f for per_class in parts.values() for files in per_class.values() for f in files]


def _ids(folders: Iterable[Mapping[str, Mapping[str, list[CheckedFile]]]]) -> dict[str, int]:
    names = {name for parts in folders for per_class in parts.values() for name in per_class}
    return {name: i for i, name in enumerate(sorted(names))}


def _dataset(
    name: str,
    parts: Mapping[str, Mapping[str, list[CheckedFile]]],
    ids: Mapping[str, int],
    test_fraction: float,
    split_seed: int,
) -> Dataset:
    """The readable files as a data set, split by us where there is no test part."""
    good = {
        part: {name: [f for f in files if f.problem is None] for name, files in per_class.items()}
        for part, per_class in parts.items()
    }
    train, test = (good["train"], good["test"]) if "test" in good else _split(good["train"], test_fraction, split_seed)
    return Dataset(
        name=name,
        train=_labelled(train, ids),
        test=_labelled(test, ids),
        class_names={i: name for name, i in ids.items()},
        quarantined=tuple(f"{f.path}: {f.problem}" for f in _files_of(parts) if f.problem is not None),
    )


def _labelled(per_class: Mapping[str, list[CheckedFile]], ids: Mapping[str, int]) -> LabelledImages:
    files = [f for images in per_class.values() for f in images]
    labels = [ids[name] for name, images in per_class.items() for _ in images]
    return LabelledImages(FileSource([f.path for f in files], keys_of(files)), np.array(labels, dtype=np.int64))


def _split(
    per_class: Mapping[str, list[CheckedFile]], test_fraction: float, seed: int
) -> tuple[dict[str, list[CheckedFile]], dict[str, list[CheckedFile]]]:
    train: dict[str, list[CheckedFile]] = {}
    test: dict[str, list[CheckedFile]] = {}
    for name, files in per_class.items():
        # seeded by name too, so that adding a class leaves the other classes' split alone
        rng = np.random.default_rng([seed, *name.encode()])
        n_test = min(round(test_fraction * len(files)), max(len(files) - 1, 0))
        held_out = set(rng.permutation(len(files))[:n_test].tolist())
        train[name] = [f for i, f in enumerate(files) if i not in held_out]
        test[name] = [f for i, f in enumerate(files) if i in held_out]
    return train, test
