"""Finds the learning rate and epochs of the two trained baselines, `finetune` and `joint`, without any test image.

    python -m benchmarks.search_baselines [--data ../shared/data/caltech101 --tasks 10] [--backbones default]

`finetune` is chosen by how well each task is known right after it was learned (mean of the accuracy matrix's diagonal),
since anything else would reward not learning; `joint` by its accuracy after the last task. Each data set and backbone
has a result file of its own: benchmarks/results/search_baselines.json, or --out. See search.py.
"""

from __future__ import annotations

from benchmarks.search import Grid, Search, product

BOTH = {
    "places": {"lr": "train.lr", "epochs": "train.epochs"},
    "backbones": ("efficientnet_lite0", "default"),
    "figures": ("learning_accuracy", "last_accuracy"),
}
SEARCH = Search(
    "search_baselines",
    {
        "joint": Grid("joint", product(lr=[3e-4, 1e-3, 3e-3], epochs=[5, 20, 50]), by="last_accuracy", **BOTH),
        "finetune": Grid(
            "finetune", product(lr=[0.01, 0.03, 0.1], epochs=[1, 3, 5]), by="learning_accuracy", first=3, **BOTH
        ),
    },
    data="../shared/data/caltech101",
    tasks=10,
    first=10,
    place=("{name}",),
    about=("data", "backbone", "tasks", "first", "per_class", "orders"),
)

if __name__ == "__main__":
    SEARCH.main(__doc__)
