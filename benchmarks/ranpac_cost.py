"""What RanPAC costs at M = 10 000 by how many images it was taught, in 16 tasks: this version beside an earlier one.

    OMP_NUM_THREADS=2 python -m benchmarks.ranpac_cost [--images 100 320 ...] [--before 7e8907c]

Both see the same features of Caltech-101; more than there are images are drawn around them at random. Every row is a
process of its own. Four times, evenly spread over the tasks, it is tested on 10 images of each task so far: that solves
for the head. Writes benchmarks/results/ranpac_cost.json after each row: seconds per task, bytes of state, peak memory,
and how far the last scores of the two are apart.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from perdure import Backbone, FeatureStore, load_stream, methods, tune_allocator
from perdure.run.checkpoint import tensor_bytes
from perdure.run.summary import machine, now, versions
from perdure.train.runtime import peak_rss_bytes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "ranpac_cost.json"
TASKS, TESTED, PER_TASK, M = 16, (4, 8, 12, 16), 10, 10_000


def features(data: str, backbone: Backbone, n: int) -> dict[str, torch.Tensor]:
    """Features, labels and test features for n images: real ones, and around them as many more as are wanting."""
    stream, store, rng = (
        load_stream(data, tasks=TASKS, order_seed=1993),
        FeatureStore(),
        torch.Generator().manual_seed(0),
    )
    rows = torch.cat([store.features(backbone, task.train)[:] for task in stream])
    labels = torch.cat([torch.from_numpy(task.train.labels) for task in stream])
    order = torch.randperm(len(rows), generator=rng)
    spare, order = order[: TASKS * PER_TASK], order[TASKS * PER_TASK :]
    which = order[torch.arange(n) % len(order)]
    jitter = 0.3 * rows.std(0) * torch.randn(n, rows.shape[1], generator=rng)
    jitter[: len(order)] = 0
    by_class = labels[which].argsort()  # so that a task has some classes
    return {"rows": (rows[which] + jitter)[by_class], "labels": labels[which][by_class], "tests": rows[spare]}


def course(file: Path, backbone: str) -> dict[str, Any]:
    """Seconds, bytes and scores of a RanPAC that is taught a file's images."""
    tune_allocator()
    model = Backbone.load(backbone)
    idle = peak_rss_bytes()
    method, found = methods.get("ranpac")(model), torch.load(file)
    columns = found["labels"].unique(return_inverse=True)[1]
    train, evaluation, parts = 0.0, [], found["rows"].tensor_split(TASKS)
    for i, (rows, own) in enumerate(zip(parts, columns.tensor_split(TASKS), strict=True)):
        start = time.perf_counter()
        method.classes_ = list(range(max(len(method.classes_), int(own.max()) + 1)))
        method._learn_features(rows, own, method._generator(i))
        method.tasks_seen_ += 1
        train += time.perf_counter() - start
        if i + 1 in TESTED:
            start = time.perf_counter()
            tests = found["tests"][: PER_TASK * (i + 1)].split(PER_TASK)
            scores = torch.cat([method._scores_from_features(test) for test in tests])
            evaluation.append(time.perf_counter() - start)
    torch.save(scores, file.with_suffix(f".{os.getpid()}"))
    return {
        "train": round(train / TASKS, 3),
        "evaluation": [round(seconds, 3) for seconds in evaluation],
        "state": tensor_bytes(method.state_dict()),
        "memory": {"before": idle, "peak": peak_rss_bytes()},
        "ridge": method.ridges_[-1],
        "scores": str(file.with_suffix(f".{os.getpid()}")),
    }


def in_process(source: Path, file: Path, backbone: str) -> dict[str, Any]:
    """:func:`course` with the perdure of a source tree."""
    command = [sys.executable, "-m", "benchmarks.ranpac_cost", "--backbone", backbone, "--course", str(file)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(source)}, check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Runs the rows and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/caltech101")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--images", nargs="+", type=int, default=[100, 320, 1_000, 5_000, 20_000])
    parser.add_argument("--before", default="7e8907c", help="the commit to compare with")
    parser.add_argument("--course", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.course:
        print(json.dumps(course(args.course, args.backbone)))
        return
    backbone = Backbone.load(args.backbone)
    report: dict[str, Any] = {"command": "python -m benchmarks.ranpac_cost", "date": now(), "projection_dim": M}
    report |= {"data": Path(args.data).name, "tasks": TASKS, "tested_after": TESTED, "backbone": args.backbone}
    report |= {"before": args.before, "threads": torch.get_num_threads(), "machine": machine(backbone)}
    report |= {"versions": versions(), "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder) / "earlier"
        earlier.mkdir()
        packed = subprocess.run(["git", "archive", args.before, "src"], cwd=ROOT, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(earlier)], input=packed.stdout, check=True)
        for n in args.images:
            file = Path(folder) / f"{n}.pt"
            torch.save(features(args.data, backbone, n), file)
            row: dict[str, Any] = {"images": n, "load": round(os.getloadavg()[0], 1)}
            row |= {name: in_process(source, file, args.backbone) for name, source in
                    (("after", ROOT / "src"), ("before", earlier / "src"))}  # fmt: skip
            one, two = (torch.load(row[name].pop("scores")) for name in ("after", "before"))
            row["scores_apart"] = float((one - two).abs().max() / two.abs().max())
            report["rows"].append(row)
            RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            print(row, flush=True)


if __name__ == "__main__":
    main()
