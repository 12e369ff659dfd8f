"""Finds settings of the representation methods for small image sets, without any test image.

    python -m benchmarks.search_representation [--data ../shared/data/caltech101 --tasks 10] [--first 3]
        [--backbones default efficientnet_lite0] [--methods aper_adapter ...] [--workers 2]
    python -m benchmarks.search_representation --data ../shared/data/cifar10 --tasks 5 --first 5 --orders 1993 1994
        --backbones efficientnet_lite0 --methods aper_finetune --only epochs=5

Settings are judged beside SimpleCIL's accuracy. The result file is benchmarks/results/search_representation.json; see
search.py.
"""

from __future__ import annotations

from typing import Any

from benchmarks.search import Grid, Search, product

# views that do not change: a stem's output is stored
STILL = {"batch_size": 16, "augment": {"min_scale": 1.0, "flip": False}}
RATES = product(lr=[0.05, 0.2, 1.0], epochs=[5, 20])
FINE = product(lr=[0.0001, 0.001, 0.01], epochs=[5, 20])  # of all weights
FACTORS = product(lr=[0.001, 0.01, 0.05, 0.2, 1.0], epochs=[5, 20])
ANY = ("default", "efficientnet_lite0")  # the second has no seats for adapters and prompts
ADAPT = {"lr": "adapt.train.lr", "epochs": "adapt.train.epochs"}
ADAPTER = {"lr": "adapter.train.lr", "epochs": "adapter.train.epochs", "align_lr": "align.lr"}
TEN = {"train": {"batch_size": 16, "epochs": 10, "schedule": {"name": "milestone", "milestone": 9}}}


def aper(variant: str, points: tuple[dict[str, Any], ...], train: dict[str, Any], backbones: tuple[str, ...]) -> Grid:
    """One variant of APER."""
    return Grid("aper", points, {"adapt": {"variant": variant, "train": train}}, ADAPT, backbones)


SEARCH = Search(
    "search_representation",
    {
        "simplecil": Grid("simplecil", backbones=ANY),
        "aper_finetune": aper("finetune", FINE, {"batch_size": 16}, ANY),
        "aper_vpt_shallow": aper("vpt_shallow", RATES, STILL, ("default",)),
        "aper_vpt_deep": aper("vpt_deep", RATES, STILL, ("default",)),
        "aper_ssf": aper("ssf", FACTORS, STILL, ANY),
        "aper_adapter": aper("adapter", RATES, STILL, ("default",)),
        "ranpac": Grid("ranpac", common={"projection_dim": 2000}, backbones=ANY),
        "ranpac_ssf": Grid(
            "ranpac",
            product(lr=[0.001, 0.01, 0.05]),
            {"projection_dim": 2000, "adapt": {"variant": "ssf", "train": {"epochs": 5, **STILL}}},
            ADAPT,
            ANY,
        ),
        "fecam": Grid(
            "fecam",
            tuple(
                {"shrink_diagonal": diagonal, "shrink_off_diagonal": diagonal * share}
                for diagonal in [1.0, 3.0, 10.0, 30.0]
                for share in [0.0, 1.0]
            ),
            places={key: f"metric.{key}" for key in ("shrink_diagonal", "shrink_off_diagonal")},
            backbones=ANY,
        ),
        "slca": Grid("slca", product(lr=[0.01, 0.1], slow=[0.001, 0.01, 0.1]), TEN, {"lr": "train.lr"}, ANY),
        "ease": Grid("ease", RATES, {"adapter": {"train": STILL}}, ADAPTER),
        "mos": Grid(
            "mos",
            product(lr=[0.05, 0.2, 1.0], head_lr=[0.1, 1.0], align_lr=[0.005, 0.05]),
            {"adapter": {"train": {**STILL, "epochs": 10}}},
            ADAPTER,
        ),
    },
    data="../shared/data/caltech101",
    tasks=10,
    first=3,
    place=("data", "{searched}", "{backbone}", "{name}"),
)

if __name__ == "__main__":
    SEARCH.main(__doc__)
