"""What adapting to the first task gains by that task's size: APER with first tasks of few, half and all classes.

    python -m benchmarks.explain_first_session [--bases 10 51 101] [--variants adapter vpt_shallow]
    python -m benchmarks.explain_first_session --variants vpt_shallow --bases 10
        --set adapt.train.lr=1e-9 --name untrained
    python -m benchmarks.explain_first_session --data cifar10 --variants finetune_lite0 --bases 2 --order 1994
        --set adapt.train.lr=0.01 --name "lr 0.01"

Everything else is the recipe's (recipes/DATA/aper_VARIANT_default.yaml; aper_VARIANT.yaml for VARIANT_lite0). Per first
task: last accuracy with [frozen; adapted] features (the method), with the frozen half alone (SimpleCIL) and
with the adapted half alone; the mean cosine between an image's frozen and adapted feature, and the ratio of their
lengths; and how well the first task's own test images are told apart by each. Finished rows are kept, but for those
marked ``made_before`` a change of the code. Writes
benchmarks/results/explain_first_session.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from perdure import Backbone, FeatureStore, load_stream, methods, tune_allocator
from perdure.modules.heads import cosine_scores
from perdure.run.recipe import load_recipe
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "explain_first_session.json"
INCREMENT = {"caltech101": 10, "cifar10": 2}  # of the later tasks
CLASSES = {"caltech101": 101, "cifar10": 10}


def row(data: str, variant: str, base: int, order: int, overrides: list[str]) -> dict[str, float]:
    """One first task's figures."""
    set_, store = [f"method.{override}" for override in overrides], FeatureStore()
    name = variant.removesuffix("_lite0") if variant.endswith("_lite0") else f"{variant}_default"
    recipe = load_recipe(Path(f"recipes/{data}/aper_{name}.yaml"), set_)
    cut = {"base": base, "increment": INCREMENT[data]} if base < CLASSES[data] else {"tasks": 1}
    stream = load_stream(recipe.stream.data, order_seed=order, **cut)
    method = methods.get("aper")(Backbone.load(recipe.backbone.name), recipe.method, store=store)
    for task in stream:
        method.fit_task(task)
    tests = [stream.test(i) for i in range(len(stream))]
    labels = torch.cat([method.columns(test.labels) for test in tests])
    f = {
        "frozen": torch.cat([store.features(method.backbone, test)[:] for test in tests]),
        "adapted": torch.cat([store.features(method.first.backbone, test)[:] for test in tests]),
    }
    d, p, own = method.backbone.dim, method.prototypes, labels < base
    means = {"frozen": p[:, :d], "adapted": p[:, d:]}
    scores = {half: cosine_scores(f[half], means[half]) for half in f}
    scores["both"] = cosine_scores(torch.cat([f["frozen"], f["adapted"]], 1), p)
    told: dict[str, float] = {}
    for half, s in scores.items():
        told[half] = float((s.argmax(1) == labels).double().mean())
        told[f"{half}, first task alone"] = float((s[own, :base].argmax(1) == labels[own]).double().mean())
    told["cosine"] = float(F.cosine_similarity(f["frozen"], f["adapted"]).mean())
    told["length"] = float((f["adapted"].norm(dim=1) / f["frozen"].norm(dim=1)).mean())
    return {name: round(value, 4) for name, value in told.items()}


def main() -> None:
    """Fills the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="caltech101", choices=list(CLASSES))
    parser.add_argument("--bases", nargs="+", type=int, default=[10, 51, 101])
    parser.add_argument("--variants", nargs="+", default=["adapter", "vpt_shallow"])
    parser.add_argument("--order", type=int, default=1993, help="class order seed")
    parser.add_argument("--set", nargs="+", default=[], help="other settings than the recipe's")
    parser.add_argument("--name", default="", help="of those settings")
    args = parser.parse_args()
    tune_allocator()
    report: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {"rows": {}}
    report |= {"command": "python -m benchmarks.explain_first_session", "date": now(), "versions": versions()}
    report["machine"] = machine(Backbone.load("default"))
    for variant in args.variants:
        about = "" if args.data == "caltech101" else f"{args.data}, order {args.order}:"
        rows = report["rows"].setdefault(" ".join(filter(None, [about, variant, args.name])), {})
        for base in [b for b in args.bases if "made_before" in rows.get(str(b), {"made_before": ""})]:
            rows[str(base)] = row(args.data, variant, base, args.order, args.set)
            print(variant, args.name, base, rows[str(base)], flush=True)
            RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
