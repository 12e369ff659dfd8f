"""From predictions and costs to ``results.json``, and the facts of the machine they come from."""

from __future__ import annotations

import datetime as dt
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from perdure.backbone import Backbone, backbones
from perdure.data import Stream
from perdure.data.datasets import datasets
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
    zero_shot_transfer,
)
from perdure.methods import methods
from perdure.run.members import members_in
from perdure.run.over_sets import data_sets_in, zero_shot_in
from perdure.run.results import Cost, Fairness, Metrics, Provenance, Results, Selection, TaskCost

CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = ("perdure", "torch", "torchvision", "timm", "numpy")


def summarise(
    stream: Stream,
    after: Sequence[Predictions],
    costs: Sequence[TaskCost],
    selection: Sequence[Selection | None],
    provenance: Mapping[str, Any],
    fairness: Fairness | None = None,
) -> Results:
    """All metrics and the cost table of a finished run.

    Args:
        stream: its stream.
        after: predictions after each task.
        costs: ``cost.json`` of each task.
        selection: what the tests chose after each task.
        provenance: fields of :class:`perdure.run.results.Provenance`.
        fairness: what the method uses beside its tasks' images.
    """
    matrix, last = AccuracyMatrix.from_predictions(after), after[-1]
    n_train = sum(len(t.train) for t in stream)
    n_test = sum(len(stream.test(i)) for i in range(len(stream)))
    peaks = [c.peak_rss_bytes for c in costs if c.peak_rss_bytes is not None]
    train_seconds, eval_seconds = [c.train_seconds for c in costs], [c.eval_seconds for c in costs]
    cost = Cost(
        passes_per_train_image=sum(c.train_passes for c in costs) / n_train,
        passes_per_test_image=sum(c.test_passes for c in costs) / max(n_test, 1),
        train_seconds=sum(train_seconds),
        eval_seconds=sum(eval_seconds),
        train_seconds_per_task=train_seconds,
        eval_seconds_per_task=eval_seconds,
        peak_rss_bytes=max(peaks) if peaks else None,
        learned_parameters=costs[-1].learned_parameters,
        stored_bytes=costs[-1].stored_bytes,
        exemplars=costs[-1].exemplars,
    )
    return Results(
        accuracy_matrix=[[None if np.isnan(v) else float(v) for v in row] for row in matrix.values],
        test_images_per_task=matrix.counts.tolist(),
        metrics=_metrics(matrix, after),
        class_accuracy={str(c): a for c, a in class_accuracy(last).items()},
        class_names={str(c): name for c, name in stream.class_names.items()},
        display_names={str(c): name for c, name in stream.display_names.items()},
        task_classes=[list(t.classes) for t in stream],
        cost=cost,
        selection=list(selection) if any(selection) else None,
        members=members_in(after),
        datasets=data_sets_in(stream, after),
        fairness=fairness,
        provenance=Provenance(**provenance),
    )


def _metrics(matrix: AccuracyMatrix, after: Sequence[Predictions]) -> Metrics:
    over_samples, over_tasks = accuracy_over_samples(matrix), accuracy_over_tasks(matrix)
    return Metrics(
        last_accuracy=float(over_samples[-1]),
        last_accuracy_over_tasks=float(over_tasks[-1]),
        average_incremental_accuracy=float(over_samples.mean()),
        average_incremental_accuracy_over_tasks=float(over_tasks.mean()),
        forgetting=forgetting(matrix),
        backward_transfer=backward_transfer(matrix),
        top5=top_k_accuracy(after[-1]),
        ece=expected_calibration_error(after[-1]),
        accuracy_after_task=over_samples.tolist(),
        zero_shot_transfer=zero_shot_transfer(after),
        zero_shot_accuracy=zero_shot_in(after),
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a number may depend on, plug-ins among them."""
    plugins = {**datasets.plugins(), **backbones.plugins(), **methods.plugins()}
    return {"python": platform.python_version(), **{p: version(p) for p in PACKAGES}, **dict(sorted(plugins.items()))}


def machine(backbone: Backbone) -> dict[str, Any]:
    """Where the run took place."""
    device = backbone.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {"platform": platform.platform(), "device": device.type, "name": name, "cpus": os.cpu_count()}


def now() -> str:
    """The time in UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def _cpu_name() -> str:
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
