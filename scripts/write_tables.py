"""Writes the result tables of the documents from benchmarks/results/*.json; a test holds them equal."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scripts.clip_tables import CLIP_TABLES
from scripts.mixture_tables import MIXTURE_TABLES
from scripts.mutants import mutants_table
from scripts.rapf_tables import rapf_settings_table
from scripts.small_clip_tables import SMALL_CLIP_TABLES
from scripts.table_cells import head_of, mean_of, row_of
from scripts.table_marks import explained, mark
from scripts.table_recipes import NOTES, RESULTS, label, main_runs

ABOUT = {
    "simplecil": "one mean feature per class, cosine",
    "ranpac": "random projection, ridge head; without the paper's first phase",
    "joint": "baseline: linear probe on all images so far",
    "finetune": "baseline: sequential fine-tuning",
}


def methods_table() -> str:
    """One row per method: what it is, accuracies, forgetting, cost."""
    lines = [
        "| method | stream | what it does | last | average | forgetting | passes per train / test image | stored |",
        "|---|---|---|---:|---:|---:|---:|---:|",
    ]
    for first, run in main_runs().items():
        m, c, name = run["metrics"], run["cost"], run["recipe"]["method"]["name"]
        accuracy = [f"{100 * m[k]:.1f}" for k in ("last_accuracy", "average_incremental_accuracy", "forgetting")]
        accuracy = [figure + mark([run]) for figure in accuracy]
        frozen = name != "finetune"
        passes = "1 / 1" if frozen else f"{c['passes_per_train_image']:.1f} / {c['passes_per_test_image']:.1f}"
        stored = f"{c['stored_bytes'] / 1e6:.1f} MB"
        lines.append(row_of(first, ["Caltech-101, 10 tasks", ABOUT[name], *accuracy, passes, stored]))
    return "\n".join(lines)


def default_accuracy_table() -> str:
    """The built-in backbone beside its teacher and its random self."""
    report = json.loads((RESULTS / "default_backbone.json").read_text(encoding="utf-8"))
    columns = [(name, m) for name in report["streams"] for m in report["methods"]]
    m_of = {m: label(m, {"method": settings}).replace("`", "") for m, settings in report["methods"].items()}
    streams = [f"{name}, {report['streams'][name]['tasks']} tasks: {m_of[m]}" for name, m in columns]
    lines = ["| backbone | " + " | ".join(streams) + " |", "|---|" + "---:|" * len(streams)]
    for backbone, found in report["last_accuracy"].items():
        values = [f"{100 * found[name][m]:.1f}" for name, m in columns]
        lines.append("| " + " | ".join([f"`{backbone}`", *values]) + " |")
    return "\n".join(lines)


def default_speed_table() -> str:
    """Images per second, whole models and parts."""
    speed = json.loads((RESULTS / "default_backbone.json").read_text(encoding="utf-8"))["images_per_second"]
    lines = ["| | " + " | ".join(speed) + " |", "|---|" + "---:|" * len(speed)]
    for name in speed["float32"]:
        lines.append("| " + " | ".join([name, *(f"{rates[name]:.0f}" for rates in speed.values())]) + " |")
    return "\n".join(lines)


def distillation_table() -> str:
    """One row per trial of the distillation."""
    rows = json.loads((RESULTS / "distillation.json").read_text(encoding="utf-8"))["rows"]
    columns = [k for k in next(iter(rows.values())) if "," in k]
    lines = ["| settings | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, row in rows.items():
        lines.append("| " + " | ".join([name, *(f"{100 * row[c]:.1f}" for c in columns)]) + " |")
    return "\n".join(lines)


COMPARED = ["finetune", "simplecil", "joint", "vpt", "l2p", "dualprompt", "coda_prompt", "dap"]
STREAMS = {"cifar10": "CIFAR-10, 5 tasks", "caltech101": "Caltech-101, 10 tasks"}
FIGURES = {"last_accuracy": "last", "average_incremental_accuracy": "average", "forgetting": "forgetting"}


def prompt_methods_table() -> str:
    """Accuracies of the prompt methods beside the baselines: mean and standard deviation over class orders."""
    runs = json.loads((RESULTS / "prompt_methods.json").read_text(encoding="utf-8"))["runs"]
    columns = [(data, figure) for data in STREAMS for figure in FIGURES]
    heads = [f"{STREAMS[data]}: {FIGURES[figure]}" for data, figure in columns]
    lines = head_of("method", heads)
    for method in COMPARED:
        orders = {data: runs[data][f"{method}_default"].values() for data in STREAMS}
        cells = [mean_of([run[figure] for run in orders[data]]) + mark(orders[data]) for data, figure in columns]
        lines.append(row_of(f"`{method}`", cells))
    return "\n".join(lines)


def explanation_table() -> str:
    """What becomes of the prompt methods' accuracy when tasks are not confused, or there is only one."""
    rows = json.loads((RESULTS / "explain_prompts.json").read_text(encoding="utf-8"))["rows"]
    parts = {"own_head": "own head", "task_told": "task told", "task_found": "task found", "class_means": "class means"}
    columns = [("5", part) for part in parts] + [("1", part) for part in ("own_head", "class_means")]
    tasks = {"5": "5 tasks", "1": "1 task"}
    lines = head_of("method", [f"{tasks[n]}: {parts[part]}" for n, part in columns])
    lines += [row_of(f"`{name}`", [f"{100 * row[n][part]:.1f}" for n, part in columns]) for name, row in rows.items()]
    return "\n".join(lines)


def batch_effect_table() -> str:
    """Last accuracy under the voting preset by test batch and order, beside the honest run's."""
    rows = json.loads((RESULTS / "batch_effect.json").read_text(encoding="utf-8"))["rows"]
    orders = {"class_sorted": "class-sorted", "by_task": "by task", "shuffled": "shuffled"}
    sizes = ["1", "16", "128"]
    heads = ["honest, any batch", "votes, batch of 1", *(f"{orders[o]}, {b}" for o in orders for b in sizes[1:])]
    lines = head_of("method and data", heads)
    for data, methods in rows.items():
        for name, row in sorted(methods.items(), key=lambda item: COMPARED.index(item[0].partition("+")[0])):
            cells = [row["honest"], row["shuffled"]["1"], *(row[o][b] for o in orders for b in sizes[1:])]
            lines.append(row_of(f"`{name}`, {STREAMS[data]}", [f"{100 * c:.1f}" for c in cells]))
    return "\n".join(lines)


def prompt_costs_table() -> str:
    """Cost per image in frozen forward passes, beside the specifications' minima."""
    backbones = json.loads((RESULTS / "prompt_costs.json").read_text(encoding="utf-8"))["backbones"]
    steps = ["specification's minimum", "train, stored queries", "train, query pass", "train, all stored"]
    steps += ["test, stored queries", "test, all stored"]
    lines = head_of("backbone, method", steps)
    for backbone, about in backbones.items():
        for name, row in about["rows"].items():
            cells = [f"{row[step]:.2f}" if step in row else "–" for step in steps]
            lines.append(row_of(f"`{backbone}`, `{name}`", cells))
    return "\n".join(lines)


REPRESENTATION = [
    "simplecil", "joint", "fecam", "ranpac", "ranpac_cumulative", "ranpac_ssf", "ranpac_adapter", "aper_finetune",
    "aper_vpt_shallow", "aper_vpt_deep", "aper_ssf", "aper_adapter", "slca", "ease", "mos",
]  # fmt: skip
CALTECH_CLASSES = 101
IMAGES = {**STREAMS, "fashion-mnist": "Fashion-MNIST, 5 tasks"}


def representation_table(suffix: str) -> str:
    """Accuracies of the representation methods on one backbone: mean and standard deviation over class orders."""
    runs = json.loads((RESULTS / "representation_methods.json").read_text(encoding="utf-8"))["runs"]
    columns = [(data, figure) for data in IMAGES for figure in list(FIGURES)[:2]]
    lines = head_of("method", [f"{IMAGES[data]}: {FIGURES[figure]}" for data, figure in columns])
    shown = [m for m in REPRESENTATION if any(m + suffix in runs[data] for data in IMAGES)]
    seeds = {  # of each data set, the orders that all methods were run in: averages depend on the order
        data: set.intersection(*(set(runs[data][m + suffix]) for m in shown if m + suffix in runs[data]))
        for data in IMAGES
    }
    for method in shown:
        orders = {data: runs[data].get(method + suffix, {}) for data in IMAGES}
        common = {data: [orders[data][seed] for seed in seeds[data] & orders[data].keys()] for data in IMAGES}
        found = [(common[data], [run[figure] for run in common[data]]) for data, figure in columns]
        any_run = next(run for of_data in orders.values() for run in of_data.values())
        cells = [mean_of(values) + mark(made) for made, values in found]
        lines.append(row_of(label(method, any_run["recipe"]), cells))
    return "\n".join(lines)


def representation_costs_table() -> str:
    """What each method's run on Caltech-101 learned, stores, and took."""
    runs = json.loads((RESULTS / "representation_methods.json").read_text(encoding="utf-8"))["runs"]["caltech101"]
    heads = ["learned parameters", "stored bytes per class", "training, s", "testing, s", "passes per training image"]
    lines = head_of("backbone, method", [*heads, "passes per test image"])
    for backbone, suffix in {"default": "_default", "efficientnet_lite0": ""}.items():
        for method in [m for m in [*REPRESENTATION, "mos_release"] if m + suffix in runs]:
            run = runs[method + suffix]["1993"]
            c = run["cost"]
            cells = [f"{c['learned_parameters']:,}", f"{c['stored_bytes'] / CALTECH_CLASSES:,.0f}"]
            cells += [f"{c[key]:.0f}" for key in ("train_seconds", "eval_seconds")]
            cells += [f"{c[key]:.1f}" for key in ("passes_per_train_image", "passes_per_test_image")]
            lines.append(row_of(f"`{backbone}`, {label(method, run['recipe'])}{mark([run])}", cells))
    return "\n".join(lines)


def mos_release_table() -> str:
    """MOS as described beside MOS as released."""
    runs = json.loads((RESULTS / "representation_methods.json").read_text(encoding="utf-8"))["runs"]
    lines = head_of("data, method", ["last", "average", "passes per test image", "testing, s"])
    for data, title in IMAGES.items():
        for method in ("mos", "mos_release"):
            run = runs[data][f"{method}_default"]["1993"]
            cells = [f"{100 * run[figure]:.2f}" for figure in list(FIGURES)[:2]]
            cells += [f"{run['cost']['passes_per_test_image']:.1f}", f"{run['cost']['eval_seconds']:.0f}"]
            lines.append(row_of(f"{title}, `{method}`{mark([run])}", cells))
    return "\n".join(lines)


def ranpac_cost_table() -> str:
    """What RanPAC costs at M = 10 000 by how many images it was taught, before the factor of G and with it."""
    report = json.loads((RESULTS / "ranpac_cost.json").read_text(encoding="utf-8"))
    heads = [
        f"{what}, {when}" for what in ("training, s", "test, s", "state, MB", "peak, GB") for when in ("before", "now")
    ]
    lines = head_of("images", heads)
    for row in sorted(report["rows"], key=lambda row: int(row["images"])):
        pair = [row["before"], row["after"]]
        cells = [f"{side['train']:.2f}" for side in pair]
        cells += [f"{statistics.mean(side['evaluation']):.2f}" for side in pair]
        cells += [f"{side['state'] / 1e6:.1f}" for side in pair]
        cells += [f"{side['memory']['peak'] / 1e9:.1f}" for side in pair]
        lines.append(row_of(f"{row['images']:,}", cells))
    return "\n".join(lines)


def first_session_table() -> str:
    """What APER gains on Caltech-101 by the size of the first task."""
    rows = json.loads((RESULTS / "explain_first_session.json").read_text(encoding="utf-8"))["rows"]
    parts = ["frozen", "adapted", "both"]
    heads = [*parts, *(f"first task alone: {part}" for part in parts), "cosine of frozen and adapted"]
    lines = head_of("variant, classes of the first task", heads)
    for variant, found in rows.items():
        for base, row in found.items():
            cells = [f"{100 * row[part + of]:.1f}" for of in ("", ", first task alone") for part in parts]
            lines.append(row_of(f"`{variant}`, {base}{mark([row])}", [*cells, f"{row['cosine']:.4f}"]))
    return "\n".join(lines)


def batch_bits_table() -> str:
    """By batch size: how many images have other features than in batches of 8, which are compared with one thread's."""
    rows = json.loads((RESULTS / "batch_bits.json").read_text(encoding="utf-8"))["rows"]
    sizes = sorted({row["batch"] for row in rows})
    found: dict[tuple[str, int], dict[int, Any]] = {}
    for row in rows:
        found.setdefault((row["backbone"], row["threads"]), {})[row["batch"]] = row
    more = ["8, from one thread's", "ms per image, 8", "ms per image, 16"]
    lines = head_of("backbone, threads", [*map(str, sizes), *more])
    for (backbone, threads), by_size in found.items():
        differ = {n: row["images_that_differ"] for n, row in by_size.items()}
        cells = [f"{differ[n]}" + (f" ({by_size[n]['largest_difference']:.1e})" if differ[n] else "") for n in by_size]
        cells += ["–"] * (len(sizes) - len(cells)) + [f"{by_size[8]['from_one_thread']:.1e}".replace("0.0e+00", "0")]
        cells += [f"{by_size[n]['ms_per_image']:.0f}" for n in (8, 16)]
        lines.append(row_of(f"`{backbone}`, {threads}", cells))
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "table": methods_table,
    "table:default-accuracy": default_accuracy_table,
    "table:default-speed": default_speed_table,
    "table:distillation": distillation_table,
    "table:prompt-methods": prompt_methods_table,
    "table:prompt-explanation": explanation_table,
    "table:batch-effect": batch_effect_table,
    "table:prompt-costs": prompt_costs_table,
    "table:representation-default": lambda: representation_table("_default"),
    "table:representation-lite0": lambda: representation_table(""),
    "table:representation-costs": representation_costs_table,
    "table:mos-release": mos_release_table,
    "table:ranpac-cost": ranpac_cost_table,
    "table:first-session": first_session_table,
    "table:batch-bits": batch_bits_table,
    "table:mutants": mutants_table,
    "table:rapf-settings": rapf_settings_table,
    **MIXTURE_TABLES,
    **CLIP_TABLES,
    **SMALL_CLIP_TABLES,
}


def filled(text: str) -> str:
    """A document's text with every table block written anew."""
    for name, table in TABLES.items():
        start = f"<!-- {name} -->"
        if start in text:
            block = f"{start}\n{explained(table())}\n\n{NOTES[name]}\n<!-- end -->"
            text = re.sub(f"{start}.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Fills every table block of the documents."""
    for path in (Path("README.md"), Path("REPRODUCE.md"), *sorted(Path("docs").glob("*.md"))):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
