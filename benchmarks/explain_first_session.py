"""Why adapting to the first task gains so little here: APER on Caltech-101 with first tasks of 10, 51 and all classes.

    python benchmarks/explain_first_session.py [--bases 10 51 101] [--variants adapter vpt_shallow]
    python benchmarks/explain_first_session.py --variants vpt_shallow --bases 10 --set lr=1e-9 --name untrained

Everything else is the recipe's (recipes/caltech101/aper_VARIANT_default.yaml, order 1993). Per first task: last
accuracy with [frozen; adapted] features (the method), with the frozen half alone (SimpleCIL) and with the adapted
half alone; the mean cosine between an image's frozen and adapted feature; and how well the first task's own test
images are told apart by each. Finished rows are kept. Writes benchmarks/results/explain_first_session.json.
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
CLASSES = 101


def row(variant: str, base: int, overrides: list[str]) -> dict[str, float]:
    """One first task's figures."""
    set_, store = [f"method.{override}" for override in overrides], FeatureStore()
    recipe = load_recipe(Path(f"recipes/caltech101/aper_{variant}_default.yaml"), set_)
    cut = {"base": base, "increment": 10} if base < CLASSES else {"tasks": 1}
    stream = load_stream(recipe.stream.data, order_seed=1993, **cut)
    method = methods.get("aper")(Backbone.load("default"), recipe.method, store=store)
    for task in stream:
        method.fit_task(task)
    tests = [stream.test(i) for i in range(len(stream))]
    labels = torch.cat([method.columns(test.labels) for test in tests])
    f = {
        "frozen": torch.cat([store.features(method.backbone, test)[:] for test in tests]),
        "adapted": torch.cat([store.features(method.adapted, test)[:] for test in tests]),
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
    return {name: round(value, 4) for name, value in told.items()}


def main() -> None:
    """Fills the rows that are missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", type=int, default=[10, 51, CLASSES])
    parser.add_argument("--variants", nargs="+", default=["adapter", "vpt_shallow"])
    parser.add_argument("--set", nargs="+", default=[], help="other settings than the recipe's")
    parser.add_argument("--name", default="", help="of those settings")
    args = parser.parse_args()
    tune_allocator()
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"rows": {}}
    report |= {"command": "python benchmarks/explain_first_session.py", "date": now(), "versions": versions()}
    report["machine"] = machine(Backbone.load("default"))
    for variant in args.variants:
        rows = report["rows"].setdefault(" ".join(filter(None, [variant, args.name])), {})
        for base in [b for b in args.bases if str(b) not in rows]:
            rows[str(base)] = row(variant, base, args.set)
            print(variant, args.name, base, rows[str(base)], flush=True)
            RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
