"""PROOF's training settings and its two ways to score, without any test image.

    python -m benchmarks.proof_settings [--methods cosine] [--workers 2]
    python -m benchmarks.proof_settings --data ../shared/data/caltech101 --tasks 10 --first 4

The released settings are for 5 000 images a task, where five epochs are some 550 steps; a task here has 30 steps then.
The result file is benchmarks/results/proof_settings.json; see search.py.
"""

from __future__ import annotations

from benchmarks.search import Grid, Point, Search

PLACES = {"epochs": "train.epochs", "lr": "train.lr"}
FIGURES = ("accuracy", "last_accuracy")
POINTS: tuple[Point, ...] = ({"epochs": 5, "lr": 1e-3}, {"epochs": 10, "lr": 1e-2}, {"epochs": 30, "lr": 1e-2})
SEARCH = Search(
    "proof_settings",
    {
        mode: Grid("proof", POINTS, {"score_mode": mode}, PLACES, ("clip_default",), FIGURES, by="last_accuracy")
        for mode in ("cosine", "reference")
    },
    data="../shared/data/cifar10",
    tasks=5,
    first=5,
    place=("data", "{searched}", "{backbone}", "{name}"),
)

if __name__ == "__main__":
    SEARCH.main(__doc__)
