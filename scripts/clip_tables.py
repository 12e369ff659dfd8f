"""The tables of docs/clip_methods.md."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from scripts.table_cells import head_of, mean_of, row_of
from scripts.table_recipes import label, read

BACKBONES = ("clip_lite0", "clip_default")
METHODS = (
    "clip_zeroshot", "clip_prototypes", "clip_cache", "clip_linear", "coop", "proof", "rapf", "rapf_random", "rail",
    "rail_plain", "rail_dual", "promptfusion", "promptfusion_lite", "zscl", "zscl_finetune", "simplecil", "ranpac",
)  # fmt: skip
USED = ("class names", "images kept", "features kept", "extra data", "towers")
FIGURES = {
    "last_accuracy": "last", "average_incremental_accuracy": "average", "forgetting": "forgetting",
    "zero_shot_transfer": "zero-shot transfer",
}  # fmt: skip
OVER_SETS = {"transfer": "Transfer", "average": "Average", "last": "Last"}
TRAINED = ("coop", "proof", "rapf", "promptfusion", "promptfusion_lite", "zscl", "zscl_finetune")


def orders_of(data: str, method: str, backbone: str) -> list[dict[str, Any]]:
    """The runs of a method in every class order; none if it is not there."""
    found: dict[str, Any] = read("clip_methods")["runs"].get(data, {}).get(f"{method}_{backbone}", {})
    return list(found.values())


def clip_table(data: str, backbones: Sequence[str] = BACKBONES) -> str:
    """Accuracies beside what each method uses, on one data set."""
    lines = head_of("image tower, method", [*USED, *FIGURES.values()])
    for backbone in backbones:
        for method in METHODS:
            if orders := orders_of(data, method, backbone):
                cells = [mean_of([run[f] for run in orders if run.get(f) is not None]) for f in FIGURES]
                lines.append(row_of(first_of(backbone, method, orders), [*used(orders), *cells]))
    return "\n".join(lines)


def over_sets_table() -> str:
    """Transfer, Average and Last over several data sets, with the images' set told and without."""
    means = [f"{told}: {each}" for told in ("set told", "no set told") for each in OVER_SETS.values()]
    lines = head_of("image tower, method", [*USED, *means])
    for backbone in BACKBONES:
        for method in METHODS:
            if orders := orders_of("three-sets", method, backbone):
                told = [run["datasets"] for run in orders]
                both = (told, [each["untold"] for each in told if each.get("untold")])
                cells = [mean_of([each[f] for each in half if each[f] is not None]) for half in both for f in OVER_SETS]
                lines.append(row_of(first_of(backbone, method, orders), [*used(orders), *cells]))
    return "\n".join(lines)


def zero_shot_table() -> str:
    """Accuracy on the classes that are not taught yet, among their names, task by task, in one class order."""
    methods = ("clip_zeroshot", "zscl", "zscl_finetune")
    found = {(b, m): orders_of("caltech101", m, b)[:1] for b in BACKBONES for m in methods}  # 1993 is the first
    n = max(len(run["zero_shot_accuracy"]) for orders in found.values() for run in orders) - 1
    lines = head_of("image tower, method", [f"after task {k}" for k in range(1, n + 1)])
    for (backbone, method), orders in found.items():
        for run in orders:
            cells = [mean_of([value]) for value in run["zero_shot_accuracy"][:n]]
            lines.append(row_of(first_of(backbone, method, orders), cells))
    return "\n".join(lines)


def cost_table() -> str:
    """What a task costs where something is trained: passes, seconds of training, memory; over all class orders."""
    columns = ["passes per training image", "training seconds per task", "state, MB", "peak memory, GB"]
    lines = head_of("data, image tower, method", columns)
    for data in ("caltech101", "cifar10"):
        for backbone in BACKBONES:
            for method in TRAINED:
                if orders := orders_of(data, method, backbone):
                    costs = [run["cost"] for run in orders]
                    seconds = [x for cost in costs for x in cost["train_seconds_per_task"]]
                    cells = [
                        f"{statistics.mean(cost['passes_per_train_image'] for cost in costs):.1f}",
                        f"{statistics.mean(seconds):.1f}",
                        f"{statistics.mean(cost['stored_bytes'] for cost in costs) / 1e6:.1f}",
                        f"{max(cost['peak_rss_bytes'] for cost in costs) / 1e9:.1f}",
                    ]
                    lines.append(row_of(f"{data}, {first_of(backbone, method, orders)}", cells))
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
    "table:clip-one-tower": functools.partial(clip_table, "caltech101", ("clip_default",)),
    "table:clip-caltech101": functools.partial(clip_table, "caltech101"),
    "table:clip-cifar10": functools.partial(clip_table, "cifar10"),
    "table:clip-three-sets": over_sets_table,
    "table:clip-zero-shot": zero_shot_table,
    "table:clip-costs": cost_table,
}
