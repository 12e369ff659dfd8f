"""What happens to an image's prediction when test images choose their prompts together: the published protocols.

    OMP_NUM_THREADS=1 python -m benchmarks.batch_effect [--data cifar10 caltech101] [--methods l2p dualprompt dap]

Trains recipes/DATA/METHOD_default.yaml under a preset in which a test batch votes on its prompts (`mammoth`; for DAP
`official`, but with the key's own loss as a mean, as in the honest run), and tests the one learned model on all test
images of the stream, in batches of 1, 16 and 128, three ways: `class_sorted` (all classes, one after another),
`by_task` (each task's images tested alone, shuffled) and `shuffled` (all images shuffled). `honest` is the run without
the preset, from benchmarks/results/prompt_methods.json: its predictions do not depend on the batch, so it has one
figure. `dap+mask_by_task` is DAP's model tested as its `official_inr` protocol has it: the vote also hides all classes
outside the task it finds.
Finished rows stay in benchmarks/results/batch_effect.json; a call adds what is missing.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from perdure import tune_allocator
from perdure.data import LabelledImages
from perdure.methods.base import PromptMethod
from perdure.run import Runner, load, load_recipe
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "batch_effect.json"
RUNS = Path("runs/batch_effect")
HONEST = Path(__file__).parent / "results" / "prompt_methods.json"
DATA = ("cifar10", "caltech101")
METHODS = ("l2p", "dualprompt", "dap", "dap+mask_by_task")
MAMMOTH = ("method.preset=mammoth",)
VOTING = {"l2p": MAMMOTH, "dualprompt": MAMMOTH, "dap": ("method.preset=official", "method.keys.pull_over=mean")}
BATCHES = (1, 16, 128)
SEED = 1993


def trained(data: str, name: str) -> tuple[PromptMethod[Any], list[LabelledImages]]:
    """The method after the last task, and every task's test images."""
    overrides = [f"stream.order_seed={SEED}", *VOTING[name]]
    recipe, out = load_recipe(Path(f"recipes/{data}/{name}_default.yaml"), overrides), RUNS / f"{data}-{name}"
    Runner(recipe, out).run()
    stream, method = recipe.load_stream(), load(out)
    assert isinstance(method, PromptMethod)
    return method, [stream.test(i) for i in range(len(stream))]


def accuracy(method: PromptMethod[Any], tests: list[LabelledImages], **settings: object) -> float:
    """Over all images of ``tests``, each tested on its own, with other settings for the test."""
    other = type(method)(method.backbone, method.config.but(**settings), seed=method.seed, store=method.store)
    other.load_state_dict(method.state_dict())
    correct = np.concatenate([(other.predict(test).numpy() == test.labels) for test in tests])
    return round(float(correct.mean()), 4)


def row(data: str, label: str) -> dict[str, Any]:
    """One method's figures."""
    name, _, option = label.partition("+")
    extra = {option: True} if option else {}
    honest = json.loads(HONEST.read_text(encoding="utf-8"))["runs"][data][f"{name}_default"][str(SEED)]["last_accuracy"]
    recipe = load_recipe(Path(f"recipes/{data}/{name}_default.yaml"), [f"stream.order_seed={SEED}", "stream.tasks=1"])
    whole = recipe.load_stream().test(0)
    found: dict[str, Any] = {"honest": round(honest, 4)}
    voting, tests = trained(data, name)
    for order, batch in itertools.product(("class_sorted", "by_task", "shuffled"), BATCHES):
        parts, how = (tests, "shuffled") if order == "by_task" else ([whole], order)
        found.setdefault(order, {})[str(batch)] = accuracy(
            voting, parts, vote={"batch_size": batch, "order": how}, **extra
        )
        print(data, label, order, batch, found[order][str(batch)], flush=True)
    return {**found, "images": len(whole), "method": voting.config.model_dump(mode="json")} | {
        "machine": machine(voting.backbone),
        "versions": versions(),
        "date": now(),
    }


def main() -> None:
    """Adds what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = parser.parse_args()
    tune_allocator()
    for data, name in itertools.product(args.data, args.methods):
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
        if name in rows.get(data, {}):
            continue
        found = row(data, name)
        rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"] if RESULTS.exists() else {}
        rows.setdefault(data, {})[name] = found
        about = {"command": "python -m benchmarks.batch_effect", "settings": VOTING, "order_seed": SEED}
        RESULTS.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
