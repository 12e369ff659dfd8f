"""The table of what RAPF's settings do, from its search on held-out training images."""

from __future__ import annotations

import json
import statistics
from typing import Any

from scripts.table_cells import head_of, row_of
from scripts.table_recipes import RESULTS

SHOWN = {
    ("caltech101, first 10 of 10 tasks", "clip_lite0"): "Caltech-101, `clip_lite0`",
    ("cifar10, first 5 of 5 tasks", "clip_default"): "CIFAR-10, `clip_default`",
}


def rapf_settings_table() -> str:
    """Last and average accuracy on held-out training images, with one setting changed at a time."""
    data: dict[str, Any] = json.loads((RESULTS / "rapf_settings.json").read_text(encoding="utf-8"))["data"]
    found = {title: data[cut][backbone] for (cut, backbone), title in SHOWN.items()}
    lines = head_of("setting", [f"{title}: {figure}" for title in found for figure in ("last", "average")])
    rows: dict[str, dict[str, list[str]]] = {}
    for title, grids in found.items():
        for init, grid in grids.items():
            keys = [key for key in grid["rows"][0] if key not in ("accuracy", "last_accuracy", "seconds", "device")]
            middle = {key: statistics.mode(row[key] for row in grid["rows"]) for key in keys}
            for row in grid["rows"]:
                changed = [f"`{key}={row[key]}`" for key in keys if row[key] != middle[key]]
                first = ", ".join([*([f"`init={init}`"] if init != "identity" else []), *changed])
                first = first or ", ".join(f"{key} {value}" for key, value in middle.items())
                figures = (row["last_accuracy"], statistics.mean(row["accuracy"]))
                rows.setdefault(first, {})[title] = [f"{100 * figure:.1f}" for figure in figures]
    for first in sorted(rows, key=lambda row: (row.startswith("`"), row.startswith("`init"), row)):
        lines.append(row_of(first, [cell for title in found for cell in rows[first].get(title, ["–", "–"])]))
    return "\n".join(lines)
