"""The presets and defaults of the prompt methods, field by field, as section 5 of each specification writes them."""

from __future__ import annotations

from typing import Any

import pytest

from perdure.methods import methods
from perdure.train.loop import scaled_lr

# every field is named once: by what all prompt methods have, by what a method's settings have, or by a preset
ALL: dict[str, Any] = {
    "optimizer": "adam", "schedule": "constant", "milestone": None, "weight_decay": 0.0, "clip_norm": 1.0,
    "flip": True, "shuffle": True, "drop_last": "never", "train_logits": "current", "head_init": "normal_0.02",
    "query_view": "augmented",
}  # fmt: skip
ALONE = {"select_eval": "instance", "eval_order": "stored"}
VOTING = {"select_eval": "batch_vote"}
BY_CLASS = {**VOTING, "eval_order": "class_sorted"}

VPT = {
    **ALL, "scale_lr": False, "lr": 1e-3, "epochs": 20, "batch_size": 128, "schedule": "cosine", "clip_norm": None,
    "min_scale": 0.5, "variant": "deep", "length": 10, "init": "uniform", "mode": "sequential", "head": "linear",
    "pool": "backbone",
}  # fmt: skip
APER = {
    "mode": "first_task", "length": 5, "init": "zeros", "head": "cosine", "head_init": "torch_linear",
    "optimizer": "sgd", "weight_decay": 5e-4, "schedule": "epoch_cosine", "epochs": 20, "min_scale": 0.05,
}  # fmt: skip
L2P = {
    **ALL, **ALONE, "scale_lr": True, "lr": 0.03, "epochs": 5, "batch_size": 16, "min_scale": 0.5, "eval_batch": 16,
    "pool": 10, "length": 5, "top_k": 5, "pull": 0.1, "init": "uniform_pm1", "prompt_pos": "none",
    "head_input": "prompt_mean", "select_train": "instance", "train_vote_group": None, "train_prompt": "match",
    "copy_prev": False,
}  # fmt: skip
L2P_CODE = {**VOTING, "select_train": "batch_vote", "min_scale": 0.05}
DUAL = {
    **ALL, **ALONE, "scale_lr": True, "lr": 0.03, "epochs": 5, "batch_size": 24, "min_scale": 0.5, "eval_batch": 24,
    "layers_g": [0, 1], "layers_e": [2, 3, 4], "length_g": 5, "length_e": 5, "top_k": 1, "pool": None, "pull": 1.0,
    "init": "uniform_pm1", "copy_prev": True, "key_update": "sgd", "kv_layout": "correct",
}  # fmt: skip
DUAL_JAX = {
    "batch_size": 192, "min_scale": 0.05, "init": "uniform_0_001", "head_init": "zeros", "drop_last": "always"
}  # fmt: skip
DUAL_PORT = {**VOTING, "kv_layout": "scrambled", "min_scale": 0.05}
DUAL_PILOT = {**DUAL_PORT, **BY_CLASS, "lr": 0.001, "scale_lr": False, "clip_norm": None, "pull": 0.1}
CODA = {
    **ALL, "scale_lr": False, "lr": 1e-3, "epochs": 20, "batch_size": 128, "schedule": "quarter_cosine",
    "clip_norm": None, "min_scale": 0.08, "drop_last": "from_4_batches", "head_init": "torch_linear",
    "layers": [0, 1, 2, 3, 4], "length": 8, "components_per_task": 10, "pool": None, "tasks": None, "mu": 0.0,
    "ortho": "qr", "init": "gram_schmidt",
}  # fmt: skip
CODA_CODE = {
    "pool": 100, "tasks": 10, "ortho": "reference", "drop_last": "always", "schedule": "quarter_cosine_released"
}  # fmt: skip
DAP = {
    **ALL, **ALONE, "scale_lr": False, "lr": 0.01, "epochs": 5, "batch_size": 128, "min_scale": 1.0, "flip": False,
    "eval_batch": 16, "beta1": 0.9, "beta2": 0.9, "amsgrad": True, "n_prompts": 10, "embedding_dim": 16, "pull": 0.1,
    "pull_over": "mean", "mixer_init": "zeros", "last_block_prompts": True, "key_update": "sgd",
    "mask_by_task": False,
}  # fmt: skip
DAP_CODE = {"pull_over": "sum", "head_init": "kaiming_fan_out"}
DAP_OFFICIAL = {**DAP_CODE, **VOTING, "eval_batch": 128}

# preset: the learning rate that the optimiser gets, and what the preset changes
TABLE: dict[str, tuple[dict[str, Any], dict[str, tuple[float, dict[str, Any]]]]] = {
    "vpt": (VPT, {
        "default": (1e-3, {}),
        "pilot_deep": (0.01, {**APER, "lr": 0.01, "batch_size": 48}),
        "pilot_shallow": (0.01, {**APER, "lr": 0.01, "batch_size": 48, "variant": "shallow"}),
        "pilot_deep_imagenet_r": (0.05, {**APER, "lr": 0.05, "batch_size": 24, "length": 30}),
        "revisitingcil_deep": (0.05, {**APER, "lr": 0.05, "batch_size": 16, "epochs": 5}),
    }),
    "l2p": (L2P, {
        "default": (0.001875, {}),
        "paper": (0.03, {**L2P_CODE, "scale_lr": False, "batch_size": 128, "pull": 0.5, "eval_batch": 128}),
        "official_jax": (0.015, {
            **L2P_CODE, "batch_size": 128, "length": 10, "top_k": 4, "pull": 1.0, "init": "uniform_0_001",
            "head_init": "zeros", "train_vote_group": 16, "drop_last": "always",
        }),
        "pilot": (0.001875, {
            **L2P_CODE, **BY_CLASS, "lr": 0.001875, "scale_lr": False, "clip_norm": None, "prompt_pos": "cls",
        }),
        "mammoth": (0.015, {
            **L2P_CODE, "batch_size": 128, "pull": 0.5, "min_scale": 0.08, "prompt_pos": "cls", "eval_batch": 128,
        }),
    }),
    "dualprompt": (DUAL, {
        "default": (0.0028125, {}),
        "official_jax": (0.0225, {**DUAL_JAX, **VOTING}),
        "official_jax_inr": (0.00375, {**DUAL_JAX, "lr": 0.005, "epochs": 50, "length_e": 20}),
        "port": (0.0028125, DUAL_PORT),
        "pilot": (0.001, DUAL_PILOT),
        "pilot_inr": (0.001, {**DUAL_PILOT, "epochs": 10}),
        "mammoth": (0.015, {**DUAL_PORT, "batch_size": 128, "min_scale": 0.08, "eval_batch": 128}),
    }),
    "coda_prompt": (CODA, {
        "default": (1e-3, {}),
        "official": (1e-3, CODA_CODE),
        "paper_v1": (1e-3, {**CODA_CODE, "init": "pool", "mu": 0.1}),
        "released_beta": (1e-3, {**CODA_CODE, "init": "pool", "mu": 1e-7}),
        "pilot": (1e-3, CODA_CODE),
        "mammoth": (1e-3, {**CODA_CODE, "drop_last": "never"}),
    }),
    "dap": (DAP, {
        "default": (0.01, {}),
        "official": (0.01, DAP_OFFICIAL),
        "official_inr": (0.25, {
            **DAP_OFFICIAL, "optimizer": "sgd", "lr": 0.25, "epochs": 20, "shuffle": False, "n_prompts": 30,
            "embedding_dim": 64, "pull": 2.0, "last_block_prompts": False, "mask_by_task": True,
        }),
        "mammoth": (0.01, DAP_CODE),
    }),
}  # fmt: skip


@pytest.mark.parametrize(("name", "preset"), [(name, preset) for name in TABLE for preset in TABLE[name][1]])
def test_a_preset_is_what_the_specification_says(name: str, preset: str) -> None:
    usual, (rate, changed) = TABLE[name][0], TABLE[name][1][preset]
    c = methods.get(name).Config(preset=preset)
    assert c.model_dump() == {**usual, **changed, "preset": preset}
    assert (scaled_lr(c.lr, c.batch_size) if c.scale_lr else c.lr) == pytest.approx(rate, rel=1e-12)


def test_no_preset_of_a_prompt_method_is_left_out() -> None:
    prompted = {name for name in methods.names() if methods.get(name).tags.prompted}
    assert {name: {"default", *methods.get(name).Config.presets} for name in prompted} == {
        name: set(presets) for name, (_, presets) in TABLE.items()
    }
