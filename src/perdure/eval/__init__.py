"""Honest evaluation: predictions are kept, metrics are pure functions of them."""

from perdure.eval.evaluator import evaluate
from perdure.eval.matrix import (
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

__all__ = [
    "AccuracyMatrix",
    "Predictions",
    "accuracy_over_samples",
    "accuracy_over_tasks",
    "backward_transfer",
    "class_accuracy",
    "evaluate",
    "expected_calibration_error",
    "forgetting",
    "top_k_accuracy",
]
