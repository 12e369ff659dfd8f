"""The tables of docs/mixture_methods.md."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from scripts.table_cells import head_of, mean_of, row_of
from scripts.table_recipes import label, read

IMAGES = {
    "fashion-mnist": "Fashion-MNIST, 5 tasks",
    "cifar10": "CIFAR-10, 5 tasks",
    "caltech101": "Caltech-101, 10 tasks",
}
CALTECH = " stream.train_per_class=12 stream.test_per_class=10"
FIGURES = {"last_accuracy": "last", "average_incremental_accuracy": "average", "forgetting": "forgetting"}
MIXTURE = (
    "finetune", "simplecil", "slca_short", "coma", "cofima", "esn", "lae", "lae_lora", "lae_prefix", "joint_finetune",
)  # fmt: skip
REPLAY = ("er", "agem", "gem")
KEPT = (5, 20)


def orders_of(data: str, method: str) -> dict[str, Any]:
    """The runs of a mixture comparison by class order; none if it is not there."""
    runs: dict[str, Any] = read("mixture_methods")["runs"].get(data, {})
    found: dict[str, Any] = runs.get(f"{method}_default{CALTECH if data == 'caltech101' else ''}", {})
    return found


def shown() -> list[str]:
    """The methods that have a run."""
    return [method for method in MIXTURE if any(orders_of(data, method) for data in IMAGES)]


def mixture_methods_table() -> str:
    """Accuracies of the mixture methods beside the baselines, in the class orders that a row has."""
    columns = [(data, figure) for data in IMAGES for figure in FIGURES]
    heads = ["images kept", *(f"{IMAGES[data]}: {FIGURES[figure]}" for data, figure in columns)]
    lines = head_of("method", heads)
    for method in shown():
        orders = {data: orders_of(data, method) for data in IMAGES}
        kept = {run["cost"]["exemplars"] for found in orders.values() for run in found.values()}
        cells = [_figure(orders[data], figure) for data, figure in columns]
        lines.append(row_of(f"`{method}`", ["all" if kept - {0} else "0", *cells]))
    return "\n".join(lines)


def _figure(orders: dict[str, Any], figure: str) -> str:
    """A dash where a stream of one task has no such figure."""
    several = [run for run in orders.values() if figure == "last_accuracy" or run["recipe"]["stream"]["tasks"] != 1]
    return mean_of([run[figure] for run in several])


def mixture_costs_table() -> str:
    """Seconds, passes and bytes of the runs above, in order 1993."""
    heads = [f"{IMAGES[data]}: {what}" for data in IMAGES for what in ("training, s", "testing, s")]
    lines = head_of("method", [*heads, "CIFAR-10: stored, MB"])
    for method in shown():
        cells = []
        for data in IMAGES:
            cost = orders_of(data, method).get("1993", {}).get("cost")
            cells += [f"{cost[key]:.0f}" if cost else "–" for key in ("train_seconds", "eval_seconds")]
        stored = orders_of("cifar10", method).get("1993", {}).get("cost", {}).get("stored_bytes")
        lines.append(row_of(f"`{method}`", [*cells, "–" if stored is None else f"{stored / 1e6:.2f}"]))
    return "\n".join(lines)


def mixture_passes_table() -> str:
    """F per image as measured, beside the specifications' minima, and the state's growth beside its formula."""
    heads = ["epoch: minimum", "epoch: measured", "once: minimum", "once: measured", "test: minimum", "test: measured"]
    lines = head_of("method", [*heads, "bytes more per task", "by formula"])
    for name, row in read("mixture_costs")["rows"].items():
        cells = [f"{row[kind][part]:.2f}" for part in ("epoch", "once", "test") for kind in ("minimum", "measured")]
        cells += [f"{row[key][-1] - row[key][-2]:,}" for key in ("bytes", "formula_bytes")]
        lines.append(row_of(f"`{name}`", cells))
    return "\n".join(lines)


def esn_table() -> str:
    """Where ESN errs: told the task, and how often it finds it."""
    parts = {
        "last": "last", "task_told": "task told", "found_by_vote": "task found, by the vote",
        "found_by_probability": "task found, by the largest probability",
    }  # fmt: skip
    lines = head_of("data, anchor", [*parts.values(), "energy of the own classifier", "of strange ones"])
    for data, row in read("explain_esn")["rows"].items():
        cells = [f"{100 * row[part]:.1f}" for part in parts]
        cells += [f"{row[key]:.1f}" for key in ("own_energy", "strange_energy")]
        lines.append(row_of(f"{IMAGES[data]}, `{row['anchor']}`", cells))
    return "\n".join(lines)


def merging_table() -> str:
    """Two runs that learned different halves of the images, what merging makes of them, and one that learned all."""
    parts = ("first half", "second half", "merged, linear", "merged, fisher", "all")
    lines = head_of("method", parts)
    for name, row in read("merging")["rows"].items():
        recipe = yaml.safe_load(Path(f"recipes/caltech101/{name}_default.yaml").read_text(encoding="utf-8"))
        lines.append(
            row_of(label(name, recipe), [f"{row[part]['accuracy']:.1f}" if part in row else "–" for part in parts])
        )
    return "\n".join(lines)


def mixture_members_table() -> str:
    """What LAE's two experts answer alone, after the last task, in order 1993."""
    there = [data for data in IMAGES if orders_of(data, "lae")]
    lines = head_of("variant", [f"{IMAGES[d]}: {m}" for d in there for m in ("online", "offline", "both")])
    for variant in (method for method in shown() if method.startswith("lae")):
        cells = []
        for data in there:
            run = orders_of(data, variant).get("1993")
            told = [run["members"]["online"], run["members"]["offline"], run["last_accuracy"]] if run else []
            cells += [f"{100 * value:.1f}" for value in told] or ["–"] * 3
        lines.append(row_of(f"`{variant}`", cells))
    return "\n".join(lines)


def replay_methods_table() -> str:
    """Accuracies of the replay methods on a head alone, by images kept of each class: mean over three class orders."""
    runs = read("replay_methods")["runs"]
    heads = [f"{IMAGES[d]}: {title}" for d in runs for title in FIGURES.values()]
    lines = head_of("method, images kept of each class", ["images kept in all", *heads])
    for method in REPLAY:
        for n in KEPT:
            by_data = {d: runs[d].get(f"{method}_default method.memory.n_per_class={n}", {}).values() for d in runs}
            kept = sorted({run["cost"]["exemplars"] for orders in by_data.values() for run in orders})
            cells = [mean_of([run[figure] for run in by_data[d]]) for d in runs for figure in FIGURES]
            lines.append(row_of(f"`{method}`, {n}", [" / ".join(map(str, kept)), *cells]))
    return "\n".join(lines)


def replay_parts_table() -> str:
    """The replay methods by what learns, on CIFAR-10 in order 1993, 20 images of each class kept."""
    runs = read("replay_methods")["runs"]["cifar10"]
    heads = [*FIGURES.values(), "passes per training image", "training, s", "images kept in all"]
    lines = head_of("method, what learns", heads)
    for method in REPLAY:
        of_head = f"{method}_default method.memory.n_per_class=20"
        for part, row in {"head": of_head, "adapter": f"{method}_adapter_default"}.items():
            if row in runs:
                run = runs[row]["1993"]
                cells = [f"{100 * run[figure]:.1f}" for figure in FIGURES]
                cells += [f"{run['cost']['passes_per_train_image']:.1f}", f"{run['cost']['train_seconds']:.0f}"]
                lines.append(row_of(f"`{method}`, {part}", [*cells, str(run["cost"]["exemplars"])]))
    return "\n".join(lines)


MIXTURE_TABLES: dict[str, Callable[[], str]] = {
    "table:mixture-methods": mixture_methods_table,
    "table:mixture-members": mixture_members_table,
    "table:mixture-costs": mixture_costs_table,
    "table:mixture-passes": mixture_passes_table,
    "table:esn": esn_table,
    "table:merging": merging_table,
    "table:replay-methods": replay_methods_table,
    "table:replay-parts": replay_parts_table,
}
