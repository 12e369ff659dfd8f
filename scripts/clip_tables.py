"""The tables of docs/clip_methods.md."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

from scripts.table_cells import head_of, mean_of, row_of
from scripts.table_recipes import label, read

BACKBONES = ("clip_lite0", "clip_default")
METHODS = ("clip_zeroshot", "clip_prototypes", "clip_cache", "clip_linear", "coop", "simplecil", "ranpac")
USED = ("class names", "images kept", "features kept", "extra data", "towers")
FIGURES = {
    "last_accuracy": "last", "average_incremental_accuracy": "average", "forgetting": "forgetting",
    "zero_shot_transfer": "zero-shot transfer",
}  # fmt: skip
OVER_SETS = {"transfer": "Transfer", "average": "Average", "last": "Last"}


def orders_of(data: str, method: str, backbone: str) -> list[dict[str, Any]]:
    """The runs of a method in every class order; none if it is not there."""
    found: dict[str, Any] = read("clip_methods")["runs"].get(data, {}).get(f"{method}_{backbone}", {})
    return list(found.values())


def clip_table(data: str) -> str:
    """Accuracies beside what each method uses, on one data set."""
    lines = head_of("image tower, method", [*USED, *FIGURES.values()])
    for backbone in BACKBONES:
        for method in METHODS:
            if orders := orders_of(data, method, backbone):
                cells = [mean_of([run[f] for run in orders if run.get(f) is not None]) for f in FIGURES]
                lines.append(row_of(first_of(backbone, method, orders), [*used(orders), *cells]))
    return "\n".join(lines)


def over_sets_table() -> str:
    """Transfer, Average and Last over several data sets, beside the accuracy over all classes at the end."""
    lines = head_of("image tower, method", [*USED, *OVER_SETS.values(), "last, no set told"])
    for backbone in BACKBONES:
        for method in METHODS:
            if orders := orders_of("three-sets", method, backbone):
                told = [run["datasets"] for run in orders]
                cells = [mean_of([each[f] for each in told if each[f] is not None]) for f in OVER_SETS]
                last = mean_of([run["last_accuracy"] for run in orders])
                lines.append(row_of(first_of(backbone, method, orders), [*used(orders), *cells, last]))
    return "\n".join(lines)


def first_of(backbone: str, method: str, orders: list[dict[str, Any]]) -> str:
    """A row's first cell."""
    return f"`{backbone}`, {label(method, orders[0]['recipe'])}"


def used(orders: list[dict[str, Any]]) -> list[str]:
    """By what rows may differ besides their method."""
    told = orders[0]["fairness"]
    kept = statistics.mean(run["fairness"]["exemplars"] for run in orders)
    yes = {True: "yes", False: "no"}
    cells = [yes[told["class_names"]], f"{kept:.0f}", yes[told["features_kept"]], told["extra_data"] or "none"]
    return [*cells, str(told["towers"])]


CLIP_TABLES: dict[str, Callable[[], str]] = {
    "table:clip-caltech101": functools.partial(clip_table, "caltech101"),
    "table:clip-cifar10": functools.partial(clip_table, "cifar10"),
    "table:clip-three-sets": over_sets_table,
}
