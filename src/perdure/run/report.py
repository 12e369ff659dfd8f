"""Reports of finished runs: one HTML page that opens offline, and the table for the terminal.

Everything is read from the run directories; nothing is trained or measured again, and the same files give the same
bytes. Where a run's last ``predictions.npz`` is gone, the page lacks the number of tests per class and nothing else.
"""

from __future__ import annotations

import dataclasses as dc
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from perdure.data.names import shown
from perdure.errors import RunDirectoryError, StorageError
from perdure.methods import methods
from perdure.run.figures import RUN_COLORS, SYMBOLS, accuracy_curves, class_bars, matrix_range, task_matrix
from perdure.run.reading import read_predictions, read_results
from perdure.run.results import Results
from perdure.run.selection import SelectionView, view_selection
from perdure.run.streams import places, without_name
from perdure.run.table import accuracy_table as accuracy_table
from perdure.run.table import percent as percent

N_WEAKEST = 10


@dc.dataclass(frozen=True, slots=True)
class ClassRow:
    """One class in the report; ``tests`` is ``None`` where the predictions are gone."""

    name: str
    task: int | None
    accuracy: float
    tests: int | None


@dc.dataclass(frozen=True, slots=True)
class RunView:
    """One run as the page shows it."""

    label: str
    path: str
    results: Results
    headline: str
    color: str
    symbol: str
    matrix: Markup
    matrix_range: tuple[float, float]
    class_bars: Markup
    classes: list[ClassRow]
    untested: list[str]
    selection: SelectionView | None

    @property
    def data(self) -> str:
        """The data set's name."""
        return data_name(self.results)

    @property
    def recipe(self) -> str:
        """The recipe as YAML."""
        return yaml.safe_dump(self.results.provenance.recipe, sort_keys=False, allow_unicode=True)


def write_report(runs: Sequence[Path], out: Path | None = None) -> Path:
    """Writes one page about one run, or comparing several.

    Args:
        runs: directories of finished runs; one named twice counts once.
        out: the file, or a folder for ``report.html``. By default ``report.html`` in the run's directory; for several
            runs, beside the first run's directory (``runs/report.html`` for ``runs/a`` and ``runs/b``).

    Returns:
        The file written.

    Raises:
        RunDirectoryError: if no run is given, or one is not finished.
        CheckpointError: if a run's results or predictions are damaged.
        StorageError: if the page cannot be written.
    """
    paths = list({run.resolve(): run for run in reversed(runs)}.values())[::-1]
    if not paths:
        raise RunDirectoryError("report", "runs", "at least one run directory", [], "Name one, e.g. runs/<name>")
    results = {path: read_results(path) for path in paths}
    file = out or (paths[0] if len(paths) == 1 else paths[0].resolve().parent) / "report.html"
    file = file / "report.html" if file.is_dir() else file
    page = _page(results)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise StorageError("report", "out", "writable", str(file), f"Give another --out ({error})") from error
    return file


def run_labels(runs: Mapping[Path, Results]) -> list[str]:
    """A name for each run that tells it from the others: method, what its recipe has of its own, directory.

    Args:
        runs: results by run directory.

    Returns:
        Distinct labels, in the same order.
    """
    settings = {path: _flat(without_name(r.provenance.recipe)) for path, r in runs.items()}
    labels = {}
    for path, r in runs.items():
        twins = [settings[p] for p, other in runs.items() if method_name(other) == method_name(r)]
        keys = dict.fromkeys(key for s in twins for key in s)
        own = [key for key in keys if len({repr(s.get(key)) for s in twins}) > 1]
        detail = [f"{key.rpartition('.')[2]}={settings[path].get(key, '–')}" for key in own[:3]]
        labels[path] = _with_detail(method_name(r), detail)
    for name in (lambda path: shown(path.resolve().name), shown):
        count = Counter(labels.values())
        labels = {path: _with_detail(label, [name(path)] if count[label] > 1 else []) for path, label in labels.items()}
    return list(labels.values())


def headline(label: str, results: Results) -> str:
    """The run in one plain sentence.

    Args:
        label: what the run is called.
        results: its results.
    """
    m, n = results.metrics, len(results.accuracy_matrix)
    size_of_run = f"{_count(n, 'task', 'tasks')} and {_count(len(results.class_names), 'class', 'classes')}"
    text = f"{label} on {data_name(results)}: {_with_sign(m.last_accuracy)} after {size_of_run}"
    if n > 1:
        text += f", {_with_sign(m.average_incremental_accuracy)} on average along the way"
    if m.forgetting is None:
        return text + "."
    points = percent(abs(m.forgetting))
    if points == "0.0":
        return f"{text}; forgot nothing."
    return f"{text}; {'forgot' if m.forgetting > 0 else 'gained'} {points} points on earlier tasks."


def method_name(results: Results) -> str:
    """The method's name as in its paper; the recipe's word for it if the method is not installed here."""
    name = str(_section(results, "method").get("name", "unknown method"))
    return methods.get(name).__name__ if name in methods else name.rpartition(":")[2]  # of FILE.py:Class


def data_name(results: Results) -> str:
    """The data set's name, or the last part of its folder; of several sets, all of them."""
    return ", ".join(Path(place).name or place for place in places(_section(results, "stream")))


def seconds(value: float) -> str:
    """A duration for reading."""
    if value < 9.95:
        return f"{value:.2f} s"
    if value < 120:
        return f"{value:.1f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def size(n_bytes: int | None) -> str:
    """A number of bytes for reading."""
    if n_bytes is None:
        return "–"
    value, units = float(n_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1023.95 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{n_bytes} bytes" if units[0] == "bytes" else f"{value:.1f} {units[0]}"


def _page(results: Mapping[Path, Results]) -> str:
    labels = run_labels(results)
    views = [_view(i, path, label, r) for i, ((path, r), label) in enumerate(zip(results.items(), labels, strict=True))]
    curves = [v.results.metrics.accuracy_after_task for v in views]
    spoken = "; ".join(
        f"{v.label} from {_with_sign(c[0])} to {_with_sign(c[-1])}" for v, c in zip(views, curves, strict=True)
    )
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=PackageLoader("perdure", "run"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(
        pct=lambda v: percent(v).replace("-", "−"),
        pairs=lambda values: " · ".join(f"{k} {v}" for k, v in values.items()) or "–",
        seconds=seconds,
        size=size,
    )
    return environment.get_template("report.html.j2").render(
        runs=views,
        title=_title(views),
        curves=accuracy_curves(curves, f"Accuracy after each task: {spoken}."),
        table=accuracy_table({v.label: v.results for v in views}),
        streams=len({v.results.provenance.fingerprints.get("stream") for v in views}),
        backbones=len({v.results.provenance.fingerprints.get("backbone") for v in views}),
        n_weakest=N_WEAKEST,
    )


def _title(views: Sequence[RunView]) -> str:
    data = {v.data for v in views}
    name = views[0].label if len(views) == 1 else f"{len(views)} runs"
    return f"{name} on {data.pop()}" if len(data) == 1 else f"{name} compared"


def _view(index: int, path: Path, label: str, results: Results) -> RunView:
    classes = _classes(path, results)
    matrix, n = results.accuracy_matrix, len(results.accuracy_matrix)
    last = _with_sign(results.metrics.last_accuracy)
    accuracies = [c.accuracy for c in classes]
    untested = sorted(name for c, name in results.names.items() if c not in results.class_accuracy)
    span = f"{percent(min(accuracies, default=None))} % to {percent(max(accuracies, default=None))} %"
    return RunView(
        label=label,
        path=shown(path),
        results=results,
        headline=headline(label, results),
        color=f"var(--run-{index % RUN_COLORS})",
        symbol=SYMBOLS[index % len(SYMBOLS)],
        matrix=task_matrix(matrix, f"Heat map of the accuracy matrix, {n} by {n} tasks; {last} over all at the end."),
        matrix_range=matrix_range(matrix),
        class_bars=class_bars(accuracies, f"Bars: accuracy of {_count(len(classes), 'class', 'classes')}, {span}."),
        classes=classes,
        untested=untested,
        selection=view_selection(results),
    )


def _classes(path: Path, results: Results) -> list[ClassRow]:
    """All tested classes, weakest first, the better tested first among equals."""
    last = path / "tasks" / f"{len(results.accuracy_matrix) - 1:03d}"
    tests: dict[str, int] = {}
    if (last / "predictions.npz").is_file():
        ids, counts = np.unique(read_predictions(last).labels, return_counts=True)
        tests = {str(i): int(n) for i, n in zip(ids, counts, strict=True)}
    first_task = {str(c): k for k, ids in reversed(list(enumerate(results.task_classes, 1))) for c in ids}
    rows = [
        ClassRow(results.names.get(c, f"class {c}"), first_task.get(c), accuracy, tests.get(c))
        for c, accuracy in results.class_accuracy.items()
    ]
    return sorted(rows, key=lambda row: (row.accuracy, -(row.tests or 0), row.name))


def _section(results: Results, name: str) -> dict[str, Any]:
    section = results.provenance.recipe.get(name)
    return section if isinstance(section, dict) else {}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _with_detail(name: str, detail: Sequence[str]) -> str:
    return f"{name} ({', '.join(detail)})" if detail else name


def _with_sign(fraction: float | None) -> str:
    return "–" if fraction is None else f"{percent(fraction)}\N{NO-BREAK SPACE}%"


def _count(n: int, one: str, many: str) -> str:
    return f"{n} {one if n == 1 else many}"
