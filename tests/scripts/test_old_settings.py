"""Settings on record from before methods had sections are read as those of today."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.methods import methods
from scripts.old_settings import TRAIN, in_sections

ROOT = Path(__file__).parents[2]
TRAINED = {"lr": 0.2, "epochs": 5, "batch_size": 16, "optimizer": "sgd", "schedule": "epoch_cosine", "milestone": None}
TRAINED |= {"weight_decay": 0.01, "clip_norm": None, "min_scale": 1.0, "flip": False, "rank": 4, "prompt_length": 3}
SECTION = {"lr": 0.2, "epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "weight_decay": 0.01}}
SECTION |= {"schedule": {"name": "epoch_cosine"}, "clip_norm": None, "augment": {"min_scale": 1.0, "flip": False}}
RIDGE = {"ridge_value": 9.0, "validation_fraction": 0.1}


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
            {"projection_dim": 64, "ridge": {"name": "fixed"}, "adapt": None},
        ),
        ({"name": "ranpac", "ridge": "fixed", **RIDGE}, {"ridge": {"name": "fixed", "value": 9.0}, "adapt": None}),
        (
            {"name": "ranpac", "ridge": "cumulative", **RIDGE},
            {"ridge": {"name": "cumulative", "first": 9.0, "validation_fraction": 0.1}, "adapt": None},
        ),
        (
            {"name": "ranpac", **RIDGE},
            {"ridge": {"first": 9.0, "validation_fraction": 0.1}, "adapt": None},
        ),
        (
            {"name": "fecam", "adapt": "adapter", "power": 0.5, **TRAINED},
            {"adapt": {"variant": "adapter", "rank": 4, "train": SECTION}},
        ),
        (
            {"name": "fecam", "features": "tukey", "power": 0.4, "shrink_diagonal": 3.0},
            {"features": {"name": "tukey", "power": 0.4}, "metric": {"shrink_diagonal": 3.0}, "adapt": None},
        ),
        (
            {"name": "fecam", "features": "raw", "power": 0.4, "normalise": "pilot", "shrink_diagonal": 3.0},
            {"features": {"name": "raw"}, "metric": {"name": "pilot"}, "adapt": None},
        ),
        (
            {
                "name": "fecam",
                "normalise": "none",
                "log_determinant": True,
                "covariance": "common",
                "returning": "half",
            },
            {
                "metric": {"name": "shrunk", "normalise": False, "log_determinant": True},
                "covariance": "common",
                "adapt": None,
            },
        ),
        (
            {"name": "fecam", "normalise": "correlation", "returning": "half"},
            {"metric": {"name": "shrunk", "normalise": True}, "covariance": "class_half", "adapt": None},
        ),
        (
            {"name": "fecam", "covariance": "class", "returning": "pooled"},
            {"covariance": "class", "adapt": None},
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
        (
            {"name": "l2p", "lr": 0.1, "shuffle": True, "select_train": "batch_vote", "train_vote_group": 4}
            | {"select_eval": "batch_vote", "eval_batch": 8, "eval_order": "shuffled", "train_prompt": "match"}
            | {"copy_prev": False, "train_logits": "seen", "query_view": "clean"},
            {"train": {"lr": 0.1, "shuffle": True}, "train_prompts": {"name": "match", "vote": 4}, "logits": "seen"}
            | {"vote": {"batch_size": 8, "order": "shuffled"}, "query_view": "clean"},
        ),
        (
            {"name": "l2p", "select_train": "instance", "train_prompt": "task_slot", "copy_prev": True},
            {"train": {}, "train_prompts": {"name": "task_slot", "copy_prev": True}},
        ),
        (
            {"name": "vpt", "mode": "sequential", "train_logits": "current", "query_view": "clean", "milestone": None},
            {"train": {}, "mode": "sequential"},
        ),
        (
            {"name": "vpt", "mode": "sequential", "train_logits": "seen"},
            {"train": {}, "mode": "sequential_seen"},
        ),
        (
            {"name": "vpt", "mode": "first_task", "train_logits": "current", "optimizer": "sgd", "beta1": 0.5},
            {"train": {"optimizer": {"name": "sgd"}}, "mode": "first_task"},
        ),
        (
            {"name": "dualprompt", "kv_layout": "scrambled", "select_eval": "instance", "eval_batch": 24, "pull": 0.5}
            | {"key_update": "sgd", "query_view": "clean"},
            {"train": {}, "kv_layout": "scrambled", "vote": None}
            | {"keys": {"name": "sgd", "pull": 0.5, "query_view": "clean"}},
        ),
        (
            {"name": "coda_prompt", "components_per_task": 10, "pool": None, "tasks": None, "ortho": "qr"}
            | {"init": "gram_schmidt", "schedule": "quarter_cosine_released"},
            {"train": {"schedule": {"name": "quarter_cosine", "released": True}}}
            | {"components": {"name": "per_task", "each": 10, "ortho": "qr"}},
        ),
        (
            {"name": "coda_prompt", "components_per_task": 10, "pool": 100, "tasks": 5, "ortho": "qr", "init": "pool"},
            {"train": {}, "components": {"name": "pool", "pool": 100, "tasks": 5, "ortho": "whole"}},
        ),
        (
            {"name": "coda_prompt", "components_per_task": 10, "pool": 9, "tasks": 3, "ortho": "qr", "init": "x"},
            {"train": {}, "components": {"name": "pool", "pool": 9, "tasks": 3, "ortho": "qr"}},
        ),
        (
            {"name": "dap", "key_update": "mean", "pull": 0.1, "pull_over": "sum", "optimizer": "adam", "beta1": 0.9},
            {"train": {"optimizer": {"name": "adam", "beta1": 0.9}}, "keys": {"name": "mean"}},
        ),
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
