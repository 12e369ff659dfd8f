"""How a folder is laid out: which sub-folder is for training, which for testing, which are classes, which domains."""

from __future__ import annotations

import dataclasses as dc
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from perdure.data.folders import folders_in, images_in, unread_in
from perdure.data.names import named, shown
from perdure.errors import DataError, DataNotFoundError

TRAIN: Final = ("train", "training")
TEST: Final = ("test", "testing", "eval", "val", "valid", "validation")
"""Names of parts, in any case; of several test parts the first that holds class folders is used."""
LAYOUTS: Final = (
    "root/<class>/, root/{train,test}/<class>/ or, with stream.scenario=domain, root/<domain>/<class>/ "
    "or root/<domain>/{train,test}/<class>/"
)
TREE_LINES: Final = 12
PACKED: Final = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z")


@dc.dataclass(frozen=True, slots=True)
class Layout:
    """The parts of a folder.

    Args:
        parts: ``train`` and ``test``; or the whole folder as ``train``, to be split.
        aside: parts that are not used, each with a sentence that says why.
    """

    parts: Mapping[str, Path]
    aside: Mapping[Path, str] = dc.field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know who gave this folder."""
        return tuple(self.aside.values())


def layout(root: Path) -> Layout:
    """Which sub-folders of ``root`` are for training and for testing.

    Args:
        root: a data set's folder, or a domain's.

    Raises:
        DataNotFoundError: if there are parts, but not one of each kind with class folders in it.
        DataError: if one part is there under two names.
    """
    folders = folders_in(root)
    trains, tests = ([f for f in folders if f.name.lower() in names] for names in (TRAIN, TEST))
    others = [f for f in folders if f not in trains and f not in tests]
    if not (trains or tests) or (others and not _stand_beside(trains, tests, others)):
        return Layout({"train": root})
    _refuse_twins(trains, tests)
    tests.sort(key=lambda f: TEST.index(f.name.lower()))
    if not trains or not tests:
        raise _not_understood(root, _one_sided(root, trains, tests))
    train, test = trains[0], next((f for f in tests if folders_in(f)), tests[0])
    for part in (train, test):
        if images_in(part) and not folders_in(part):
            hint = f"Put each class's images into a folder of their own: {shown(part)}/<class>/"
            whole = "" if part is train else f"; or give {shown(train)} alone, of which a share is held out for testing"
            raise _not_understood(root, hint + whole)
    return Layout({"train": train, "test": test}, {f: _why(f, test) for f in tests if f is not test})


def is_parts(root: Path) -> bool:
    """Whether the sub-folders of ``root`` are parts of one data set, or are called so: then they are no domains.

    Args:
        root: an existing folder.
    """
    names = {f.name.lower() for f in folders_in(root)}
    return bool(names) and (names <= {*TRAIN, *TEST} or len(layout(root).parts) > 1)


def require_folder(root: Path) -> None:
    """Refuses a path that is no folder.

    Raises:
        DataNotFoundError: if ``root`` is missing or a file.
    """
    if root.is_dir():
        return
    hint = "Check the path; relative paths start at the current directory"
    if root.is_file():
        packed = zipfile.is_zipfile(root) or root.suffix.lower() in PACKED
        hint = "Unpack it, and give the folder that comes out" if packed else "Give the folder in which it lies"
    raise DataNotFoundError("data", "folder", "an existing folder", shown(root), hint)


def class_folders(root: Path) -> dict[str, Path]:
    """The sub-folders of ``root`` by class name, in natural order.

    Raises:
        DataNotFoundError: if the folder is missing or holds no folder.
        DataError: if two folders have one name.
    """
    require_folder(root)
    folders = named(folders_in(root))
    if not folders:
        hint = f"Put each class's images into a sub-folder named after the class: {shown(root)}/<class>/"
        if len(tree(root)) > 1:
            raise _not_understood(root, hint)
        raise DataNotFoundError("data", "folder", "one with one sub-folder per class", shown(root), hint)
    return folders


def class_files(root: Path, *, part: bool = False) -> dict[str, list[Path]]:
    """Class name to image files for ``root/<class>/…``, classes in natural order and each class's files by name.

    Args:
        root: the folder of class folders.
        part: whether ``root`` is a part or a domain, so that its folders can be no domains.

    Raises:
        DataNotFoundError: if the folder is missing, holds no class folder, or a class folder holds no image.
        DataError: if two folders have one name.
    """
    folders = class_folders(root)
    files = {name: images_in(folder) for name, folder in folders.items()}
    empty = [folders[name] for name, images in files.items() if not images]
    nested = [folder for folder in empty if folders_in(folder)]
    if nested and len(empty) == len(files):
        raise _not_understood(root, _lift(root) if part else _of_nested(nested) or _lift(root))
    if unread := [f"{shown(path)}: {why}" for folder in empty for path, why in unread_in(folder).items()]:
        more = [f"and {len(unread) - 10} more"] if len(unread) > 10 else []
        must_be, hint = "folders with at least one image that can be read", "Do what stands beside each file"
        raise DataNotFoundError("data", "class folders", must_be, unread[:10] + more, hint)
    if empty:
        hint = f"Some hold folders, which are not searched. {_lift(root)}" if nested else "Fill or remove"
        must_be = "folders with at least one image"
        raise DataNotFoundError("data", "class folders", must_be, [shown(f) for f in empty], hint)
    return files


def domain_folders(root: Path) -> dict[str, Path]:
    """The sub-folders of ``root`` by domain name, in natural order.

    Raises:
        DataNotFoundError: if the folder is missing, holds no folder, or holds the parts of one data set.
        DataError: if two folders have one name.
    """
    if not root.is_dir() or not folders_in(root):
        hint = "Put each domain's classes into root/<domain>/<class>/"
        raise DataNotFoundError("data", "folder", "one with one sub-folder per domain", shown(root), hint)
    if is_parts(root):
        hint = "As domains, the images for testing would be learned: leave out stream.scenario=domain"
        raise DataNotFoundError("data", "domains", "folders that are no parts of one data set", tree(root), hint)
    return named(folders_in(root))


def tree(root: Path) -> list[str]:
    """What lies in a folder, in at most :data:`TREE_LINES` lines.

    Args:
        root: an existing folder.
    """
    folders = folders_in(root)
    lines = [f"{shown(root)}/  {_held(root)}"]
    for folder in folders[: TREE_LINES // 2 - 2]:
        inner = folders_in(folder)
        lines.append(f"  {shown(folder.name)}/  {_held(folder)}")
        lines += [f"    {shown(f.name)}/  {_held(f)}" for f in inner[:1]]
    files = [] if folders else images_in(root)[:3]
    lines += [f"  {shown(file.name)}" for file in files]
    left = len(folders) - (TREE_LINES // 2 - 2)
    return [*lines, f"  … {left} more"] if left > 0 else lines


def _stand_beside(trains: Sequence[Path], tests: Sequence[Path], others: Iterable[Path]) -> bool:
    """Whether parts are parts although other folders stand beside them: a class may be called ``train``."""
    if not trains or not tests:
        return False
    return any(folders_in(f) for f in trains) or not any(images_in(f) for f in others)


def _refuse_twins(trains: Sequence[Path], tests: Sequence[Path]) -> None:
    same: dict[str, list[Path]] = defaultdict(list)
    for folder in (*trains, *tests):
        same["train" if folder in trains else folder.name.lower()].append(folder)
    for part, twins in same.items():
        if len(twins) > 1:
            hint = "Merge them, or move one elsewhere"
            raise DataError("data", f"the {part} part", "one folder", [shown(f) for f in twins], hint)


def _one_sided(root: Path, trains: Sequence[Path], tests: Sequence[Path]) -> str:
    """What to do where there are parts of one kind only."""
    if not trains:
        return f"Add the images to learn from as {shown(root)}/train/<class>/"
    return (
        f"Give {shown(trains[0])} itself, of which a share is held out for testing; "
        f"or add images to test on as {shown(root)}/test/<class>/"
    )


def _why(folder: Path, test: Path) -> str:
    if not folders_in(folder) and TEST.index(folder.name.lower()) < TEST.index(test.name.lower()):
        return f"{shown(test)} is the test part, because {shown(folder)} holds no class folders."
    return f"{shown(folder)} is not used, because {shown(test)} is the test part."


def _of_nested(nested: Sequence[Path]) -> str:
    """What to do where no folder holds images, but these hold folders: nothing, if it cannot be a folder of domains."""
    domains = "set stream.scenario=domain"
    if len(nested) == 1:
        return f"Give {shown(nested[0])} itself; or, if it is a domain, {domains}"
    if any(is_parts(f) for f in nested):
        return f"For domains that each have their own train and test, {domains}"
    if any(images_in(inner) for f in nested for inner in folders_in(f)):
        return f"For domains that share their classes, {domains}; for groups of classes, move the class folders up"
    return ""


def _lift(root: Path) -> str:
    return f"Move the images up, so that they lie directly in {shown(root)}/<class>/"


def _held(folder: Path) -> str:
    """How many images, folders and other files lie directly in a folder."""
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    folders, images = sum(entry.is_dir() for entry in entries), len(images_in(folder))
    others = len(entries) - folders - images
    counts = [(images, "image"), (folders, "folder"), (others, "other file")]
    return ", ".join(f"{n} {what}{'s' * (n != 1)}" for n, what in counts if n) or "empty"


def _not_understood(root: Path, hint: str) -> DataNotFoundError:
    return DataNotFoundError("data", "folder", LAYOUTS, tree(root), hint)
