"""Every number in a report's tables is the results' own, in the row and column that name it."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_report import make_results, page_of, put, put_predictions

from perdure.run.results import Results, Selection

METRICS = {
    "last_accuracy": 0.611,
    "last_accuracy_over_tasks": 0.622,
    "average_incremental_accuracy": 0.633,
    "average_incremental_accuracy_over_tasks": 0.644,
    "forgetting": 0.155,
    "backward_transfer": -0.166,
    "top5": 0.977,
    "ece": 0.288,
    "accuracy_after_task": [0.911, 0.722, 0.611],
}
MATRIX: list[list[float | None]] = [[0.91, None, None], [0.82, 0.73, None], [0.64, 0.55, 0.46]]


class Tables(HTMLParser):
    """Each table's rows of cell texts, head and all, by caption; a bar is told by its share, ``[0.250]``."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[list[str]]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.found.append(("", []))
        if tag == "tr":
            self.found[-1][1].append([])
        if tag in ("th", "td", "caption"):
            self.text = ""
        if dict(attrs).get("class") == "bar":
            self.text += "[" + (dict(attrs)["style"] or "").removeprefix("--share: ") + "]"
        elif tag == "span":
            self.text += " "

    def handle_endtag(self, tag: str) -> None:
        if tag == "caption":
            self.found[-1] = (self.text, self.found[-1][1])
        if tag in ("th", "td"):
            self.found[-1][1][-1].append(" ".join(self.text.split()))

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, caption: str) -> list[list[list[str]]]:
        return [rows for name, rows in self.found if name == caption]


def odd_results(**changes: object) -> Results:
    """Results in which no two numbers are alike."""
    results = make_results(MATRIX, n_classes=12, metrics=METRICS)
    cost = results.cost.model_copy(
        update={
            **{"passes_per_train_image": 1.25, "passes_per_test_image": 2.5, "train_seconds": 21.0},
            **{
                "eval_seconds": 3.3,
                "train_seconds_per_task": [5.0, 7.0, 9.0],
                "eval_seconds_per_task": [1.0, 1.1, 1.2],
            },
            **{"peak_rss_bytes": 5 * 2**20, "learned_parameters": 4321, "stored_bytes": 7 * 2**10, "exemplars": 17},
        }
    )
    return results.model_copy(update={"cost": cost, "test_images_per_task": [31, 32, 33], **changes})


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    run = put(tmp_path / "a", odd_results())
    put_predictions(run, [c for c in range(12) for _ in range(40 + c)], task=2)
    return Tables(page_of(run))


def test_metrics(tables: Tables) -> None:
    (rows,) = tables.of("In percent; forgetting and backward transfer in points.")
    heads = "run|last accuracy|average incremental accuracy|forgetting|backward transfer|top‑5|ECE|images kept"
    assert rows[:2] == [heads.split("|"), ["over images", "over tasks"] * 2]
    assert rows[2:] == [["RanPAC pets, 3 tasks", "61.1", "62.2", "63.3", "64.4", "15.5", "−16.6", "97.7", "28.8", "17"]]


def test_accuracy_after_every_task(tables: Tables) -> None:
    (rows,) = tables.of("Accuracy (%) over all test images so far")
    assert rows[0] == ["method", "1", "2", "3", "average", "last", "forgetting", "images kept"]
    assert rows[1:] == [["RanPAC", "91.1", "72.2", "61.1", "63.3", "61.1", "15.5", "17"]]


def test_the_matrix(tables: Tables) -> None:
    (rows,) = tables.of("Accuracy (%) on the test of a task (column)")
    assert rows[0] == ["after task", "1", "2", "3"]
    assert rows[1:] == [["1", "91.0", "", ""], ["2", "82.0", "73.0", ""], ["3", "64.0", "55.0", "46.0"]]


def test_classes_with_bars_as_long_as_their_accuracy(tables: Tables) -> None:
    (weakest,) = tables.of("The weakest classes after the last task")
    (every,) = tables.of("All classes after the last task, weakest first")
    assert weakest[0] == every[0] == ["class", "accuracy (%)", "tests", "came with task"]
    shares = [(c + 1) / 12 for c in range(12)]
    wanted = [[f"name{c}", f"[{s:.3f}]{100 * s:.1f}", f"{40 + c}", f"{c % 3 + 1}"] for c, s in enumerate(shares)]
    assert every[1:] == wanted
    assert weakest[1:] == wanted[:10]


def test_a_bar_is_as_long_as_its_share(tmp_path: Path) -> None:
    page = page_of(put(tmp_path / "a", odd_results()))
    (rule,) = re.findall(r"\n\.bar {([^}]*)}", page)
    assert "left / calc(var(--share) * 100%) 100% no-repeat" in rule


def test_cost_and_time(tables: Tables) -> None:
    (cost,) = tables.of("The whole run, summed over resumed sessions")
    assert dict(cost) == {
        "Backbone passes per training image": "1.25",
        "Backbone passes per test image": "2.50",
        "Training": "21.0 s",
        "Evaluation": "3.30 s",
        "Peak memory of the process": "5.0 MiB",
        "Learned parameters": "4,321",
        "Stored state": "7.0 KiB",
        "Exemplars (images kept)": "17",
    }
    (time,) = tables.of("Seconds per task")
    assert time[0] == ["task", "classes", "test images", "training", "evaluation"]
    assert time[1:] == [
        ["1", "4", "31", "5.00 s", "1.00 s"],
        ["2", "4", "32", "7.00 s", "1.10 s"],
        ["3", "4", "33", "9.00 s", "1.20 s"],
    ]


def test_provenance(tables: Tables) -> None:
    (rows,) = tables.of("Provenance")
    assert dict(rows) == {
        "Command": "perdure run r.yaml",
        "Started": "noon",
        "Finished": "later",
        "Machine": "name a machine",
        "Versions": "perdure 0.1.0",
        "Fingerprints": "stream s1 · backbone b1",
        "Files left out": "0",
    }


def test_chosen_prompts(tmp_path: Path) -> None:
    after = Selection(shares=[[0.7, 0.3], [0.25, 0.75], None], entropy=0.9)
    results = odd_results(selection=[after, after, after])
    (rows,) = Tables(page_of(put(tmp_path / "a", results))).of(
        "Share (%) of a prompt (column) in the choices for the test of a task (row), after the last task"
    )
    assert rows == [["test of task", "1", "2"], ["1", "70.0", "30.0"], ["2", "25.0", "75.0"], ["3", "–", "–"]]


def test_what_a_screen_reader_and_the_keys_say(tmp_path: Path) -> None:
    page = page_of(put(tmp_path / "a", odd_results())).replace("\N{NO-BREAK SPACE}", " ")
    assert re.findall(r'<svg role="img" aria-label="([^"]*)"', page) == [
        "Accuracy after each task: RanPAC from 91.1 % to 61.1 %.",
        "Heat map of the accuracy matrix, 3 by 3 tasks; 61.1 % over all at the end.",
        "Bars: accuracy of 12 classes, 8.3 % to 100.0 %.",
    ]
    assert re.findall(r'class="key"[^>]*>([\d.]+) %<span class="ramp"></span>([\d.]+) %', page) == [("46.0", "91.0")]


def test_each_of_several_runs_has_its_own_rows(tmp_path: Path) -> None:
    other = make_results([[0.5, None], [0.4, 0.3]], method={"name": "joint"}, metrics={"top5": 0.123, "ece": 0.0})
    page = page_of(put(tmp_path / "a", odd_results()), put(tmp_path / "b", other), out=tmp_path / "both.html")
    tables = Tables(page)
    (metrics,) = tables.of("In percent; forgetting and backward transfer in points.")
    assert metrics[2][:2] == ["● RanPAC pets, 3 tasks", "61.1"]
    assert metrics[3] == ["■ Joint pets, 2 tasks", "35.0", "35.0", "42.5", "–", "10.0", "−10.0", "12.3", "0.0", "0"]
    (after,) = tables.of("Accuracy (%) over all test images so far")
    assert after[1:] == [
        ["RanPAC", "91.1", "72.2", "61.1", "63.3", "61.1", "15.5", "17"],
        ["Joint", "50.0", "35.0", "–", "42.5", "35.0", "10.0", "0"],
    ]
    first, second = tables.of("Accuracy (%) on the test of a task (column)")
    assert (first[-1], second[-1]) == (["3", "64.0", "55.0", "46.0"], ["2", "40.0", "30.0"])
    assert re.findall(r'<li><span aria-hidden="true" style="color: (\S+)">(.)</span> (\w+)</li>', page) == [
        ("var(--run-0)", "●", "RanPAC"),
        ("var(--run-1)", "■", "Joint"),
    ]


@pytest.mark.parametrize("untested", [(), (3,), (3, 12)])
def test_all_counts_of_classes_agree(tmp_path: Path, untested: tuple[int, ...]) -> None:
    results = make_results([[1.0, None], [0.9, 0.8]], n_classes=13)
    tested = {c: a for c, a in results.class_accuracy.items() if int(c) not in untested}
    page = page_of(put(tmp_path / "a", results.model_copy(update={"class_accuracy": tested})))
    every = "tested classes" if untested else "classes"
    assert "after 2 tasks and 13 classes" in page
    assert f"<summary>All {len(tested)} {every}</summary>" in page
    assert f"Bars: accuracy of {len(tested)} classes" in page
    (rows,) = Tables(page).of(f"All {every} after the last task, weakest first")
    assert len(rows) == 1 + len(tested)
    names = ", ".join(f"name{c}" for c in sorted(untested, key=str))
    note = f"With test images: {len(tested)} of 13 classes. Without any: {names}."
    assert (note in page) == bool(untested)
    assert ("With test images" in page) == bool(untested)


def test_few_classes_of_which_one_is_untested(tmp_path: Path) -> None:
    results = make_results([[1.0, None], [0.9, 0.8]], n_classes=4)
    del results.class_accuracy["2"]
    page = page_of(put(tmp_path / "a", results))
    (rows,) = Tables(page).of("Every tested class after the last task")
    assert [row[0] for row in rows[1:]] == ["name0", "name1", "name3"]
    assert "With test images: 3 of 4 classes. Without any: name2." in page
    assert page.count("Accuracy of each class with test images after the last task, sorted.") == 2
