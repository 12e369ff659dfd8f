"""What mixture and replay methods cost per image, in units of one frozen forward pass F, and how their states grow.

    python -m benchmarks.mixture_costs [--methods lae cofima ...]

On ViT-Ti/16 at 224 px with random weights (only its shape matters), one thread. A method learns tasks of ten classes;
the last of them is timed with few epochs and with more: the difference is the cost of an epoch, what is left over is
paid once per task. F is timed before and after. Tests are of images that no store knows. Each row replaces its earlier
one in benchmarks/results/mixture_costs.json.
"""

from __future__ import annotations

import argparse
import dataclasses as dc
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

from benchmarks.records import ResultFile
from perdure import Backbone, FeatureStore, Stream, methods, tune_allocator
from perdure.config import laid_over
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.learned import growth_formula, state_bytes
from perdure.methods import Method
from perdure.run.checkpoint import tensor_bytes
from perdure.run.summary import machine, now, versions

FILE = ResultFile(Path(__file__).parent / "results" / "mixture_costs.json", Path("runs/mixture_costs/.lock"))
BACKBONE, CLASSES, PER_CLASS, EPOCHS = "vit_tiny_patch16_224", 10, 4, (1, 3)


@dc.dataclass(frozen=True)
class Case:
    """What is measured of one row, beside the minimum of its specification, section 10.

    Args:
        method: its name.
        epoch: the specification's F per training image and epoch.
        once: and once per task.
        test: and per test image.
        settings: of the method.
    """

    method: str
    epoch: float
    once: float
    test: float
    settings: dict[str, Any] = dc.field(default_factory=dict)


STILL = {"train": {"augment": {"min_scale": 1.0, "flip": False}}}
STEP = {"memory": {"per_step": 16}}
CASES = {
    "slca": Case("slca", 3, 1, 1, {"train": {"schedule": "constant"}}),
    "coma": Case("coma", 3, 1, 1, {"train": {"schedule": "constant"}}),
    "cofima": Case("cofima", 3, 4, 1, {"train": {"schedule": "constant"}}),
    "lae": Case("lae", 2, 0, 2, {"held": 0.0}),
    "esn": Case("esn", 1.6, 1.54, 1.54),
    "esn, views stay": Case("esn", 0.06, 1.54, 1.54, STILL),
    "er": Case("er", 0, 1, 1, STEP),
    "agem": Case("agem", 0, 1, 1, STEP),
    "gem": Case("gem", 0, 1, 1, STEP),
    "er, adapter": Case("er", 4, 0, 1, {"part": "adapter", **STEP}),
    "agem, adapter": Case("agem", 4, 0, 1, {"part": "adapter", **STEP}),
    "gem, adapter": Case("gem", 4, 0, 1, {"part": "adapter", **STEP}),
    "joint_finetune": Case("joint_finetune", 6, 0, 1),
}


def stream(tasks: int) -> Stream:
    """Tasks of ten classes of made-up images at the backbone's size."""
    ids = list(range(tasks * CLASSES))
    dataset = synthetic_dataset(ids, train_per_class=PER_CLASS, test_per_class=2)
    return class_incremental(dataset, [CLASSES] * tasks, ids)


def seconds(step: Callable[[], object]) -> float:
    """Of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def taught(case: Case, backbone: Backbone, epochs: int, tasks: int, folder: str) -> Method[Any]:
    """A method that has learned all tasks but the last."""
    kind = methods.get(case.method)
    settings = laid_over({"train": {"epochs": epochs, "batch_size": 16}}, case.settings)
    method: Method[Any] = kind(backbone, settings, store=FeatureStore(folder))
    for task in stream(tasks)[: tasks - 1]:
        method.fit_task(task)
    return method


def costs(case: Case, backbone: Backbone) -> dict[str, float]:
    """F per training image and epoch, once per task, and per test image."""
    data = stream(2)
    images, tests = data[1].train, data.test(1)
    batch = next(iter(images.batches(backbone.preprocess, len(images))))[1]
    found: dict[str, list[float]] = {"epoch": [], "once": [], "test": []}
    for _ in range(3):
        at = {}
        for epochs in EPOCHS:
            with tempfile.TemporaryDirectory() as folder:
                method = taught(case, backbone, epochs, 2, folder)
                before = seconds(lambda: backbone.features(batch))
                took = seconds(lambda: method.fit_task(data[1]))  # noqa: B023
                unit = (before + seconds(lambda: backbone.features(batch))) / 2
                at[epochs] = took / unit
                test = seconds(lambda: list(method.scores_of(tests))) / unit * len(images) / len(tests)  # noqa: B023
        epoch = (at[EPOCHS[1]] - at[EPOCHS[0]]) / (EPOCHS[1] - EPOCHS[0])
        found["epoch"].append(epoch)
        found["once"].append(at[EPOCHS[0]] - EPOCHS[0] * epoch)
        found["test"].append(test)
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def growth(case: Case, backbone: Backbone, tasks: int = 3) -> dict[str, Any]:
    """Bytes of the state's tensors after each task, and what the formula says."""
    kind, sizes, by_formula = methods.get(case.method), [], []
    with tempfile.TemporaryDirectory() as folder:
        method = taught(case, backbone, 1, 1, folder)
        for task in stream(tasks):
            method.fit_task(task)
            state = method.state_dict()
            sizes.append(tensor_bytes(state))
            by_formula.append(state_bytes(kind, method.sizes_in(state)))
    return {"bytes": sizes, "formula_bytes": by_formula, "formula": growth_formula(kind)}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures every method and writes the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(CASES), choices=list(CASES))
    args = parser.parse_args(argv)
    tune_allocator()
    backbone = Backbone.load(BACKBONE, pretrained=False, device="cpu")
    for name in args.methods:
        case = CASES[name]
        minimum = {"epoch": case.epoch, "once": case.once, "test": case.test}
        row = {"minimum": minimum, "measured": costs(case, backbone), "settings": case.settings}
        row |= growth(case, backbone)
        print(name, row, flush=True)
        with FILE.changing() as held:
            held |= {"command": "python -m benchmarks.mixture_costs", "backbone": backbone.name, "date": now()}
            held |= {"machine": machine(backbone), "versions": versions()}
            held.setdefault("rows", {})[name] = row


if __name__ == "__main__":
    main()
