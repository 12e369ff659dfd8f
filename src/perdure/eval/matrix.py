"""Continual metrics as pure functions of predictions.

Source: accuracy matrix, backward transfer: Lopez-Paz & Ranzato, "Gradient Episodic Memory", NeurIPS 2017; forgetting:
Chaudhry et al., "Riemannian Walk", ECCV 2018; average incremental accuracy: Rebuffi et al., "iCaRL", CVPR 2017;
expected calibration error: Guo et al., "On Calibration of Modern Neural Networks", ICML 2017.

Two ways of averaging exist, and tables mix them up: over test images (a large task counts more; LAMDA-PILOT) and over
tasks (each counts the same; RanPAC's code). Both are here, each under its name. They agree when all tasks have equally
many test images.
"""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from perdure.errors import ShapeError


@dc.dataclass(frozen=True, slots=True)
class Answers:
    """What a method said about test images among some classes, taught or not, by their names.

    Args:
        task: which task's test each image is from.
        labels: true class ids.
        best: the best-scored class's id.
    """

    task: Int[np.ndarray, " m"]
    labels: Int[np.ndarray, " m"]
    best: Int[np.ndarray, " m"]


@dc.dataclass(frozen=True, slots=True)
class Predictions:
    """What a method said about every test image of the tasks seen so far.

    Args:
        task: which task's test each image is from.
        labels: true class ids.
        top: class ids by falling score, the five best, or all if fewer classes are seen.
        confidence: softmax of the scores, at the first of ``top``.
        members: what each member of the method would say alone, by its name: the best class id.
        told: the best class of those that come with the image's data set, in a stream over several.
        untaught: about test images of classes that are not taught yet, among such classes, where the method scores
            classes by their names.
        among_all: about all test images of a stream over several data sets, among all classes of it, taught or not,
            where the method scores classes by their names.
    """

    task: Int[np.ndarray, " n"]
    labels: Int[np.ndarray, " n"]
    top: Int[np.ndarray, "n k"]
    confidence: Float[np.ndarray, " n"]
    members: Mapping[str, Int[np.ndarray, " n"]] = dc.field(default_factory=dict)
    told: Int[np.ndarray, " n"] | None = None
    untaught: Answers | None = None
    among_all: Answers | None = None

    @property
    def correct(self) -> Bool[np.ndarray, " n"]:
        """Whether the best-scored class is the true one."""
        return self.top[:, 0] == self.labels

    def of(self, member: str) -> Predictions:
        """A member's own, with its best class alone and no confidence.

        Args:
            member: one of ``members``.
        """
        return Predictions(self.task, self.labels, self.members[member][:, None], np.full(len(self.labels), np.nan))


@dc.dataclass(frozen=True, slots=True)
class AccuracyMatrix:
    """Accuracy after each task on each task's test.

    Args:
        values: row k: after task k; column j: on the test of task j; NaN where k < j.
        counts: test images of each task.

    Raises:
        ShapeError: if ``values`` is not square or ``counts`` has another length.
    """

    values: Float[np.ndarray, "tasks tasks"]
    counts: Int[np.ndarray, " tasks"]

    def __post_init__(self) -> None:
        n = len(self.counts)
        if self.values.shape != (n, n):
            hint = "One row and one column per task"
            raise ShapeError("AccuracyMatrix", "values", f"of shape {(n, n)}", self.values.shape, hint)

    @classmethod
    def from_predictions(cls, after: Sequence[Predictions]) -> AccuracyMatrix:
        """From the predictions made after task 0, 1, …; ``after[k]`` covers the tests of tasks 0 to k."""
        n = len(after)
        values = np.full((n, n), np.nan)
        for k, p in enumerate(after):
            for j in range(k + 1):
                values[k, j] = mean_of_known(p.correct[p.task == j])
        return cls(values, np.bincount(after[-1].task, minlength=n))


def accuracy_over_samples(a: AccuracyMatrix) -> Float[np.ndarray, " tasks"]:
    """After each task, the share of all test images seen so far that are right (paper: A_b)."""
    right = np.array([np.nansum(row[: k + 1] * a.counts[: k + 1]) for k, row in enumerate(a.values)])
    seen = np.cumsum(a.counts)
    return np.divide(right, seen, out=np.full(len(seen), np.nan), where=seen > 0)


def accuracy_over_tasks(a: AccuracyMatrix) -> Float[np.ndarray, " tasks"]:
    """After each task, the plain mean of the accuracies on the tasks seen so far."""
    return np.array([mean_of_known(row[: k + 1]) for k, row in enumerate(a.values)])


def forgetting(a: AccuracyMatrix) -> float:
    """Mean over all tasks but the last of (best accuracy before the last task - accuracy after it); NaN for one task.

    Negative values are possible: a task may improve later.
    """
    if len(a.counts) < 2:
        return float("nan")
    best = np.fmax.reduce(a.values[:-1, :-1], axis=0)  # passes over NaN: rows before a task's own, tasks without tests
    return mean_of_known(best - a.values[-1, :-1])


def backward_transfer(a: AccuracyMatrix) -> float:
    """Mean over all tasks but the last of (final accuracy - accuracy just after learning it); NaN for one task.

    The released code of GEM divides by the number of all tasks, the last with 0. There is no forward transfer here: it
    compares accuracies on a task before it was learned, and a class that was never seen has no score.
    """
    return mean_of_known(a.values[-1, :-1] - np.diag(a.values)[:-1])


def top_k_accuracy(p: Predictions) -> float:
    """Share of images whose true class is among ``top`` (five, or all classes if fewer are seen)."""
    return mean_of_known((p.top == p.labels[:, None]).any(axis=1))


def class_accuracy(p: Predictions) -> dict[int, float]:
    """Accuracy on the test images of each class."""
    return {int(c): float(p.correct[p.labels == c].mean()) for c in np.unique(p.labels)}


def expected_calibration_error(p: Predictions, n_bins: int = 15) -> float:
    """Mean gap between confidence and accuracy over equal-width confidence bins, weighted by images.

    The confidence is the softmax of whatever scores the method gives. Cosines and ridge outputs were never meant as
    logits, so a large value there says "do not read these as probabilities".

    Args:
        p: predictions.
        n_bins: bins of (0, 1], each open below and closed above.
    """
    if not len(p.labels):
        return float("nan")
    bin_of = np.ceil(p.confidence * n_bins).clip(1, n_bins).astype(int)
    right = np.bincount(bin_of, weights=p.correct)
    sure = np.bincount(bin_of, weights=p.confidence)
    return float(np.abs(right - sure).sum() / len(p.labels))


def mean_of_known(values: Shaped[np.ndarray, " n"]) -> float:
    """The mean of what is known; NaN where nothing is, and no warning."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
