"""What each member of a method would reach alone, in a run's results and in words."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.eval import AccuracyMatrix, Predictions, accuracy_over_samples, forgetting
from perdure.run.results import Member, Results
from perdure.run.table import percent


def members_in(after: Sequence[Predictions]) -> dict[str, Member] | None:
    """Every member's figures; None for a method without any.

    Args:
        after: predictions after each task.
    """
    return {name: _alone([p.of(name) for p in after]) for name in after[-1].members} or None


def members_sentence(results: Results) -> str | None:
    """Last and average accuracy and forgetting of each member; None if nothing is recorded.

    Args:
        results: of a finished run.
    """
    told = [
        f"{name} {percent(m.last_accuracy)} last, {percent(m.average_incremental_accuracy)} average, "
        f"{percent(m.forgetting)} forgetting"
        for name, m in (results.members or {}).items()
    ]
    return f"Alone, its members reach: {'; '.join(told)}." if told else None


def _alone(after: Sequence[Predictions]) -> Member:
    matrix = AccuracyMatrix.from_predictions(after)
    over_samples = accuracy_over_samples(matrix)
    return Member(
        last_accuracy=float(over_samples[-1]),
        average_incremental_accuracy=float(over_samples.mean()),
        forgetting=forgetting(matrix),
        accuracy_after_task=over_samples.tolist(),
    )
