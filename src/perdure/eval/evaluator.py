"""The only reader of test data: asks a method for scores and keeps what any metric needs."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from perdure.data import Stream
from perdure.errors import StreamError
from perdure.eval.matrix import Predictions
from perdure.methods import Method

TOP = 5


def evaluate(method: Method, stream: Stream, *, upto: int) -> Predictions:
    """Predictions for the test images of tasks 0 to ``upto``, in order; scores are reduced as they come.

    Args:
        method: fitted on tasks 0 to ``upto``; nothing about tasks is told to it.
        stream: where the tests are.
        upto: index of the last task whose test is used.

    Raises:
        StreamError: if there is no such task.
    """
    if not 0 <= upto < len(stream):
        raise StreamError("evaluate", "upto", f"between 0 and {len(stream) - 1}", upto, "Ask for a task there is")
    ids = torch.tensor(method.classes_)
    parts: list[tuple[int, Tensor, Tensor]] = []
    labels = []
    for index in range(upto + 1):
        labels.append(stream.test(index).labels)
        parts += [(index, *_best(scores, ids)) for scores in method.scores_of(stream.test(index))]
    k = min(TOP, len(ids))
    return Predictions(
        task=np.repeat([index for index, _, _ in parts], [len(top) for _, top, _ in parts]).astype(np.int64),
        labels=np.concatenate(labels),
        top=np.concatenate([np.empty((0, k), np.int64), *(top.numpy() for _, top, _ in parts)]),
        confidence=np.concatenate([np.empty(0, np.float32), *(c.numpy() for _, _, c in parts)]),
    )


def _best(scores: Float[Tensor, "b classes"], ids: Tensor) -> tuple[Tensor, Tensor]:
    """The class ids of the highest scores, (b, k), and the softmax of the highest, (b,); ties: first column first."""
    ordered = torch.sort(scores.cpu(), dim=1, descending=True, stable=True)
    confidence = torch.softmax(ordered.values, dim=1)[:, 0]
    return ids[ordered.indices[:, :TOP]], confidence
