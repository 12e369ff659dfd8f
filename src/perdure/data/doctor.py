"""What is wrong with an image folder, all of it at once, before anything is learned from it.

The work behind ``perdure data check FOLDER``. A run refuses at its first problem; this lists every one, and also what
no run refuses but every result suffers from: the same image twice, one class under two names, nothing to test on.
"""

from __future__ import annotations

import dataclasses as dc
import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from perdure.data.datasets import check_classes, split_parts
from perdure.data.folders import CheckedFile, class_folders, folders_in, images_in

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
    "ignored-files",
]
Severity: TypeAlias = Literal["error", "warning", "info"]

SIMILAR = 0.9
"""``difflib`` ratio from which two class names count as spellings of one."""

PLURALS = (("s", ""), ("es", ""), ("ies", "y"))
"""Endings of English plurals and of their singulars."""


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
    files: dict[str, list[Path]]

    @property
    def label(self) -> str:
        return f"{self.domain}/{self.name}" if self.domain else self.name


@dc.dataclass(frozen=True, slots=True)
class _Image:
    """A checked file and where it was found."""

    part: _Part
    class_name: str
    file: CheckedFile


def check_folder(root: Path) -> list[Finding]:
    """Everything there is to say about an image folder; each file is read once.

    Args:
        root: ``root/{train,test}/<class>/…``, ``root/<class>/…`` or ``root/<domain>/<class>/…``.

    Returns:
        The findings, errors first; an empty list means that the folder is fine.

    Raises:
        DataNotFoundError: if the folder is missing or holds no folder.
    """
    parts = _parts(root)
    images = [
        _Image(part, name, file)
        for part in parts
        for name, files in check_classes(part.files).items()
        for file in files
    ]
    findings = [
        *_corrupt(images),
        *_empty(parts),
        *_one_sided(parts),
        *_single(parts, images),
        *_duplicates(images),
        *_similar_names(parts),
        *_ignored(root, parts),
    ]
    return sorted(findings, key=lambda finding: ("error", "warning", "info").index(finding.severity))


def summary(root: Path) -> dict[str, tuple[int, int]]:
    """How much there is, without reading any image.

    Args:
        root: as for :func:`check_folder`.

    Returns:
        ``train``, ``test``, or ``<domain>/train`` and so on, each with its number of classes and of images.

    Raises:
        DataNotFoundError: if the folder is missing or holds no folder.
    """
    return {p.label: (len(p.files), sum(map(len, p.files.values()))) for p in _parts(root)}


def _parts(root: Path) -> list[_Part]:
    folders = class_folders(root)
    # domains: folders that hold no image of their own, but folders
    nested = any(folders_in(f) for f in folders) and not any(images_in(f) for f in folders)
    domains = {f.name: f for f in folders} if nested and len(split_parts(root)) == 1 else {"": root}
    return [
        _Part(domain, name, part, len(split_parts(folder)) > 1, {f.name: images_in(f) for f in folders_in(part)})
        for domain, folder in domains.items()
        for name, part in split_parts(folder).items()
    ]


def _corrupt(images: Sequence[_Image]) -> Iterator[Finding]:
    for file in (image.file for image in images):
        if file.problem is not None:
            yield Finding("corrupt-file", "error", f"{file.path} cannot be read: {file.problem}.", (str(file.path),))


def _empty(parts: Sequence[_Part]) -> Iterator[Finding]:
    for part in parts:
        if not part.files:
            yield Finding("empty-folder", "error", f"{part.folder} holds no class folder.", (str(part.folder),))
        for folder in (part.folder / name for name, files in part.files.items() if not files):
            but = ", only folders, which are not searched" if folders_in(folder) else ""
            yield Finding("empty-folder", "error", f"Class folder {folder} holds no image{but}.", (str(folder),))


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
            yield Finding("unseen-test-class", "error", message, (str(test.folder / name),))
        for name in sorted(in_train - in_test):
            message = f"Class {name!r} has no image in {test.label}, so nothing tells how well it is known."
            yield Finding("untested-class", "warning", message, (str(train.folder / name),))


def _single(parts: Sequence[_Part], images: Sequence[_Image]) -> Iterator[Finding]:
    decoded: dict[tuple[str, str], int] = defaultdict(int)
    for image in images:
        decoded[image.part.label, image.class_name] += image.file.problem is None
    for part in parts:
        for name in part.files:
            if part.name == "train" and decoded[part.label, name] == 1:
                effect = "" if part.has_test else ", which leaves none to test on"
                message = f"Class {name!r} has only one image in {part.label}{effect}."
                yield Finding("one-image-class", "warning", message, (str(part.folder / name),))


def _duplicates(images: Sequence[_Image]) -> Iterator[Finding]:
    groups: dict[bytes, list[_Image]] = defaultdict(list)
    for image in images:
        if image.file.problem is None:
            groups[image.file.key].append(image)
    for group in groups.values():
        if len(group) == 1:
            continue
        n, paths = len(group), tuple(str(image.file.path) for image in group)
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
            folders[name].append(str(part.folder / name))
    for first, second in _similar_pairs(sorted(folders)):
        message = f"Class names {first!r} and {second!r} look like two spellings of one class."
        yield Finding("similar-class-names", "warning", message, (*folders[first], *folders[second]))


def _similar_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    words = [re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip() for name in names]
    letters = [w.replace(" ", "") for w in words]
    # numbers and single letters tell classes apart on purpose ("type_a", "type_b"; "class_10", "class_11")
    marks = [[m.lstrip("0") for m in re.findall(r"\d+|\b[^\W\d]\b", w)] for w in words]
    pairs: set[tuple[int, int]] = set()
    for forms in (letters, *([_without(w, *ending) for w in words] for ending in PLURALS)):
        same: dict[str, list[int]] = defaultdict(list)
        for i, form in enumerate(forms):
            same[form].append(i)
        pairs.update(pair for group in same.values() for pair in combinations(group, 2))
    pairs.update((i, j) for i, j in _alike(letters) if marks[i] == marks[j])
    return [(names[i], names[j]) for i, j in sorted(pairs)]


def _alike(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The pairs whose ``difflib`` ratio reaches :data:`SIMILAR`."""
    # Shared letters bound the ratio from above: counting them first spares nearly all of the n² comparisons.
    counts = np.zeros((len(texts), 64), dtype=np.int16)
    for i, text in enumerate(texts):
        for letter in text:
            counts[i, ord(letter) % 64] += 1
    lengths = counts.sum(1)
    for i, text in enumerate(texts):
        shared = np.minimum(counts[i], counts[i + 1 :]).sum(1)
        for j in (i + 1 + np.flatnonzero(2 * shared >= SIMILAR * (lengths[i] + lengths[i + 1 :]))).tolist():
            if difflib.SequenceMatcher(None, text, texts[j], autojunk=False).ratio() >= SIMILAR:
                yield i, j


def _without(words: str, plural: str, singular: str) -> str:
    """``words`` with a plural ending replaced; short words are left alone ("bus")."""
    ends = words.endswith(plural) and len(words) > len(plural) + 2
    return words.removesuffix(plural) + singular if ends else words


def _ignored(root: Path, parts: Sequence[_Part]) -> Iterator[Finding]:
    class_paths = [part.folder / name for part in parts for name in part.files]
    holders = dict.fromkeys([root, *(p.folder.parent for p in parts if p.folder != root), *(p.folder for p in parts)])
    used = {*holders, *class_paths, *(path for part in parts for files in part.files.values() for path in files)}
    seen = (path for folder in [*holders, *class_paths] for path in sorted(folder.iterdir()))
    ignored = tuple(str(path) for path in seen if path not in used and not path.name.startswith("."))
    if ignored:
        what = "1 file or folder is" if len(ignored) == 1 else f"{len(ignored)} files or folders are"
        yield Finding("ignored-files", "info", f"{what} no image of a class and will be ignored.", ignored)
