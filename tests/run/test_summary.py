"""What a run's results add up from: every number from its own source, worked out by hand."""

from __future__ import annotations

import datetime as dt
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from perdure import Backbone, Stream
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.eval import Predictions
from perdure.run import summary
from perdure.run.results import Results, TaskCost
from perdure.run.summary import machine, now, summarise, versions

PROVENANCE = {
    **{"recipe": {}, "command": "perdure run x", "versions": {"torch": "9"}, "fingerprints": {}, "machine": {}},
    **{"depends_on_test_batch": True, "quarantined": ["a.png"], "started": "noon", "finished": "later"},
}
COSTS = [
    TaskCost(3.0, 0.5, 7, 2, 900, 11, 40, 8),
    TaskCost(1.0, 0.25, 5, 6, None, 13, 80),
    TaskCost(2.0, 4.0, 9, 10, 700, 12, 60, 5),
]


@pytest.fixture
def stream() -> Stream:
    """Tasks of two, one and one classes: 5, 2 and 4 training images, 6, 3 and 3 test images."""
    ids = [7, -2, 40, 3]
    return class_incremental(synthetic_dataset(ids, train_per_class=(2, 3, 2, 4), test_per_class=3), [2, 1, 1], ids)


def said(stream: Stream, upto: int, right: list[int]) -> Predictions:
    """Of each task's tests the first few right, the others one class off, as second best."""
    labels = [stream.test(i).labels for i in range(upto + 1)]
    hit = np.concatenate([np.arange(len(x)) < n for x, n in zip(labels, right, strict=True)])
    true, other = np.concatenate(labels), np.full(len(hit), 7)
    other[true == 7] = -2
    first, second = np.where(hit, true, other), np.where(hit, other, true)
    task = np.repeat(np.arange(upto + 1), [len(x) for x in labels])
    return Predictions(task, true, np.stack([first, second], 1), np.full(len(hit), 0.5, np.float32))


def results(stream: Stream, costs: list[TaskCost] = COSTS, **options: Any) -> Results:
    after = [said(stream, 0, [5]), said(stream, 1, [6, 1]), said(stream, 2, [3, 0, 3])]
    return summarise(stream, after, costs, options.get("selection", [None] * 3), PROVENANCE)


def test_every_metric_is_where_it_belongs(stream: Stream) -> None:
    m = results(stream).metrics
    assert m.accuracy_after_task == pytest.approx([5 / 6, 7 / 9, 6 / 12])
    assert m.last_accuracy == pytest.approx(6 / 12)
    assert m.last_accuracy_over_tasks == pytest.approx((0.5 + 0 + 1) / 3)
    assert m.average_incremental_accuracy == pytest.approx((5 / 6 + 7 / 9 + 6 / 12) / 3)
    over_tasks = [5 / 6, (1 + 1 / 3) / 2, 1.5 / 3]
    assert m.average_incremental_accuracy_over_tasks == pytest.approx(sum(over_tasks) / 3)
    assert m.forgetting == pytest.approx(((1 - 0.5) + (1 / 3 - 0)) / 2)
    assert m.backward_transfer == pytest.approx(((0.5 - 5 / 6) + (0 - 1 / 3)) / 2)
    assert m.top5 == 1
    assert m.ece == pytest.approx(0)


def test_the_matrix_and_the_classes_are_the_streams(stream: Stream) -> None:
    r = results(stream)
    assert r.accuracy_matrix[0] == [pytest.approx(5 / 6), None, None]
    assert r.accuracy_matrix[1] == [1, pytest.approx(1 / 3), None]
    assert r.accuracy_matrix[2] == [0.5, 0, 1]
    assert r.test_images_per_task == [6, 3, 3]
    assert r.task_classes == [[7, -2], [40], [3]]
    assert r.class_names == {"7": "pattern 7", "-2": "pattern -2", "40": "pattern 40", "3": "pattern 3"}
    assert r.class_accuracy == {"7": 1, "-2": 0, "40": 0, "3": 1}
    assert r.selection is None
    assert r.provenance.model_dump() == PROVENANCE


def test_costs_are_added_up_or_taken_from_the_last_task(stream: Stream) -> None:
    cost = results(stream).cost
    assert cost.passes_per_train_image == pytest.approx((7 + 5 + 9) / 11)
    assert cost.passes_per_test_image == pytest.approx((2 + 6 + 10) / 12)
    assert (cost.train_seconds, cost.eval_seconds) == (6.0, 4.75)
    assert cost.train_seconds_per_task == [3.0, 1.0, 2.0]
    assert cost.eval_seconds_per_task == [0.5, 0.25, 4.0]
    assert cost.peak_rss_bytes == 900
    assert (cost.learned_parameters, cost.stored_bytes, cost.exemplars) == (12, 60, 5)
    unknown = [TaskCost(1.0, 1.0, 0, 0, None, 1, 1)] * 3
    assert results(stream, unknown).cost.peak_rss_bytes is None


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("processor\t: 0\nmodel name\t: Best CPU @ 2:1 \nprocessor\t: 1\nmodel name\t: Second\n", "Best CPU @ 2:1"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", "arm"),
        (None, "arm"),
    ],
    ids=["told", "not told", "no such file"],
)
def test_a_machine_has_a_name_whatever_it_tells(
    told: str | None, name: str, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "arm")
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    found = machine(backbone)
    assert (found["name"], found["device"]) == (name, "cpu")
    assert found["cpus"] >= 1
    assert found["platform"] == platform.platform()
    monkeypatch.setattr(platform, "processor", lambda: "x64")
    assert machine(backbone)["name"] == (name if name != "arm" else "x64")


def test_a_machine_with_a_gpu_is_named_after_the_one_used(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone.device = torch.device("cuda", 3)  # only asked for its name
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert {**machine(backbone), "cpus": 0, "platform": ""} == {
        **{"platform": "", "device": "cuda", "name": "card 3", "cpus": 0}
    }


def test_versions_and_the_time() -> None:
    found = versions()
    assert list(found) == ["python", "perdure", "torch", "torchvision", "timm", "numpy"]
    assert (found["python"], found["numpy"]) == (platform.python_version(), np.__version__)
    told = dt.datetime.fromisoformat(now())
    assert told.utcoffset() == dt.timedelta(0)
    assert told.microsecond == 0
    assert abs((dt.datetime.now(dt.UTC) - told).total_seconds()) < 60
