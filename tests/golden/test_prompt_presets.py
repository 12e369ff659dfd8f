"""The presets and defaults of the prompt methods, field by field, as section 5 of each specification writes them."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.methods import methods

ADAM: dict[str, Any] = {"name": "adam", "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "amsgrad": False}
SGD: dict[str, Any] = {"name": "sgd", "weight_decay": 0.0, "momentum": 0.9, "nesterov": False}
MATCH = {"name": "match", "vote": None}
KEYS: dict[str, Any] = {"name": "sgd", "query_view": "augmented", "pull_over": "mean"}

# every setting is named once: by what all prompt methods have, by what a method's settings have, or by a preset;
# of a section of several kinds, all settings stand together
ALL: dict[str, Any] = {
    "train.optimizer": ADAM, "train.schedule": {"name": "constant"}, "train.clip_norm": 1.0, "train.accumulate": 1,
    "train.scale_lr": False, "train.epochs": 5, "train.shuffle": True, "train.drop_last": "never",
    "train.augment.min_scale": 0.5, "train.augment.flip": True, "train.augment.resize": None,
    "head_init": "normal_0.02",
}  # fmt: skip
ALONE = {"logits": "current", "vote": None}
VOTING = {"vote": {"batch_size": 16, "order": "stored"}}
VOTING_24 = {"vote": {"batch_size": 24, "order": "stored"}}
VOTING_128 = {"vote": {"batch_size": 128, "order": "stored"}}

VPT = {
    **ALL, "train.lr": 1e-3, "train.epochs": 20, "train.batch_size": 128,
    "train.schedule": {"name": "cosine", "warmup": 0}, "train.clip_norm": None,
    "variant": "deep", "length": 10, "init": "uniform",
    "mode": "sequential", "head": "linear", "pool": "backbone",
}  # fmt: skip
APER = {
    "mode": "first_task", "length": 5, "init": "zeros", "head": "cosine", "head_init": "torch_linear",
    "train.optimizer": {**SGD, "weight_decay": 5e-4}, "train.schedule": {"name": "epoch_cosine"}, "train.epochs": 20,
    "train.augment.min_scale": 0.05,
}  # fmt: skip
L2P = {
    **ALL, **ALONE, "train.scale_lr": True, "train.lr": 0.03, "train.batch_size": 16, "query_view": "augmented",
    "pool": 10, "length": 5, "top_k": 5, "pull": 0.1, "init": "uniform_pm1", "prompt_pos": "none",
    "head_input": "prompt_mean", "train_prompts": MATCH,
}  # fmt: skip
L2P_CODE = {**VOTING, "train_prompts": {**MATCH, "vote": "batch"}, "train.augment.min_scale": 0.05}
DUAL = {
    **ALL, **ALONE, "train.scale_lr": True, "train.lr": 0.03, "train.batch_size": 24, "layers_g": [0, 1],
    "layers_e": [2, 3, 4], "length_g": 5, "length_e": 5, "top_k": 1, "pool": None, "keys": {**KEYS, "pull": 1.0},
    "init": "uniform_pm1", "copy_prev": True, "kv_layout": "correct",
}  # fmt: skip
DUAL_JAX = {
    "train.batch_size": 192, "train.augment.min_scale": 0.05, "train.drop_last": "always", "init": "uniform_0_001",
    "head_init": "zeros",
}  # fmt: skip
DUAL_PORT = {**VOTING_24, "kv_layout": "scrambled", "train.augment.min_scale": 0.05}
DUAL_PILOT = {
    **DUAL_PORT, "vote": {"batch_size": 24, "order": "class_sorted"}, "train.lr": 0.001, "train.scale_lr": False,
    "train.clip_norm": None, "keys": {**KEYS, "pull": 0.1},
}  # fmt: skip
CODA = {
    **ALL, "train.lr": 1e-3, "train.epochs": 20, "train.batch_size": 128,
    "train.schedule": {"name": "quarter_cosine", "released": False}, "train.clip_norm": None,
    "train.augment.min_scale": 0.08, "train.drop_last": "from_4_batches", "head_init": "torch_linear",
    "logits": "current", "query_view": "augmented", "layers": [0, 1, 2, 3, 4], "length": 8,
    "components": {"name": "per_task", "each": 10, "ortho": "qr"}, "mu": 0.0,
}  # fmt: skip
CODA_CODE = {
    "components": {"name": "pool", "pool": 100, "tasks": 10, "ortho": "reference"}, "train.drop_last": "always",
    "train.schedule": {"name": "quarter_cosine", "released": True},
}  # fmt: skip
CODA_PAPER = {**CODA_CODE, "components": {"name": "pool", "pool": 100, "tasks": 10, "ortho": "whole"}}
DAP = {
    **ALL, **ALONE, "train.lr": 0.01, "train.batch_size": 128, "train.augment.min_scale": 1.0,
    "train.augment.flip": False, "train.optimizer": {**ADAM, "beta2": 0.9, "amsgrad": True}, "n_prompts": 10,
    "embedding_dim": 16, "keys": {**KEYS, "pull": 0.1, "pull_over": "mean"}, "mixer_init": "zeros",
    "last_block_prompts": True, "mask_by_task": False,
}  # fmt: skip
DAP_CODE = {"keys": {**KEYS, "pull": 0.1, "pull_over": "sum"}, "head_init": "kaiming_fan_out"}
DAP_OFFICIAL = {**DAP_CODE, **VOTING_128}
ESN = {
    **{name: value for name, value in ALL.items() if name != "head_init"}, "train.lr": 0.01, "train.epochs": 30,
    "train.batch_size": 128, "train.optimizer": {**SGD, "weight_decay": 5e-4}, "train.clip_norm": None,
    "train.schedule": {"name": "epoch_cosine"}, "train.augment.min_scale": 0.08, "heads": None, "length": 100,
    "prompt_mode": "first_stage", "anchor": {"form": "softmin", "weight": 0.1, "depth": 10.0, "beta": 1.0},
    "temperature": {"name": "newest_recall", "candidates": [0.001, 0.01, *(i / 10 for i in range(1, 11))]},
    "store_tokens": True,
}  # fmt: skip

# preset: the learning rate that the optimiser gets, and what the preset changes
TABLE: dict[str, tuple[dict[str, Any], dict[str, tuple[float, dict[str, Any]]]]] = {
    "vpt": (VPT, {
        "default": (1e-3, {}),
        "pilot_deep": (0.01, {**APER, "train.lr": 0.01, "train.batch_size": 48}),
        "pilot_shallow": (0.01, {**APER, "train.lr": 0.01, "train.batch_size": 48, "variant": "shallow"}),
        "pilot_deep_imagenet_r": (0.05, {**APER, "train.lr": 0.05, "train.batch_size": 24, "length": 30}),
        "revisitingcil_deep": (0.05, {**APER, "train.lr": 0.05, "train.batch_size": 16, "train.epochs": 5}),
    }),
    "l2p": (L2P, {
        "default": (0.001875, {}),
        "paper": (0.03, {**L2P_CODE, **VOTING_128, "train.scale_lr": False, "train.batch_size": 128, "pull": 0.5}),
        "official_jax": (0.015, {
            **L2P_CODE, "train.batch_size": 128, "length": 10, "top_k": 4, "pull": 1.0, "init": "uniform_0_001",
            "head_init": "zeros", "train_prompts": {**MATCH, "vote": 16}, "train.drop_last": "always",
        }),
        "pilot": (0.001875, {
            **L2P_CODE, "vote": {"batch_size": 16, "order": "class_sorted"}, "train.lr": 0.001875,
            "train.scale_lr": False, "train.clip_norm": None, "prompt_pos": "cls",
        }),
        "mammoth": (0.015, {
            **L2P_CODE, **VOTING_128, "train.batch_size": 128, "pull": 0.5, "train.augment.min_scale": 0.08,
            "prompt_pos": "cls",
        }),
    }),
    "dualprompt": (DUAL, {
        "default": (0.0028125, {}),
        "official_jax": (0.0225, {**DUAL_JAX, **VOTING_24}),
        "official_jax_inr": (0.00375, {**DUAL_JAX, "train.lr": 0.005, "train.epochs": 50, "length_e": 20}),
        "port": (0.0028125, DUAL_PORT),
        "pilot": (0.001, DUAL_PILOT),
        "pilot_inr": (0.001, {**DUAL_PILOT, "train.epochs": 10}),
        "mammoth": (0.015, {
            **DUAL_PORT, **VOTING_128, "train.batch_size": 128, "train.augment.min_scale": 0.08,
        }),
    }),
    "coda_prompt": (CODA, {
        "default": (1e-3, {}),
        "official": (1e-3, CODA_CODE),
        "paper_v1": (1e-3, {**CODA_PAPER, "mu": 0.1}),
        "released_beta": (1e-3, {**CODA_PAPER, "mu": 1e-7}),
        "pilot": (1e-3, CODA_CODE),
        "mammoth": (1e-3, {**CODA_CODE, "train.drop_last": "never"}),
    }),
    "dap": (DAP, {
        "default": (0.01, {}),
        "official": (0.01, DAP_OFFICIAL),
        "official_inr": (0.25, {
            **DAP_OFFICIAL, "train.optimizer": SGD, "train.lr": 0.25, "train.epochs": 20, "train.shuffle": False,
            "n_prompts": 30, "embedding_dim": 64, "keys": {**KEYS, "pull": 2.0, "pull_over": "sum"},
            "last_block_prompts": False, "mask_by_task": True,
        }),
        "mammoth": (0.01, DAP_CODE),
    }),
    "esn": (ESN, {
        "default": (0.01, {}),
        "official": (0.01, {"prompt_mode": "sequential"}),
        "official_10_epochs": (0.01, {"prompt_mode": "sequential", "train.epochs": 10}),
    }),
}  # fmt: skip


def flat(dumped: dict[str, Any]) -> dict[str, Any]:
    """The settings with those of a training, which has sections itself, each under its path."""
    for section in ("train", "train.augment"):
        dumped |= {f"{section}.{name}": value for name, value in dumped.pop(section).items()}
    return dumped


@pytest.mark.parametrize(("name", "preset"), [(name, preset) for name in TABLE for preset in TABLE[name][1]])
def test_a_preset_is_what_the_specification_says(name: str, preset: str) -> None:
    usual, (rate, changed) = TABLE[name][0], TABLE[name][1][preset]
    c = methods.get(name).Config(preset=preset)
    assert flat(c.model_dump()) == {**usual, **changed, "preset": preset}
    assert c.train.peak == pytest.approx(rate, rel=1e-12)


def test_no_preset_of_a_prompt_method_is_left_out() -> None:
    prompted = {name for name in methods.names() if methods.get(name).tags.prompted}
    prompted -= {"promptfusion"}  # see test_promptfusion.py
    assert {name: {"default", *methods.get(name).Config.presets} for name in prompted} == {
        name: set(presets) for name, (_, presets) in TABLE.items()
    }
