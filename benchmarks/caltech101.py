"""Four methods on Caltech-101, ten tasks: accuracy, passes cold and warm, and invariance to the split.

    python -m benchmarks.caltech101 [--data ../shared/data/caltech101] [--projection-dim 10000]
    python -m benchmarks.caltech101 --again finetune

Every run starts from the recipes in recipes/caltech101. Stores are made for the benchmark and thrown away, so that
"cold" means cold. Writes benchmarks/results/caltech101.json (--again: one method's figures there); the runs and their
report stay in runs/caltech101.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from perdure import Backbone
from perdure.run import Results, read_results
from perdure.run.reading import read_predictions
from perdure.run.report import accuracy_table, write_report
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "caltech101.json"
RUNS = Path("runs/caltech101")
METHODS = ("finetune", "simplecil", "ranpac", "joint")
SPLITS = (1, 5, 10, 20)


def run(method: str, out: Path, store: Path, overrides: list[str]) -> Results:
    """One run as a user starts it, in a process of its own, into an empty directory, with the given feature store."""
    shutil.rmtree(out, ignore_errors=True)
    flags = [part for text in overrides for part in ("-s", text)]
    command = ["perdure", "run", f"recipes/caltech101/{method}.yaml", *flags, "--out", str(out)]
    environment = {**os.environ, "PERDURE_CACHE": str(store)}
    executable = Path(sys.executable).parent / "perdure"
    subprocess.run([executable, *command[1:]], check=True, env=environment, stdout=subprocess.DEVNULL)
    return read_results(out)


def row(results: Results) -> dict:
    """The figures of one run that go into the result file."""
    return {"metrics": results.metrics.model_dump(), "cost": results.cost.model_dump()}


def in_one_store(methods: Iterable[str], folder: Path, overrides: dict[str, list[str]]) -> dict[str, Results]:
    """Methods from one store, the first feature method cold, the others warm."""
    runs = {}
    for method in methods:
        runs[method] = run(method, RUNS / method, folder / "shared", overrides[method])
        print(*accuracy_table({method: runs[method]})[1], flush=True)
    return runs


def passes(folder: Path, overrides: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Passes per image when each of two methods comes first, and when it comes second."""
    found = {}
    for first, second in (("simplecil", "ranpac"), ("ranpac", "simplecil")):
        for state, method in (("cold", first), ("warm", second)):
            cost = run(method, folder / "run", folder / f"store-{first}", overrides[method]).cost
            found[f"{method} {state}"] = {
                "passes_per_train_image": cost.passes_per_train_image,
                "passes_per_test_image": cost.passes_per_test_image,
            }
    return found


def split_invariance(folder: Path, overrides: dict[str, list[str]]) -> dict[str, dict]:
    """Final predictions per test image for 1, 5, 10 and 20 tasks, each from a cold store of its own."""
    found = {}
    for method, extra in (("simplecil", []), ("ranpac", ["method.ridge=fixed"])):
        predictions = {}
        for tasks in SPLITS:
            out = folder / f"{method}-{tasks}"
            results = run(method, out, folder / f"split-{tasks}", [*overrides[method], *extra, f"stream.tasks={tasks}"])
            p = read_predictions(out / "tasks" / f"{tasks - 1:03d}")
            order = np.argsort(p.labels, kind="stable")  # images of a class keep their order in every split
            predictions[tasks] = p.top[order, 0]
            print(method, tasks, "tasks:", results.metrics.last_accuracy, flush=True)
        different = {str(t): int((predictions[t] != predictions[1]).sum()) for t in SPLITS}
        found[method] = {"different_predictions_from_one_task": different, "test_images": len(predictions[1])}
    return found


def main() -> None:
    """Runs everything and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/caltech101")
    parser.add_argument("--projection-dim", type=int, default=10_000)
    parser.add_argument("--again", choices=METHODS, help="the only method to run")
    arguments = parser.parse_args()
    data = [f"stream.data={arguments.data}"]
    overrides = {m: data for m in METHODS}
    overrides["ranpac"] = [*data, f"method.projection_dim={arguments.projection_dim}"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = in_one_store([arguments.again] if arguments.again else METHODS, folder, overrides)
        found = {
            "recipes": {m: r.provenance.recipe for m, r in runs.items()},
            "runs": {m: row(r) for m, r in runs.items()},
        }
        if arguments.again:
            report = json.loads(RESULTS.read_text(encoding="utf-8"))
            for part, of in found.items():
                report[part] |= of
            RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            return
        report = {
            "command": "python -m benchmarks.caltech101",
            "date": now(),
            "machine": machine(Backbone.load("efficientnet_lite0")),
            "versions": versions(),
            **found,
            "passes": passes(folder, overrides),
            "split_invariance": split_invariance(folder, overrides),
        }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(write_report([RUNS / m for m in METHODS], RUNS / "report.html"))


if __name__ == "__main__":
    main()
