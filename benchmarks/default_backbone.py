"""The built-in backbone beside its teacher: accuracy on three data sets, and images per second, whole and in parts.

    python -m benchmarks.default_backbone [--data ../shared/data] [--part all|speed|accuracy]

Fashion-MNIST comes from ``sh scripts/get_fashion_mnist.sh .data`` and ``PERDURE_DATA=.data/usr/share/datasets``; the
others are folders under ``--data``. Writes benchmarks/results/default_backbone.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from perdure import Backbone, load_stream, methods, tune_allocator
from perdure.backbone.default import WEIGHTS, hybrid_vit, lite0_stem, read_weights
from perdure.backbone.lite0 import PREPROCESS, load_lite0
from perdure.backbone.vit import Prompt, check_vit, embed_patches, walk
from perdure.eval import evaluate
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "default_backbone.json"
STREAMS: dict[str, dict] = {
    "caltech101": {"tasks": 10},
    "cifar10": {"tasks": 5},
    "fashion-mnist": {"tasks": 5, "train_per_class": 100, "test_per_class": 100},
}
METHODS: dict[str, dict] = {"simplecil": {}, "ranpac": {"projection_dim": 5000}}
BATCH, PROMPTS = 16, 10


def random_top() -> Backbone:
    """The same model before distillation."""
    torch.manual_seed(0)
    return Backbone(hybrid_vit(lite0_stem(load_lite0()[0])), name="default_random_top", preprocess=PREPROCESS)


def accuracies(backbone: Backbone, data: Path) -> dict[str, dict[str, float]]:
    """Last accuracy over all test images, by data set and method."""
    found: dict[str, dict[str, float]] = {}
    for name, settings in STREAMS.items():
        folder = data / name
        stream = load_stream(str(folder) if folder.is_dir() else name, order_seed=1993, **settings)
        for method_name, options in METHODS.items():
            kind = methods.get(method_name)
            method = kind(backbone, kind.Config(**options), seed=0)
            for task in stream:
                method.fit_task(task)
            right = evaluate(method, stream, upto=len(stream) - 1).correct
            found.setdefault(name, {})[method_name] = round(float(right.mean()), 4)
        print(backbone.name, name, found[name], flush=True)
    return found


def rate(step: Callable[[], object], seconds: float = 5.0) -> float:
    """Images per second of a step over one batch."""
    step()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        step()
        done += BATCH
    return round(done / (time.perf_counter() - start), 1)


def rates(precision: str) -> dict[str, float]:
    """Images per second, frozen forward passes and prompt training steps (forward and backward)."""
    found = {}
    images = torch.randint(0, 256, (BATCH, 3, 224, 224), dtype=torch.uint8)
    for name in ("default", "efficientnet_lite0", "vit_tiny_patch16_224.augreg_in21k"):
        built_in = "." not in name
        backbone = Backbone.load(name, pretrained=built_in, device="cpu", precision=precision)
        found[name] = rate(lambda backbone=backbone: backbone.features(images))
    backbone = Backbone.load("default", device="cpu", precision=precision)
    vit = check_vit(backbone.model, backbone.name)
    pixels = backbone.preprocess.normalise(images).contiguous(memory_format=torch.channels_last)
    prompt = torch.zeros(1, PROMPTS, backbone.dim, requires_grad=True)
    with backbone.autocast(), torch.no_grad():
        embedded = embed_patches(vit, pixels)

    def stem() -> Tensor:
        with torch.inference_mode(), backbone.autocast():
            return embed_patches(vit, pixels)

    def top() -> Tensor:
        with torch.inference_mode(), backbone.autocast():
            return walk(vit, embedded).all

    def learn(images: Tensor | None) -> None:
        with backbone.autocast():
            x = embedded if images is None else embed_patches(vit, images)
            walk(vit, x, {0: Prompt(prompt, stays=True)}).cls.float().sum().backward()

    found |= {"default: stem alone": rate(stem), "default: top alone": rate(top)}
    found["default: prompt step"] = rate(lambda: learn(pixels))
    found["default: prompt step, stem cached"] = rate(lambda: learn(None))
    return found


def main() -> None:
    """Measures what was asked for; the other part of the result file stays."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--part", choices=["all", "speed", "accuracy"], default="all")
    args = parser.parse_args()
    tune_allocator()
    report = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.is_file() else {}
    report |= {"command": "python -m benchmarks.default_backbone", "date": now(), "versions": versions()}
    report |= {"machine": machine(Backbone.load("default")), "weights": read_weights(WEIGHTS)[1]}
    if args.part != "accuracy":
        report["images_per_second"] = {precision: rates(precision) for precision in ("float32", "bfloat16")}
        print(json.dumps(report["images_per_second"], indent=1), flush=True)
    if args.part != "speed":
        backbones = [Backbone.load("default"), Backbone.load("efficientnet_lite0"), random_top()]
        accuracy = {backbone.name: accuracies(backbone, args.data) for backbone in backbones}
        report |= {"methods": METHODS, "streams": STREAMS, "last_accuracy": accuracy}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
