"""What is wrong with an image folder, all of it at once, before anything is learned from it.

The work behind ``perdure data check FOLDER``. A run refuses at its first problem; this lists every one, and also what
no run refuses but every result suffers from: the same image twice, one class under two names, nothing to test on.
"""

from __future__ import annotations

import dataclasses as dc
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from perdure.data.folders import CheckedFile, check_classes, folders_in, images_in, unread_in
from perdure.data.layout import Layout, class_folders, domain_folders, layout
from perdure.data.names import named, shown
from perdure.data.reading import Reading
from perdure.data.spelling import similar_pairs

Kind: TypeAlias = Literal[
    "corrupt-file",
    "empty-folder",
    "unseen-test-class",
    "one-image-class",
    "untested-class",
    "duplicate-across-parts",
    "duplicate-across-classes",
    "duplicate-in-class",
    "similar-class-names",
    "unused-part",
    "unread-files",
    "ignored-files",
]
Severity: TypeAlias = Literal["error", "warning", "info"]


@dc.dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth knowing about a folder.

    Args:
        kind: what it is, in kebab case.
        severity: ``error`` if a run would refuse, ``warning`` if results suffer, else ``info``.
        message: one plain sentence.
        paths: the files or folders concerned.
    """

    kind: Kind
    severity: Severity
    message: str
    paths: tuple[str, ...]


@dc.dataclass(frozen=True, slots=True)
class _Part:
    """The train or test part of a folder, or of one of its domains."""

    domain: str
    name: str
    folder: Path
    has_test: bool
    classes: dict[str, Path]
    files: dict[str, list[Path]]
    aside: Mapping[Path, str]

    @property
    def label(self) -> str:
        return f"{self.domain}/{self.name}" if self.domain else self.name

    def where(self, class_name: str) -> str:
        """The folder of a class, which another part may have and this one not."""
        return shown(self.classes.get(class_name, self.folder / class_name))


@dc.dataclass(frozen=True, slots=True)
class _Image:
    """A checked file and where it was found."""

    part: _Part
    class_name: str
    file: CheckedFile


def check_folder(root: Path, *, value_range: tuple[float, float] | None = None) -> list[Finding]:
    """Everything there is to say about an image folder; each file is read once.

    Args:
        root: ``root/{train,test}/<class>/…``, ``root/<class>/…`` or ``root/<domain>/<class>/…``, read as a run would.
        value_range: as a run will be given it; see :func:`perdure.data.load_stream`.

    Returns:
        The findings, errors first; an empty list means that the folder is fine.

    Raises:
        DataNotFoundError: if the folder is missing, or in no layout that is understood.
        DataError: if two folders share one name.
        ConfigError: if ``value_range`` is no range.
    """
    reading = Reading(value_range)
    parts = _parts(root)
    unread = {path: why for p in parts for folder in p.classes.values() for path, why in unread_in(folder).items()}
    images = [
        _Image(part, name, file)
        for part in parts
        for name, files in check_classes(part.files, reading).items()
        for file in files
    ]
    findings = [
        *_corrupt(images),
        *_empty(parts),
        *_one_sided(parts),
        *_single(parts, images),
        *_duplicates(images),
        *_similar_names(parts),
        *_aside(parts),
        *_unread(unread),
        *_ignored(root, parts, unread),
    ]
    return sorted(findings, key=lambda finding: ("error", "warning", "info").index(finding.severity))


def summary(root: Path) -> dict[str, tuple[int, int]]:
    """How much there is, without reading any image.

    Args:
        root: as for :func:`check_folder`.

    Returns:
        ``train``, ``test``, or ``<domain>/train`` and so on, each with its number of classes and of images.

    Raises:
        DataNotFoundError: if the folder is missing, or in no layout that is understood.
        DataError: if two folders share one name.
    """
    return {p.label: (len(p.files), sum(map(len, p.files.values()))) for p in _parts(root)}


def _parts(root: Path) -> list[_Part]:
    folders = class_folders(root).values()
    # domains: folders that hold no image of their own, but folders
    nested = any(folders_in(f) for f in folders) and not any(images_in(f) for f in folders)
    domains = domain_folders(root) if nested and len(layout(root).parts) == 1 else {"": root}
    return [_part(domain, name, layout(folder)) for domain, folder in domains.items() for name in layout(folder).parts]


def _part(domain: str, name: str, found: Layout) -> _Part:
    classes = named(folders_in(found.parts[name]))
    files = {class_name: images_in(folder) for class_name, folder in classes.items()}
    aside = found.aside if name == "train" else {}
    return _Part(domain, name, found.parts[name], "test" in found.parts, classes, files, aside)


def _corrupt(images: Sequence[_Image]) -> Iterator[Finding]:
    for file in (image.file for image in images):
        if file.problem is not None:
            message = f"{shown(file.path)} cannot be read: {file.problem}."
            yield Finding("corrupt-file", "error", message, (shown(file.path),))


def _empty(parts: Sequence[_Part]) -> Iterator[Finding]:
    for part in parts:
        if not part.files:
            yield Finding(
                "empty-folder", "error", f"{shown(part.folder)} holds no class folder.", (shown(part.folder),)
            )
        for name in (name for name, files in part.files.items() if not files):
            but = ", only folders, which are not searched" if folders_in(part.classes[name]) else ""
            folder = part.where(name)
            yield Finding("empty-folder", "error", f"Class folder {folder} holds no image{but}.", (folder,))


def _one_sided(parts: Sequence[_Part]) -> Iterator[Finding]:
    by_domain: dict[str, dict[str, _Part]] = defaultdict(dict)
    for part in parts:
        by_domain[part.domain][part.name] = part
    for both in by_domain.values():
        if "test" not in both:
            continue
        train, test = both["train"], both["test"]
        in_train, in_test = ({name for name, files in part.files.items() if files} for part in (train, test))
        for name in sorted(in_test - in_train):
            message = f"Class {name!r} is in {test.label} but has no image in {train.label}."
            yield Finding("unseen-test-class", "error", message, (test.where(name),))
        for name in sorted(in_train - in_test):
            message = f"Class {name!r} has no image in {test.label}, so nothing tells how well it is known."
            yield Finding("untested-class", "warning", message, (train.where(name),))


def _single(parts: Sequence[_Part], images: Sequence[_Image]) -> Iterator[Finding]:
    decoded: dict[tuple[str, str], int] = defaultdict(int)
    for image in images:
        decoded[image.part.label, image.class_name] += image.file.problem is None
    for part in parts:
        for name in part.files:
            if part.name == "train" and decoded[part.label, name] == 1:
                effect = "" if part.has_test else ", which leaves none to test on"
                message = f"Class {name!r} has only one image in {part.label}{effect}."
                yield Finding("one-image-class", "warning", message, (part.where(name),))


def _duplicates(images: Sequence[_Image]) -> Iterator[Finding]:
    groups: dict[bytes, list[_Image]] = defaultdict(list)
    for image in images:
        if image.file.problem is None:
            groups[image.file.key].append(image)
    for group in groups.values():
        if len(group) == 1:
            continue
        n, paths = len(group), tuple(shown(image.file.path) for image in group)
        classes = sorted({image.class_name for image in group})
        crosses_parts = len({image.part.name for image in group}) > 1
        if crosses_parts:
            message = f"One image is in both train and test, {n} times in all, so the test flatters."
            yield Finding("duplicate-across-parts", "warning", message, paths)
        if len(classes) > 1:
            message = f"One image is in {len(classes)} classes ({', '.join(classes)}), so at least one label is wrong."
            yield Finding("duplicate-across-classes", "warning", message, paths)
        elif not crosses_parts:
            # where a run splits the folder itself, the copies may fall on both sides
            leaks = not all(image.part.has_test for image in group)
            effect = ", and copies may be both learned and tested" if leaks else ""
            message = f"One image of class {classes[0]!r} is there {n} times{effect}."
            yield Finding("duplicate-in-class", "warning" if leaks else "info", message, paths)


def _similar_names(parts: Sequence[_Part]) -> Iterator[Finding]:
    folders: dict[str, list[str]] = defaultdict(list)
    for part in parts:
        for name in part.files:
            folders[name].append(part.where(name))
    for first, second in similar_pairs(sorted(folders)):
        message = f"Class names {first!r} and {second!r} look like two spellings of one class."
        yield Finding("similar-class-names", "warning", message, (*folders[first], *folders[second]))


def _aside(parts: Sequence[_Part]) -> Iterator[Finding]:
    for part in parts:
        for folder, why in part.aside.items():
            yield Finding("unused-part", "info", why, (shown(folder),))


def _unread(unread: Mapping[Path, str]) -> Iterator[Finding]:
    for reason in dict.fromkeys(unread.values()):
        paths = tuple(shown(path) for path, why in unread.items() if why == reason)
        what = "1 image file is" if len(paths) == 1 else f"{len(paths)} image files are"
        yield Finding("unread-files", "warning", f"{what} not read and will be left out: {reason}.", paths)


def _ignored(root: Path, parts: Sequence[_Part], unread: Mapping[Path, str]) -> Iterator[Finding]:
    class_paths = [folder for part in parts for folder in part.classes.values()]
    holders = dict.fromkeys([root, *(p.folder.parent for p in parts if p.folder != root), *(p.folder for p in parts)])
    used = {
        *holders,
        *class_paths,
        *unread,
        *(path for part in parts for files in part.files.values() for path in files),
    }
    seen = (path for folder in [*holders, *class_paths] for path in sorted(folder.iterdir()))
    ignored = tuple(shown(path) for path in seen if path not in used and not path.name.startswith("."))
    if ignored:
        what = "1 file or folder is" if len(ignored) == 1 else f"{len(ignored)} files or folders are"
        yield Finding("ignored-files", "info", f"{what} no image of a class and will be ignored.", ignored)
