"""VPT's settings, what its two modes cost, and the common checks in both modes and on a second ViT."""

from __future__ import annotations

import dataclasses as dc
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from perdure import Backbone, FeatureStore, Stream, Task, load_stream
from perdure.checks import check_method
from perdure.config import laid_over, load
from perdure.data import Preprocess
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import CheckpointError, ConfigError, RecipeError
from perdure.methods.vpt import VPT, VPTConfig
from perdure.modules.cosine_head import CosineHead
from tiny_vit import ON_ANOTHER_VIT, second_vit


def tiny(precision: str = "float32", **options: Any) -> Backbone:
    """Two blocks of width 8 on images of 8 px, random weights."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
    model = VisionTransformer(num_classes=0, **(sizes | options)).requires_grad_(False)
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p))
    return Backbone(model, name="tiny", preprocess=Preprocess(image_size=8), device="cpu", precision=precision)


def vpt(backbone: Backbone, store: FeatureStore, **config: Any) -> VPT:
    small = {"train": {"epochs": 1, "batch_size": 4}, "length": 3}
    return VPT(backbone, VPTConfig(**laid_over(small, config)), store=store)


def pixels(stream: Stream, task: int = 0) -> Tensor:
    return next(stream.test(task).batches(Preprocess(image_size=8), 100))[1]


@pytest.fixture
def stream() -> Stream:
    return load_stream("synthetic", tasks=3)


@pytest.mark.parametrize("pool", ["backbone", "cls", "prompt", "patch+prompt"])
@pytest.mark.parametrize("variant", ["deep", "shallow"])
@pytest.mark.parametrize("global_pool", ["token", "avg"])
def test_what_the_head_reads(pool: str, variant: str, global_pool: str, store: FeatureStore) -> None:
    """An average-pooling model averages patches alone, then its fc_norm; so does what is pooled here."""
    backbone = tiny(global_pool=global_pool)
    method, vit = vpt(backbone, store, variant=variant, pool=pool), backbone.vit
    x = embedded = backbone.embed_tokens(torch.rand(2, 3, 8, 8))
    for i, block in enumerate(vit.blocks):
        if i < len(method.prompts_):
            x = torch.cat([x[:, :1], method.prompts_[i].expand(2, -1, -1), x[:, 1 if i == 0 else 4 :]], 1)
        x = block(x)
    x = vit.norm(x)  # CLS, three prompts, four patches
    by_hand = {
        "backbone": x[:, 0] if global_pool == "token" else x[:, 4:].mean(1),
        "cls": x[:, 0],
        "prompt": x[:, 1:4].mean(1),
        "patch+prompt": x[:, 1:].mean(1),
    }[pool]
    torch.testing.assert_close(method._prompted(embedded), vit.fc_norm(by_hand), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [{"pool": "prompt"}, {"pool": "cls"}, {"mode": "first_task", "head": "cosine"}])
def test_bfloat16_is_close_to_float32(config: dict[str, Any], stream: Stream, store: FeatureStore) -> None:
    exact, rough = (vpt(tiny(p, global_pool="avg"), store, **config) for p in ("float32", "bfloat16"))
    assert rough._prompted(rough.backbone.embed_tokens(pixels(stream))).dtype == torch.float32
    first, second = (m.fit_task(stream[0]).scores(pixels(stream)) for m in (exact, rough))
    torch.testing.assert_close(second, first, atol=0.1, rtol=0)
    assert not torch.equal(second, first)


def test_a_class_token_must_exist_to_be_read(store: FeatureStore) -> None:
    without = tiny(class_token=False, global_pool="avg")
    with pytest.raises(ConfigError, match=r"with a class token, but got 'tiny'\. Use method.pool=backbone"):
        vpt(without, store, pool="cls")
    assert vpt(without, store)._prompted(without.embed_tokens(torch.rand(2, 3, 8, 8))).shape == (2, 8)


def test_equal_tokens_are_warned_of(store: FeatureStore) -> None:
    with pytest.warns(UserWarning, match="init=zeros keeps the 3 tokens of a block equal"):
        vpt(tiny(), store, init="zeros")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vpt(tiny(), store, init="zeros", length=1)


def test_there_is_no_preset_of_settings_that_contradict_themselves() -> None:
    """Pitfall 2: shallow prompts on ImageNet-R are unknown."""
    with pytest.raises(RecipeError, match="the name of a preset"):
        VPTConfig(preset="pilot_shallow_imagenet_r")


def test_prompts_decay_and_the_head_starts_without_bias(stream: Stream, store: FeatureStore) -> None:
    """Weight decay 8 at learning rate 0.1 leaves a fifth after one step of SGD; the gradient is nothing beside it."""
    decay, still = {"name": "sgd", "weight_decay": 8.0}, {"min_scale": 1.0, "flip": False}
    method = vpt(tiny(), store, train={"batch_size": 64, "optimizer": decay, "lr": 0.1, "augment": still})
    before, biases = [p.detach().clone() for p in method.prompts_], []
    for p in method.prompts_:
        p.register_hook(torch.zeros_like)
    prompted = method._prompted

    def noted(embedded: Tensor) -> Tensor:
        biases.append(method.head_.bias.detach().clone())
        return prompted(embedded)

    method._prompted = noted  # type: ignore[method-assign]
    method.fit_task(stream[0])
    for p, old in zip(method.prompts_, before, strict=True):
        torch.testing.assert_close(p.detach(), 0.2 * old)
    assert torch.equal(biases[0], torch.zeros(2))


def test_a_cosine_head_in_sequence(stream: Stream, store: FeatureStore) -> None:
    method = vpt(tiny(), store, head="cosine", head_init="torch_linear", train={"lr": 0.01}).fit_task(stream[0])
    sigma, rows = method.head_.sigma.detach().clone(), method.head_.weight.detach().clone()
    assert sigma != 1
    assert set(method.head_.state_dict()) == {"weight", "sigma"}
    method.fit_task(stream[1])
    assert torch.equal(method.head_.weight[:2], rows)
    assert method.head_.sigma != sigma
    scores = method.scores(pixels(stream))
    embedded = method.backbone.embed_tokens(pixels(stream))
    cosines = F.normalize(method._prompted(embedded), dim=1) @ F.normalize(method.head_.weight, dim=1).T
    torch.testing.assert_close(scores, (method.head_.sigma * cosines).detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scores, method.head_(method._prompted(embedded)).detach(), atol=1e-5, rtol=1e-5)
    fresh = vpt(tiny(), store, head="cosine").load_state_dict(method.state_dict())
    assert torch.equal(fresh.scores(pixels(stream)), scores)


def test_cosine_rows_start_as_a_linear_layers_and_old_ones_stay() -> None:
    head, rng = CosineHead(100), torch.Generator().manual_seed(0)
    head.grow(3, rng)
    old = head.weight.detach().clone()
    head.grow(50, rng)
    assert torch.equal(head.weight[:3], old)
    assert 0.099 < head.weight.abs().max() <= 0.1
    torch.testing.assert_close(head(3 * old), head(old))  # scale does not matter
    torch.testing.assert_close(head(old)[:, :3].diagonal(), torch.ones(3))


def test_sequential_passes_are_those_of_training_and_of_each_test(stream: Stream, store: FeatureStore) -> None:
    backbone = tiny()
    method = vpt(backbone, store, train={"epochs": 3}).fit_task(stream[0])
    assert backbone.passes.images == 3 * 16
    method.predict(stream.test(0))
    method.predict(pixels(stream)[:1])
    assert backbone.passes.images == 3 * 16 + 8 + 1


def test_first_task_never_computes_a_frozen_feature_twice(stream: Stream, store: FeatureStore) -> None:
    """Augmented training needs none; an image of a later task is one more frozen pass, in a test too."""
    backbone = tiny()
    method = vpt(backbone, store, mode="first_task", train={"epochs": 3}).fit_task(stream[0])
    assert backbone.passes.images == 3 * 16 + 2 * 16
    method.fit_task(stream[1])
    assert backbone.passes.images == 3 * 16 + 2 * 16 + 2 * 16
    backbone.passes.images = 0
    for _ in range(2):
        method.predict(stream.test(0))
    method.predict(stream[1].train)
    method.predict(pixels(stream)[:1])
    assert backbone.passes.images == (8 + 8) + 8 + 16 + 2
    assert method.learned_parameters() == 2 * 3 * 8 + 4 * 16


def test_a_class_that_comes_again_gets_the_mean_of_all_its_images(store: FeatureStore) -> None:
    ids = (7, -2)
    day, night = synthetic_dataset(ids, train_per_class=4), synthetic_dataset(ids, train_per_class=2, shift=-40.0)
    method = vpt(tiny(), store, mode="first_task").fit_task(Task(0, day.train, ids))
    first = method.prototypes
    method.fit_task(Task(1, night.train, ids))
    second = (6 * method.prototypes - 4 * first) / 2
    other = vpt(tiny(), store, mode="first_task").fit_task(Task(0, day.train, ids))
    other.sums_, other.counts_ = other.sums_[:0], other.counts_[:0]
    other.fit_task(Task(1, night.train, ids))
    torch.testing.assert_close(second, other.prototypes, atol=1e-9, rtol=0)
    assert (second - first).abs().max() > 0.01
    assert method.counts_.tolist() == [6, 6]


def test_first_task_forgets_nothing_and_learns_the_rest(stream: Stream) -> None:
    backbone = Backbone.load("test_vit", pretrained=False, device="cpu")
    method = VPT(backbone, VPTConfig(mode="first_task", length=2, train={"epochs": 4, "lr": 0.01, "batch_size": 8}))
    before = []
    for task in stream:
        method.fit_task(task)
        before.append(method.scores(next(stream.test(0).batches(backbone.preprocess, 100))[1])[:, :2])
    assert torch.equal(before[0], before[2])
    right = [method.predict(stream.test(i)).numpy() == stream.test(i).labels for i in range(3)]
    assert np.concatenate(right).mean() > 0.8


def test_a_state_of_another_shape_is_refused(stream: Stream, store: FeatureStore) -> None:
    deep, shallow = (vpt(tiny(), store, variant=v).fit_task(stream[0]) for v in ("deep", "shallow"))
    with pytest.raises(CheckpointError, match=r"prompts_.* must be .*, but got "):
        shallow.load_state_dict(deep.state_dict())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("length", 0),
        ("train.lr", -1),
        ("mode", "per_task"),
        ("init", "normal"),
        ("pool", "max"),
        ("mode", "seen"),
    ],
)
def test_bad_settings_are_named(path: str, value: object) -> None:
    section, _, key = path.rpartition(".")
    with pytest.raises(RecipeError, match=path) as caught:
        load(VPTConfig, {section: {key: value}} if section else {key: value})
    assert str(value) in str(caught.value)


class FirstTask(VPT):
    """VPT in its other mode, for the common checks."""

    tags = dc.replace(
        VPT.tags,
        small={**VPT.tags.small, "mode": "first_task", "head": "cosine"},
        expected_failures=dict.fromkeys(
            ("check_what_is_learned_depends_on_the_images", "check_everything_learned_is_used"),
            "an empty head stays in the state, with its scale, when class means have taken its place",
        ),
    )
    __module__ = VPT.__module__


def test_first_task_keeps_every_promise() -> None:
    assert [(r.name, r.note) for r in check_method(FirstTask) if not r.ok] == []


def test_every_promise_is_kept_on_a_second_vit() -> None:
    results = check_method(VPT, only=ON_ANOTHER_VIT, make_backbone=second_vit)
    assert [(r.name, r.note) for r in results if not r.ok] == []
