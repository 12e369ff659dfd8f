"""Settings on record from before methods had sections are read as those of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from old_settings import TRAIN, in_sections

from perdure.methods import methods

ROOT = Path(__file__).parents[2]
TRAINED = {"lr": 0.2, "epochs": 5, "batch_size": 16, "optimizer": "sgd", "schedule": "epoch_cosine", "milestone": None}
TRAINED |= {"weight_decay": 0.01, "clip_norm": None, "min_scale": 1.0, "flip": False, "rank": 4, "prompt_length": 3}
SECTION = {"lr": 0.2, "epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "weight_decay": 0.01}}
SECTION |= {"schedule": {"name": "epoch_cosine"}, "clip_norm": None, "augment": {"min_scale": 1.0, "flip": False}}


@pytest.mark.parametrize(
    ("flat", "nested"),
    [
        ({"name": "simplecil", "preset": "default"}, {"name": "simplecil", "preset": "default"}),
        ({"name": "finetune", "lr": 0.1, "min_scale": 0.5}, {"train": {"lr": 0.1, "augment": {"min_scale": 0.5}}}),
        ({"name": "aper", "variant": "ssf", **TRAINED}, {"adapt": {"variant": "ssf", "train": SECTION}}),
        (
            {"name": "aper", "variant": "vpt_deep", "prompt_init": "zeros", **TRAINED},
            {"adapt": {"variant": "vpt_deep", "prompt_length": 3, "prompt_init": "zeros", "train": SECTION}},
        ),
        (
            {"name": "ranpac", "projection_dim": 64, "ridge": "fixed", "adapt": "none", **TRAINED},
            {"projection_dim": 64, "ridge": "fixed", "adapt": None},
        ),
        (
            {"name": "fecam", "adapt": "adapter", "power": 0.5, **TRAINED},
            {"power": 0.5, "adapt": {"variant": "adapter", "rank": 4, "train": SECTION}},
        ),
        (
            {"name": "ease", "alpha": 0.2, **TRAINED},
            {"alpha": 0.2, "adapter": {"variant": "adapter", "rank": 4, "train": SECTION}},
        ),
        (
            {"name": "mos", "align_epochs": 2, "align_lr": 0.05, "samples": 3, "ridge": 0.1, "reg": 0.2, "lr": 1.0},
            {
                "align": {"epochs": 2, "lr": 0.05, "samples": 3, "ridge": 0.1},
                "reg": 0.2,
                "adapter": {"variant": "adapter", "train": {"lr": 1.0}},
            },
        ),
        (
            {"name": "slca", "schedule": "milestone", "milestone": 9, "align_batch": 8, "tau": 0.2, "slow": 0.1},
            {
                "train": {"schedule": {"name": "milestone", "milestone": 9}},
                "align": {"batch_size": 8, "tau": 0.2},
                "slow": 0.1,
            },
        ),
        ({"name": "slca", "align_epochs": 0, "samples": 9}, {"align": None, "train": {}}),
    ],
)
def test_each_setting_comes_into_its_section(flat: dict[str, Any], nested: dict[str, Any]) -> None:
    before = json.dumps(flat)
    assert in_sections(flat) == {"name": flat["name"], **nested}
    assert json.dumps(flat) == before


@pytest.mark.parametrize("name", [*TRAIN, "simplecil", "l2p"])
def test_settings_of_today_stay(name: str) -> None:
    values = methods.get(name).Config(**methods.get(name).tags.small).model_dump()
    assert in_sections({"name": name, **values}) == {"name": name, **values}


@pytest.mark.parametrize("path", ["representation_methods", "prompt_methods"])
def test_every_run_on_record_can_be_read(path: str) -> None:
    for recipes in json.loads((ROOT / f"benchmarks/results/{path}.json").read_text())["runs"].values():
        for run in (run for orders in recipes.values() for run in orders.values()):
            method = in_sections(run["recipe"]["method"])
            settings = {key: value for key, value in method.items() if key != "name"}
            assert methods.get(method["name"]).Config(**settings).preset == method["preset"]
