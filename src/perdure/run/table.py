"""The table of several runs, as the terminal and the report have it."""

from __future__ import annotations

from collections.abc import Mapping

from perdure.run.results import Results

OVER_SETS = ("transfer", "average", "last")


def accuracy_table(runs: Mapping[str, Results]) -> list[list[str]]:
    """Accuracy in percent after every task, over all test images so far, and the images kept; one row per run.

    Args:
        runs: results by label.

    Returns:
        The header row (method, 1 to T, average, last, forgetting, images kept; where a run has it, the accuracy on
        classes not taught yet, and three means over data sets, the set told and not), then the runs; ``–`` where a
        value is not defined.
    """
    n = max((len(r.metrics.accuracy_after_task) for r in runs.values()), default=0)
    rows = [["method", *(str(t) for t in range(1, n + 1)), "average", "last", "forgetting", "images kept"]]
    zero_shot = any(r.metrics.zero_shot_accuracy is not None for r in runs.values())
    over_sets = any(r.datasets is not None for r in runs.values())
    untold = any(r.datasets is not None and r.datasets.untold is not None for r in runs.values())
    rows[0] += ["zero-shot transfer"] * zero_shot + [f"MTIL {each}" for each in OVER_SETS] * over_sets
    rows[0] += [f"X-TAIL {each}" for each in OVER_SETS] * untold
    for label, r in runs.items():
        m = r.metrics
        after = [percent(v) for v in m.accuracy_after_task]
        after += ["–"] * (n - len(after))
        ends = (m.average_incremental_accuracy, m.last_accuracy, m.forgetting)
        more = [m.zero_shot_transfer] * zero_shot + [getattr(r.datasets, each, None) for each in OVER_SETS] * over_sets
        more += [getattr(r.datasets and r.datasets.untold, each, None) for each in OVER_SETS] * untold
        rows.append([label, *after, *map(percent, ends), str(r.cost.exemplars), *map(percent, more)])
    return rows


def percent(fraction: float | None) -> str:
    """A fraction as a percentage with one decimal and without the sign; ``–`` for ``None``."""
    return "–" if fraction is None else f"{round(100 * fraction, 1) + 0.0:.1f}"  # + 0.0: no negative zero
