"""What RAPF's settings do on cached features, and which are best, without any test image.

    python -m benchmarks.rapf_settings [--methods identity random] [--backbones clip_lite0 clip_default] [--workers 2]
    python -m benchmarks.rapf_settings --data ../shared/data/cifar10 --tasks 5 --first 5

The first form has all ten tasks of Caltech-101. One setting at a time is changed from a middle point; ``identity`` and
``random`` are what the map starts from. The result file is benchmarks/results/rapf_settings.json; see search.py.
"""

from __future__ import annotations

from typing import Any

from benchmarks.search import Grid, Point, Search

MIDDLE: Point = {
    "theta": 0.9, "fusion": 0.6, "beta": 1.0, "old_samples": 2000, "shrink": False, "batch_size": 64,
}  # fmt: skip
PLACES = {"batch_size": "train.batch_size"}
FIGURES = ("accuracy", "last_accuracy")


def around(**values: list[Any]) -> tuple[Point, ...]:
    """The middle point, and points that differ from it in one setting."""
    return (MIDDLE, *({**MIDDLE, key: value} for key, several in values.items() for value in several))


def grid(init: str, points: tuple[Point, ...]) -> Grid:
    """Points for a map that starts so."""
    backbones = ("clip_lite0", "clip_default")
    return Grid("rapf", points, {"init": init}, PLACES, backbones, FIGURES, by="last_accuracy")


SEARCH = Search(
    "rapf_settings",
    {
        "identity": grid(
            "identity",
            around(
                theta=[0.0, 0.65, 0.8, 1.0], fusion=[0.0, 0.3, 0.8, 1.0], beta=[0.5, 2.0], old_samples=[200, 500, 8000],
                shrink=[True], batch_size=[16],
            ),
        ),
        "random": grid("random", around(theta=[0.65], fusion=[1.0])),
    },
    data="../shared/data/caltech101",
    tasks=10,
    first=10,
    place=("data", "{searched}", "{backbone}", "{name}"),
)  # fmt: skip

if __name__ == "__main__":
    SEARCH.main(__doc__)
