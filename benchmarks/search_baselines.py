"""Finds the learning rate and epochs of the two trained baselines, `finetune` and `joint`, without any test image.

    python benchmarks/search_baselines.py [--data ../shared/data/caltech101]

A fifth of each class's training images is held out. `finetune` is chosen by how well each task is known right after
it was learned (mean of the accuracy matrix's diagonal), since anything else would reward not learning; `joint` by its
accuracy after the last task. Ties go to the cheaper setting. Writes benchmarks/results/search_baselines.json.
"""

from __future__ import annotations

import argparse
import dataclasses as dc
import itertools
import json
import time
from pathlib import Path

import numpy as np

from perdure import Backbone, FeatureStore, Stream, methods, tune_allocator
from perdure.data import load_dataset
from perdure.data.stream import class_incremental, order_classes, task_sizes
from perdure.eval import AccuracyMatrix, accuracy_over_samples, evaluate
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "search_baselines.json"
FINETUNE = {"lr": [0.01, 0.03, 0.1], "epochs": [1, 3, 5]}
JOINT = {"lr": [3e-4, 1e-3, 3e-3], "epochs": [5, 20, 50]}


def held_out_stream(data: str, n_tasks: int, of: int = 10) -> Stream:
    """The first ``n_tasks`` of ``of`` tasks, whose tests are a fifth of the training images."""
    whole = load_dataset(data)
    rng, images = np.random.default_rng(0), whole.train
    held = np.concatenate(
        [
            rng.permutation(mine)[: len(mine) // 5]
            for mine in (np.flatnonzero(images.labels == c) for c in images.classes)
        ]
    )
    fit = np.setdiff1d(np.arange(len(images)), held)
    split = dc.replace(whole, train=images.subset(fit), test=images.subset(np.sort(held)))
    sizes = task_sizes(len(split.class_names), tasks=of)
    stream = class_incremental(split, sizes, order_classes(split.class_names, seed=1993))
    tests = [stream.test(i) for i in range(n_tasks)]
    return Stream(stream[:n_tasks], tests, stream.class_names, {"search": n_tasks})


def search(name: str, grid: dict[str, list], stream: Stream, backbone: Backbone) -> list[dict]:
    """One row per setting: learning accuracy, last accuracy, seconds."""
    kind, rows = methods.get(name), []
    for values in itertools.product(*grid.values()):
        setting = dict(zip(grid, values, strict=True))
        method, start = kind(backbone, kind.Config(**setting), store=FeatureStore()), time.perf_counter()
        after = []
        for task in stream:
            method.fit_task(task)
            after.append(evaluate(method, stream, upto=task.index))
        matrix = AccuracyMatrix.from_predictions(after)
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
    data = parser.parse_args().data
    tune_allocator()
    backbone = Backbone.load("efficientnet_lite0")
    joint = search("joint", JOINT, held_out_stream(data, 10), backbone)
    finetune = search("finetune", FINETUNE, held_out_stream(data, 3), backbone)
    report = {
        "command": "python benchmarks/search_baselines.py",
        "date": now(),
        "data": Path(data).name,
        "backbone": backbone.name,
        "machine": machine(backbone),
        "versions": versions(),
        "joint": {"chosen_by": "last_accuracy", "tasks": 10, "rows": joint, "best": best(joint, "last_accuracy")},
        "finetune": {
            "chosen_by": "learning_accuracy",
            "tasks": 3,
            "rows": finetune,
            "best": best(finetune, "learning_accuracy"),
        },
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def best(rows: list[dict], by: str) -> dict:
    """The row with the highest score; ties go to fewer epochs, then to the lower learning rate."""
    return max(rows, key=lambda row: (row[by], -row["epochs"], -row["lr"]))


if __name__ == "__main__":
    main()
