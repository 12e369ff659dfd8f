"""Reports are pure functions of run directories: offline, escaped, deterministic, and readable in every corner case."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from perdure.errors import CheckpointError, RunDirectoryError, StorageError
from perdure.run.report import _classes, accuracy_table, headline, percent, run_labels, seconds, size, write_report
from perdure.run.results import Results

COST = {
    **{"passes_per_train_image": 1.0, "passes_per_test_image": 0.0, "train_seconds": 90.0, "eval_seconds": 0.5},
    **{"peak_rss_bytes": None, "learned_parameters": 1234567, "stored_bytes": 3 * 2**20, "exemplars": 0},
}


def make_results(
    matrix: list[list[float | None]],
    *,
    n_classes: int = 4,
    names: dict[str, str] | None = None,
    method: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    **provenance: Any,
) -> Results:
    """Results with this accuracy matrix; ten test images per task, classes spread over the tasks."""
    n = len(matrix)
    after = [None if None in row[: k + 1] else sum(row[: k + 1]) / (k + 1) for k, row in enumerate(matrix)]  # type: ignore[arg-type]
    values = {
        "last_accuracy": after[-1],
        "last_accuracy_over_tasks": after[-1],
        "average_incremental_accuracy": None if None in after else sum(after) / n,  # type: ignore[arg-type]
        "average_incremental_accuracy_over_tasks": None,
        "forgetting": 0.1 if n > 1 else None,
        "backward_transfer": -0.1 if n > 1 else None,
        "top5": 1.0,
        "ece": 0.5,
        "accuracy_after_task": after,
    }
    return Results.model_validate(
        {
            "accuracy_matrix": matrix,
            "test_images_per_task": [10] * n,
            "metrics": values | (metrics or {}),
            "class_accuracy": {str(c): (c + 1) / n_classes for c in range(n_classes)},
            "class_names": names or {str(c): f"name{c}" for c in range(n_classes)},
            "task_classes": [[c for c in range(n_classes) if c % n == t] for t in range(n)],
            "cost": COST | {"train_seconds_per_task": [90.0 / n] * n, "eval_seconds_per_task": [0.5 / n] * n},
            "provenance": {
                "recipe": {"stream": {"data": "../data/pets"}, "method": method or {"name": "ranpac"}, "seed": 0},
                "command": "perdure run r.yaml",
                "versions": {"perdure": "0.1.0"},
                "fingerprints": {"stream": "s1", "backbone": "b1"},
                "machine": {"name": "a machine"},
                **{"depends_on_test_batch": False, "quarantined": [], "started": "noon", "finished": "later"},
                **provenance,
            },
        }
    )


TWO_TASKS: list[list[float | None]] = [[1.0, None], [0.9, 0.8]]


def put(folder: Path, results: Results) -> Path:
    """A finished run's directory."""
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(results.model_dump_json())
    return folder


def put_predictions(run: Path, labels: list[int], task: int) -> None:
    folder = run / "tasks" / f"{task:03d}"
    folder.mkdir(parents=True)
    zeros = np.zeros(len(labels), int)
    np.savez(folder / "predictions.npz", labels=labels, task=zeros, top=zeros[:, None], confidence=zeros + 1.0)


def page_of(*runs: Path, out: Path | None = None) -> str:
    return write_report(runs, out).read_text(encoding="utf-8")


class Strict(HTMLParser):
    """Balanced tags, nothing fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.open += [tag] if tag != "meta" else []
        for name, value in attrs:
            if name in ("src", "href", "xlink:href"):
                assert (value or "").startswith("#"), f"{tag} fetches {value}"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def check_page(page: str) -> None:
    """What holds for every report."""
    parser = Strict()
    parser.feed(page)
    assert not parser.open
    assert not parser.tags & {"script", "link", "img", "iframe", "object"}
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert page.startswith("<!DOCTYPE html>\n<html lang=")
    assert "<title>" in page
    for svg in re.findall(r"<svg[^>]*>", page):
        assert 'role="img" aria-label="' in svg
    for table in re.findall(r"<table.*?</table>", page, flags=re.DOTALL):
        assert "<caption>" in table
        assert all("scope=" in head for head in re.findall(r"<th[ >][^>]*", table))


def test_one_run(tmp_path: Path) -> None:
    run = put(tmp_path / "a", make_results(TWO_TASKS))
    page = page_of(run)
    check_page(page)
    assert (run / "report.html").is_file()
    assert "RanPAC on pets: 85.0\N{NO-BREAK SPACE}% after 2 tasks and 4 classes" in page
    assert "forgot 10.0 points" in page
    for text in ("1,234,567", "3.0 MiB", "perdure run r.yaml", "data: ../data/pets", "stream s1", "−10.0", "a machine"):
        assert text in page
    assert page.count("<svg") == 3
    assert "#ab00" not in page, "a stand-in colour was left"


def test_names_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert('$x_1$ & \"')</script>"
    texts = {"command": evil, "quarantined": [evil], "machine": {evil: evil}, "versions": {evil: evil}}
    results = make_results(TWO_TASKS, names={str(c): evil for c in range(4)}, method={"name": evil}, **texts)
    page = page_of(put(tmp_path / "<b>run", results), put(tmp_path / "<b>other", results), out=tmp_path / "out.html")
    check_page(page)
    assert "&lt;script&gt;" in page
    assert "<b>" not in page


def test_nothing_defined(tmp_path: Path) -> None:
    empty = dict.fromkeys(["last_accuracy", "forgetting", "backward_transfer", "top5", "ece"])
    run = put(tmp_path / "a", make_results([[None]], n_classes=1, metrics=empty))
    page = page_of(run)
    check_page(page)
    assert "RanPAC on pets: – after 1 task and 1 class." in page
    assert page.count("<td>–</td>") >= 6
    assert "None" not in page


@pytest.mark.parametrize(("n_tasks", "n_classes"), [(1, 1), (1, 2), (2, 10), (20, 11), (21, 300), (60, 1000)])
def test_all_sizes(tmp_path: Path, n_tasks: int, n_classes: int) -> None:
    matrix = [[0.5 + j / (2 * n_tasks) if j <= k else None for j in range(n_tasks)] for k in range(n_tasks)]
    page = page_of(put(tmp_path / "a", make_results(matrix, n_classes=n_classes)))
    check_page(page)
    assert page.count('<th scope="row">name0</th>') == (2 if n_classes > 10 else 1)
    assert (f"<summary>All {n_classes} classes</summary>" in page) == (n_classes > 10)
    heat_map = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)[1]
    assert (">50.0</text>" in heat_map) == (n_tasks <= 20)
    assert len(page) < 1_000_000


def test_weakest_classes_come_with_their_number_of_tests(tmp_path: Path) -> None:
    run = put(tmp_path / "a", make_results(TWO_TASKS, n_classes=12))
    put_predictions(run, [0] * 7 + [5] * 3, task=1)
    rows = re.findall(
        r'<tr><th scope="row">(name\d+)</th><td>.*?</span>(.*?)</td><td>(.*?)</td><td>(.*?)</td>', page_of(run)
    )
    assert rows[0] == ("name0", "8.3", "7", "1")
    assert rows[5] == ("name5", "50.0", "3", "2")
    assert rows[1][2] == "–"
    assert [name for name, *_ in rows[:10]] == [f"name{c}" for c in range(10)]


def test_damaged_predictions_are_named(tmp_path: Path) -> None:
    run = put(tmp_path / "a", make_results(TWO_TASKS))
    put_predictions(run, [0], task=1)
    (run / "tasks" / "001" / "predictions.npz").write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match=r"predictions\.npz"):
        write_report([run])


def test_batch_dependence_is_shown_in_headline_and_row(tmp_path: Path) -> None:
    plain = put(tmp_path / "a", make_results(TWO_TASKS, method={"name": "simplecil"}))
    wary = put(tmp_path / "b", make_results(TWO_TASKS, depends_on_test_batch=True))
    assert "test batch" not in page_of(plain)
    page = page_of(plain, wary)
    header, body = page.split("</header>")
    assert header.count('<p class="warning">') == 1
    assert "RanPAC answers differently depending on which other images are in the test batch" in header
    assert body.count("⚠ depends on the test batch") == 1


def test_different_streams_and_backbones_are_noted(tmp_path: Path) -> None:
    a = put(tmp_path / "a", make_results(TWO_TASKS))
    b = put(tmp_path / "b", make_results(TWO_TASKS))
    c = put(tmp_path / "c", make_results([[0.5]], fingerprints={"stream": "s2", "backbone": "b1"}))
    d = put(tmp_path / "d", make_results(TWO_TASKS, fingerprints={"stream": "s1", "backbone": "b2"}))
    assert "Not comparable" not in page_of(a, b)
    assert "Not comparable" in page_of(a, c)
    assert "Different backbones" not in page_of(a, c)
    assert "Different backbones" in page_of(a, d)
    check_page(page_of(a, b, c, d))


def test_unfinished_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "recipe.yaml").write_text("seed: 0\n")
    done = put(tmp_path / "done", make_results(TWO_TASKS))
    with pytest.raises(RunDirectoryError, match="half"):
        write_report([done, tmp_path / "half"])
    with pytest.raises(RunDirectoryError, match=r"got \[\]"):
        write_report([])
    assert not list(tmp_path.rglob("*.html"))


def test_where_it_is_written(tmp_path: Path) -> None:
    a, b = (put(tmp_path / "runs" / name, make_results(TWO_TASKS)) for name in "ab")
    assert write_report([a]) == a / "report.html"
    assert write_report([a, a]) == a / "report.html"
    assert write_report([a, b]) == tmp_path / "runs" / "report.html"
    assert write_report([a], tmp_path / "new" / "x.html") == tmp_path / "new" / "x.html"
    assert write_report([a], tmp_path) == tmp_path / "report.html"
    with pytest.raises(StorageError, match=r"x\.html"):
        write_report([a], tmp_path / "new" / "x.html" / "y.html")


def test_same_files_same_bytes(tmp_path: Path) -> None:
    runs = [put(tmp_path / name, make_results(TWO_TASKS, n_classes=30)) for name in "ab"]
    before = dict(matplotlib.rcParams)
    first = write_report(runs).read_bytes()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert write_report(runs).read_bytes() == first, "the user's matplotlib settings leak in"


def test_accuracy_table() -> None:
    runs = {
        "long": make_results([[1.0, None, None], [0.5, 0.9, None], [0.4, 0.8, 0.9]]),
        "short": make_results([[0.9]]),
    }
    assert accuracy_table(runs) == [
        ["method", "1", "2", "3", "average", "last", "forgetting", "images kept"],
        ["long", "100.0", "70.0", "70.0", "80.0", "70.0", "10.0", "0"],
        ["short", "90.0", "–", "–", "90.0", "90.0", "–", "0"],
    ]
    assert accuracy_table({}) == [["method", "average", "last", "forgetting", "images kept"]]


def test_labels_tell_runs_apart(tmp_path: Path) -> None:
    def ranpac(**values: Any) -> Results:
        return make_results(TWO_TASKS, method={"name": "ranpac", **values})

    def labels(*runs: tuple[str, Results]) -> list[str]:
        return run_labels({tmp_path / name: r for name, r in runs})

    simple = make_results(TWO_TASKS, method={"name": "simplecil"})
    assert labels(("a", ranpac()), ("b", simple)) == ["RanPAC", "SimpleCIL"]
    assert labels(("a", ranpac(dim=1)), ("b", ranpac(dim=2))) == ["RanPAC (dim=1)", "RanPAC (dim=2)"]
    assert labels(("a", ranpac(dim=1)), ("b", ranpac())) == ["RanPAC (dim=1)", "RanPAC (dim=–)"]
    assert labels(("a", ranpac()), ("b", ranpac())) == ["RanPAC (a)", "RanPAC (b)"]
    named, by_values = ranpac(), ranpac()
    named.provenance.recipe["stream"] = {"preset": "pets-b0-inc5", **named.provenance.recipe["stream"]}
    assert labels(("a", named), ("b", by_values)) == ["RanPAC (a)", "RanPAC (b)"], "one stream, asked for in two ways"
    many = labels(("x/a", ranpac()), ("y/a", ranpac()), ("b", ranpac(dim=1)), ("c", simple))
    assert len(set(many)) == 4
    assert many[3] == "SimpleCIL"


@pytest.mark.parametrize(
    ("forgetting", "end"), [(0.0271, "forgot 2.7 points"), (-0.012, "gained 1.2 points"), (-1e-9, "forgot nothing")]
)
def test_headline_forgetting(forgetting: float, end: str) -> None:
    assert f"; {end}" in headline("X", make_results(TWO_TASKS, metrics={"forgetting": forgetting}))


def test_foreign_method_and_bare_recipe() -> None:
    assert headline("X", make_results(TWO_TASKS, recipe={})).startswith("X on unknown data: ")
    assert run_labels({Path("a"): make_results(TWO_TASKS, recipe={})}) == ["unknown method"]
    assert run_labels({Path("a"): make_results(TWO_TASKS, method={"name": "theirs"})}) == ["theirs"]
    assert run_labels({Path("a"): make_results(TWO_TASKS, method={"name": "adam"})}) == ["APER"], "an alias"


def test_numbers_for_reading() -> None:
    assert [percent(v) for v in (0.91249, -0.0001, None, 1)] == ["91.2", "0.0", "–", "100.0"]
    assert [seconds(v) for v in (0.071, 13.06, 600, 7260, 9.96)] == [
        "0.07 s",
        "13.1 s",
        "10 min",
        "2 h 1 min",
        "10.0 s",
    ]
    assert [size(v) for v in (None, 0, 1023, 1024, 2**20 - 1, 3 * 2**40, 2**52)] == [
        "–", "0 bytes", "1023 bytes", "1.0 KiB", "1.0 MiB", "3.0 TiB", "4096.0 TiB",
    ]  # fmt: skip


def test_a_class_that_comes_again_belongs_to_the_task_it_came_with_first(tmp_path: Path) -> None:
    results = make_results([[0.5, None, None], [0.5, 0.5, None], [0.5, 0.5, 0.5]], n_classes=3)
    returning = results.model_copy(update={"task_classes": [[0], [1], [2, 0]]})
    assert [(row.name, row.task) for row in _classes(tmp_path, returning)] == [("name0", 1), ("name1", 2), ("name2", 3)]
