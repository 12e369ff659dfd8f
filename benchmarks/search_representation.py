"""Finds settings of the representation methods for small image sets, without any test image.

    python benchmarks/search_representation.py [--data ../shared/data/caltech101 --tasks 10] [--first 3]
        [--backbones default efficientnet_lite0] [--methods aper_adapter ...] [--workers 2]
    python benchmarks/search_representation.py --data ../shared/data/cifar10 --tasks 5 --first 5 --orders 1993 1994
        --backbones efficientnet_lite0 --methods aper_finetune --only epochs=5

A fifth of each class's training images is held out, as in search_baselines.py; settings are judged by the accuracy on
it after the first tasks of the stream, beside SimpleCIL's; with several class orders, by the mean over them. Each
setting runs in a process of one thread. Finished rows are added to benchmarks/results/search_representation.json at
once, so a search that was stopped goes on.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from search_baselines import held_out_stream, learned

from perdure import Backbone, FeatureStore, methods, tune_allocator
from perdure.config import MethodConfig, laid_over
from perdure.eval import accuracy_over_samples
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "search_representation.json"
# views that do not change: a stem's output is stored
STILL = {"batch_size": 16, "augment": {"min_scale": 1.0, "flip": False}}
RATES: dict[str, list[Any]] = {"lr": [0.05, 0.2, 1.0], "epochs": [5, 20]}
FINE: dict[str, list[Any]] = {"lr": [0.0001, 0.001, 0.01], "epochs": [5, 20]}  # of all weights
FACTORS: dict[str, list[Any]] = {"lr": [0.001, 0.01, 0.05, 0.2, 1.0], "epochs": [5, 20]}
BOTH = ("default", "efficientnet_lite0")
SEARCHES: dict[str, tuple[str, dict[str, Any], dict[str, list[Any]]]] = {
    "simplecil": ("simplecil", {}, {}),
    "aper_finetune": ("aper", {"adapt": {"variant": "finetune", "train": {"batch_size": 16}}}, FINE),
    "aper_vpt_shallow": ("aper", {"adapt": {"variant": "vpt_shallow", "train": STILL}}, RATES),
    "aper_vpt_deep": ("aper", {"adapt": {"variant": "vpt_deep", "train": STILL}}, RATES),
    "aper_ssf": ("aper", {"adapt": {"variant": "ssf", "train": STILL}}, FACTORS),
    "aper_adapter": ("aper", {"adapt": {"variant": "adapter", "train": STILL}}, RATES),
    "ranpac": ("ranpac", {"projection_dim": 2000}, {}),
    "ranpac_ssf": (
        "ranpac",
        {"projection_dim": 2000, "adapt": {"variant": "ssf", "train": {"epochs": 5, **STILL}}},
        {"lr": [0.001, 0.01, 0.05]},
    ),
    "fecam": ("fecam", {}, {"shrink_diagonal": [1.0, 3.0, 10.0, 30.0], "shrink_off_diagonal": [0.0, 1.0]}),
    "slca": (
        "slca",
        {"train": {"batch_size": 16, "epochs": 10, "schedule": {"name": "milestone", "milestone": 9}}},
        {"lr": [0.01, 0.1], "slow": [0.001, 0.01, 0.1]},
    ),
    "ease": ("ease", {"adapter": {"train": STILL}}, RATES),
    "mos": (
        "mos",
        {"adapter": {"train": {**STILL, "epochs": 10}}},
        {"lr": [0.05, 0.2, 1.0], "head_lr": [0.1, 1.0], "align_lr": [0.005, 0.05]},
    ),
}
TRAIN = dict.fromkeys(("aper", "ranpac"), "adapt.train") | dict.fromkeys(("ease", "mos"), "adapter.train")
TRAIN["slca"] = "train"
"""Where a method has the rate and epochs that are searched."""
CNN = ("simplecil", "aper_finetune", "aper_ssf", "ranpac", "ranpac_ssf", "fecam", "slca")


def settings(variant: str) -> list[dict[str, Any]]:
    """All points of a variant's grid; FeCAM's off-diagonal shrinkage is in units of the diagonal one."""
    _, _, grid = SEARCHES[variant]
    points = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if variant == "fecam":
        points = [{**p, "shrink_off_diagonal": p["shrink_diagonal"] * p["shrink_off_diagonal"]} for p in points]
    return points


def config(variant: str, setting: dict[str, Any]) -> MethodConfig:
    """The method's configuration at one point of a variant's grid."""
    name, values, _ = SEARCHES[variant]
    places = {"align_lr": "align.lr"} | {key: f"{TRAIN.get(name)}.{key}" for key in ("lr", "epochs")}
    for key, value in setting.items():
        for part in reversed(places.get(key, key).split(".")):
            value = {part: value}
        values = laid_over(values, value)
    made: MethodConfig = methods.get(name).Config(**values)
    return made


def score(
    cut: dict[str, Any], orders: list[int], backbone: str, variant: str, setting: dict[str, Any]
) -> dict[str, Any]:
    """One setting's row: accuracy on held-out images after every task, over all classes so far, and seconds."""
    tune_allocator()
    model = Backbone.load(backbone)
    kind, seen, start = methods.get(SEARCHES[variant][0]), [], time.perf_counter()
    for order in orders:
        method = kind(model, config(variant, setting), store=FeatureStore())
        seen.append(accuracy_over_samples(learned(method, held_out_stream(**cut, order=order))))
    row = {**setting, "accuracy": [round(float(a), 4) for a in np.mean(seen, axis=0)]}
    if len(orders) > 1:
        row["last, each order"] = [round(float(one[-1]), 4) for one in seen]
    return {**row, "seconds": round(time.perf_counter() - start, 1), "device": model.device.type}


def best(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The setting with the highest accuracy; ties go to the cheaper, then to the smaller numbers."""
    top = max(
        rows, key=lambda row: (row["accuracy"][-1], -row.get("epochs", 0), *(-row.get(k, 0) for k in row if k in SMALL))
    )
    return {k: v for k, v in top.items() if k not in FOUND}


FOUND = ("accuracy", "last, each order", "seconds", "device")
SMALL = ("lr", "slow", "head_lr", "align_lr", "shrink_diagonal", "shrink_off_diagonal")


def main() -> None:
    """Searches what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/caltech101")
    parser.add_argument("--tasks", type=int, default=10, help="into which the stream is cut")
    parser.add_argument("--first", type=int, default=3, help="tasks that are learned")
    parser.add_argument("--per-class", type=int, help="training images of each class, all by default")
    parser.add_argument("--orders", nargs="+", type=int, default=[1993], help="class orders")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME=VALUE", help="points of the grids with these")
    parser.add_argument("--backbones", nargs="+", default=list(BOTH), choices=BOTH)
    parser.add_argument("--methods", nargs="+", default=list(SEARCHES), choices=list(SEARCHES))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    report: dict[str, Any] = json.loads(args.out.read_text()) if args.out.exists() else {"data": {}}
    report |= {"command": "python benchmarks/search_representation.py", "date": now(), "versions": versions()}
    here_now = machine(Backbone.load("default"))
    report.setdefault("machines", {})[here_now["device"]] = here_now  # each row says which device it was found on
    searched = f"{Path(args.data).name}, first {args.first} of {args.tasks} tasks"
    if args.per_class:
        searched += f", {args.per_class} images per class"
    if args.orders != [1993]:
        searched += f", orders {' '.join(map(str, args.orders))}"
    cut = {"data": args.data, "n_tasks": args.first, "of": args.tasks, "per_class": args.per_class}
    only = {name: float(value) for name, value in (one.split("=") for one in args.only)}
    here: dict[str, Any] = report["data"].setdefault(searched, {})
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        jobs: dict[Future[dict[str, Any]], tuple[str, str]] = {}
        for variant, backbone in itertools.product(args.methods, args.backbones):
            if backbone != "default" and variant not in CNN:
                continue
            _, common, grid = SEARCHES[variant]
            found = here.setdefault(backbone, {}).setdefault(variant, {"common": common, "rows": []})
            known = [{k: row.get(k) for k in grid} for row in found["rows"]]
            for setting in [s for s in settings(variant) if s not in known and {**s, **only} == s]:
                job = pool.submit(score, cut, args.orders, backbone, variant, setting)
                jobs[job] = backbone, variant
        for job in as_completed(jobs):
            backbone, variant = jobs[job]
            found = here[backbone][variant]
            found["rows"].append(job.result())
            found["best"] = best(found["rows"])
            print(backbone, variant, found["rows"][-1], flush=True)
            args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
