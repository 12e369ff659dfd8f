"""What a run costs above a bare forward loop, and whether its memory grows with the number of images.

    python -m benchmarks.overhead [--data ../shared/data/caltech101]

Time: a cold, complete SimpleCIL run (checking every file, decoding, features, means, testing, states, results) beside
two bare loops over the same images at the same batch size and precision, in one process, taking turns: one that
decodes in threads as perdure does, one that decodes and computes in turn, as a plain script would.
Memory: peak resident bytes of a SimpleCIL run over 2 000, 8 000 and 32 000 images on disk, each in its own process.
Writes benchmarks/results/overhead.json.
"""

from __future__ import annotations

import argparse
import dataclasses as dc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from perdure import Backbone, FeatureStore, load_stream, tune_allocator
from perdure.data import LabelledImages
from perdure.methods import methods
from perdure.run import Runner, load_recipe
from perdure.run.summary import machine, now, versions
from perdure.train.runtime import peak_rss_bytes

RESULTS = Path(__file__).parent / "results" / "overhead.json"
ROUNDS = 3
SIZES = (2_000, 8_000, 32_000)


def complete_run(data: str) -> float:
    """Seconds of a cold SimpleCIL run, from the recipe to results.json."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["PERDURE_CACHE"] = name  # nothing known: neither features nor which files decode
        start = time.perf_counter()
        recipe = load_recipe(Path("recipes/caltech101/simplecil.yaml"), [f"stream.data={data}"])
        Runner(recipe, Path(name) / "run", store=FeatureStore(Path(name) / "features")).run()
        return time.perf_counter() - start


def bare_threaded(parts: list[LabelledImages], backbone: Backbone) -> float:
    """Seconds of decoding in threads and forward passes, nothing else."""
    start = time.perf_counter()
    with torch.inference_mode():
        for part in parts:
            for _, images in part.batches(backbone.preprocess, backbone.batch_size):
                backbone.embed(images)
    return time.perf_counter() - start


def bare_in_turn(parts: list[LabelledImages], backbone: Backbone) -> float:
    """Seconds of decoding a batch, then its forward pass, and so on."""
    start, size = time.perf_counter(), backbone.batch_size
    with torch.inference_mode():
        for part in parts:
            for i in range(0, len(part), size):
                rows = part.rows[i : i + size]
                pixels = [backbone.preprocess.pixels(part.source.read(int(r))) for r in rows]
                backbone.embed(torch.from_numpy(np.stack(pixels)))
    return time.perf_counter() - start


def timing(data: str) -> dict:
    """Median seconds of each, and ratios."""
    stream, backbone = load_stream(data, tasks=10), Backbone.load("efficientnet_lite0")
    parts = [task.train for task in stream] + [stream.test(i) for i in range(len(stream))]
    bare_threaded(parts[:1], backbone)  # warm up kernels and the page cache
    seconds: dict[str, list[float]] = {"bare_threaded": [], "complete_run": [], "bare_in_turn": []}
    for _ in range(ROUNDS):
        seconds["bare_threaded"].append(bare_threaded(parts, backbone))
        seconds["complete_run"].append(complete_run(data))
        seconds["bare_in_turn"].append(bare_in_turn(parts, backbone))
        print({k: round(v[-1], 2) for k, v in seconds.items()}, flush=True)
    median = {k: statistics.median(v) for k, v in seconds.items()}
    return {
        "images": sum(map(len, parts)),
        "batch_size": backbone.batch_size,
        "seconds": {k: [round(s, 2) for s in v] for k, v in seconds.items()},
        "complete_run_over_bare_threaded": round(median["complete_run"] / median["bare_threaded"], 3),
        "complete_run_over_bare_in_turn": round(median["complete_run"] / median["bare_in_turn"], 3),
    }


def make_images(folder: Path, n: int) -> None:
    """Writes ``n`` different 64-pixel images in ten classes."""
    rng = np.random.default_rng(0)
    for i in range(n):
        part, c = ("test" if i % 4 == 0 else "train"), i // 4 % 10
        (folder / part / f"class_{c}").mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels).save(folder / part / f"class_{c}" / f"{i}.png", compress_level=1)


def memory_child(folder: Path) -> None:
    """Learns and tests everything in ``folder`` and prints the peak resident bytes; run in a process of its own."""
    tune_allocator()  # as `perdure run` does
    loaded = Backbone.load("efficientnet_lite0")  # 1280 features, at 64 pixels to save time
    backbone = Backbone(loaded.model, name="lite0-64px", preprocess=dc.replace(loaded.preprocess, image_size=64))
    stream = load_stream(folder, tasks=2)
    method = methods.get("simplecil")(backbone, store=FeatureStore(folder.with_name("store")))
    for task in stream:
        method.fit_task(task)
        method.predict(stream.test(task.index))
    print(peak_rss_bytes())


def memory() -> dict:
    """Peak resident bytes by number of images."""
    peaks = {}
    for n in SIZES:
        with tempfile.TemporaryDirectory() as name:
            make_images(Path(name) / "images", n)
            command = [sys.executable, __file__, "--memory-child", str(Path(name) / "images")]
            environment = {**os.environ, "PERDURE_CACHE": name}
            out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
            peaks[n] = int(out.split()[-1])
            print(n, "images:", peaks[n] / 1e6, "MB", flush=True)
    growth = (peaks[SIZES[-1]] - peaks[SIZES[0]]) / (SIZES[-1] - SIZES[0])
    return {"peak_rss_bytes": peaks, "growth_bytes_per_image": round(growth), "feature_bytes_per_image": 1280 * 4}


def main() -> None:
    """Measures both and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="../shared/data/caltech101")
    parser.add_argument("--part", choices=["time", "memory", "both"], default="both", help="the other part is kept")
    parser.add_argument("--memory-child", type=Path)
    arguments = parser.parse_args()
    if arguments.memory_child:
        memory_child(arguments.memory_child)
        return
    tune_allocator()
    report = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    about = {"date": now(), "machine": machine(Backbone.load("efficientnet_lite0")), "versions": versions()}
    if arguments.part != "memory":
        report["time"] = {**timing(arguments.data), **about}
    if arguments.part != "time":
        report["memory"] = {**memory(), **about}
    report = {"command": "python -m benchmarks.overhead", "time": report["time"], "memory": report["memory"]}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
