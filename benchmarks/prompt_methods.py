"""The prompt methods beside `finetune`, `simplecil` and `joint` on real images, three class orders each.

    python benchmarks/prompt_methods.py [--data caltech101 cifar10] [--methods l2p ...] [--seeds 1993 1994 1995]

Runs recipes/DATA/METHOD_default.yaml in processes of one thread each, one per core (that is faster than one process
with two threads). Each finished run is added to benchmarks/results/prompt_methods.json at once; one that is there with
the same recipe is not repeated, one that was stopped goes on: the script may be called until everything is there, and
in several processes for different runs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from filelock import FileLock

from perdure.run import Results, read_results
from perdure.run.recipe import load_recipe

RESULTS = Path(__file__).parent / "results" / "prompt_methods.json"
RUNS = Path("runs/prompt_methods")
DATA = ("cifar10", "caltech101")
METHODS = ("finetune", "simplecil", "joint", "vpt", "l2p", "dualprompt", "coda_prompt", "dap")
SEEDS = (1993, 1994, 1995)
FIGURES = ("last_accuracy", "average_incremental_accuracy", "forgetting")


def recorded() -> dict[str, Any]:
    """Data set, method and class order to a finished run's figures."""
    runs: dict[str, Any] = json.loads(RESULTS.read_text())["runs"] if RESULTS.exists() else {}
    return runs


def record(data: str, method: str, seed: int, results: Results) -> None:
    """Adds one run to the result file, which other processes may be writing too."""
    told, p = results.metrics.model_dump(), results.provenance
    run = {name: told[name] for name in FIGURES} | {"cost": results.cost.model_dump(), "recipe": p.recipe}
    run |= {"finished": p.finished, "machine": p.machine, "versions": p.versions}
    if results.selection and results.selection[-1]:
        run["selection_entropy"] = results.selection[-1].entropy
    RUNS.mkdir(parents=True, exist_ok=True)
    with FileLock(RUNS / ".lock"):
        runs = recorded()
        runs.setdefault(data, {}).setdefault(method, {})[str(seed)] = run
        text = json.dumps({"command": "python benchmarks/prompt_methods.py", "runs": runs}, indent=1)
        RESULTS.write_text(text + "\n")
    print(data, method, seed, {name: told[name] for name in FIGURES}, flush=True)


def run(data: str, method: str, seed: int) -> None:
    """One run as a user starts it, unless it is on record."""
    path, override = Path(f"recipes/{data}/{method}_default.yaml"), f"stream.order_seed={seed}"
    recipe = json.loads(json.dumps(load_recipe(path, [override]).values()))
    if recorded().get(data, {}).get(method, {}).get(str(seed), {}).get("recipe") == recipe:
        return
    out = RUNS / data / f"{method}-{seed}"
    executable = Path(sys.executable).parent / "perdure"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [str(executable), "run", str(path), "-s", override, "--out", str(out)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    record(data, method, seed, read_results(out))


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, choices=SEEDS)
    args = parser.parse_args()
    jobs = itertools.product(args.data, args.seeds, args.methods)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for done in [pool.submit(run, data, method, seed) for data, seed, method in jobs]:
            done.result()


if __name__ == "__main__":
    main()
