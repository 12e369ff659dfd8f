"""PROOF's training settings and its two ways to score, without any test image.

    python -m benchmarks.proof_settings [--workers 2]
    python -m benchmarks.proof_settings --data ../shared/data/caltech101 --tasks 10 --first 4

The released settings are for 5 000 images a task, where five epochs are some 550 steps; a task here has 30 steps then.
The result file is benchmarks/results/proof_settings.json; see search.py.
"""

from __future__ import annotations

from benchmarks.search import Grid, Search

PLACES = {"epochs": "train.epochs", "lr": "train.lr"}
FIGURES = ("accuracy", "last_accuracy")
SEARCH = Search(
    "proof_settings",
    {
        "proof": Grid(
            "proof",
            (
                {"epochs": 5, "lr": 1e-3, "score_mode": "cosine"},
                {"epochs": 10, "lr": 1e-2, "score_mode": "cosine"},
                {"epochs": 10, "lr": 1e-2, "score_mode": "reference"},
                {"epochs": 30, "lr": 1e-2, "score_mode": "cosine"},
                {"epochs": 30, "lr": 1e-2, "score_mode": "reference"},
            ),
            {}, PLACES, ("clip_default",), FIGURES, by="last_accuracy",
        ),
    },
    data="../shared/data/cifar10",
    tasks=5,
    first=5,
    place=("data", "{searched}", "{backbone}", "{name}"),
)  # fmt: skip

if __name__ == "__main__":
    SEARCH.main(__doc__)
