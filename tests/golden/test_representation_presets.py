"""The presets and published recipes of the representation methods, as section 5 of each specification writes them."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure.config import load
from perdure.methods import methods
from perdure.run.recipe import StreamConfig

ROOT = Path(__file__).parents[2]


def merged(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """``over`` wins, key by key inside sections too; but what adapts, and what names its kind, is written whole."""
    out = dict(under)
    for key, value in over.items():
        whole = key == "adapt" or (key in ("features", "metric") and "name" in value)
        inside = not whole and isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if inside else value
    return out


# what each method trains with unless a row says otherwise; every field is named, by this or by a row
TRAIN: dict[str, Any] = {
    "lr": 0.01, "epochs": 20, "batch_size": 48, "accumulate": 1, "scale_lr": False,
    "optimizer": {"name": "sgd", "weight_decay": 5e-4, "momentum": 0.9, "nesterov": False},
    "schedule": {"name": "epoch_cosine"}, "clip_norm": None, "shuffle": True, "drop_last": "never",
    "augment": {"min_scale": 0.05, "flip": True, "resize": None},
}  # fmt: skip


def train(epochs: int, lr: float, batch_size: int, weight_decay: float) -> dict[str, Any]:
    """The specifications' epochs/lr/batch/wd."""
    told = {"epochs": epochs, "lr": lr, "batch_size": batch_size, "optimizer": {"weight_decay": weight_decay}}
    return merged(TRAIN, told)


def part(variant: str, train: dict[str, Any] = TRAIN, **more: Any) -> dict[str, Any]:
    """What adapts."""
    return {"variant": variant, "train": train, **more}


ZEROS = {"prompt_length": 5, "prompt_init": "zeros"}
ADAPTER = part("adapter", rank=64)
SPECIFIED: dict[str, dict[str, Any]] = {
    "aper": {"adapt": ADAPTER},
    "ranpac": {
        "adapt": None, "projection_dim": 10_000, "head": "linear",
        "ridge": {"name": "per_task", "validation_fraction": 0.2, "first": 1e5},
    },
    "fecam": {
        "features": {"name": "unit"}, "covariance": "class", "adapt": None,
        "metric": {
            "name": "shrunk", "shrink_diagonal": 1, "shrink_off_diagonal": 0, "normalise": True,
            "log_determinant": False,
        },
    },
    "slca": {
        "train": merged(TRAIN, {
            "batch_size": 128, "schedule": {"name": "milestone", "milestone": 18, "again": None},
            "augment": {"min_scale": 0.5},
        }),
        "slow": 0.01, "reset_final_norm": False,
        "align": {
            "epochs": 5, "lr": 0.01, "batch_size": 256, "samples": 256, "tau": 0.1, "mean_decay": 0.1, "ridge": 1e-4,
            "weight_decay": None,
        },
    },
    "ease": {
        "adapter": part("adapter", rank=16), "alpha": 0.1, "beta": 0, "reweight": "code", "sim_temperature": 1,
    },
    "mos": {
        "adapter": part("adapter", train(20, 0.03, 48, 5e-4), rank=16), "head_lr": 0.1, "merge": 0.1,
        "merge_every": "step", "reg": 0.1, "gaussian": "covariance", "ensemble": True,
        "align": {"epochs": 30, "lr": 0.005, "samples": 5, "ridge": 1e-4, "weight_decay": None},
    },
}  # fmt: skip
SPECIFIED["mos_release"] = SPECIFIED["mos"]


def slca(min_scale: float, milestone: int, align: dict[str, Any], **more: Any) -> dict[str, Any]:
    """What SLCA trains with; ``more`` goes into ``train``, but for ``resize`` and ``reset_final_norm``."""
    augment = {"min_scale": min_scale, "resize": more.pop("resize", None)}
    return {
        "reset_final_norm": more.pop("reset_final_norm", False), "align": align,
        "train": {"augment": augment, "schedule": {"milestone": milestone}, **more},
    }  # fmt: skip


def adapter(*told: Any, rank: int = 64, **more: Any) -> dict[str, Any]:
    """An adapter per task, and other settings."""
    return {"adapter": part("adapter", train(*told), rank=rank), **more}


SLCA_PAPER = {"min_scale": 0.08, "reset_final_norm": True, "batch_size": 128}  # RandomResizedCrop's own smallest crop
SLCA_LONG = {**SLCA_PAPER, "epochs": 50, "milestone": 40}
SLCA_PILOT = {"min_scale": 0.05, "batch_size": 64, "align": {"epochs": 3}}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "aper": {
        "official": {"adapt": part("adapter", train(20, 0.01, 48, 5e-4), rank=64)},
        "official_finetune": {"adapt": part("finetune", train(20, 0.01, 48, 0.05))},
        "official_vpt_deep": {"adapt": part("vpt_deep", train(5, 0.05, 16, 5e-4), **ZEROS)},
        "pilot_finetune": {"adapt": part("finetune", train(6, 0.01, 128, 0.05))},
        "pilot_vpt_deep": {"adapt": part("vpt_deep", train(20, 0.01, 48, 5e-4), **ZEROS)},
    },
    "ranpac": {
        "paper": {"adapt": part("adapter", train(20, 0.01, 48, 5e-4), rank=64)},
        "paper_ssf": {"adapt": part("ssf", train(20, 0.01, 48, 5e-4))},
        "paper_vpt": {"adapt": part("vpt_deep", train(20, 0.01, 48, 5e-4), **ZEROS)},
        "pilot": {"adapt": part("adapter", train(20, 0.01, 48, 5e-4), rank=64), "head": "cosine"},
    },
    "fecam": {
        "paper": {"metric": {"shrink_diagonal": 1, "shrink_off_diagonal": 0}},
        "paper_imagenet_r": {"metric": {"shrink_diagonal": 10, "shrink_off_diagonal": 10}},
        "paper_core50": {"metric": {"shrink_diagonal": 1, "shrink_off_diagonal": 0}, "covariance": "class_half"},
        "paper_cnn": {
            "features": {"name": "tukey", "power": 0.5},
            "metric": {"shrink_diagonal": 3, "shrink_off_diagonal": 3},  # (1, 1) twice
        },
        "pilot": {
            "adapt": part("adapter", train(20, 0.01, 48, 5e-4), rank=64),
            "features": {"name": "raw"}, "metric": {"name": "pilot"},
        },
    },
    "slca": {
        "paper": slca(**SLCA_PAPER, epochs=20, milestone=18, align={"epochs": 5, "tau": 0.1}),
        "paper_imagenet_r": slca(**SLCA_LONG, align={"epochs": 5, "tau": 0.1}),
        "paper_cub": slca(**SLCA_LONG, resize=300, align={"epochs": 5, "tau": 0.1}),
        "paper_cars": slca(**SLCA_LONG, resize=300, align={"epochs": 5, "tau": 0.05}),
        "pilot": slca(**SLCA_PILOT, epochs=20, milestone=18),
        "pilot_imagenet_r": slca(**SLCA_PILOT, epochs=5, milestone=40),
    },
    "ease": {
        "paper": adapter(20, 0.01, 48, 5e-4, rank=16, alpha=0.1),
        "official_cifar100": adapter(20, 0.025, 48, 5e-4),
        "official_imagenet_r": adapter(20, 0.05, 16, 0.005),
        "official_cub": adapter(20, 0.008, 32, 5e-4, alpha=0.05),
        "official_imagenet_a": adapter(20, 0.05, 32, 0.005),
        "official_objectnet": adapter(25, 0.05, 48, 0.005, alpha=0.2),
        "official_vtab": adapter(45, 0.03, 16, 0.005, rank=16),
    },
    "mos": {
        "official_cifar100": adapter(20, 0.03, 48, 5e-4, rank=16),
        "official_imagenet_r": adapter(10, 0.05, 16, 0.005, rank=16),
        "official_cub": adapter(10, 0.01, 32, 5e-4, rank=16),
        "official_imagenet_a": adapter(10, 0.05, 32, 0.005, rank=16, gaussian="variance"),
        "official_objectnet": adapter(10, 0.05, 48, 0.005, rank=16),
        "official_omnibenchmark": adapter(10, 0.01, 16, 5e-4, rank=16),
        "official_vtab": adapter(20, 0.03, 32, 0.005, rank=16),
    },
}  # fmt: skip
PRESETS["mos_release"] = PRESETS["mos"]


def settings(method: str, **given: Any) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pilot_imagenet_r's milestone, which is never reached
        config = load(methods.get(method).Config, given)
    told: dict[str, Any] = config.model_dump(exclude={"preset"})
    return told


@pytest.mark.parametrize(("method", "preset"), [(m, p) for m, rows in PRESETS.items() for p in ["default", *rows]])
def test_presets_are_the_specifications(method: str, preset: str) -> None:
    expected = merged(SPECIFIED[method], PRESETS[method].get(preset, {}))
    assert settings(method, preset=preset) == expected


@pytest.mark.parametrize("method", PRESETS)
def test_every_preset_is_in_the_table(method: str) -> None:
    assert set(methods.get(method).Config.presets) == set(PRESETS[method])


# --- the recipes of the published rows: how the stream is cut, the weights, the eval view, and the settings

STREAMS = {  # classes of the first task and of every other; None for classes in their own order
    "aper": {
        "cifar100": (5, 1993), "imagenet-r": (5, 1993), "cub": (10, 1993), "imagenet-a": (10, 1993),
        "objectnet": (10, 1993), "omnibenchmark": (30, 1993), "vtab": (10, None),
    },
    "ranpac": {
        "cifar100": (10, 1993), "imagenet-r": (20, 1993), "cub": (20, 1993), "imagenet-a": (20, 1993),
        "omnibenchmark": (30, 1993), "vtab": (10, None),
    },
    "fecam": {"cifar100": (10, None), "imagenet-r": (20, 1993)},
    "slca": {"cifar100": (10, 1993), "imagenet-r": (20, 1993), "cub": (20, 1993)},
    "ease": {
        "cifar100": (5, 1993), "imagenet-r": (20, 1993), "cub": (10, 1993), "imagenet-a": (20, 1993),
        "objectnet": (10, 1993), "vtab": (10, None),
    },
    "mos_release": {
        "cifar100": (5, 1993), "imagenet-r": (20, 1993), "cub": (10, 1993), "imagenet-a": (20, 1993),
        "objectnet": (20, 1993), "omnibenchmark": (20, 1993), "vtab": (10, None),
    },
}  # fmt: skip
VIEWS = {  # the eval view where it is not `lamda`
    ("ranpac", "cifar100"): "ranpac_cifar",
    ("fecam", "cifar100"): "fecam_cifar",
    ("slca", "cifar100"): "slca_cifar",
    ("slca", "imagenet-r"): "slca",
    ("slca", "cub"): "slca",
}
IN1K = {("ranpac", data) for data in ("imagenet-r", "cub", "imagenet-a", "vtab")}  # tuned to ImageNet-1k
DEEP = train(5, 0.05, 16, 5e-4)
APER: dict[tuple[str, str], dict[str, Any]] = {  # what adapts
    **{(data, "adapter"): ADAPTER for data in STREAMS["aper"]},
    **{(data, "ssf"): part("ssf") for data in STREAMS["aper"]},
    **{(data, "vpt_shallow"): part("vpt_shallow", **ZEROS) for data in STREAMS["aper"]},
    **{(data, "vpt_deep"): part("vpt_deep", DEEP, **ZEROS) for data in STREAMS["aper"]},
    **{(data, "finetune"): part("finetune", train(5, 0.01, 128, 5e-4)) for data in STREAMS["aper"]},
    ("imagenet-r", "adapter"): part("adapter", train(20, 0.05, 24, 0.005), rank=64),
    ("objectnet", "vpt_deep"): part("vpt_deep", train(20, 0.01, 48, 5e-4), **ZEROS),  # the log's batch, not the file's
    ("omnibenchmark", "vpt_deep"): part("vpt_deep", train(20, 0.01, 48, 5e-4), **ZEROS),
    ("cifar100", "finetune"): part("finetune", train(20, 0.01, 48, 0.05)),  # the log's, not the file's
    ("vtab", "finetune"): part("finetune", train(5, 0.01, 48, 0.05)),  # the log's batch and decay
}
ROWS: dict[tuple[str, str, str], dict[str, Any]] = {
    **{("aper", data, f"aper_{v}_vitb16_in21k"): {"adapt": how} for (data, v), how in APER.items()},
    **{
        ("ranpac", data, "ranpac_vitb16"): PRESETS["ranpac"][preset]
        for data, preset in {
            "cifar100": "paper", "imagenet-r": "paper_ssf", "cub": "paper", "imagenet-a": "paper_ssf",
            "omnibenchmark": "paper_vpt", "vtab": "paper_ssf",
        }.items()
    },
    ("ranpac", "cifar100", "ranpac_nophase1_vitb16_in21k"): {},
    ("fecam", "cifar100", "fecam_vitb16_in21k"): PRESETS["fecam"]["paper"],
    ("fecam", "imagenet-r", "fecam_vitb16_in21k"): PRESETS["fecam"]["paper_imagenet_r"],
    ("slca", "cifar100", "slca_vitb16_in21k"): PRESETS["slca"]["paper"],
    ("slca", "imagenet-r", "slca_vitb16_in21k"): PRESETS["slca"]["paper_imagenet_r"],
    ("slca", "cub", "slca_vitb16_in21k"): PRESETS["slca"]["paper_cub"],
    **{
        (method, data, f"{file}_vitb16_in21k"): PRESETS[method]["official_" + data.replace("-", "_")]
        for method, file in (("ease", "ease"), ("mos_release", "mos"))
        for data in STREAMS[method]
    },
}  # fmt: skip


@pytest.mark.parametrize(("method", "data", "name"), ROWS)
def test_recipes_are_the_published_rows(method: str, data: str, name: str) -> None:
    told = yaml.safe_load((ROOT / "recipes" / data / f"{name}.yaml").read_text())
    classes, order = STREAMS[method][data]
    source = data if data == "cifar100" else f"data/{data}"
    stream = load(StreamConfig, told["stream"])
    assert stream == StreamConfig(preset=stream.preset, data=source, base=classes, increment=classes, order_seed=order)
    tuned = "_ft_in1k" if (method, data) in IN1K else ""
    view = VIEWS.get((method, data), "lamda")
    assert told["backbone"] == {"name": f"vit_base_patch16_224.augreg_in21k{tuned}", "preset": view}
    assert told["method"].pop("name") == method
    assert settings(method, **told["method"]) == merged(SPECIFIED[method], ROWS[method, data, name])


def test_every_published_recipe_is_in_the_table() -> None:
    shipped = {
        (path.parent.name, path.stem)
        for path in (ROOT / "recipes").glob("*/*vitb16*.yaml")
        if yaml.safe_load(path.read_text())["method"]["name"] in SPECIFIED and "laion" not in path.stem
    }
    assert shipped == {(data, name) for _, data, name in ROWS}
