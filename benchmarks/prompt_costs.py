"""What prompt methods cost per image, in units of one frozen forward pass F of the same backbone on the same images.

    python benchmarks/prompt_costs.py [--backbone default] [--methods l2p vpt ...]

Decoding is left out: pixels are in memory, and the test measures the work of one batch. Training steps are
measured with queries from the store (deterministic view) and with a query pass per step (augmented view). Every figure
is the median over rounds in which F and the step take turns, so that a busy machine hurts both alike. Writes
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
import torch.nn.functional as F

from perdure import Backbone, FeatureStore, methods, tune_allocator
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.methods.base_prompt import PromptBatch, PromptMethod
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "prompt_costs.json"
BATCH, ROUNDS = 16, 15
MINIMUM = {"l2p": 2.3, "dualprompt": 2.1, "coda_prompt": 2.1, "dap": 2.2, "vpt": 2.2}
NAMES = list(MINIMUM)


def fitted(name: str, backbone: Backbone, folder: Path) -> PromptMethod[Any]:
    """A method that has learned one small task, so that prompts and head are there."""
    kind = methods.get(name)
    stream = class_incremental(synthetic_dataset(range(10), train_per_class=2), [10], list(range(10)))
    config = kind.Config(epochs=1, batch_size=BATCH)
    method: PromptMethod[Any] = kind(backbone, config, store=FeatureStore(folder))
    method.fit_task(stream[0])
    return method


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
    """F per training image, with stored and with fresh queries, and per test image, with stored queries."""
    method = fitted(name, backbone, folder)
    images = torch.randint(0, 256, (BATCH, 3, *2 * [backbone.preprocess.image_size]), dtype=torch.uint8)
    queries = backbone.features(images)
    columns = torch.arange(BATCH) % 10
    learning = list(dict.fromkeys([*method.learning(), *newest(method)]))
    for p in learning:
        p.requires_grad_(True)
    adam = torch.optim.Adam(learning, 1e-6)

    def learn(fresh: bool) -> None:
        with torch.no_grad():
            embedded = backbone.embed_tokens(images)
            found = method._queries(embedded) if fresh else queries
        features, term = method._train_features(PromptBatch(embedded, found, columns))
        loss = F.cross_entropy(method.head_(features.float()), columns) + term
        adam.zero_grad()
        loss.backward()
        adam.step()

    def test() -> None:
        with torch.no_grad():
            method._test_logits(backbone.embed_tokens(images), queries)

    steps = {"train, stored queries": lambda: learn(False), "test, stored queries": test}
    if method.uses_queries:
        steps["train, query pass"] = lambda: learn(True)
    return ratios(steps, lambda: backbone.features(images))


def newest(method: PromptMethod[Any]) -> list[torch.nn.Parameter]:
    """What learned in the last task and may be frozen since."""
    modules = [m for v in vars(method).values() if isinstance(v, torch.nn.Module) for m in v.modules()]
    return [m.newest for m in modules if hasattr(m, "newest")]


def main() -> None:
    """Measures every method and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="default")
    parser.add_argument("--methods", nargs="+", default=NAMES)
    args = parser.parse_args()
    tune_allocator()
    backbone = Backbone.load(args.backbone, pretrained=args.backbone == "default", device="cpu")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.methods:
            rows[name] = {"specification's minimum": MINIMUM[name], **costs(name, backbone, Path(folder))}
            print(name, rows[name], flush=True)
    report = {"command": f"python benchmarks/prompt_costs.py --backbone {args.backbone}", "date": now(), "rows": rows}
    report |= {"backbone": backbone.name, "batch": BATCH, "machine": machine(backbone), "versions": versions()}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
