"""Figures that a change of the code may move are marked until they are made anew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import write_tables
from scripts.table_marks import MARKS, NOTES, explained, mark

ROOT = Path(__file__).parents[2]


def test_a_figure_has_the_marks_of_its_runs() -> None:
    made, before, batches = {"last": 1}, {"made_before": "crops"}, {"made_before": "batches"}
    assert mark([]) == mark([made]) == ""
    assert mark([made, before, before]) == " †"
    assert mark([before, batches]) == " ‡ †"
    assert set(MARKS.values()) == set(NOTES)


def test_marks_are_explained_under_the_table_they_are_in() -> None:
    assert explained("| 1 |") == "| 1 |"
    assert explained("| 1 † |") == f"| 1 † |\n\n†: {NOTES['†']}"
    assert explained("| 1 ‡ | 2 † |") == f"| 1 ‡ | 2 † |\n\n†: {NOTES['†']}\n\n‡: {NOTES['‡']}"


TABLES = {  # of each result file: the table and the cell that shows a run
    "representation_methods": ("table:representation-default", "slca", ("cifar10", "slca_default")),
    "prompt_methods": ("table:prompt-methods", "finetune", ("cifar10", "finetune_default")),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_marked_run_marks_its_data_sets_figures_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, method, (data, recipe) = TABLES[name]
    results: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    for recipes in results["runs"].values():
        for orders in recipes.values():
            for run in orders.values():
                run.pop("made_before", None)
    monkeypatch.setattr(write_tables, "RESULTS", tmp_path)
    (tmp_path / f"{name}.json").write_text(json.dumps(results))
    assert "†" not in write_tables.TABLES[table]()
    results["runs"][data][recipe]["1993"]["made_before"] = "crops"
    (tmp_path / f"{name}.json").write_text(json.dumps(results))
    (row,) = [line for line in write_tables.TABLES[table]().splitlines() if "†" in line]
    assert row.startswith(f"| `{method}` |")
    cells = [cell for cell in row.split("|")[2:-1] if "†" in cell]
    heads = write_tables.TABLES[table]().splitlines()[0].split("|")[2:-1]
    assert len(cells) == sum("CIFAR-10" in head for head in heads)
