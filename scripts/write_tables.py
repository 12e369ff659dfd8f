"""Writes the result tables of the documents from benchmarks/results/*.json; a test holds them equal."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

RESULTS = Path("benchmarks/results")
ABOUT = {
    "simplecil": "one mean feature per class, cosine",
    "ranpac": "random projection, ridge head; without the paper's first phase",
    "joint": "baseline: linear probe on all images so far",
    "finetune": "baseline: sequential fine-tuning",
}


def methods_table() -> str:
    """One row per method: what it is, accuracies, forgetting, cost."""
    runs = json.loads((RESULTS / "caltech101.json").read_text())["runs"]
    lines = [
        "| method | stream | what it does | last | average | forgetting | passes per train / test image | stored |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, about in ABOUT.items():
        m, c = runs[name]["metrics"], runs[name]["cost"]
        accuracy = [f"{100 * m[k]:.1f}" for k in ("last_accuracy", "average_incremental_accuracy", "forgetting")]
        frozen = name != "finetune"
        passes = "1 / 1" if frozen else f"{c['passes_per_train_image']:.1f} / {c['passes_per_test_image']:.1f}"
        stored = f"{c['stored_bytes'] / 1e6:.1f} MB"
        cells = [f"`{name}`", "Caltech-101, 10 tasks", about, *accuracy, passes, stored]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def default_accuracy_table() -> str:
    """The built-in backbone beside its teacher and its random self."""
    report = json.loads((RESULTS / "default_backbone.json").read_text())
    columns = [(name, m) for name in report["streams"] for m in report["methods"]]
    streams = [f"{name}, {report['streams'][name]['tasks']} tasks: {m}" for name, m in columns]
    lines = ["| backbone | " + " | ".join(streams) + " |", "|---|" + "---:|" * len(streams)]
    for backbone, found in report["last_accuracy"].items():
        values = [f"{100 * found[name][m]:.1f}" for name, m in columns]
        lines.append("| " + " | ".join([f"`{backbone}`", *values]) + " |")
    return "\n".join(lines)


def default_speed_table() -> str:
    """Images per second, whole models and parts."""
    speed = json.loads((RESULTS / "default_backbone.json").read_text())["images_per_second"]
    lines = ["| | " + " | ".join(speed) + " |", "|---|" + "---:|" * len(speed)]
    for name in speed["float32"]:
        lines.append("| " + " | ".join([name, *(f"{rates[name]:.0f}" for rates in speed.values())]) + " |")
    return "\n".join(lines)


def distillation_table() -> str:
    """One row per trial of the distillation."""
    rows = json.loads((RESULTS / "distillation.json").read_text())["rows"]
    columns = [k for k in next(iter(rows.values())) if "," in k]
    lines = ["| settings | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in rows.items():
        lines.append("| " + " | ".join([name, *(f"{100 * row[c]:.1f}" for c in columns)]) + " |")
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "table": methods_table,
    "table:default-accuracy": default_accuracy_table,
    "table:default-speed": default_speed_table,
    "table:distillation": distillation_table,
}


def filled(text: str) -> str:
    """A document's text with every table block written anew."""
    for name, table in TABLES.items():
        start = f"<!-- {name} -->"
        if start in text:
            block = f"{start}\n{table()}\n<!-- end -->"
            text = re.sub(f"{start}.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Fills every table block of the documents."""
    for path in (Path("README.md"), Path("REPRODUCE.md"), *sorted(Path("docs").glob("*.md"))):
        path.write_text(filled(path.read_text()))


if __name__ == "__main__":
    main()
