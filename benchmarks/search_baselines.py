"""Finds the learning rate and epochs of the two trained baselines, `finetune` and `joint`, without any test image.

    python benchmarks/search_baselines.py [--data ../shared/data/caltech101 --tasks 10] [--backbone efficientnet_lite0]

A fifth of each class's training images is held out. `finetune` is chosen by how well each task is known right after
it was learned (mean of the accuracy matrix's diagonal), since anything else would reward not learning; `joint` by its
accuracy after the last task. Ties go to the cheaper setting. Writes benchmarks/results/search_baselines.json, or --out.
"""

from __future__ import annotations

import argparse
import dataclasses as dc
import itertools
import json
import sys
import time
from pathlib import Path

import numpy as np

from perdure import Backbone, FeatureStore, Stream, methods, tune_allocator
from perdure.data import load_dataset
from perdure.data.stream import class_incremental, order_classes, task_sizes
from perdure.eval import AccuracyMatrix, accuracy_over_samples, evaluate
from perdure.methods import Method
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "search_baselines.json"
FINETUNE = {"lr": [0.01, 0.03, 0.1], "epochs": [1, 3, 5]}
JOINT = {"lr": [3e-4, 1e-3, 3e-3], "epochs": [5, 20, 50]}
SEARCHES = {"joint": (JOINT, "last_accuracy", 10), "finetune": (FINETUNE, "learning_accuracy", 3)}


def held_out_stream(data: str, n_tasks: int, of: int = 10, order: int = 1993, per_class: int | None = None) -> Stream:
    """The first ``n_tasks`` of ``of`` tasks of class order ``order``; tests are a fifth of the training images.

    Of each class ``per_class`` training images are used, all by default.
    """
    whole = load_dataset(data)
    rng, images = np.random.default_rng(0), whole.train
    drawn = [rng.permutation(np.flatnonzero(images.labels == c))[:per_class] for c in images.classes]
    held = np.concatenate([mine[: len(mine) // 5] for mine in drawn])
    fit = np.setdiff1d(np.concatenate(drawn), held)
    split = dc.replace(whole, train=images.subset(fit), test=images.subset(np.sort(held)))
    sizes = task_sizes(len(split.class_names), tasks=of)
    stream = class_incremental(split, sizes, order_classes(split.class_names, seed=order))
    tests = [stream.test(i) for i in range(n_tasks)]
    return Stream(stream[:n_tasks], tests, stream.class_names, {"search": n_tasks})


def learned(method: Method, stream: Stream) -> AccuracyMatrix:
    """Fits every task of a stream and tests after each."""
    after = []
    for task in stream:
        method.fit_task(task)
        after.append(evaluate(method, stream, upto=task.index))
    return AccuracyMatrix.from_predictions(after)


def search(name: str, grid: dict[str, list], stream: Stream, backbone: Backbone) -> list[dict]:
    """One row per setting: learning accuracy, last accuracy, seconds."""
    kind, rows = methods.get(name), []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        method, start = kind(backbone, kind.Config(train=setting), store=FeatureStore()), time.perf_counter()
        matrix = learned(method, stream)
        row = {
            **setting,
            "learning_accuracy": round(float(np.diag(matrix.values).mean()), 4),
            "last_accuracy": round(float(accuracy_over_samples(matrix)[-1]), 4),
            "seconds": round(time.perf_counter() - start, 1),
        }
        print(name, row, flush=True)
        rows.append(row)
    return rows


def main() -> None:
    """Runs both searches and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/caltech101")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--methods", nargs="+", default=list(SEARCHES), choices=list(SEARCHES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    tune_allocator()
    backbone = Backbone.load(args.backbone)
    report = {
        "command": " ".join(["python benchmarks/search_baselines.py", *sys.argv[1:]]),
        "date": now(),
        "data": Path(args.data).name,
        "backbone": backbone.name,
        "machine": machine(backbone),
        "versions": versions(),
    }
    for name in args.methods:
        grid, by, tasks = SEARCHES[name]
        tasks = min(tasks, args.tasks)
        rows = search(name, grid, held_out_stream(args.data, tasks, args.tasks), backbone)
        report[name] = {"chosen_by": by, "tasks": tasks, "rows": rows, "best": best(rows, by)}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")


def best(rows: list[dict], by: str) -> dict:
    """The row with the highest score; ties go to fewer epochs, then to the lower learning rate."""
    return max(rows, key=lambda row: (row[by], -row["epochs"], -row["lr"]))


if __name__ == "__main__":
    main()
