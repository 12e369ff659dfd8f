"""The prompt methods beside `finetune`, `simplecil` and `joint` on real images, three class orders each.

    python benchmarks/prompt_methods.py [--data caltech101 cifar10] [--methods l2p ...] [--seeds 1993 1994 1995]

Runs recipes/DATA/METHOD_default.yaml in processes of one thread each, one per core (that is faster than one process
with two threads). A run that is complete in runs/prompt_methods is not repeated, one that was stopped goes on, so the
script may be called again until everything is there; each call writes benchmarks/results/prompt_methods.json from all
complete runs, whichever they are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from perdure import Backbone
from perdure.run import read_results
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "prompt_methods.json"
RUNS = Path("runs/prompt_methods")
DATA = ("cifar10", "caltech101")
METHODS = ("finetune", "simplecil", "joint", "vpt", "l2p", "dualprompt", "coda_prompt", "dap")
SEEDS = (1993, 1994, 1995)
FIGURES = ("last_accuracy", "average_incremental_accuracy", "forgetting")


def run(data: str, method: str, seed: int) -> None:
    """One run as a user starts it, unless it is there."""
    out = RUNS / data / f"{method}-{seed}"
    command = ["perdure", "run", f"recipes/{data}/{method}_default.yaml", "-s", f"stream.order_seed={seed}"]
    executable = Path(sys.executable).parent / "perdure"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([executable, *command[1:], "--out", out], check=True, env=environment, stdout=subprocess.DEVNULL)
    print(data, method, seed, read_results(out).metrics.model_dump(include=set(FIGURES)), flush=True)


def row(data: str, method: str) -> dict[str, Any] | None:
    """Mean and standard deviation over the class orders that are there, and what one run cost; None without any."""
    found = [(s, RUNS / data / f"{method}-{s}") for s in SEEDS]
    runs = {s: read_results(out) for s, out in found if (out / "results.json").exists()}
    if not runs:
        return None
    figures: dict[str, Any] = {"order_seeds": list(runs), "recipe": next(iter(runs.values())).provenance.recipe}
    for name in FIGURES:
        values = [getattr(r.metrics, name) for r in runs.values()]
        spread = statistics.stdev(values) if len(values) > 1 else None
        figures[name] = {"mean": statistics.fmean(values), "stdev": spread, "values": values}
    return {**figures, "cost": [r.cost.model_dump() for r in runs.values()]}


def main() -> None:
    """Runs what is missing and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, choices=SEEDS)
    args = parser.parse_args()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(lambda job: run(job[0], job[2], job[1]), itertools.product(args.data, args.seeds, args.methods)))
    rows = {d: {m: r for m in METHODS if (r := row(d, m))} for d in DATA}
    report = {"command": "python benchmarks/prompt_methods.py", "date": now(), "rows": rows}
    report |= {"machine": machine(Backbone.load("default")), "versions": versions()}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
