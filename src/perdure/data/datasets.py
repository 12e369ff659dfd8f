"""Data sets by name or folder: train images, test images, class names."""

from __future__ import annotations

import dataclasses as dc
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from perdure.data.folders import CheckedFile, check_classes, folders_in, keys_of, refuse_corrupt, unread_in
from perdure.data.images import FileSource, LabelledImages
from perdure.data.layout import class_files, domain_folders, layout, require_folder
from perdure.data.names import in_natural_order, on_disk, shown
from perdure.data.reading import Reading
from perdure.errors import DataError, SplitError, UnknownNameError, did_you_mean
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
        notes: what a person should know of how the folder was read, in sentences.
        display_names: what the classes are called for people; as ``class_names`` if not given.
        unread: files of class folders that look like images but cannot be read here, with what to do.

    Raises:
        DataError: if a label has no name, or a test class never occurs in train.
    """

    name: str
    train: LabelledImages
    test: LabelledImages
    class_names: Mapping[int, str]
    quarantined: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    display_names: Mapping[int, str] = dc.field(default_factory=dict)
    unread: tuple[str, ...] = ()

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


def load_dataset(
    data: str | Path,
    *,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    skip_corrupt: bool = False,
    value_range: tuple[float, float] | None = None,
) -> Dataset:
    """A data set by registered name, or any image folder.

    Args:
        data: a name ``perdure ls data`` lists, or a folder ``root/{train,test}/<class>/…`` or ``root/<class>/…``.
        test_fraction: share of each class held out for testing where the folder has no test part.
        split_seed: seed of that split.
        skip_corrupt: leave corrupt files out and record them, rather than refuse to start.
        value_range: black and white of deep images in files; see :class:`perdure.data.reading.Reading`.

    Raises:
        UnknownNameError: if it is neither a known name nor a path.
        SplitError: if ``test_fraction`` is not a fraction.
        DataNotFoundError: if the folder is missing or empty, or in no layout that is understood.
        DataError: naming every corrupt file, folders that share one name, or test classes that train never has.
    """
    path = on_disk(data)
    if not path.exists() and os.sep not in str(data):
        if str(data) not in datasets:
            hint = did_you_mean(shown(data), datasets.names())
            raise UnknownNameError("data", "name", "a data set or an existing folder", shown(data), hint)
        return datasets.get(str(data))()
    return folder_dataset(
        path, test_fraction=test_fraction, split_seed=split_seed, skip_corrupt=skip_corrupt, value_range=value_range
    )


def folder_dataset(
    root: Path,
    *,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    skip_corrupt: bool = False,
    value_range: tuple[float, float] | None = None,
) -> Dataset:
    """An image folder as a data set; class ids follow the class names in natural order.

    Args:
        root: ``root/{train,test}/<class>/…``, parts as in :func:`perdure.data.layout.layout`, or ``root/<class>/…``.
        test_fraction: share of each class held out where there is no test part; a class of one image keeps it in train.
        split_seed: seed of that split.
        skip_corrupt: leave corrupt files out and record them.
        value_range: as for :func:`load_dataset`.

    Raises:
        SplitError: if ``test_fraction`` is not a fraction.
        DataNotFoundError: if a folder is missing or empty, or in no layout that is understood.
        DataError: naming every corrupt file, folders that share one name, or test classes that train never has.
    """
    _require_fraction(test_fraction)
    reading = Reading(value_range)
    read = _read(root, reading)
    if not skip_corrupt:
        refuse_corrupt(_files_of(read.parts))
    return _dataset(shown(root), read, _ids([read]), test_fraction, split_seed, reading)


def domain_datasets(
    root: Path,
    *,
    test_fraction: float = 0.2,
    split_seed: int = 0,
    skip_corrupt: bool = False,
    value_range: tuple[float, float] | None = None,
) -> dict[str, Dataset]:
    """One data set per domain, class ids shared: ``root/<domain>/<class>/…``, each domain split as a folder would be.

    Args:
        root: the folder of domains.
        test_fraction: as for :func:`folder_dataset`.
        split_seed: as for :func:`folder_dataset`.
        skip_corrupt: as for :func:`folder_dataset`.
        value_range: as for :func:`load_dataset`.

    Raises:
        SplitError: if ``test_fraction`` is not a fraction.
        DataNotFoundError: if there is no domain, the folders are parts of one data set, or one is missing or empty.
        DataError: naming every corrupt file, folders that share one name, or test classes that train never has.
    """
    _require_fraction(test_fraction)
    reading = Reading(value_range)
    domains = {name: _read(folder, reading, domain=True) for name, folder in domain_folders(root).items()}
    if not skip_corrupt:
        refuse_corrupt([f for read in domains.values() for f in _files_of(read.parts)])
    ids = _ids(domains.values())
    return {
        name: _dataset(f"{shown(root)}/{name}", read, ids, test_fraction, split_seed, reading)
        for name, read in domains.items()
    }


def _require_fraction(test_fraction: float) -> None:
    if not 0 <= test_fraction < 1:
        hint = "Give the share to hold out, e.g. 0.2"
        raise SplitError("data", "test_fraction", "at least 0 and below 1", test_fraction, hint)


@dc.dataclass(frozen=True, slots=True)
class _Read:
    """A folder's ``train`` and perhaps ``test``, each class name to its checked files, and what to tell of it."""

    parts: Mapping[str, Mapping[str, list[CheckedFile]]]
    notes: tuple[str, ...]
    unread: tuple[str, ...]


def _read(root: Path, reading: Reading, *, domain: bool = False) -> _Read:
    require_folder(root)
    found = layout(root)
    files = {part: class_files(folder, part=domain or folder != root) for part, folder in found.parts.items()}
    unread = [unread_in(folder) for part in found.parts.values() for folder in folders_in(part)]
    return _Read(
        parts={part: check_classes(per_class, reading) for part, per_class in files.items()},
        notes=found.notes,
        unread=tuple(f"{shown(path)}: {reason}" for each in unread for path, reason in each.items()),
    )


def _files_of(parts: Mapping[str, Mapping[str, list[CheckedFile]]]) -> list[CheckedFile]:
    return [f for per_class in parts.values() for files in per_class.values() for f in files]


def _ids(folders: Iterable[_Read]) -> dict[str, int]:
    names = {name for read in folders for per_class in read.parts.values() for name in per_class}
    return {name: i for i, name in enumerate(in_natural_order(names))}


def _dataset(
    name: str,
    read: _Read,
    ids: Mapping[str, int],
    test_fraction: float,
    split_seed: int,
    reading: Reading,
) -> Dataset:
    """The readable files as a data set, split by us where there is no test part."""
    good = {
        part: {name: [f for f in files if f.problem is None] for name, files in per_class.items()}
        for part, per_class in read.parts.items()
    }
    train, test = (good["train"], good["test"]) if "test" in good else _split(good["train"], test_fraction, split_seed)
    return Dataset(
        name=name,
        train=_labelled(train, ids, reading),
        test=_labelled(test, ids, reading),
        class_names={i: name for name, i in ids.items()},
        quarantined=tuple(f.complaint for f in _files_of(read.parts) if f.problem is not None),
        notes=(*read.notes, *_twice(good)),
        unread=read.unread,
    )


def _twice(parts: Mapping[str, Mapping[str, list[CheckedFile]]]) -> Iterator[str]:
    """What there is to say of images that are in several classes."""
    classes: dict[bytes, set[str]] = defaultdict(set)
    for per_class in parts.values():
        for name, files in per_class.items():
            for file in files:
                classes[file.key].add(name)
    several = [names for names in classes.values() if len(names) > 1]
    if several:
        which = in_natural_order(set.union(*several))
        told = ", ".join(which[:10]) + (f" and {len(which) - 10} more" if len(which) > 10 else "")
        yield f"{len(several)} images are in several classes ({told}), so some labels are wrong: see perdure data check"


def _labelled(per_class: Mapping[str, list[CheckedFile]], ids: Mapping[str, int], reading: Reading) -> LabelledImages:
    files = [f for images in per_class.values() for f in images]
    labels = [ids[name] for name, images in per_class.items() for _ in images]
    source = FileSource([f.path for f in files], keys_of(files), reading)
    return LabelledImages(source, np.array(labels, dtype=np.int64))


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
