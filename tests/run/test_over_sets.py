"""Zero-shot accuracy and three means over data sets: in results, table and report, and equal in a resumed run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from test_report import check_page, make_results, page_of, put
from test_report_tables import Tables

from open_vocabulary import KNOWN, Reader, show
from perdure import cli
from perdure.checks.subject import small_stream
from perdure.eval import Answers, Predictions
from perdure.methods.simplecil import SimpleCIL
from perdure.run import Recipe, Runner, read_results
from perdure.run.over_sets import data_sets_in, zero_shot_in
from perdure.run.reading import read_predictions, write_predictions
from perdure.run.report import accuracy_table
from perdure.run.results import DataSets, Fairness, Results
from small_folders import fill_named

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/results.schema.json").read_text())
TOLD = "Accuracy (%) on the test images of a data set (column), among the classes of that set, which is told (MTIL)"
UNTOLD = (
    "Accuracy (%) on the test images of a data set (column), among all classes of all sets, taught or not; "
    "the set is not told (X-TAIL)"
)
UNTAUGHT = "Accuracy (%) on their test images, among their names alone{}; chance rises as fewer are left"
USES = "Beside the images of its tasks. Rows that differ here answer different questions."


@pytest.fixture
def sets(tmp_path: Path) -> list[str]:
    """Three folders with a test part: two classes of one and of another have one name."""
    made = {"zoo": {"ant": 2, "emu": 2, "yak": 2}, "farm": {"cow": 2, "emu": 2}, "sea": {"eel": 2, "seal": 2}}
    for name, classes in made.items():
        for part in ("train", "test"):
            fill_named(tmp_path / name / part, classes, salt=f"{name} {part}")
    return [str(tmp_path / name) for name in made]


def recipe(kind: Any, **stream: object) -> Recipe:
    backbone = {"name": "test_vit", "pretrained": False, "device": "cpu"}
    values = {"stream": {"order_seed": None, **stream}, "backbone": backbone}
    return Recipe.from_values({**values, "method": {"name": kind.__name__}}, method=kind)


def plant(recipe: Recipe) -> None:
    """Every test image shows its class, but for some that show another."""
    KNOWN.clear()
    instead = {"farm/emu": "farm/cow", "sea/eel": "sea/seal", "zoo/yak": "zoo/ant"}
    stream = recipe.load_stream()
    for task in stream:
        names = [stream.class_names[c] for c in stream.test(task.index).labels.tolist()]
        show(stream.test(task.index), [instead.get(name, name) for name in names])


def test_predictions_come_back_with_all_that_was_said(tmp_path: Path) -> None:
    n = np.array([0, 1])
    given = Predictions(
        n, n, n[:, None], n.astype(np.float32), {"told.by": n}, n + 5, *(Answers(n + k, n + 2, n + 3) for k in (1, 7))
    )
    write_predictions(tmp_path, given)
    found = read_predictions(tmp_path)
    assert (found.told is not None, found.untaught is not None) == (True, True)
    assert found.told.tolist() == [5, 6]  # type: ignore[union-attr]
    untaught: Any = found.untaught
    assert [untaught.task.tolist(), untaught.labels.tolist(), untaught.best.tolist()] == [[1, 2], [2, 3], [3, 4]]
    assert found.among_all.task.tolist() == [7, 8]  # type: ignore[union-attr]
    assert {name: best.tolist() for name, best in found.members.items()} == {"told.by": [0, 1]}
    write_predictions(tmp_path, Predictions(n, n, n[:, None], n.astype(np.float32)))
    found = read_predictions(tmp_path)
    assert (found.told, found.untaught, found.among_all, found.members) == (None, None, None, {})
    with np.load(tmp_path / "predictions.npz") as arrays:
        assert sorted(arrays) == ["confidence", "labels", "task", "top"]


def test_a_run_over_sets_by_hand_and_resumed(sets: list[str], tmp_path: Path) -> None:
    asked = recipe(Reader, datasets=sets, base=2, increment=1)
    plant(asked)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    results = Runner(asked, straight, keep_states="all").run()
    matrix = [[2 / 3, 0.5, 0.5]] * 3
    assert results.datasets is not None
    told = results.datasets.model_dump()
    assert [told.pop("names"), told.pop("of_task")] == [["zoo", "farm", "sea"], ["zoo", "zoo", "farm", "sea"]]
    untold = told.pop("untold")
    assert told.pop("accuracy_matrix") == untold.pop("accuracy_matrix") == [pytest.approx(row) for row in matrix]
    assert untold == pytest.approx(told)
    assert told == pytest.approx({"transfer": 0.5, "average": 5 / 9, "last": 5 / 9})
    # as long as yak is the only one of its set that is not taught, it is right
    assert results.metrics.zero_shot_accuracy == [0.6, 0.5, 0.5, None]
    assert results.metrics.zero_shot_transfer == pytest.approx(1.6 / 3)

    shutil.copytree(straight, stopped)
    (stopped / "results.json").unlink()
    for k in (2, 3):
        shutil.rmtree(stopped / "tasks" / f"00{k}")
    again = Runner(asked, stopped, keep_states="all").run()
    for part in ("metrics", "datasets", "fairness", "accuracy_matrix", "class_accuracy"):
        assert getattr(again, part) == getattr(results, part), part
    jsonschema.validate(json.loads((stopped / "results.json").read_text()), SCHEMA)
    assert read_results(stopped) == again
    page = page_of(stopped)
    check_page(page)
    (rows,) = Tables(page).of(TOLD)
    assert rows[0] == ["after", "zoo", "farm", "sea"]
    assert rows[1:] == [[name, "66.7", "50.0", "50.0"] for name in ("zoo", "farm", "sea")]
    assert Tables(page).of(UNTOLD) == [rows]
    (rows,) = Tables(page).of(UNTAUGHT.format(", those of the image's data set"))
    assert rows == [
        ["after task", "1", "2", "3", "mean (zero-shot transfer)"],
        ["accuracy", "60.0", "50.0", "50.0", "53.3"],
    ]
    assert "zoo/emu" in page
    assert "farm/emu" in page
    assert "Transfer 50.0: mean over data sets of the accuracy before they are taught. Average 55.6: " in page


def test_classes_are_told_with_their_set(sets: list[str], tmp_path: Path) -> None:
    (tmp_path / "zoo/train/emu").rename(tmp_path / "zoo/train/big_emu")
    (tmp_path / "zoo/test/emu").rename(tmp_path / "zoo/test/big_emu")
    asked = recipe(Reader, datasets=sets[:2])
    results = Runner(asked, tmp_path / "run").run()
    assert set(results.names.values()) == {"zoo/ant", "zoo/big emu", "zoo/yak", "farm/cow", "farm/emu"}
    assert "zoo/big_emu" in results.class_names.values()


def test_an_ordinary_stream_has_zero_shot_accuracy_alone(sets: list[str], tmp_path: Path) -> None:
    asked = recipe(Reader, data=sets[0], tasks=3)
    plant(asked)
    results = Runner(asked, tmp_path / "run").run()
    assert results.datasets is None
    assert results.metrics.zero_shot_accuracy is not None
    assert [value is None for value in results.metrics.zero_shot_accuracy] == [False, False, True]
    page = page_of(tmp_path / "run")
    assert Tables(page).of(UNTAUGHT.format(""))
    assert not Tables(page).of(TOLD)


def test_a_method_of_taught_classes_alone_has_nulls_above_the_diagonal(sets: list[str], tmp_path: Path) -> None:
    results = Runner(recipe(SimpleCIL, datasets=sets), tmp_path / "run").run()
    assert results.datasets is not None
    known = [[value is not None for value in row] for row in results.datasets.accuracy_matrix]
    assert known == [[True, False, False], [True, True, False], [True, True, True]]
    assert (results.datasets.transfer, results.datasets.average) == (None, None)
    assert results.datasets.last == pytest.approx(np.mean(results.datasets.accuracy_matrix[2]))  # type: ignore[arg-type]
    assert (results.metrics.zero_shot_transfer, results.metrics.zero_shot_accuracy) == (None, None)
    (rows,) = Tables(page_of(tmp_path / "run")).of(TOLD)
    assert rows[1][2:] == ["–", "–"]
    ends = [f"{protocol} {each}" for protocol in ("MTIL", "X-TAIL") for each in ("transfer", "average", "last")]
    assert accuracy_table({"a": results})[0][-6:] == ends
    row = accuracy_table({"a": results})[1][-6:]
    assert [row[i] for i in (0, 1, 3, 4)] == ["–"] * 4
    assert "–" not in (row[2], row[5])


def test_the_printed_table_has_what_any_run_has(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    plain = make_results([[0.5]])
    over = DataSets(names=["a"], of_task=["a"], accuracy_matrix=[[0.5]], transfer=0.111, average=0.222, last=0.333)
    metrics = plain.metrics.model_copy(update={"zero_shot_accuracy": [None], "zero_shot_transfer": 0.444})
    uses = Fairness(class_names=True, exemplars=0, features_kept=True, extra_data="captions", towers=2)
    rich = plain.model_copy(update={"datasets": over, "metrics": metrics, "fairness": uses})
    head = ["method", "1", "average", "last", "forgetting", "images kept"]
    assert accuracy_table({"one": plain})[0] == head
    more = ["zero-shot transfer", "MTIL transfer", "MTIL average", "MTIL last"]
    rows = accuracy_table({"one": plain, "two": rich})
    assert rows[0] == head + more
    assert [row[-5:] for row in rows[1:]] == [["0", *["–"] * 4], ["0", "44.4", "11.1", "22.2", "33.3"]]
    monkeypatch.setattr(cli.out, "_width", 200)
    cli.print_results({"two": rich})
    printed = capsys.readouterr().out
    assert "MTIL transfer" in printed
    assert (
        "two: Mind in comparisons: it uses class names (2 towers), keeps features of its training images, learns"
        in (printed)
    )


def test_results_of_before_are_read_and_reported(tmp_path: Path) -> None:
    results = make_results([[0.5, None], [0.4, 0.5]])
    old = json.loads(results.model_dump_json())
    for part in ("datasets", "fairness"):
        del old[part]
    for part in ("zero_shot_transfer", "zero_shot_accuracy"):
        del old["metrics"][part]
    jsonschema.validate(old, SCHEMA)
    run = put(tmp_path / "a", results)
    (run / "results.json").write_text(json.dumps(old))
    found: Results = read_results(run)
    assert (found.datasets, found.fairness, found.metrics.zero_shot_transfer) == (None, None, None)
    page = page_of(run)
    check_page(page)
    assert not Tables(page).of(USES)


def test_nothing_is_told_of_one_set() -> None:
    assert data_sets_in(small_stream(), []) is None
    assert zero_shot_in([]) is None
