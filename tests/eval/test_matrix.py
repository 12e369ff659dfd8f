"""Metrics on matrices small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from perdure.errors import ShapeError
from perdure.eval import (
    AccuracyMatrix,
    Predictions,
    accuracy_over_samples,
    accuracy_over_tasks,
    backward_transfer,
    class_accuracy,
    expected_calibration_error,
    forgetting,
    top_k_accuracy,
)

NAN = float("nan")
# after task: 0 -> 0.9; 1 -> 0.7, 0.8; 2 -> 0.8, 0.5, 1.0; tests of 10, 10 and 20 images
HAND = AccuracyMatrix(np.array([[0.9, NAN, NAN], [0.7, 0.8, NAN], [0.8, 0.5, 1.0]]), np.array([10, 10, 20]))


def predictions(task: list[int], labels: list[int], top: list[list[int]], confidence: list[float]) -> Predictions:
    return Predictions(np.array(task), np.array(labels), np.array(top), np.array(confidence, dtype=np.float32))


def test_both_averages_differ_when_tasks_differ_in_size() -> None:
    assert accuracy_over_samples(HAND) == pytest.approx([0.9, 0.75, (8 + 5 + 20) / 40])
    assert accuracy_over_tasks(HAND) == pytest.approx([0.9, 0.75, 2.3 / 3])


def test_both_averages_agree_on_equal_tasks() -> None:
    equal = AccuracyMatrix(HAND.values, np.array([7, 7, 7]))
    assert accuracy_over_samples(equal) == pytest.approx(accuracy_over_tasks(equal))


def test_forgetting_takes_the_best_earlier_accuracy_and_leaves_out_the_last_task() -> None:
    # task 0: best of (0.9, 0.7) - 0.8 = 0.1; task 1: 0.8 - 0.5 = 0.3
    assert forgetting(HAND) == pytest.approx(0.2)


def test_forgetting_of_everything_after_two_tasks_is_one() -> None:
    # LibContinual's and Continuum's old function gives 0 here
    assert forgetting(AccuracyMatrix(np.array([[1, NAN], [0, 1]]), np.array([5, 5]))) == 1


def test_backward_transfer_compares_with_the_moment_of_learning() -> None:
    assert backward_transfer(HAND) == pytest.approx(((0.8 - 0.9) + (0.5 - 0.8)) / 2)


def test_a_single_task_has_neither() -> None:
    one = AccuracyMatrix(np.array([[0.5]]), np.array([4]))
    assert np.isnan(forgetting(one))
    assert np.isnan(backward_transfer(one))


def test_a_task_without_test_images_counts_nowhere() -> None:
    a = AccuracyMatrix(np.array([[NAN, NAN], [NAN, 0.5]]), np.array([0, 4]))
    assert accuracy_over_samples(a)[1] == pytest.approx(0.5)
    assert np.isnan(accuracy_over_samples(a)[0])


def test_matrix_from_predictions_of_increment_one() -> None:
    # one class per task: the last class must not vanish (LAMDA-PILOT's accuracy() loses it)
    first = predictions([0, 0], [5, 5], [[5], [5]], [0.9, 0.9])
    second = predictions([0, 0, 1], [5, 5, -3], [[5, -3], [-3, 5], [-3, 5]], [0.9, 0.6, 0.8])
    a = AccuracyMatrix.from_predictions([first, second])
    np.testing.assert_allclose(a.values, [[1, NAN], [0.5, 1]])
    assert a.counts.tolist() == [2, 1]


@pytest.mark.usefixtures("any_shape")
def test_a_matrix_must_be_square() -> None:
    with pytest.raises(ShapeError, match=r"\(2, 3\)"):
        AccuracyMatrix(np.zeros((2, 3)), np.array([1, 1]))


def test_top_k_and_class_accuracy() -> None:
    p = predictions([0, 0, 0], [1, 2, 2], [[1, 2], [1, 2], [1, 3]], [0.5, 0.5, 0.5])
    assert top_k_accuracy(p) == pytest.approx(2 / 3)
    assert class_accuracy(p) == {1: 1.0, 2: 0.0}


def test_calibration_error_equals_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (500, 7))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = rng.integers(0, 7, 500)
    top = np.argsort(-probabilities, axis=1)[:, :5]
    p = Predictions(np.zeros(500, int), labels, top, probabilities.max(1))
    theirs = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), 7, n_bins=15, norm="l1")
    assert expected_calibration_error(p) == pytest.approx(float(theirs), abs=1e-6)


def test_calibration_error_of_perfect_and_of_hopeless_confidence() -> None:
    sure = predictions([0, 0], [1, 1], [[1], [1]], [1.0, 1.0])
    wrong = predictions([0, 0], [2, 2], [[1], [1]], [1.0, 1.0])
    assert expected_calibration_error(sure) == 0
    assert expected_calibration_error(wrong) == 1
