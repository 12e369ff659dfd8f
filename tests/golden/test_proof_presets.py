"""PROOF's presets and published recipes, as section 5 of its specification writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from perdure.config import laid_over, load
from perdure.data import Preprocess
from perdure.data.templates import templates_of
from perdure.methods.proof import ProofConfig

ROOT = Path(__file__).parents[2]
RELEASED: dict[str, Any] = {
    "fusion": "batch_mean", "score_mode": "reference", "projected": 1.0, "normalise_tests": False, "n_prompts": 3,
    "dropout": 0.1,
}  # fmt: skip
TRAINS: dict[str, Any] = {
    "texts": "first", "pairs": "one_positive", "freeze_old_text": False, "decay_frozen": True, "hold_scale": False,
    "lr": 0.001, "epochs": 10, "batch_size": 64, "schedule": {"name": "epoch_cosine"}, "clip_norm": None,
    "optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.05, "nesterov": False},
}  # fmt: skip
EACH, TOTAL = {"n_images": None, "n_per_class": 20}, {"n_images": 2000}
ADAMW = {"name": "adamw", "weight_decay": 0.05, "beta1": 0.9, "beta2": 0.999, "amsgrad": False}
# memory, templates, their number, and what of the training differs
PRESETS: dict[str, tuple[dict[str, Any], str, int, dict[str, Any]]] = {
    "cifar": (TOTAL, "cifar", 18, {"epochs": 5}),
    "imagenet_r": (EACH, "imagenet7", 7, {"batch_size": 48}),
    "cub": (EACH, "birds", 1, {}),
    "cars": (EACH, "cars", 8, {}),
    "ucf": (EACH, "ucf101", 48, {}),
    "aircraft": (EACH, "aircraft", 2, {}),
    "aircraft_b50": (TOTAL, "aircraft", 2, {"optimizer": ADAMW}),
    "sun": (EACH, "sun397", 2, {}),
    "food": (TOTAL, "food", 1, {}),
    "food_b50": (TOTAL, "food", 1, {"epochs": 5, "batch_size": 32, "lr": 0.002}),
    "objectnet": (EACH, "imagenet7", 7, {}),
}
ROWS = {  # the first task's classes where it is as large as the others, and where it has half of them
    "cifar100": (10, 50), "imagenet-r": (20, 100), "cub": (20, 100), "cars": (10, 50), "ucf": (10, 50),
    "aircraft": (10, 50), "sun": (30, 150), "food": (10, 50), "objectnet": (20, 100),
}  # fmt: skip


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_the_specifications(preset: str) -> None:
    memory, templates, n, changes = PRESETS[preset]
    told = load(ProofConfig, {"preset": preset}).model_dump()
    assert (told["templates"], len(templates_of(templates))) == (templates, n)
    assert {key: told[key] for key in RELEASED} == RELEASED
    assert {key: told["memory"][key] for key in memory} == memory
    train = {**laid_over(TRAINS, changes), **({"optimizer": ADAMW} if "optimizer" in changes else {})}
    assert {key: told["train"][key] for key in train} == train


def test_every_preset_is_in_the_table() -> None:
    assert set(ProofConfig.presets) == set(PRESETS)


def test_the_first_template_is_the_one_that_training_reads() -> None:
    assert templates_of("cifar")[0] == "a photo of a {}."
    assert templates_of("imagenet7")[0] == "itap of a {}."


@pytest.mark.parametrize("data", ROWS)
def test_recipes_are_the_published_rows(data: str) -> None:
    small, half = ROWS[data]
    for base, file in ((0, "proof"), (half, f"proof_b{half}")):
        told = yaml.safe_load((ROOT / "recipes" / data / f"{file}_vitb16_laion400m.yaml").read_text())
        preset = {"cifar100": "cifar"}.get(data, data.replace("-", "_"))
        preset = f"{preset}_b50" if base and f"{preset}_b50" in PRESETS else preset
        assert told["stream"] == {"preset": f"{data}-b{base}-inc{small}"}
        assert told["backbone"] == {"name": "open_clip/ViT-B-16/laion400m_e32", "preset": "proof"}
        assert told["method"] == {"name": "proof", "preset": preset}


def test_the_published_view_is_the_whole_image_in_clips_colours() -> None:
    own = Preprocess(image_size=224, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    view = own.with_preset("proof")
    assert (view.image_size, view.crop_mode, view.crop_pct, view.interpolation) == (224, "squash", 1.0, "bicubic")
    assert (view.mean, view.std) == (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
