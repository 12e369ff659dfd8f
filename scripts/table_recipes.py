"""What makes the rows of the documents' tables: the recipe of each run behind a row, and the line under each table."""

from __future__ import annotations

import dataclasses as dc
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

RESULTS = Path("benchmarks/results")
DATA = {"cifar10": "CIFAR-10", "caltech101": "Caltech-101", "fashion-mnist": "Fashion-MNIST"}
ORDERS = "orders 1993, 1994 and 1995 by `-s stream.order_seed=ORDER`"

NOTES = {
    "table": (
        "Recipes: `recipes/caltech101/METHOD.yaml`; M = 10 000 (the paper's) with `-s method.projection_dim=10000`."
    ),
    "table:default-accuracy": (
        "Recipes: `recipes/DATA/METHOD_default.yaml` for `default`, `recipes/DATA/METHOD.yaml` for "
        "`efficientnet_lite0`, RanPAC's with `-s method.projection_dim=5000`. `default_random_top` has none: "
        "`benchmarks/default_backbone.py`."
    ),
    "table:default-speed": "No recipe: `python -m benchmarks.default_backbone --part speed`.",
    "table:distillation": "No recipe: `python -m benchmarks.distillation`.",
    **dict.fromkeys(
        ("table:small-clips", "table:small-clip-lite0", "table:small-clip-default"),
        "No recipe: `python -m benchmarks.small_clips`.",
    ),
    "table:prompt-methods": f"Recipes: `recipes/DATA/METHOD_default.yaml`; {ORDERS}.",
    "table:prompt-explanation": "Recipes: `recipes/cifar10/METHOD_default.yaml`; *1 task* with `-s stream.tasks=1`.",
    "table:batch-effect": (
        "Recipes: `recipes/DATA/METHOD_default.yaml`, all but *honest* with `-s method.preset=mammoth`, DAP's with "
        "`-s method.preset=official` and `-s method.keys.pull_over=mean`; each learned model is then tested in several "
        "ways by `benchmarks/batch_effect.py`."
    ),
    "table:prompt-costs": (
        "No recipe: `python -m benchmarks.prompt_costs`, each method's default settings but batches of 16, one epoch."
    ),
    "table:representation-default": f"Recipes: `recipes/DATA/METHOD_default.yaml`; {ORDERS}.",
    "table:representation-lite0": f"Recipes: `recipes/DATA/METHOD.yaml`; {ORDERS}.",
    "table:representation-costs": (
        "Recipes: `recipes/caltech101/METHOD_default.yaml` on `default`, `recipes/caltech101/METHOD.yaml` on "
        "`efficientnet_lite0`."
    ),
    "table:mos-release": "Recipes: `recipes/DATA/METHOD_default.yaml`.",
    "table:ranpac-cost": "No recipe: `python -m benchmarks.ranpac_cost`.",
    "table:batch-bits": "No recipe: `python -m benchmarks.batch_bits`.",
    "table:mutants": "No recipe: `make mutants`.",
    "table:rapf-settings": "No recipe: `python -m benchmarks.rapf_settings`.",
    **{
        f"table:clip-{data}": (
            f"Recipes: `recipes/{data}/METHOD_clip_lite0.yaml` and `recipes/{data}/METHOD_clip_default.yaml`{orders}."
        )
        for data, orders in {"caltech101": f"; {ORDERS}", "cifar10": f"; {ORDERS}", "three-sets": ""}.items()
    },
    "table:clip-one-tower": f"Recipes: `recipes/caltech101/METHOD_clip_default.yaml`; {ORDERS}.",
    "table:clip-zero-shot": (
        "Recipes: `recipes/caltech101/METHOD_clip_lite0.yaml` and `recipes/caltech101/METHOD_clip_default.yaml`, class "
        "order 1993."
    ),
    "table:clip-costs": "Recipes: those of the tables above.",
    "table:mixture-methods": (
        "Recipes: `recipes/DATA/METHOD_default.yaml`; Caltech-101 with `-s stream.train_per_class=12` and "
        f"`-s stream.test_per_class=10`; {ORDERS}."
    ),
    "table:mixture-members": "Recipes: those of the table above.",
    "table:mixture-costs": "Recipes: those of the first table.",
    "table:mixture-passes": "No recipe: `python -m benchmarks.mixture_costs`.",
    "table:esn": "Recipes: those of the table above.",
    "table:merging": "No recipe: `python -m benchmarks.merging`.",
    "table:replay-methods": (
        "Recipes: `recipes/DATA/METHOD_default.yaml` with `-s method.memory.n_per_class=KEPT`; orders 1993, 1994 and "
        "1995 by `-s stream.order_seed=ORDER`."
    ),
    "table:replay-parts": (
        "Recipes: those of the table above, and `recipes/cifar10/er_adapter_default.yaml`, "
        "`recipes/cifar10/agem_adapter_default.yaml`, `recipes/cifar10/gem_adapter_default.yaml`."
    ),
    "table:first-session": (
        "Recipes: `recipes/caltech101/aper_VARIANT_default.yaml` with `-s stream.tasks=null`, "
        "`-s stream.increment=10` and `-s stream.base=CLASSES`; *untrained* with `-s method.adapt.train.lr=1e-9`, "
        "*lr 1, 20 epochs* with `-s method.adapt.train.lr=1` and `-s method.adapt.train.epochs=20`. `finetune_lite0`: "
        "`recipes/cifar10/aper_finetune.yaml` with `-s stream.order_seed=1994` and `-s method.adapt.train.lr=LR`."
    ),
}
"""DATA, METHOD, VARIANT, ORDER, KEPT, CLASSES and LR stand for what the row, or the column, says."""


@dc.dataclass(frozen=True)
class Run:
    """One run behind a row.

    Args:
        row: the row's first cell.
        recipe: the path of its recipe.
        overrides: what ``-s`` changes, ``section.key=value``.
        recorded: the settings kept with its result, by section; all of them or some. A method's are flat where they
            were kept before it had sections.
    """

    row: str
    recipe: str
    overrides: tuple[str, ...]
    recorded: dict[str, Any]


def read(name: str) -> Any:
    """A result file's content."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def label(method: str, recipe: dict[str, Any]) -> str:
    """A row's first cell: the method, and M where it has one, since it decides both accuracy and size."""
    m = recipe["method"].get("projection_dim")
    return f"`{method}`" if m is None else f"`{method}`, M = {f'{m:,}'.replace(',', ' ')}"


def main_runs() -> dict[str, dict[str, Any]]:
    """The rows of the table of four methods: metrics, cost and recipe, by first cell."""
    report = read("caltech101")
    told = {m: {**run, "recipe": report["recipes"][m]} for m, run in report["runs"].items()}
    small = read("representation_methods")["runs"]["caltech101"]["ranpac"]["1993"]
    rows = [("simplecil", told["simplecil"]), ("ranpac", {"metrics": small, **small}), ("ranpac", told["ranpac"])]
    rows += [(m, told[m]) for m in ("joint", "finetune")]
    return {label(m, run["recipe"]): run for m, run in rows}


def _main() -> Iterator[Run]:
    for row, run in main_runs().items():
        big = ("method.projection_dim=10000",) if "10 000" in row else ()
        yield Run(row, f"recipes/caltech101/{run['recipe']['method']['name']}.yaml", big, run["recipe"])


def _compared(name: str, suffix: str, data: tuple[str, ...], seeds: tuple[str, ...] = ()) -> Iterator[Run]:
    """The runs of a comparison whose recipes end in ``suffix``, in all class orders or those of ``seeds``."""
    runs = read(name)["runs"]
    for where in data:
        for recipe, orders in runs[where].items():
            if recipe.endswith("_default") == bool(suffix):
                for seed, run in orders.items():
                    if not seeds or seed in seeds:
                        row, path = label(recipe.removesuffix(suffix), run["recipe"]), f"recipes/{where}/{recipe}.yaml"
                        yield Run(row, path, (f"stream.order_seed={seed}",), run["recipe"])


def _changed(name: str) -> Iterator[Run]:
    """The runs of a comparison whose rows say what is changed of the recipe."""
    for data, rows in read(name)["runs"].items():
        for row, orders in rows.items():
            recipe, *changes = row.split(" ")
            for seed, run in orders.items():
                set_ = (f"stream.order_seed={seed}", *changes)
                told = "".join(f", {c.partition('=')[2]}" for c in changes if c.startswith("method.memory"))
                first = f"`{recipe.removesuffix('_default')}`{told}"
                yield Run(first, f"recipes/{data}/{recipe}.yaml", set_, run["recipe"])


def _on_clips(data: str) -> Iterator[Run]:
    for recipe, orders in read("clip_methods")["runs"][data].items():
        method, _, tower = recipe.rpartition("_clip_")
        for seed, run in orders.items():
            set_ = (f"stream.order_seed={seed}",)
            yield Run(
                f"`clip_{tower}`, {label(method, run['recipe'])}", f"recipes/{data}/{recipe}.yaml", set_, run["recipe"]
            )


def _costs() -> Iterator[Run]:
    for backbone, suffix in {"default": "_default", "efficientnet_lite0": ""}.items():
        for run in _compared("representation_methods", suffix, ("caltech101",), ("1993",)):
            yield dc.replace(run, row=f"`{backbone}`, {run.row}")


def _released() -> Iterator[Run]:
    for data, title in DATA.items():
        for run in _compared("representation_methods", "_default", (data,), ("1993",)):
            if run.row in ("`mos`", "`mos_release`"):
                yield dc.replace(run, row=f"{title}, {10 if data == 'caltech101' else 5} tasks, {run.row}")


def _default_accuracy() -> Iterator[Run]:
    report = read("default_backbone")
    for backbone, suffix in {"default": "_default", "efficientnet_lite0": ""}.items():
        for data, stream in report["streams"].items():
            for method, settings in report["methods"].items():
                told = {"stream": stream, "method": settings, "backbone": {"name": backbone}}
                set_ = tuple(f"method.{key}={value}" for key, value in settings.items())
                yield Run(f"`{backbone}`", f"recipes/{data}/{method}{suffix}.yaml", set_, told)


def _batches() -> Iterator[Run]:
    report = read("batch_effect")
    for data, methods in report["rows"].items():
        for method, row in methods.items():
            first = f"`{method}`, {DATA[data]}, {10 if data == 'caltech101' else 5} tasks"
            base = method.partition("+")[0]
            set_ = tuple(each.replace("method.pull_over", "method.keys.pull_over") for each in report["settings"][base])
            recipe = f"recipes/{data}/{base}_default.yaml"
            # the name of a preset is left out: those of today have other settings for DAP
            tested = ("preset", "eval_batch", "eval_order", "mask_by_task")
            trained = {k: v for k, v in row["method"].items() if k not in tested}
            yield Run(first, recipe, set_, {"method": trained, "stream": {"order_seed": report["order_seed"]}})


RUNS: dict[str, Callable[[], Iterator[Run]]] = {
    "table": _main,
    "table:default-accuracy": _default_accuracy,
    "table:prompt-methods": lambda: _compared("prompt_methods", "_default", ("cifar10", "caltech101")),
    "table:batch-effect": _batches,
    "table:representation-default": lambda: _compared("representation_methods", "_default", tuple(DATA)),
    "table:representation-lite0": lambda: _compared("representation_methods", "", tuple(DATA)),
    "table:representation-costs": _costs,
    "table:mos-release": _released,
    "table:mixture-methods": lambda: _changed("mixture_methods"),
    "table:replay-methods": lambda: _changed("replay_methods"),
    "table:clip-caltech101": lambda: _on_clips("caltech101"),
    "table:clip-cifar10": lambda: _on_clips("cifar10"),
    "table:clip-three-sets": lambda: _on_clips("three-sets"),
}
"""The tables whose results keep the settings they were made with."""
