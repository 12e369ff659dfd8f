"""Draws accuracy over memory of the replay methods, from benchmarks/results; a test holds the drawing to them.

python -m scripts.plot_replay
"""

from __future__ import annotations

import io
import re
import statistics
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.figure import Figure

from scripts.table_recipes import DATA, read

PLOT = Path("docs/plots/replay_memory.svg")
LINES = {"er": ("ER", "#0b6e99", "o"), "gem": ("GEM", "#b5482a", "s"), "agem": ("A-GEM", "#5a7d2a", "^")}
LEVELS = {"simplecil": ("SimpleCIL", ":"), "joint_finetune": ("joint_finetune", "--"), "finetune": ("finetune", "-.")}


def drawn(replay: dict[str, Any], others: dict[str, Any]) -> str:
    """The drawing, as SVG: last accuracy over images kept of each class, and what other methods reach without a memory.

    Args:
        replay: the runs of benchmarks/results/replay_methods.json.
        others: those of mixture_methods.json.
    """
    with style.context(["default", {"svg.fonttype": "none", "svg.hashsalt": "perdure", "font.size": 9}]):
        data = [d for d in DATA if d in replay]
        figure = Figure(figsize=(3.6 * len(data), 3.4), layout="constrained")
        for axes, d in zip(figure.subplots(1, len(data), squeeze=False)[0], data, strict=True):
            for method, (title, color, marker) in LINES.items():
                points = {_kept(row): runs for row, runs in replay[d].items() if row.startswith(f"{method}_default ")}
                x = sorted(points)
                y = [[100 * run["last_accuracy"] for run in points[n].values()] for n in x]
                mean, spread = [statistics.mean(v) for v in y], [statistics.stdev(v) if len(v) > 1 else 0 for v in y]
                axes.errorbar(x, mean, spread, label=title, color=color, marker=marker, markersize=4, capsize=2)
            for method, (title, line) in LEVELS.items():
                if found := others.get(d, {}).get(f"{method}_default", {}).get("1993"):
                    axes.axhline(100 * found["last_accuracy"], color="#777777", linestyle=line, linewidth=1)
                    axes.annotate(title, (0.99, 100 * found["last_accuracy"]), (0, 2), ("axes fraction", "data"),
                                  "offset points", ha="right", color="#555555", fontsize=8)  # fmt: skip
            axes.set_xscale("log")
            axes.set_xticks(x, [str(n) for n in x])
            axes.minorticks_off()
            axes.set_ylim(0, 100)
            axes.set_title(f"{DATA[d]}, 5 tasks", fontsize=10)
            axes.set_xlabel("images kept of each class")
            axes.spines[["top", "right"]].set_visible(False)
        figure.axes[0].set_ylabel("last accuracy, %")
        figure.axes[0].legend(frameon=False, loc="lower right")
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return re.sub(r"[ \t]+$", "", text.getvalue(), flags=re.MULTILINE)


def _kept(row: str) -> int:
    return int(row.rpartition("=")[2])


def main() -> None:
    """Writes the drawing."""
    PLOT.parent.mkdir(exist_ok=True)
    drawing = drawn(read("replay_methods")["runs"], read("mixture_methods")["runs"])
    PLOT.write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    main()
