"""Which prompts the tests choose: asked after every task, kept in its directory, told by the report.

A pool of which a few prompts serve every image (prompt collapse) looks like any other in a table of accuracies.
"""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from markupsafe import Markup

from perdure.data import Stream
from perdure.errors import CheckpointError
from perdure.methods import Method
from perdure.modules.prompts import selection_entropy
from perdure.run.figures import share_map
from perdure.run.results import Results, Selection

SELECTION_FILE = "selection.json"
DIGITS = 6  # of the shares kept: a float32's worth


@dc.dataclass(frozen=True, slots=True)
class SelectionView:
    """A run's choices as the page shows them: those after its last task, and how their entropy developed."""

    sentence: str
    figure: Markup
    shares: list[list[float | None]]
    highest: float
    by_task: str
    as_tasks_arrived: str


def selection_after(method: Method, stream: Stream, *, upto: int) -> Selection | None:
    """What the tests of tasks 0 to ``upto`` choose; None for a method that does not choose.

    Args:
        method: fitted on tasks 0 to ``upto``; nothing about tasks is told to it.
        stream: where the tests are.
        upto: index of the last task whose test is used.
    """
    shares: list[list[float] | None] = []
    for test in map(stream.test, range(upto + 1)):
        chosen = method.selection_of(test) if len(test) else None
        if chosen is None and len(test):
            return None
        shares.append(None if chosen is None else np.round(chosen.cpu().double().numpy(), DIGITS).tolist())
    overall = _overall(shares, [len(stream.test(i)) for i in range(upto + 1)])
    return None if overall is None else Selection(shares=shares, entropy=_entropy(overall))


def read_selection(task: Path) -> Selection | None:
    """What is kept in one task's directory; None if nothing is, as for a method that does not choose.

    Raises:
        CheckpointError: if the file is damaged.
    """
    file = task / SELECTION_FILE
    if not file.exists():
        return None
    try:
        return Selection.model_validate_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        hint = "Remove the run directory and run the same command again; features are kept"
        raise CheckpointError("run", SELECTION_FILE, "readable", str(task), hint) from error


def selection_sentence(results: Results) -> str | None:
    """How many prompts the tests choose after the last task, and how evenly; None if nothing is recorded.

    Args:
        results: of a finished run.
    """
    last = results.selection[-1] if results.selection else None
    overall = _overall(last.shares, results.test_images_per_task) if last else None
    if last is None or overall is None:
        return None
    return (
        f"After the last task, the tests choose {_used(overall)} prompts; the entropy of their shares is "
        f"{_number(last.entropy)} (1: all are chosen alike, 0: one serves every image)."
    )


def view_selection(results: Results) -> SelectionView | None:
    """The figure and the words of the report; None if nothing is recorded after the last task.

    Args:
        results: of a finished run.
    """
    sentence = selection_sentence(results)
    if sentence is None or not results.selection or results.selection[-1] is None:
        return None
    last = results.selection[-1].shares
    known = [row for row in last if row is not None]
    n_prompts = len(known[0])
    rows: list[list[float | None]] = [[*row] if row is not None else [None] * n_prompts for row in last]
    by_task = "; ".join(f"task {i}: {_words(row)}" for i, row in enumerate(last, 1) if row is not None)
    label = f"Heat map: which of {n_prompts} prompts the tests of {len(last)} tasks choose. Entropy by {by_task}."
    return SelectionView(
        sentence=sentence,
        figure=share_map(rows, label),
        shares=rows,
        highest=max(map(max, known)),
        by_task=by_task,
        as_tasks_arrived=", ".join(_number(s.entropy if s else None) for s in results.selection),
    )


def _overall(shares: Sequence[Sequence[float] | None], n_images: Sequence[int]) -> list[float] | None:
    """Shares over all test images, each of them counting the same; None without tests."""
    known = [(row, n) for row, n in zip(shares, n_images, strict=True) if row is not None]
    if not known:
        return None
    return np.average([row for row, _ in known], axis=0, weights=[n for _, n in known]).tolist()


def _entropy(shares: Sequence[float]) -> float | None:
    """None for a single prompt, which cannot be chosen unevenly."""
    return selection_entropy(torch.tensor(shares, dtype=torch.float64)) if len(shares) > 1 else None


def _words(shares: Sequence[float]) -> str:
    most = int(np.argmax(shares))
    return f"{_number(_entropy(shares))} ({_used(shares)} prompts, most often {most + 1} with {shares[most]:.0%})"


def _used(shares: Sequence[float]) -> str:
    return f"{sum(share > 0 for share in shares)} of {len(shares)}"


def _number(entropy: float | None) -> str:
    return "–" if entropy is None else f"{entropy:.2f}"
