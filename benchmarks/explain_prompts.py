"""Why the prompt methods stay below `simplecil` on two-class tasks: their last accuracy taken apart.

    OMP_NUM_THREADS=1 python -m benchmarks.explain_prompts [--methods l2p ...] [--tasks 5 1]

CIFAR-10 with recipes/cifar10/METHOD_default.yaml, cut into five tasks and into one; class order 1993. Of each finished
model, on all test images:

* `own_head`: its accuracy, as everywhere;
* `task_told`: with scores of the image's own task alone, that is, if tasks were never confused;
* `task_found`: share of images given to a class of the right task;
* `class_means`: the nearest class mean, by cosine, of its prompted features, in place of its head; the means are of all
  training images, which no method may keep, so this shows what the features are worth and is no method.

Finished rows stay in benchmarks/results/explain_prompts.json; a call adds what is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure import tune_allocator
from perdure.data import LabelledImages
from perdure.methods.base import PromptMethod
from perdure.modules.gaussians import add_class_counts, add_class_sums
from perdure.modules.heads import GrowingLinear, cosine_scores
from perdure.run import Runner, load, load_recipe
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "explain_prompts.json"
RUNS = Path("runs/explain_prompts")
FIVE = Path("runs/prompt_methods/cifar10")  # where benchmarks/prompt_methods.py leaves the runs of five tasks
METHODS = ("vpt", "l2p", "dualprompt", "coda_prompt", "dap")
TASKS = (5, 1)


def features(method: PromptMethod[Any], data: LabelledImages) -> Tensor:
    """(n, d) what the head reads of test images: the scores of a head that is the identity."""
    head, plain = method.head_, GrowingLinear(method.backbone.dim).to(method.backbone.device)
    plain.load_state_dict({"weight": torch.eye(method.backbone.dim), "bias": torch.zeros(method.backbone.dim)})
    method.head_ = plain
    try:
        return torch.cat(list(method.scores_of(data)))
    finally:
        method.head_ = head


def shares(method: PromptMethod[Any], tests: list[LabelledImages], trains: list[LabelledImages]) -> dict[str, float]:
    """The four figures."""
    labels = np.concatenate([t.labels for t in tests])
    columns = method.columns(labels)
    task_of_column = torch.zeros(len(method.classes_), dtype=torch.long)
    for index, test in enumerate(tests):
        task_of_column[method.columns(test.classes)] = index
    scores = torch.cat([s for test in tests for s in method.scores_of(test)])
    own = task_of_column[columns][:, None] == task_of_column[None]  # (n, classes)
    means = torch.zeros(0, method.backbone.dim, dtype=torch.float64)
    counts = torch.zeros(0, dtype=torch.long)
    for train in trains:
        mine = method.columns(train.labels)
        means = add_class_sums(means, mine, features(method, train), len(method.classes_))
        counts = add_class_counts(counts, mine, len(method.classes_))
    near = torch.cat([cosine_scores(features(method, test), means / counts[:, None]) for test in tests])
    found = {
        "own_head": scores.argmax(1) == columns,
        "task_told": scores.masked_fill(~own, -torch.inf).argmax(1) == columns,
        "task_found": task_of_column[scores.argmax(1)] == task_of_column[columns],
        "class_means": near.argmax(1) == columns,
    }
    return {name: round(float(right.double().mean()), 4) for name, right in found.items()}


def row(name: str, n_tasks: int) -> dict[str, Any]:
    """One trained model's figures."""
    recipe = load_recipe(Path(f"recipes/cifar10/{name}_default.yaml"), [f"stream.tasks={n_tasks}"])
    out = FIVE / f"{name}_default-1993" if n_tasks == 5 else RUNS / f"{name}-{n_tasks}"
    Runner(recipe, out).run()
    stream, method = recipe.load_stream(), load(out)
    assert isinstance(method, PromptMethod)
    found = shares(method, [stream.test(i) for i in range(n_tasks)], [task.train for task in stream])
    return {**found, "machine": machine(method.backbone), "versions": versions(), "date": now()}


def main() -> None:
    """Adds what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--tasks", nargs="+", type=int, default=TASKS, choices=TASKS)
    args = parser.parse_args()
    tune_allocator()
    for n_tasks, name in itertools.product(args.tasks, args.methods):
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
        if str(n_tasks) in rows.get(name, {}):
            continue
        found = row(name, n_tasks)
        print(name, n_tasks, found, flush=True)
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
        rows.setdefault(name, {})[str(n_tasks)] = found
        RESULTS.write_text(
            json.dumps({"command": "python -m benchmarks.explain_prompts", "rows": rows}, indent=1) + "\n",
            encoding="utf-8",
        )


if __name__ == "__main__":
    main()
