"""The only reader of test data: asks a method for scores and keeps what any metric needs."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from perdure.data import LabelledImages, Stream
from perdure.errors import ShapeError, StreamError
from perdure.eval.matrix import Predictions
from perdure.methods import Method

TOP = 5


class TaughtImagesWarning(UserWarning):
    """Test images that were taught: the accuracy on them flatters."""


class UnknownClassesWarning(UserWarning):
    """Test images of classes that a method does not know: they count as wrong."""


def evaluate(method: Method, stream: Stream, *, upto: int | None = None, without_taught: bool = False) -> Predictions:
    """Predictions for a stream's test images, task by task; scores are reduced as they come.

    A class is its name: a stream that numbers the method's classes otherwise, as the folder loaded afresh after it has
    grown, is evaluated by their names.

    Args:
        method: fitted on the tasks up to ``upto``; nothing about tasks is told to it.
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
    ids, mine = torch.tensor(method.classes_), _by_name(method, stream)
    parts: list[tuple[int, Tensor, Tensor]] = []
    members: dict[str, list[Tensor]] = {}
    labels, n_taught = [], 0
    for index in range(stream.first, upto + 1):
        test = stream.test(index)
        taught = np.isin(test.keys, method.taught_keys)
        n_taught += int(taught.sum())
        test = test.subset(np.flatnonzero(~taught)) if without_taught else test
        labels += [mine.get(c, c) for c in test.labels.tolist()]
        parts += [(index - stream.first, *_best(scores, ids)) for scores in method.scores_of(test)]
        for name, best in _members(method, test, ids).items():
            members.setdefault(name, []).append(best)
    if n_taught and not without_taught:
        message = f"{n_taught} of {len(labels)} test images were taught, so accuracy flatters; without_taught=True"
        warnings.warn(TaughtImagesWarning(f"{message} leaves them out"), stacklevel=2)
    strange = set(labels) - set(method.classes_)
    if unknown := [name for c, name in stream.class_names.items() if mine[c] in strange]:
        message = f"test images of {', '.join(unknown)} count as wrong: the method does not know these classes"
        warnings.warn(UnknownClassesWarning(message), stacklevel=2)
    k = min(TOP, len(ids))
    return Predictions(
        task=np.repeat([index for index, _, _ in parts], [len(top) for _, top, _ in parts]).astype(np.int64),
        labels=np.array(labels, dtype=np.int64),
        top=np.concatenate([np.empty((0, k), np.int64), *(top.numpy() for _, top, _ in parts)]),
        confidence=np.concatenate([np.empty(0, np.float32), *(c.numpy() for _, _, c in parts)]),
        members={name: torch.cat(best).numpy() for name, best in members.items()},
    )


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
