"""Frozen forward passes per second with and without `tune_allocator`, in processes of their own.

    python -m benchmarks.allocator

Writes benchmarks/results/allocator.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from perdure import Backbone, tune_allocator
from perdure.run.summary import machine, now, versions
from perdure.train.runtime import peak_rss_bytes

RESULTS = Path(__file__).parent / "results" / "allocator.json"
BATCHES = (1, 4, 16, 64)


def child(tuned: bool, precision: str) -> None:
    """Prints images per second by batch size, and peak resident bytes, as JSON."""
    if tuned:
        tune_allocator()
    backbone = Backbone.load("efficientnet_lite0", device="cpu", precision=precision)
    images = torch.randint(0, 256, (max(BATCHES), 3, 224, 224), dtype=torch.uint8)
    rates = {}
    for size in BATCHES:
        backbone.features(images[:size])
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < 3:
            backbone.features(images[:size])
            done += size
        rates[size] = round(done / (time.perf_counter() - start), 1)
    print(json.dumps({"images_per_second": rates, "peak_rss_bytes": peak_rss_bytes()}))


def main() -> None:
    """Measures four processes, one after another, and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", nargs="*", help=argparse.SUPPRESS)
    if told := parser.parse_args().child:
        child(told[0] == "tuned", told[1])
        return
    rows = {}
    for precision in ("float32", "bfloat16"):
        for mode in ("plain", "tuned"):
            out = subprocess.run(
                [sys.executable, __file__, mode, precision], check=True, capture_output=True, text=True
            )
            rows[f"{precision} {mode}"] = json.loads(out.stdout)
            print(precision, mode, rows[f"{precision} {mode}"], flush=True)
    backbone = Backbone.load("efficientnet_lite0", device="cpu")
    report = {"command": "python -m benchmarks.allocator", "date": now(), "backbone": backbone.name, "rows": rows}
    report |= {"machine": machine(backbone), "versions": versions()}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
