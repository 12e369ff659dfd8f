"""What holds for the settings of every registered method: a method that is added is held to it without being named."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from perdure.checks.subject import small_stream
from perdure.config import KINDS, laid_over, load, sections
from perdure.errors import RecipeError
from perdure.memory import FeatureStore
from perdure.methods import Method, methods
from tiny_clip import clip
from tiny_vit import tiny

# where each method's training has its settings
TRAINS = {
    "aper": "adapt.train", "ease": "adapter.train", "fecam": "adapt.train", "finetune": "train", "joint": "train",
    "lae": "train", "mos": "adapter.train", "mos_release": "adapter.train", "ranpac": "adapt.train", "slca": "train",
    **dict.fromkeys(("cofima", "coma", "er", "agem", "gem", "joint_finetune"), "train"),
    **dict.fromkeys(("vpt", "l2p", "dualprompt", "coda_prompt", "dap"), "train"),
}  # fmt: skip

Bounds = tuple[list[Any], list[Any]]  # the nearest values that are refused, and the last ones that are taken
COUNT: Bounds = ([0, 0.5], [1, 10**6])
FROM_0: Bounds = ([-1], [0, 10**6])
POSITIVE: Bounds = ([0.0], [1e-12, 1e9])
NOT_NEGATIVE: Bounds = ([-1e-12], [0.0, 1e9])
SHARE: Bounds = ([-1e-12, 1 + 1e-12], [0.0, 1.0])
SHARE_ABOVE_0: Bounds = ([0.0, 1 + 1e-12], [1e-12, 1.0])
SHARE_BELOW_1: Bounds = ([-1e-12, 1.0], [0.0, 1 - 1e-12])
SHARE_BETWEEN: Bounds = ([0.0, 1.0], [1e-12, 1 - 1e-12])
BOUNDS: dict[str, Bounds] = {  # by the last part of a setting's path, or by all of it where a setting has its own
    "accumulate": COUNT, "again": COUNT, "alpha": NOT_NEGATIVE, "batch_size": COUNT, "beta": NOT_NEGATIVE,
    "beta1": SHARE_BELOW_1, "beta2": SHARE_BELOW_1, "clip": POSITIVE,
    "clip_norm": POSITIVE, "each": COUNT, "embedding_dim": COUNT, "epochs": COUNT,
    "first": POSITIVE, "fusion": NOT_NEGATIVE, "head_lr": POSITIVE, "layers": ([[]], [[0], [10**6, 0]]),
    "layers_e": ([[]], [[0], [1, 0]]), "layers_g": ([[0.5]], [[], [0], [1, 0]]), "length": COUNT,
    "coda_prompt.length": ([0, 1, 3], [2, 4]), "length_e": COUNT, "length_g": COUNT, "lr": POSITIVE,
    "mean_decay": SHARE, "merge": SHARE_BELOW_1, "milestone": COUNT, "min_scale": SHARE_ABOVE_0,
    "momentum": SHARE_BELOW_1, "mu": NOT_NEGATIVE, "n_prompts": FROM_0,
    "old_classes_per_step": COUNT, "old_samples": COUNT, "pool": COUNT, "power": SHARE,
    "projection_dim": FROM_0, "prompt_length": COUNT, "pull": NOT_NEGATIVE, "rank": COUNT, "reg": NOT_NEGATIVE,
    "resize": COUNT, "ridge": NOT_NEGATIVE, "samples": COUNT,
    "shrink_diagonal": NOT_NEGATIVE, "shrink_off_diagonal": SHARE, "sim_temperature": POSITIVE, "slow": SHARE,
    "tasks": ([0, 101], [1, 100]), "tau": NOT_NEGATIVE, "theta": NOT_NEGATIVE,
    "top_k": COUNT, "validation_fraction": SHARE_BETWEEN,
    "ensemble": COUNT, "images": NOT_NEGATIVE, "iterations": COUNT, "smoothing": SHARE_BELOW_1,
    "temperature": POSITIVE, "texts": NOT_NEGATIVE,
    "value": POSITIVE, "vote": COUNT, "warmup": FROM_0, "weight": SHARE, "weight_decay": NOT_NEGATIVE,
    "rail.beta": SHARE, "rail.ridge": POSITIVE, "gamma": POSITIVE, "scale": POSITIVE,
    "esn.beta": POSITIVE, "esn.weight": NOT_NEGATIVE,
    "candidates": ([[], [0.0]], [[1e-12], [1.0, 0.5]]), "depth": NOT_NEGATIVE, "dropout": SHARE_BELOW_1, "heads": COUNT,
    "margin": NOT_NEGATIVE, "n_images": COUNT, "n_per_class": COUNT, "per_step": COUNT, "per_class": COUNT,
    "projected": NOT_NEGATIVE,
    "text": SHARE,
    "booster_prompt": COUNT, "clip_prompt": COUNT, "context": COUNT, "distil": NOT_NEGATIVE, "hidden": COUNT,
    "init_seed": FROM_0, "rate": SHARE, "rate_weight": NOT_NEGATIVE,
    "blocks": COUNT, "decay": SHARE_BETWEEN, "held": SHARE_BELOW_1, "turnover": SHARE_BETWEEN,
}  # fmt: skip
MIN_SCALE = {
    "agem": [1.0], "aper": [0.05], "cofima": [0.5], "coma": [0.5], "coda_prompt": [0.08], "dap": [1.0],
    "dualprompt": [0.5], "ease": [0.05], "er": [1.0], "esn": [0.08], "fecam": [], "finetune": [0.5], "gem": [1.0],
    "joint": [], "joint_finetune": [0.5], "l2p": [0.5], "lae": [0.08], "mos": [0.05], "mos_release": [0.05],
    **{name: [] for name in ("clip_cache", "clip_linear", "clip_prototypes", "clip_zeroshot", "coop")},
    **{name: [] for name in ("promptfusion", "proof", "rail", "rapf")},
    "ranpac": [], "simplecil": [], "slca": [0.5], "vpt": [0.5], "zscl": [0.9],
}  # fmt: skip


def is_number(annotation: Any) -> bool:
    """Whether a field holds a number, or none or more of them."""
    return annotation in (int, float) or any(map(is_number, get_args(annotation)))


def number_settings(model: type[BaseModel], under: dict[str, Any] | None = None) -> Iterator[tuple[str, Any]]:
    """Path of every setting that holds a number, and the values that choose the kinds of sections on the way to it."""
    inner = sections(model)
    for name, field in model.model_fields.items():
        if name not in inner and is_number(field.annotation):
            yield name, {}
        for kind in inner.get(name, []):
            tag = {k: f.default for k, f in kind.model_fields.items() if k in KINDS}
            tag |= {k: 1 for k, f in kind.model_fields.items() if tag and f.is_required()}
            for path, chosen in number_settings(kind):
                yield f"{name}.{path}", {name: {**tag, **chosen}}


def put(values: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """``values`` with one more, at ``path``."""
    first, _, rest = path.partition(".")
    return {**values, first: put(values.get(first, {}), rest, value) if rest else value}


def taken_from(config: Any, path: str) -> Any:
    return taken_from(getattr(config, path.partition(".")[0]), path.partition(".")[2]) if path else config


def key_of(name: str, path: str) -> str:
    last = path.rpartition(".")[2]
    return f"{name}.{last}" if f"{name}.{last}" in BOUNDS else last


def training(name: str, **settings: Any) -> dict[str, Any]:
    """A method's settings with those of its training changed."""
    values: dict[str, Any] = settings
    for section in reversed(TRAINS[name].split(".")):
        values = {section: {"variant": "adapter", **values} if section == "adapt" else values}
    return values


def rates_of(name: str, **settings: Any) -> tuple[Method[Any], list[list[float]]]:
    """A method that has learned a task of 12 images in batches of 8, and its groups' learning rates at every step."""
    kind, rates = methods.get(name), []
    config = kind.Config(**laid_over(kind.tags.small, training(name, batch_size=8, **settings)))
    method = kind(tiny(depth=3), config)
    hook = register_optimizer_step_pre_hook(lambda o, *_: rates.append([group["lr"] for group in o.param_groups]))
    try:
        method.fit_task(small_stream()[0])
    finally:
        hook.remove()
    return method, rates


@pytest.mark.parametrize("name", TRAINS)
def test_a_milestone_is_where_the_rate_becomes_a_tenth(name: str) -> None:
    """Two epochs of two steps at the peak, then one epoch at a tenth of it, in every group."""
    method, rates = rates_of(name, schedule={"name": "milestone", "milestone": 2}, epochs=3)
    c = taken_from(method.config, TRAINS[name])
    assert len(rates) == 6
    assert rates[0][0] == pytest.approx(c.lr * c.batch_size / 256 if c.model_dump().get("scale_lr") else c.lr)
    for step, by_group in enumerate(rates):
        assert by_group == pytest.approx([peak * (1 if step < 4 else 0.1) for peak in rates[0]], rel=1e-12)


@pytest.mark.parametrize("name", TRAINS)
def test_a_milestone_is_told_or_refused_at_the_door(name: str) -> None:
    """A default of the method's own is told where it cannot be reached."""
    config = methods.get(name).Config
    with pytest.raises(RecipeError, match=r"milestone must be .*, but got None"):
        load(config, training(name, schedule={"name": "milestone", "milestone": None}))
    with pytest.warns(UserWarning, match="is never reached in 1 epochs"):
        load(config, training(name, schedule={"name": "milestone", "milestone": 1}, epochs=1))


@pytest.mark.parametrize("name", TRAINS)
def test_a_cosine_counts_the_short_last_batch_as_a_step(name: str) -> None:
    """12 images are two steps of 8: the second is half-way down, neither at the peak nor at zero."""
    _, rates = rates_of(name, epochs=1, schedule={"name": "cosine"})
    assert len(rates) == 2
    assert rates[1] == pytest.approx([peak / 2 for peak in rates[0]], rel=1e-12)


@pytest.mark.parametrize("name", methods.names())
def test_a_number_is_taken_up_to_its_bounds_and_refused_beyond(name: str) -> None:
    config = methods.get(name).Config
    for path, chosen in number_settings(config):
        refused, taken = BOUNDS[key_of(name, path)]
        for value in refused:
            with pytest.raises(RecipeError) as error:
                load(config, put(chosen, path, value))
            assert f"{config.__name__}: {path}" in str(error.value)
            assert repr(value[-1] if isinstance(value, list) and value else value) in str(error.value)
        for value in taken:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".* (is never reached in|change a step after its) ")
                assert taken_from(load(config, put(chosen, path, value)), path) == value


def test_no_bound_is_told_of_a_setting_that_no_method_has() -> None:
    assert {key_of(name, p) for name in methods.names() for p, _ in number_settings(methods.get(name).Config)} == set(
        BOUNDS
    )


def test_the_smallest_crop_by_method() -> None:
    def found(values: Any) -> list[float]:
        inner = [x for v in values.values() if isinstance(v, dict) for x in found(v)]
        return [values["min_scale"], *inner] if "min_scale" in values else inner

    assert {name: found(methods.get(name).Config().model_dump()) for name in methods.names()} == MIN_SCALE


@pytest.mark.parametrize("name", methods.names())
def test_a_seed_that_is_not_given_is_0(name: str) -> None:
    assert inspect.signature(methods.get(name)).parameters["seed"].default == 0


def test_what_each_method_says_of_itself() -> None:
    said = {
        tag: {name for name in methods.names() if getattr(methods.get(name).tags, tag)}
        for tag in ("split_invariant", "trains_backbone", "adapts", "prompted", "keeps_data", "depends_on_test_batch")
    }
    assert said == {
        "split_invariant": {"simplecil", "fecam", "clip_prototypes", "clip_zeroshot", "rail"},
        "trains_backbone": {"cofima", "coma", "finetune", "joint_finetune", "slca"},
        "adapts": {"aper", "ease", "lae", "mos", "mos_release", "zscl"},
        "prompted": {"coda_prompt", "dap", "dualprompt", "esn", "l2p", "promptfusion", "vpt"},
        "keeps_data": {"agem", "clip_cache", "er", "gem", "joint", "joint_finetune", "promptfusion", "proof"},
        "depends_on_test_batch": {"mos_release"},
    }
    assert {name: kind for name in methods.names() if (kind := methods.get(name).tags.backbone) != "any"} == {
        **dict.fromkeys(("coda_prompt", "dap", "dualprompt", "esn", "l2p", "vpt"), "vit"),
        **dict.fromkeys(("ease", "mos", "mos_release"), "transformer"),
        **dict.fromkeys(("clip_cache", "clip_prototypes", "clip_zeroshot", "coop"), "towers"),
        **dict.fromkeys(("promptfusion", "proof", "rail", "rapf", "zscl"), "towers"),
    }


@pytest.mark.parametrize("name", methods.names())
def test_a_method_has_what_it_is_given(name: str, store: FeatureStore) -> None:
    kind = methods.get(name)
    backbone, config = clip() if kind.tags.backbone == "towers" else tiny(depth=3), kind.Config(**kind.tags.small)
    method = kind(backbone, config, seed=5, store=store)
    assert (method.backbone, method.config, method.seed, method.store) == (backbone, config, 5, store)


@pytest.mark.parametrize(
    ("name", "old", "place"),
    [
        *[(name, key, f"{TRAINS[name]}.{key}") for name in TRAINS for key in ("lr", "optimizer", "schedule")],
        *[(name, "min_scale", f"{TRAINS[name]}.augment.min_scale") for name in TRAINS if name != "joint"],
        ("l2p", "train_vote_group", "train_prompts.vote"), ("l2p", "train_prompt", "train_prompts"),
        ("dualprompt", "key_update", "keys"), ("dualprompt", "pull", "keys.pull"),
        ("dap", "query_view", "keys.query_view"),
        ("coda_prompt", "init", "components.ortho"), ("coda_prompt", "components_per_task", "components.each"),
        ("vpt", "train_logits", "mode"), ("dap", "train_logits", "logits"), ("dap", "eval_order", "vote.order"),
        ("fecam", "power", "features.power"), ("ranpac", "ridge_value", "ridge.value"),
    ],
)  # fmt: skip
def test_an_old_key_is_told_its_new_place(name: str, old: str, place: str) -> None:
    with pytest.raises(RecipeError, match=rf"but got '{old}'\. Write it as ([\w.]+ or )*{place}( or |\.)"):
        load(methods.get(name).Config, {old: "anything"})
