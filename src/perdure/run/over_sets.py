"""What a run's results say of classes that are not taught yet, and of several data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from perdure.data import Stream
from perdure.eval import (
    Predictions,
    average_over_sets,
    last_over_sets,
    set_matrix,
    transfer_over_sets,
    untold_matrix,
    zero_shot_accuracy,
)
from perdure.run.results import DataSets, OverSets


def data_sets_in(stream: Stream, after: Sequence[Predictions]) -> DataSets | None:
    """The figures with every image's data set told, and without; None for a stream over one data set.

    Args:
        stream: the run's.
        after: predictions after each task.
    """
    sets = [task.dataset for task in stream if task.dataset is not None]
    if not sets:
        return None
    return DataSets(
        names=list(dict.fromkeys(sets)),
        of_task=sets,
        untold=OverSets(**_means(untold_matrix(after, sets))),
        **_means(set_matrix(after, sets)),
    )


def _means(matrix: Float[np.ndarray, "sets sets"]) -> dict[str, Any]:
    return {
        "accuracy_matrix": [[None if np.isnan(v) else float(v) for v in row] for row in matrix],
        "transfer": transfer_over_sets(matrix),
        "average": average_over_sets(matrix),
        "last": last_over_sets(matrix),
    }


def zero_shot_in(after: Sequence[Predictions]) -> list[float] | None:
    """After each task, the accuracy on classes not taught yet; None where no task has one.

    Args:
        after: predictions after each task.
    """
    return [zero_shot_accuracy(p) for p in after] if any(p.untaught is not None for p in after) else None
