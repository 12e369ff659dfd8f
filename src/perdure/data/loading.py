"""Streams from data sets' names or any image folders, from the start or from where a method stands."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from perdure.data.continuing import Known, continuing, renamed
from perdure.data.datasets import Dataset, domain_datasets, load_dataset
from perdure.data.display import display_names, read_aliases, require_known
from perdure.data.images import LabelledImages
from perdure.data.names import on_disk, shown
from perdure.data.order import order_classes, order_domains
from perdure.data.several import any_given, one_after_another, require_several, short_name, told_apart
from perdure.data.stream import Stream, class_incremental, domain_incremental, task_sizes
from perdure.errors import SplitError, did_you_mean

SCENARIOS = ("class", "domain")


def load_stream(
    data: str | Path | None = None, *, datasets: Sequence[str | Path] | None = None,
    tasks: int | None = None, base: int | None = None, increment: int | None = None,
    sizes: Sequence[int] | None = None, order_seed: int | None = 1993, class_order: Sequence[int | str] | None = None,
    scenario: Literal["class", "domain"] = "class", domain_order: Sequence[str] | None = None,
    test_fraction: float = 0.2, split_seed: int = 0, train_per_class: int | None = None,
    test_per_class: int | None = None, skip_corrupt: bool = False,
    value_range: tuple[float, float] | None = None, aliases: str | Path | None = None,
    known: Known | None = None, include_known: bool = False,
) -> Stream:  # fmt: skip
    """A stream from a data set's name or any image folder, or from several of them.

    Args:
        data: a name ``perdure ls data`` lists, or a folder.
        datasets: several of these in place of ``data``, one after another. What follows is then of each of them, and
            some of it is refused; a class's name begins with its set's: ``cifar10/airplane``.
        tasks: split into this many tasks; or give ``base`` and ``increment``, or ``sizes``, as for :func:`task_sizes`.
            Of several sets, and where a stream goes on from a method, it is one task if none of them is given.
        base: see :func:`task_sizes`.
        increment: see :func:`task_sizes`.
        sizes: see :func:`task_sizes`.
        order_seed: seed of the class order, 1993 by default; ``None`` keeps ascending ids.
        class_order: the order itself, ids or names.
        scenario: ``class`` for new classes per task, ``domain`` for ``root/<domain>/<class>/``.
        domain_order: the order of the domains, by name; in natural order if not given.
        test_fraction: share held out per class where the folder has no test part.
        split_seed: seed of that split and of the draws below.
        train_per_class: keep at most this many training images of each class, drawn with ``split_seed``.
        test_per_class: the same for test images.
        skip_corrupt: leave corrupt files out and record them in ``Stream.quarantined``.
        value_range: black and white of deep images in files (16 bit, 32 bit, floating point), e.g. (0, 4095); that of
            ``known``, or the range of their type, by default. See :class:`perdure.data.reading.Reading`.
        aliases: a file of names for people, see :func:`perdure.data.display.read_aliases`.
        known: a method to go on from: the stream holds the classes that are new to it alone, under ids that are free,
            and its tasks are numbered on from those that it has seen.
        include_known: with images of known classes too, as far as their content was not taught.

    Raises:
        UnknownNameError, DataNotFoundError, DataError: see :func:`perdure.data.datasets.load_dataset`.
        SplitError: if the split asked for does not fit the data, or nothing in them is new to ``known``.
        ConfigError: if ``value_range`` is no range.
    """
    of_one = {"sizes": sizes, "class_order": class_order, "domain_order": domain_order, "aliases": aliases}
    require_several(data, datasets, scenario=scenario, **of_one)
    _require_valid(scenario, order_seed=order_seed, split_seed=split_seed)
    cut: dict[str, Any] = {"tasks": tasks, "base": base, "increment": increment}
    _require_fitting(scenario, {**cut, "sizes": sizes, "class_order": class_order}, domain_order)
    first = _first_task(known)
    folder: dict[str, Any] = {"test_fraction": test_fraction, "split_seed": split_seed, "skip_corrupt": skip_corrupt}
    folder["value_range"] = known.reading.value_range if known is not None and value_range is None else value_range
    whole = _named(_loaded(data, datasets, scenario, folder), aliases)
    new = _new(whole if datasets is None else told_apart(whole), known, include_known, data or [*whole])
    parts = _thinned(new, "" if datasets is None else "{}/", train_per_class, test_per_class, split_seed)
    if scenario == "domain":
        return domain_incremental({name: parts[name] for name in order_domains(list(parts), domain_order)}, first)
    if datasets is not None:
        return one_after_another(parts, cut, order_seed, first)
    names, ways = {c: parts[""].class_names[c] for c in parts[""].train.classes}, {**cut, "sizes": sizes}
    groups = task_sizes(len(names), **(ways if known is None or any_given(ways) else {"tasks": 1}))
    return class_incremental(parts[""], groups, order_classes(names, seed=order_seed, given=class_order), first)


def _first_task(known: Known | None) -> int:
    first = getattr(known, "tasks_seen_", None) if known is not None else 0
    if not isinstance(first, int):
        hint = "Give the method itself, as perdure.load or fit_task returns it"
        raise SplitError("load_stream", "known", "a method", type(known).__name__, hint)
    return first


def _loaded(
    data: str | Path | None, datasets: Sequence[str | Path] | None, scenario: str, folder: Mapping[str, Any]
) -> dict[str, Dataset]:
    """Domains by name, several data sets by their short names, or one under an empty name."""
    if datasets is not None:
        return {short_name(each): load_dataset(each, **folder) for each in datasets}
    one = "" if data is None else data
    return domain_datasets(on_disk(one), **folder) if scenario == "domain" else {"": load_dataset(one, **folder)}


def _named(parts: Mapping[str, Dataset], aliases: str | Path | None) -> dict[str, Dataset]:
    """With names for people."""
    told = read_aliases(Path(aliases)) if aliases is not None else {}
    require_known(told, [name for d in parts.values() for name in d.class_names.values()])
    return {n: dc.replace(d, display_names=display_names(d.class_names, told)) for n, d in parts.items()}


def _new(
    parts: Mapping[str, Dataset], known: Known | None, include_known: bool, data: str | Path | list[str]
) -> dict[str, Dataset]:
    """Without what a method knows; parts without anything new are left out."""
    if known is None:
        if include_known:
            hint = "Give known=method, the method to go on from"
            raise SplitError("load_stream", "include_known", "left out without known", include_known, hint)
        return dict(parts)
    new = {name: continuing(d, known, include_known) for name, d in parts.items()}
    if not any(len(d.train) for d in new.values()):
        more = sum(len(continuing(d, known, True).train) for d in parts.values())
        what = "new classes or images" if include_known else "classes that the method does not know"
        hint = f"{more} new images are of known classes: include_known=True takes them" if more else "Add some"
        raise SplitError("load_stream", "data", f"with {what}", data if isinstance(data, list) else shown(data), hint)
    if again := renamed(new.values(), known):
        hint = (
            "If a folder has another name now, give it the old one, or tell the method: "
            "method.rename_class(OLD, NEW); else take the images out that are known"
        )
        if any("/" in name for name in known.class_names.values()):
            hint += ". Classes that came with several data sets are called SET/CLASS: give datasets=[SET]"
        name, must_be = "new classes", "of images that were not taught under another name (these were)"
        raise SplitError("load_stream", name, must_be, again, hint)
    return {name: d for name, d in new.items() if len(d.train)}


def _require_valid(scenario: str, **seeds: int | None) -> None:
    for name, value in seeds.items():
        if value is not None and not 0 <= value < 2**32:
            raise SplitError("stream", name, "between 0 and 2**32 - 1", value, "Choose another seed")
    if scenario not in SCENARIOS:
        raise SplitError("stream", "scenario", f"one of {SCENARIOS}", scenario, did_you_mean(scenario, SCENARIOS))


def _require_fitting(scenario: str, of_classes: Mapping[str, object], domain_order: Sequence[str] | None) -> None:
    """Refuses what is asked of the other scenario."""
    asked = any_given(of_classes)
    if scenario == "domain" and asked:
        hint = "Remove them: each domain folder is one task"
        raise SplitError("stream", "split keys", "absent for scenario=domain", asked, hint)
    if scenario == "class" and domain_order is not None:
        hint = "Set scenario=domain, or give class_order"
        raise SplitError("stream", "domain_order", "absent for scenario=class", domain_order, hint)


def _thinned(
    parts: Mapping[str, Dataset], prefix: str, train: int | None, test: int | None, seed: int
) -> dict[str, Dataset]:
    """With no more images of a class than asked for; ``{}`` in the prefix of its names stands for its part's name."""
    return {name: _thin(part, prefix.format(name), train, test, seed) for name, part in parts.items()}


def _thin(dataset: Dataset, prefix: str, train: int | None, test: int | None, seed: int) -> Dataset:
    def draw(images: LabelledImages, at_most: int | None, part: int) -> LabelledImages:
        if at_most is None:
            return images
        if at_most < 1:
            name = ("train_per_class", "test_per_class")[part]
            raise SplitError("stream", name, "at least 1", at_most, "Leave it out to keep every image")
        keep = [np.empty(0, dtype=np.int64)]
        for c in images.classes:
            of_class = np.flatnonzero(images.labels == c)
            # seeded by name: a folder's class ids move when a class is added, and no draw may move with them; without
            # its set's name, so that a data set among others has the images that it has alone
            own = dataset.class_names[c].removeprefix(prefix)
            rng = np.random.default_rng([seed, part, *own.encode()])
            keep.append(np.sort(rng.permutation(of_class)[:at_most]))
        return images.subset(np.concatenate(keep))

    return dc.replace(dataset, train=draw(dataset.train, train, 0), test=draw(dataset.test, test, 1))
