"""What a task of RanPAC costs at M = 10 000 beside the direct method: 17 LU solves to choose lambda, and one more.

    python -m benchmarks.ranpac_cost [--data ../shared/data/caltech101 --tasks 10] [--backbone efficientnet_lite0]
        [--direct 3]

Both see the same stored features, the same random projection, the same held-out rows; both are float64. The direct
method is timed on the first ``--direct`` tasks only, in a process of its own, so that each peak of memory is one
method's. Writes benchmarks/results/ranpac_cost.json: seconds per task, whether lambda and predictions agree, peaks.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from perdure import Backbone, FeatureStore, Stream, load_stream, methods, tune_allocator
from perdure.methods import ranpac as module
from perdure.methods.ranpac import RanPAC
from perdure.modules.random_features import RandomFeatures
from perdure.modules.ridge_choice import GRID
from perdure.run.summary import machine, now, versions
from perdure.train.runtime import peak_rss_bytes

RESULTS = Path(__file__).parent / "results" / "ranpac_cost.json"
STEPS = {"selection": (module, "chosen_on_rows"), "gram": (RandomFeatures, "added"), "solve": (RanPAC, "_solve")}


def load(data: str, tasks: int, backbone: str) -> tuple[Stream, RanPAC, FeatureStore]:
    """The stream, an untrained RanPAC, and the store with all features in it."""
    tune_allocator()
    stream, store = load_stream(data, tasks=tasks, order_seed=1993), FeatureStore()
    method = methods.get("ranpac")(Backbone.load(backbone), store=store)
    for i in range(len(stream)):
        store.features(method.backbone, stream[i].train)
        store.features(method.backbone, stream.test(i))
    return stream, method, store


def ours(data: str, tasks: int, backbone: str) -> dict[str, Any]:
    """Seconds of each step of each task, lambdas, and predictions after each task."""
    stream, method, _ = load(data, tasks, backbone)
    spent: dict[str, float] = defaultdict(float)
    for name, (owner, step) in STEPS.items():
        setattr(owner, step, _timed(getattr(owner, step), spent, name))
    seconds, predictions, idle = [], [], peak_rss_bytes()
    for task in stream:
        before = dict(spent)
        method.fit_task(task)
        _ = method.weight
        seconds.append({name: round(spent[name] - before.get(name, 0.0), 2) for name in STEPS})
        predictions.append(torch.cat([method.predict(stream.test(i)) for i in range(task.index + 1)]).tolist())
        print("ours", task.index, seconds[-1], method.ridges_[-1], flush=True)
    peaks = {"before": idle, "peak": peak_rss_bytes()}
    return {"seconds": seconds, "ridges": method.ridges_, "predictions": predictions, "memory": peaks}


def _timed(step: Callable[..., Any], spent: dict[str, float], name: str) -> Callable[..., Any]:
    @functools.wraps(step)
    def timed(*args: Any) -> Any:
        start = time.perf_counter()
        try:
            return step(*args)
        finally:
            spent[name] += time.perf_counter() - start

    return timed


def direct(data: str, tasks: int, backbone: str, n: int) -> dict[str, Any]:
    """The same by the textbook: full matrices, an LU factorisation per candidate."""
    stream, method, store = load(data, tasks, backbone)
    eye, n_classes = torch.eye(method.m, dtype=torch.float64), len(stream.class_names)
    gram, sums = torch.zeros_like(eye), torch.zeros(method.m, n_classes, dtype=torch.float64)
    seconds, ridges, predictions, classes, idle = [], [], [], [], peak_rss_bytes()
    for task in stream[:n]:
        classes += task.classes
        h = method.lift(store.features(method.backbone, task.train)[:])
        column = {c: j for j, c in enumerate(classes)}
        y = F.one_hot(torch.tensor([column[c] for c in task.train.labels.tolist()]), n_classes).double()
        start = time.perf_counter()
        fit, val = torch.randperm(len(h), generator=method._generator(task.index)).tensor_split([int(0.8 * len(h))])
        own = torch.arange(len(classes) - len(task.classes), len(classes))
        g, q = h[fit].T @ h[fit], h[fit].T @ y[fit][:, own]
        losses = [float((h[val] @ torch.linalg.solve(g + r * eye, q) - y[val][:, own]).square().mean()) for r in GRID]
        ridges.append(GRID[min(range(len(GRID)), key=losses.__getitem__)])
        selected = time.perf_counter()
        gram += h.T @ h
        sums += h.T @ y
        added = time.perf_counter()
        weight = torch.linalg.solve(gram + ridges[-1] * eye, sums[:, : len(classes)])
        end = time.perf_counter()
        times = {"selection": selected - start, "gram": added - selected, "solve": end - added}
        seconds.append({name: round(value, 2) for name, value in times.items()})
        tests = [method.lift(store.features(method.backbone, stream.test(i))[:]) for i in range(task.index + 1)]
        predictions.append(torch.tensor(classes)[(torch.cat(tests) @ weight).argmax(1)].tolist())
        print("direct", task.index, seconds[-1], ridges[-1], flush=True)
    return {
        "seconds": seconds,
        "ridges": ridges,
        "predictions": predictions,
        "memory": {"before": idle, "peak": peak_rss_bytes()},
    }


def main() -> None:
    """Times both and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/caltech101")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--direct", type=int, default=3, help="tasks on which the direct method is timed")
    args = parser.parse_args()
    which = (args.data, args.tasks, args.backbone)
    report = {"command": "python -m benchmarks.ranpac_cost", "date": now(), "projection_dim": 10_000, "grid": len(GRID)}
    report |= {"data": Path(args.data).name, "tasks": args.tasks, "backbone": args.backbone}
    report |= {"machine": machine(Backbone.load(args.backbone)), "versions": versions()}
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        mine = pool.apply(ours, which)
        found = pool.apply_async(direct, (*which, args.direct))
        predictions = mine.pop("predictions")
        RESULTS.write_text(json.dumps(report | {"ours": mine}, indent=1) + "\n")  # the rest may take long
        other = found.get()
    pairs = list(zip(predictions, other.pop("predictions"), strict=False))
    differing = [sum(a != b for a, b in zip(one, two, strict=True)) for one, two in pairs]
    report |= {"ours": mine, "direct": other, "differing_predictions": differing}
    report |= {"compared_predictions": [len(one) for one, _ in pairs]}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
