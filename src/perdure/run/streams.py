"""Streams by name, so that a recipe's file says only what is its own: ``stream: {preset: cifar100-b0-inc10}``.

A name has the field's notation: ``b0`` for a first task as large as the others, ``b50`` for one of 50 classes, and
``inc10`` for 10 classes in each of the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# increments by data; the class order of RevisitingCIL, PILOT and MOS is that of seed 1993, VTAB's is not shuffled
SURVEY = {
    "cifar100": (5, 10), "cub": (10, 20), "imagenet-a": (10, 20), "imagenet-r": (5, 10, 20, 40), "objectnet": (10, 20),
    "omnibenchmark": (20, 30), "vtab": (10,), "aircraft": (10,), "cars": (10,), "food": (10,), "sun": (30,),
    "ucf": (10,),
}  # fmt: skip
MTIL = (  # the eleven data sets of Zheng et al., ICCV 2023, in both of their orders
    ("aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food", "mnist", "pets", "cars", "sun397"),
    ("cars", "food", "mnist", "pets", "flowers", "sun397", "aircraft", "caltech101", "dtd", "eurosat", "cifar100"),
)
HALVES = {  # half of the classes in the first task: classes there, and in every later one
    "cifar100": (50, 10), "cub": (100, 20), "imagenet-r": (100, 20), "objectnet": (100, 20), "aircraft": (50, 10),
    "cars": (50, 10), "food": (50, 10), "sun": (150, 30), "ucf": (50, 10),
}  # fmt: skip
STREAMS: dict[str, dict[str, Any]] = {
    f"{data}-b0-inc{n}": {
        "data": data if data == "cifar100" else f"data/{data}",
        "base": n,
        "increment": n,
        "order_seed": None if data == "vtab" else 1993,
    }
    for data, increments in SURVEY.items()
    for n in increments
} | {
    f"{data}-b{base}-inc{n}": {
        "data": data if data == "cifar100" else f"data/{data}", "base": base, "increment": n, "order_seed": 1993,
    }
    for data, (base, n) in (*HALVES.items(), ("cifar100", (50, 5)), ("imagenet-r", (100, 10)))
} | {
    "5-datasets-b0-inc10": {"data": "data/5-datasets", "base": 10, "increment": 10, "order_seed": None},
    "domainnet200-b0-inc20": {"data": "data/domainnet200", "base": 20, "increment": 20, "order_seed": None},
    "core50-domains": {"data": "data/core50", "scenario": "domain"},
    "domainnet-b0-inc69": {"data": "data/domainnet", "base": 69, "increment": 69, "order_seed": None},
    **{
        f"mtil-order-{number}": {
            "datasets": [name if name == "cifar100" else f"data/{name}" for name in sets], "tasks": 1,
            "order_seed": None,
        }
        for number, sets in enumerate(MTIL, 1)
    },
    "caltech101-cifar10-fashion-mnist": {
        "datasets": ["data/caltech101", "cifar10", "fashion-mnist"], "tasks": 1, "order_seed": 1993,
        "train_per_class": 100, "test_per_class": 100,
    },
    "x-tail-16-shot": {  # RAIL's ten data sets, in its order
        "datasets": [f"data/{name}" for name in MTIL[0] if name != "cifar100"], "tasks": 1, "order_seed": None,
        "train_per_class": 16,
    },
    "caltech101-10-tasks": {"data": "data/caltech101", "tasks": 10, "order_seed": 1993},
    "cifar10-5-tasks": {"data": "cifar10", "tasks": 5, "order_seed": 1993},
    "fashion-mnist-5-tasks-100-each": {
        "data": "fashion-mnist", "tasks": 5, "order_seed": 1993, "train_per_class": 100, "test_per_class": 100,
    },
}  # fmt: skip
"""What each name stands for: arguments of :func:`perdure.data.load_stream`. ``data/NAME`` is a folder of yours."""

DATA = ("data", "datasets")


def without_name(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values without its stream's name: a stream is what its values say, however it was asked for.

    Nor is the key of several data sets kept where there is one data set.

    Args:
        recipe: values by section, every default written out.
    """
    stream = recipe.get("stream")
    if not isinstance(stream, Mapping):
        return dict(recipe)
    return {**recipe, "stream": {k: v for k, v in stream.items() if k != "preset" and (k, v) != ("datasets", None)}}


def places(stream: Mapping[str, Any]) -> list[str]:
    """The data sets' names or folders, as a recipe's stream has them: one or several.

    Args:
        stream: its values.
    """
    several = stream.get("datasets")
    return [str(each) for each in (several if isinstance(several, list) else [stream.get("data", "unknown data")])]


def stream_rows(data: str | None = None) -> list[tuple[str, str, str]]:
    """Every named stream: its name, its data, and the rest of what it stands for.

    Args:
        data: only those of this data set, alone or among others.
    """
    rows = [(name, ", ".join(places(values)), values) for name, values in STREAMS.items()]
    return [
        (name, of, ", ".join(f"{key} {_shown(value)}" for key, value in values.items() if key not in DATA))
        for name, of, values in rows
        if data is None or data in places(values)
    ]


def _shown(value: Any) -> str:
    return "none" if value is None else str(value)
