"""Metrics on matrices small enough to work out by hand."""

from __future__ import annotations

import dataclasses as dc

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
# no row's maximum is its column's, no two tasks have equally many tests, and task 0 is best neither first nor last
LOPSIDED = AccuracyMatrix(
    np.array([[0.5, NAN, NAN, NAN], [0.9, 0.8, NAN, NAN], [0.4, 0.6, 0.7, NAN], [0.3, 0.5, 0.2, 1.0]]),
    np.array([1, 3, 2, 4]),
)


def predictions(task: list[int], labels: list[int], top: list[list[int]], confidence: list[float]) -> Predictions:
    return Predictions(np.array(task), np.array(labels), np.array(top), np.array(confidence, dtype=np.float32))


def test_a_member_is_judged_by_its_own_best_class() -> None:
    p = predictions([0, 1, 1], [4, 5, 6], [[4, 5], [4, 5], [6, 4]], [0.5, 0.5, 0.5])
    p = dc.replace(p, members={"online": np.array([5, 5, 6])})
    alone = p.of("online")
    assert (p.correct.tolist(), alone.correct.tolist()) == ([True, False, True], [False, True, True])
    assert (alone.task.tolist(), alone.labels.tolist(), alone.top.tolist()) == ([0, 1, 1], [4, 5, 6], [[5], [5], [6]])
    assert np.isnan(alone.confidence).all()


def test_both_averages_differ_when_tasks_differ_in_size() -> None:
    assert accuracy_over_samples(HAND) == pytest.approx([0.9, 0.75, (8 + 5 + 20) / 40])
    assert accuracy_over_tasks(HAND) == pytest.approx([0.9, 0.75, 2.3 / 3])


def test_both_averages_agree_on_equal_tasks() -> None:
    equal = AccuracyMatrix(HAND.values, np.array([7, 7, 7]))
    assert accuracy_over_samples(equal) == pytest.approx(accuracy_over_tasks(equal))


def test_forgetting_takes_the_best_earlier_accuracy_and_leaves_out_the_last_task() -> None:
    # task 0: best of (0.9, 0.7) - 0.8 = 0.1; task 1: 0.8 - 0.5 = 0.3
    assert forgetting(HAND) == pytest.approx(0.2)


def test_a_lopsided_matrix_worked_out_by_hand() -> None:
    assert accuracy_over_samples(LOPSIDED) == pytest.approx([0.5, 3.3 / 4, 3.6 / 6, 6.2 / 10])
    assert accuracy_over_tasks(LOPSIDED) == pytest.approx([0.5, 0.85, 1.7 / 3, 0.5])
    assert forgetting(LOPSIDED) == pytest.approx(((0.9 - 0.3) + (0.8 - 0.5) + (0.7 - 0.2)) / 3)
    assert backward_transfer(LOPSIDED) == pytest.approx(((0.3 - 0.5) + (0.5 - 0.8) + (0.2 - 0.7)) / 3)


def test_two_tasks_are_enough_and_a_gain_has_its_sign() -> None:
    two = AccuracyMatrix(np.array([[0.5, NAN], [0.8, 0.9]]), np.array([4, 4]))
    assert forgetting(two) == pytest.approx(-0.3)
    assert backward_transfer(two) == pytest.approx(0.3)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_one_test_image_is_enough(right: float) -> None:
    one = AccuracyMatrix(np.array([[right]]), np.array([1]))
    assert accuracy_over_samples(one).tolist() == accuracy_over_tasks(one).tolist() == [right]


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
    np.testing.assert_equal(accuracy_over_tasks(a), [NAN, 0.5])
    assert np.isnan(forgetting(a))
    assert np.isnan(backward_transfer(a))
    middle = np.array([[0.9, NAN, NAN], [0.6, NAN, NAN], [0.7, NAN, 0.2]])
    b = AccuracyMatrix(middle, np.array([10, 0, 5]))
    assert accuracy_over_tasks(b) == pytest.approx([0.9, 0.6, 0.45])
    assert accuracy_over_samples(b) == pytest.approx([0.9, 0.6, 8 / 15])
    assert forgetting(b) == pytest.approx(0.2)
    assert backward_transfer(b) == pytest.approx(-0.2)


def test_without_any_test_image_nothing_is_known() -> None:
    none = Predictions(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 2), int), np.zeros(0, np.float32))
    assert np.isnan(top_k_accuracy(none))
    assert np.isnan(expected_calibration_error(none))
    assert class_accuracy(none) == {}
    a = AccuracyMatrix.from_predictions([none, none])
    assert np.isnan(a.values).all()
    assert np.isnan(accuracy_over_samples(a)).all()
    assert a.counts.tolist() == [0, 0]


def test_matrix_from_predictions_of_increment_one() -> None:
    # one class per task: the last class must not vanish (LAMDA-PILOT's accuracy() loses it)
    first = predictions([0, 0], [5, 5], [[5], [5]], [0.9, 0.9])
    second = predictions([0, 0, 1], [5, 5, -3], [[5, -3], [-3, 5], [-3, 5]], [0.9, 0.6, 0.8])
    a = AccuracyMatrix.from_predictions([first, second])
    np.testing.assert_allclose(a.values, [[1, NAN], [0.5, 1]])
    assert a.counts.tolist() == [2, 1]


def test_matrix_from_predictions_counts_the_tests_after_the_last_task() -> None:
    first = predictions([0], [5], [[5]], [0.9])
    second = predictions([0, 2, 2], [5, 1, 1], [[4], [1], [4]], [0.9, 0.6, 0.8])  # task 1 and the last have no test
    a = AccuracyMatrix.from_predictions([first, first, second, second])
    assert a.counts.tolist() == [1, 0, 2, 0]
    np.testing.assert_equal(a.values[:2], [[1, NAN, NAN, NAN], [1, NAN, NAN, NAN]])
    np.testing.assert_equal(a.values[2:], [[0, NAN, 0.5, NAN], [0, NAN, 0.5, NAN]])


@pytest.mark.usefixtures("any_shape")
def test_a_matrix_must_be_square() -> None:
    with pytest.raises(ShapeError, match=r"of shape \(2, 2\), but got \(2, 3\)"):
        AccuracyMatrix(np.zeros((2, 3)), np.array([1, 1]))
    with pytest.raises(ShapeError, match=r"of shape \(2, 2\), but got \(3, 3\)"):
        AccuracyMatrix(np.zeros((3, 3)), np.array([1, 1]))


def test_top_k_and_class_accuracy() -> None:
    p = predictions([0] * 4, [1, 2, 2, 2], [[1, 2], [1, 2], [1, 3], [2, 1]], [0.5] * 4)
    assert top_k_accuracy(p) == pytest.approx(3 / 4)
    assert class_accuracy(p) == {1: 1.0, 2: pytest.approx(1 / 3)}


@pytest.mark.parametrize("n_bins", [15, 7])
def test_calibration_error_equals_torchmetrics(n_bins: int) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (500, 7))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    best = probabilities.argmax(1)
    # too sure of itself in some bins and not sure enough in others: the gaps must not cancel
    right = rng.random(500) < np.where(probabilities.max(1) < 0.6, 0.9, 0.4)
    labels = np.where(right, best, (best + 1) % 7)
    top = np.argsort(-probabilities, axis=1)[:, :5]
    p = Predictions(np.zeros(500, int), labels, top, probabilities.max(1))
    theirs = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), 7, n_bins=n_bins, norm="l1"
    )
    ours = expected_calibration_error(p) if n_bins == 15 else expected_calibration_error(p, n_bins)
    assert ours == pytest.approx(float(theirs), abs=1e-6)
    assert ours > 2 * expected_calibration_error(p, 1)


def test_a_confidence_on_an_edge_belongs_to_the_bin_below() -> None:
    # half sure and right, a bit surer and wrong: the first in (0, 0.5], the second in (0.5, 1]
    p = predictions([0, 0], [1, 2], [[1], [1]], [0.5, 0.6])
    assert expected_calibration_error(p, 2) == pytest.approx((0.5 + 0.6) / 2)
    assert expected_calibration_error(p, 1) == pytest.approx(0.1 / 2)


def test_a_confidence_of_nothing_or_a_rounding_above_one_has_a_bin() -> None:
    # 0.0 shares the first bin with 0.3, a rounding above 1 the last with 0.9; each bin holds one right image
    p = predictions([0] * 4, [1, 2, 1, 2], [[1]] * 4, [0.0, 0.3, 0.9, 1 + 1e-6])
    assert expected_calibration_error(p, 3) == pytest.approx((0.7 + 0.9) / 4)


def test_calibration_error_of_perfect_and_of_hopeless_confidence() -> None:
    sure = predictions([0, 0], [1, 1], [[1], [1]], [1.0, 1.0])
    wrong = predictions([0, 0], [2, 2], [[1], [1]], [1.0, 1.0])
    assert expected_calibration_error(sure) == 0
    assert expected_calibration_error(wrong) == 1
