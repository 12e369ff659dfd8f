"""Finds settings of the mixture and replay methods for small image sets, without any test image.

    python -m benchmarks.search_mixture [--methods cofima lae ...] [--workers 2]
    python -m benchmarks.search_mixture --methods er agem gem --data ../shared/data/cifar10 --tasks 5 --first 5
        --orders 1993 1994 1995

The first form has the first three of ten tasks of Caltech-101, with twelve training images of each class at most
(``--per-class 12``); the second, on cached features, all of CIFAR-10. The result file is
benchmarks/results/search_mixture.json; see search.py.
"""

from __future__ import annotations

from benchmarks.search import Grid, Search, product

SHORT = {"train": {"epochs": 3, "batch_size": 16, "schedule": {"name": "milestone", "milestone": 2}}}
SLOW = product(slow=[0.001, 0.01, 0.1])
RATE = {"lr": "train.lr"}
# views that do not change: a stem's output is stored
STILL = {"batch_size": 16, "augment": {"min_scale": 1.0, "flip": False}}
ESN = {"length": 10, "train": {"epochs": 20, **STILL}}  # at lr 0.03 the loss diverges
ESN_POINTS, ESN_PLACES = product(lr=[0.01], epochs=[20, 60]), {"lr": "train.lr", "epochs": "train.epochs"}
HEAD = {"lr": "train.lr", "per_step": "memory.per_step"}

SEARCH = Search(
    "search_mixture",
    {
        "slca": Grid("slca", SLOW, SHORT),
        "coma": Grid("coma", SLOW, SHORT),
        "cofima": Grid("cofima", SLOW, SHORT),
        "lae": Grid("lae", product(lr=[0.03, 0.1], turnover=[0.4, 0.8]), {"train": STILL}, RATE),
        "esn": Grid("esn", ESN_POINTS, ESN, ESN_PLACES),
        "esn_softmax": Grid("esn", ESN_POINTS, {**ESN, "anchor": {"form": "softmax"}}, ESN_PLACES),
        "er": Grid("er", product(lr=[0.01, 0.03, 0.1], per_step=[16, 32, 64]), places=HEAD),
        "agem": Grid("agem", product(lr=[0.003, 0.01, 0.03, 0.1]), places=RATE),
        "joint_finetune": Grid("joint_finetune", product(lr=[0.003, 0.01, 0.03]), places=RATE),
        "gem": Grid("gem", product(lr=[0.003, 0.01, 0.03, 0.1]), places=RATE),
    },
    data="../shared/data/caltech101",
    tasks=10,
    first=3,
    place=("data", "{searched}", "{backbone}", "{name}"),
)

if __name__ == "__main__":
    SEARCH.main(__doc__)
