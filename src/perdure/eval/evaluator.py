"""The only reader of test data: asks a method for scores and keeps what any metric needs."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.data import Candidate, LabelledImages, Stream
from perdure.errors import ShapeError, StreamError
from perdure.eval.matrix import Answers, Predictions
from perdure.methods import Method

TOP = 5
_Part: TypeAlias = tuple[int, Int[np.ndarray, " m"], Int[Tensor, " m"]]  # a task, labels of its images, best classes


class TaughtImagesWarning(UserWarning):
    """Test images that were taught: the accuracy on them flatters."""


class UnknownClassesWarning(UserWarning):
    """Test images of classes that a method does not know: they count as wrong."""


def evaluate(method: Method, stream: Stream, *, upto: int | None = None, without_taught: bool = False) -> Predictions:
    """Predictions for a stream's test images, task by task; scores are reduced as they come.

    A class is its name: a stream that numbers the method's classes otherwise, as the folder loaded afresh after it has
    grown, is evaluated by their names.

    Args:
        method: fitted on the tasks up to ``upto``; nothing about tasks is told to it. One that scores classes by their
            names is asked about the classes too that it was not taught, by their test images.
        stream: where the tests are.
        upto: index of the last task whose test is used; the stream's last one if not given.
        without_taught: leave test images out that were taught, as in a folder that has grown and is split anew.

    Returns:
        Labels and predictions as the method's ids; a class that the method does not know has an id that it never gives.

    Raises:
        StreamError: if there is no such task.

    Warns:
        TaughtImagesWarning: if test images were taught.
        UnknownClassesWarning: if there are test images of classes that the method does not know.
    """
    last = stream.first + len(stream) - 1
    upto = last if upto is None else upto
    if not stream.first <= upto <= last:
        raise StreamError("evaluate", "upto", f"between {stream.first} and {last}", upto, "Ask for a task there is")
    ids, mine, by_name = torch.tensor(method.classes_), _by_name(method, stream), method.promises.open_vocabulary
    parts: list[tuple[int, Tensor, Tensor]] = []
    members: dict[str, list[Tensor]] = {}
    told, of_set = [ids[:0]], _columns_of_sets(method, stream, mine)
    labels, n_taught = [], 0
    for task in stream[: upto - stream.first + 1]:
        test, n = _test(method, stream, task.index, without_taught)
        n_taught += n
        labels += [mine.get(c, c) for c in test.labels.tolist()]
        for scores in method.scores_of(test):
            parts.append((task.index - stream.first, *_best(scores, ids)))
            if of_set:
                columns = of_set.get(task.dataset, slice(None))
                told.append(_best(scores[:, columns], ids[columns])[0][:, 0])
        for name, best in _members(method, test, ids).items():
            members.setdefault(name, []).append(best)
    _warn(method, stream, mine, labels, n_taught * (not without_taught))
    k = min(TOP, len(ids))
    return Predictions(
        task=np.repeat([index for index, _, _ in parts], [len(top) for _, top, _ in parts]).astype(np.int64),
        labels=np.array(labels, dtype=np.int64),
        top=np.concatenate([np.empty((0, k), np.int64), *(top.numpy() for _, top, _ in parts)]),
        confidence=np.concatenate([np.empty(0, np.float32), *(c.numpy() for _, _, c in parts)]),
        members={name: torch.cat(best).numpy() for name, best in members.items()},
        told=torch.cat(told).numpy() if of_set else None,
        untaught=_untaught(method, stream, mine, without_taught) if by_name else None,
        among_all=_among_all(method, stream, mine, without_taught) if by_name and of_set else None,
    )


def _test(method: Method, stream: Stream, index: int, without_taught: bool) -> tuple[LabelledImages, int]:
    """A task's test images, and how many of all of them were taught."""
    test = stream.test(index)
    taught = np.isin(test.keys, method.taught_keys)
    return (test.subset(np.flatnonzero(~taught)) if without_taught else test), int(taught.sum())


def _warn(method: Method, stream: Stream, mine: Mapping[int, int], labels: Sequence[int], n_taught: int) -> None:
    if n_taught:
        message = f"{n_taught} of {len(labels)} test images were taught, so accuracy flatters; without_taught=True"
        warnings.warn(TaughtImagesWarning(f"{message} leaves them out"), stacklevel=3)
    strange = set(labels) - set(method.classes_)
    if unknown := [name for c, name in stream.class_names.items() if mine[c] in strange]:
        message = f"test images of {', '.join(unknown)} count as wrong: the method does not know these classes"
        warnings.warn(UnknownClassesWarning(message), stacklevel=3)


def _columns_of_sets(method: Method, stream: Stream, mine: Mapping[int, int]) -> dict[str | None, list[int]]:
    """The score columns of each data set's classes; all columns where none of these is taught; {} without sets."""
    found: dict[str | None, list[int]] = {}
    for name in dict.fromkeys(task.dataset for task in stream if task.dataset is not None):
        own = {mine.get(c, c) for task in stream if task.dataset == name for c in task.classes}
        columns = [j for j, c in enumerate(method.classes_) if c in own]
        found[name] = columns or list(range(len(method.classes_)))
    return found


def _untaught(method: Method, stream: Stream, mine: Mapping[int, int], without_taught: bool) -> Answers | None:
    """Answers about test images of classes that are not taught yet, among those of their data set; None if none are.

    Without data sets, the candidates are all such classes of the stream.
    """
    taught = set(method.classes_)
    new = {c for c in stream.class_names if mine[c] not in taught}
    parts: list[_Part] = []
    for task in stream:
        asked = list(dict.fromkeys(c for t in stream if t.dataset == task.dataset for c in t.classes if c in new))
        test = _test(method, stream, task.index, without_taught)[0].of_classes(asked)
        if len(test):
            parts.append(_answered(method, stream, mine, task.index, test, dict.fromkeys(asked, task.dataset)))
    return _answers(parts) if parts else None


def _among_all(method: Method, stream: Stream, mine: Mapping[int, int], without_taught: bool) -> Answers:
    """Answers about all test images, among all classes of the stream and all that are taught."""
    everything = {c: task.dataset for task in stream for c in task.classes}
    tests = {task.index: _test(method, stream, task.index, without_taught)[0] for task in stream}
    return _answers([_answered(method, stream, mine, index, test, everything, True) for index, test in tests.items()])


def _answered(
    method: Method, stream: Stream, mine: Mapping[int, int], index: int, test: LabelledImages,
    asked: Mapping[int, str | None], taught_too: bool = False,
) -> _Part:  # fmt: skip
    """The best of some classes, given with their data sets, for each image of a task's test."""
    names, displays = stream.class_names, {**stream.class_names, **stream.display_names}
    candidates = {mine[c]: Candidate(names[c], displays[c], of) for c, of in asked.items()}
    if taught_too:
        shown = zip(method.classes_, method.names_, method.displays_, strict=True)
        candidates |= {c: Candidate(name, text) for c, name, text in shown if c not in candidates}
    ids = torch.tensor(list(candidates))
    chunks = [_among(method, scores, ids) for scores in method.scores_among(test, list(candidates.values()))]
    labels = np.array([mine[c] for c in test.labels.tolist()], dtype=np.int64)
    return index - stream.first, labels, torch.cat([ids[:0], *chunks])


def _answers(parts: Sequence[_Part]) -> Answers:
    return Answers(
        task=np.repeat([index for index, _, _ in parts], [len(labels) for _, labels, _ in parts]),
        labels=np.concatenate([labels for _, labels, _ in parts]),
        best=torch.cat([best for _, _, best in parts]).numpy(),
    )


def _among(method: Method, scores: Float[Tensor, "b classes"], ids: Int[Tensor, " n"]) -> Int[Tensor, " b"]:
    """The best candidate's id."""
    if scores.shape[1] != len(ids):
        where, wanted = f"{type(method).__name__}.scores_among", f"(b, {len(ids)}): a column for each candidate"
        raise ShapeError(where, "scores", wanted, tuple(scores.shape), "Score all candidates, and no others")
    return _best(scores, ids)[0][:, 0]


def _members(method: Method, test: LabelledImages, ids: Int[Tensor, " classes"]) -> dict[str, Int[Tensor, " n"]]:
    """The best class id of each test image by each of the method's members."""
    found = {}
    for name, chunks in method.members_of(test).items():
        best = [ids[:0]]
        for scores in chunks:
            if scores.shape[1] != len(ids):
                where, wanted = f"{type(method).__name__}.members_of", f"(b, {len(ids)}): the method's columns"
                raise ShapeError(where, f"scores of {name}", wanted, tuple(scores.shape), "Score all classes seen")
            best.append(_best(scores, ids)[0][:, 0])
        found[name] = torch.cat(best)
    return found


def _by_name(method: Method, stream: Stream) -> dict[int, int]:
    """The stream's class ids to the method's; those that were taught without names are known by their ids."""
    names, unnamed = method.class_names, method.unnamed
    ids = {name: c for c, name in names.items() if c not in unnamed}
    free = itertools.count(max([*names, *stream.class_names, -1]) + 1)
    mine = {}
    for c, name in stream.class_names.items():
        mine[c] = ids[name] if name in ids else c if c not in names or c in unnamed else next(free)
    return mine


def _best(scores: Float[Tensor, "b classes"], ids: Tensor) -> tuple[Tensor, Tensor]:
    """The class ids of the highest scores, (b, k), and the softmax of the highest, (b,); ties: first column first."""
    ordered = torch.sort(scores.cpu(), dim=1, descending=True, stable=True)
    confidence = torch.softmax(ordered.values, dim=1)[:, 0]
    return ids[ordered.indices[:, :TOP]], confidence
