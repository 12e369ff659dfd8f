"""Finds learning rate and epochs of the prompt methods on `default`, without any test image.

    python -m benchmarks.search_prompts [--data ../shared/data/cifar10] [--tasks 5 --first 3] [--methods l2p dap ...]

Everything but the two settings is the method's default, without augmentation, 16 images per step. The result file is
benchmarks/results/search_prompts.json; see search.py.
"""

from __future__ import annotations

from typing import Any

from benchmarks.search import Grid, Search, product

EPOCHS = [5, 10]
RATES: dict[str, list[float]] = {
    "vpt": [1e-3, 5e-3],
    "l2p": [0.03, 0.1],  # times batch_size / 256
    "dualprompt": [0.03, 0.1],  # times batch_size / 256
    "coda_prompt": [1e-3, 5e-3],
    "dap": [1e-3, 1e-2],
}
COMMON: dict[str, Any] = {"train": {"batch_size": 16, "augment": {"min_scale": 1.0, "flip": False}}}
PLACES = {"lr": "train.lr", "epochs": "train.epochs"}
SEARCH = Search(
    "search_prompts",
    {name: Grid(name, product(epochs=EPOCHS, lr=rates), COMMON, PLACES) for name, rates in RATES.items()},
    data="../shared/data/cifar10",
    tasks=5,
    first=3,
    place=("data", "{data}", "{name}"),
    about=("tasks", "first", "per_class", "orders"),
)

if __name__ == "__main__":
    SEARCH.main(__doc__)
