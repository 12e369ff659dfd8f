"""Honest evaluation: predictions are kept, metrics are pure functions of them."""

from perdure.eval.evaluator import evaluate
from perdure.eval.matrix import (
    AccuracyMatrix,
    Answers,
    Predictions,
    accuracy_over_samples,
    accuracy_over_tasks,
    backward_transfer,
    class_accuracy,
    expected_calibration_error,
    forgetting,
    top_k_accuracy,
)
from perdure.eval.transfer import (
    average_over_sets,
    last_over_sets,
    set_matrix,
    transfer_over_sets,
    untold_matrix,
    zero_shot_accuracy,
    zero_shot_transfer,
)

__all__ = [
    "AccuracyMatrix",
    "Answers",
    "Predictions",
    "accuracy_over_samples",
    "accuracy_over_tasks",
    "average_over_sets",
    "backward_transfer",
    "class_accuracy",
    "evaluate",
    "expected_calibration_error",
    "forgetting",
    "last_over_sets",
    "set_matrix",
    "top_k_accuracy",
    "transfer_over_sets",
    "untold_matrix",
    "zero_shot_accuracy",
    "zero_shot_transfer",
]
