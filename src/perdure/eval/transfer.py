"""Metrics of what is not taught yet, and of several data sets whose images come with their set told, or without.

Source: Transfer, Average and Last over several data sets (MTIL): Zheng et al., "Preventing Zero-Shot Transfer
Degradation in Continual Learning of Vision-Language Models", ICCV 2023, section 5; released code as in its notebook.
The same with no set told (X-TAIL): Xu et al., "Advancing Cross-domain Discriminability in Continual Learning of
Vision-Language Models", NeurIPS 2024; a released cell of 0 % is left out of its mean there, and counts here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int

from perdure.eval.matrix import Predictions, mean_of_known

_Told: TypeAlias = tuple[Int[np.ndarray, " n"], Bool[np.ndarray, " n"]]  # each image's task, whether it is right


def zero_shot_accuracy(p: Predictions) -> float:
    """Share of the images of untaught classes that are right, among untaught names; NaN if there are none."""
    return float("nan") if p.untaught is None else mean_of_known(p.untaught.best == p.untaught.labels)


def zero_shot_transfer(after: Sequence[Predictions]) -> float:
    """Mean over tasks of :func:`zero_shot_accuracy`; NaN if no task leaves classes untaught, or none is scored by name.

    Args:
        after: predictions after task 0, 1, …
    """
    return mean_of_known(np.array([zero_shot_accuracy(p) for p in after]))


def set_matrix(after: Sequence[Predictions], sets: Sequence[str]) -> Float[np.ndarray, "sets sets"]:
    """Accuracy on each data set's test images, the set told, after each data set's last task.

    A taught set's images are answered with one of its taught classes, an untaught set's with one of its untaught ones.

    Args:
        after: predictions after task 0, 1, …
        sets: the data set that each task is from.

    Returns:
        Row i: after the last task of the i-th set; column j: on the j-th set; NaN where nothing was answered.
    """

    def answered(p: Predictions, taught: bool) -> _Told | None:
        if taught:
            return None if p.told is None else (p.task, p.told == p.labels)
        return None if p.untaught is None else (p.untaught.task, p.untaught.best == p.untaught.labels)

    return _by_set(after, sets, answered)


def untold_matrix(after: Sequence[Predictions], sets: Sequence[str]) -> Float[np.ndarray, "sets sets"]:
    """The same with no set told: images are answered among all classes of all data sets, taught or not.

    A method that does not score classes by their names answers among those that it was taught.

    Args:
        after: as for :func:`set_matrix`.
        sets: as for :func:`set_matrix`.
    """

    def answered(p: Predictions, taught: bool) -> _Told | None:
        if p.among_all is not None:
            return p.among_all.task, p.among_all.best == p.among_all.labels
        return (p.task, p.correct) if taught else None

    return _by_set(after, sets, answered)


def _by_set(
    after: Sequence[Predictions], sets: Sequence[str], answered: Callable[[Predictions, bool], _Told | None]
) -> Float[np.ndarray, "sets sets"]:
    """The share that is right, by data set; ``answered`` gives what was said of taught sets, or of untaught ones."""
    names, of_task = list(dict.fromkeys(sets)), np.array(sets)
    values = np.full((len(names), len(names)), np.nan)
    for i, row in enumerate(names):
        p = after[int(np.flatnonzero(of_task == row)[-1])]
        for j, name in enumerate(names):
            if (found := answered(p, j <= i)) is not None:
                task, right = found
                values[i, j] = mean_of_known(right[np.isin(task, np.flatnonzero(of_task == name))])
    return values


def transfer_over_sets(a: Float[np.ndarray, "sets sets"]) -> float:
    """Mean over all sets but the first of their mean accuracy before they are taught; NaN if one is not known.

    Args:
        a: as :func:`set_matrix` gives it.
    """
    before = [float(a[:j, j].mean()) for j in range(1, len(a))]
    return float(np.mean(before)) if before else float("nan")


def average_over_sets(a: Float[np.ndarray, "sets sets"]) -> float:
    """Mean of all accuracies, before a set is taught and after; NaN if one is not known.

    Args:
        a: as :func:`set_matrix` gives it.
    """
    return float(a.mean())


def last_over_sets(a: Float[np.ndarray, "sets sets"]) -> float:
    """Mean accuracy of all sets after the last one; NaN if one is not known.

    Args:
        a: as :func:`set_matrix` gives it.
    """
    return float(a[-1].mean())
