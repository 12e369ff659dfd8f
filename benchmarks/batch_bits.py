"""Whether an image's features depend on how many images pass with it, to the last bit, on one and on two threads.

    python -m benchmarks.batch_bits

Each thread count has a process of its own. Backbones: the two built-in ones, and a ViT-B/16 of random weights. Sizes
are those of one bare forward pass (``Backbone.embed``), below and above the eight images that ``Backbone.features``
takes at a time on a CPU. The reference is batches of 8 on as many threads; these are compared with one thread's too.
Writes benchmarks/results/batch_bits.json.
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

import torch

from perdure import Backbone
from perdure.run.summary import machine, now, versions

SIZES = (1, 2, 4, 7, 8, 15, 16, 24, 32, 64)
IMAGES = {"default": 64, "efficientnet_lite0": 64, "vit_base_patch16_224": 32}
OUT = Path(__file__).with_name("results") / "batch_bits.json"


def measure(name: str, threads: int, reference: Path) -> list[dict]:
    """One row per batch size; the call with one thread writes its own batches of 8 to ``reference``."""
    torch.set_num_threads(threads)
    backbone = Backbone.load(name, pretrained=name in ("default", "efficientnet_lite0"), device="cpu")
    side, n, rows = backbone.preprocess.image_size, IMAGES[name], []
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 3, side, side), generator=rng, dtype=torch.uint8)

    def passed(size: int) -> torch.Tensor:
        with torch.no_grad():
            return torch.cat([backbone.embed(part) for part in images.split(size)])

    wanted = passed(8)
    if threads == 1:
        torch.save(wanted, reference)
    from_one_thread = float((wanted - torch.load(reference)).abs().max())
    for size in (s for s in SIZES if s <= n):
        start = time.perf_counter()
        apart = (passed(size) - wanted).abs().amax(1)
        seconds = time.perf_counter() - start
        rows.append(
            {
                "backbone": name,
                "threads": threads,
                "batch": size,
                "images": n,
                "images_that_differ": int((apart > 0).sum()),
                "largest_difference": float(apart.max()),
                "from_one_thread": from_one_thread,
                "ms_per_image": round(1000 * seconds / n, 1),
            }
        )
    return rows


def main() -> None:
    """Measures everything, a process for each backbone and thread count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("child", nargs="*", help=argparse.SUPPRESS)
    if told := parser.parse_args().child:
        name, threads, reference = told
        print(json.dumps(measure(name, int(threads), Path(reference))))
        return
    rows: list[dict] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in IMAGES:
            for threads in ("1", "2"):
                command = [sys.executable, __file__, name, threads, f"{folder}/{name}.pt"]
                done = subprocess.run(
                    command, env={**os.environ, "OMP_NUM_THREADS": threads}, check=True, capture_output=True, text=True
                )
                found = json.loads(done.stdout)
                print(*found, sep="\n", flush=True)
                rows += found
    report = {"command": "python -m benchmarks.batch_bits", "date": now(), "rows": rows}
    report |= {"machine": machine(Backbone.load("default", device="cpu")), "versions": versions()}
    OUT.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
