"""Writes the result tables of README.md and REPRODUCE.md from benchmarks/results/*.json; a test holds them equal."""

from __future__ import annotations

import json
import re
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


def main() -> None:
    """Fills every `<!-- table -->` block."""
    block = f"<!-- table -->\n{methods_table()}\n<!-- end -->"
    for name in ("README.md", "REPRODUCE.md"):
        path = Path(name)
        path.write_text(re.sub(r"<!-- table -->.*?<!-- end -->", block, path.read_text(), flags=re.DOTALL))


if __name__ == "__main__":
    main()
