"""What prompt methods cost per image, in units of one frozen forward pass F of the same backbone on the same images.

    python -m benchmarks.prompt_costs [--backbones default vit_tiny_patch16_224] [--methods l2p vpt ...]

Decoding is left out: pixels are in memory, and the test measures the work of one batch. Training steps are
measured with queries from the store (deterministic view) and with a query pass per step (augmented view); on a
backbone with a stem, also with the stem's output from the store. Every figure is the median over rounds in which F and
the step take turns, so that a busy machine hurts both alike. Each row replaces its earlier one in
benchmarks/results/prompt_costs.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from perdure import Backbone, FeatureStore, methods, tune_allocator
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods.base import PromptMethod
from perdure.run.summary import machine, now, versions
from perdure.train.batches import Batch
from perdure.train.session import parameters_of

RESULTS = Path(__file__).parent / "results" / "prompt_costs.json"
BATCH, ROUNDS = 16, 15
MINIMUM = {"l2p": 2.3, "dualprompt": 2.1, "coda_prompt": 2.1, "dap": 2.2, "vpt": 2.2}
NAMES = list(MINIMUM)
BACKBONES = ["default", "vit_tiny_patch16_224"]  # the second with random weights: only its shape matters


Loss = Callable[[Batch], torch.Tensor]


def fitted(
    name: str, backbone: Backbone, folder: Path
) -> tuple[PromptMethod[Any], Loss, list[torch.nn.Parameter], bool]:
    """A method that has learned one small task; the loss it minimised, over what, and whether by queries."""
    kind, kept = methods.get(name), []
    stream = class_incremental(synthetic_dataset(range(10), train_per_class=2), [10], list(range(10)))
    config = kind.Config(train={"epochs": 1, "batch_size": BATCH})
    method: PromptMethod[Any] = kind(backbone, config, store=FeatureStore(folder))
    train = method._train

    def train_and_keep(*args: Any) -> None:
        kept.append((args[3], parameters_of(args[4]), len(args) > 5 and args[5] is not None))
        train(*args)

    method._train = train_and_keep  # type: ignore[method-assign]
    method.fit_task(stream[0])
    return method, *kept[0]


def seconds(step: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def ratios(steps: dict[str, Callable[[], object]], unit: Callable[[], object]) -> dict[str, float]:
    """Median of each step's time over the mean of the unit's before and after it."""
    for step in (unit, *steps.values()):
        step()
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(ROUNDS):
        for name, step in steps.items():
            before, took, after = seconds(unit), seconds(step), seconds(unit)
            found[name].append(2 * took / (before + after))
    return {name: round(statistics.median(values), 3) for name, values in found.items()}


def costs(name: str, backbone: Backbone, folder: Path) -> dict[str, float]:
    """F per training image and per test image, with what is fresh and what is stored told apart."""
    method, loss, learning, uses_queries = fitted(name, backbone, folder)
    images = torch.randint(0, 256, (BATCH, 3, *2 * [backbone.preprocess.image_size]), dtype=torch.uint8)
    queries = backbone.features(images)
    columns = torch.arange(BATCH) % 10
    for p in learning:
        p.requires_grad_(True)
    adam = torch.optim.Adam(learning, 1e-6)

    with torch.no_grad():
        patches = backbone.embed_tokens(images)

    def learn(fresh: bool = False, kept: bool = False) -> None:
        tokens, rows = patches if kept else None, None if fresh else queries
        value = loss(Batch(columns, columns, images, tokens, rows, BATCH))
        adam.zero_grad()
        value.backward()
        adam.step()

    def test(kept: bool = False) -> None:
        with torch.no_grad():
            method._test_logits(patches if kept else backbone.embed_tokens(images), queries)

    steps: dict[str, Callable[[], object]] = {"train, stored queries": learn, "test, stored queries": test}
    if uses_queries:
        steps["train, query pass"] = lambda: learn(fresh=True)
    if backbone.has_stem:
        steps["train, all stored"], steps["test, all stored"] = lambda: learn(kept=True), lambda: test(kept=True)
    return ratios(steps, lambda: backbone.features(images))


def main() -> None:
    """Measures every method and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--methods", nargs="+", default=NAMES)
    args = parser.parse_args()
    tune_allocator()
    for name in args.backbones:
        backbone = Backbone.load(name, pretrained=name == "default", device="cpu")
        for method in args.methods:
            with tempfile.TemporaryDirectory() as folder:
                row = {"specification's minimum": MINIMUM[method], **costs(method, backbone, Path(folder))}
            print(name, method, row, flush=True)
            report = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"backbones": {}}
            report |= {"command": "python -m benchmarks.prompt_costs", "batch": BATCH}
            about = report["backbones"].setdefault(name, {"full_name": backbone.name, "rows": {}})
            about["rows"][method] = row
            about |= {"date": now(), "machine": machine(backbone), "versions": versions()}
            RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
