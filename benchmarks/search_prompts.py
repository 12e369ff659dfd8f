"""Finds learning rate and epochs of the prompt methods on `default`, without any test image.

    python benchmarks/search_prompts.py [--data ../shared/data/cifar10] [--tasks 5 --first 3] [--methods l2p dap ...]

A fifth of each class's training images is held out, as in search_baselines.py; settings are judged by the accuracy on
it after the first tasks of the stream. Everything but the two settings is the method's default, without augmentation,
16 images per step. Finished rows are kept in runs/search_prompts, so a search that was stopped goes on, and several
processes may each take some methods; every call writes benchmarks/results/search_prompts.json from all rows there are.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

from search_baselines import held_out_stream, learned

from perdure import Backbone, FeatureStore, Stream, methods, tune_allocator
from perdure.eval import accuracy_over_samples
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "search_prompts.json"
ROWS = Path("runs/search_prompts")
EPOCHS = [5, 10]
RATES: dict[str, list[float]] = {
    "vpt": [1e-3, 5e-3],
    "l2p": [0.03, 0.1],  # times batch_size / 256
    "dualprompt": [0.03, 0.1],  # times batch_size / 256
    "coda_prompt": [1e-3, 5e-3],
    "dap": [1e-3, 1e-2],
}
COMMON: dict[str, Any] = {"batch_size": 16, "min_scale": 1.0, "flip": False}


def score(name: str, setting: dict[str, Any], stream: Stream, backbone: Backbone) -> dict[str, Any]:
    """One setting's row: accuracy on held-out images after every task, over all classes so far, and seconds."""
    kind = methods.get(name)
    method, start = kind(backbone, kind.Config(**COMMON, **setting), store=FeatureStore()), time.perf_counter()
    seen = accuracy_over_samples(learned(method, stream))
    seconds = round(time.perf_counter() - start, 1)
    return {**setting, "accuracy": [round(float(a), 4) for a in seen], "seconds": seconds}


def search(name: str, data: str, stream: Stream, backbone: Backbone) -> None:
    """Adds the rows that are missing for one method."""
    path = ROWS / f"{data}-{name}.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    known = [(row["lr"], row["epochs"]) for row in rows]
    for epochs, lr in itertools.product(EPOCHS, RATES[name]):
        if (lr, epochs) not in known:
            rows.append(score(name, {"lr": lr, "epochs": epochs}, stream, backbone))
            print(name, rows[-1], flush=True)
            path.write_text(json.dumps(rows))


def write(backbone: Backbone, about: dict[str, Any]) -> None:
    """The result file, with all rows found so far; what it says of other methods and data sets stays."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())["data"] if RESULTS.exists() else {}
    for path in sorted(ROWS.glob("*.json")):
        rows = json.loads(path.read_text())
        best = max(rows, key=lambda row: (row["accuracy"][-1], -row["epochs"], -row["lr"]))
        data, _, name = path.stem.partition("-")
        found.setdefault(data, {})[name] = {"rows": rows, "best": {k: best[k] for k in ("lr", "epochs")}}
    report = {"command": "python benchmarks/search_prompts.py", "date": now(), **about, "common": COMMON}
    report |= {"data": found, "backbone": backbone.name, "machine": machine(backbone), "versions": versions()}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    """Searches, then writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/cifar10")
    parser.add_argument("--tasks", type=int, default=5, help="into which the stream is cut")
    parser.add_argument("--first", type=int, default=3, help="tasks that are learned")
    parser.add_argument("--methods", nargs="+", default=list(RATES), choices=list(RATES))
    args = parser.parse_args()
    tune_allocator()
    ROWS.mkdir(parents=True, exist_ok=True)
    backbone = Backbone.load("default")
    stream = held_out_stream(args.data, args.first, args.tasks)
    for name in args.methods:
        search(name, Path(args.data).name, stream, backbone)
    write(backbone, {"tasks": args.tasks, "first": args.first})


if __name__ == "__main__":
    main()
