"""What a fingerprint sees besides tensors, and what a shelf of features is told apart by."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
import pytest
import timm
import torch
from torch import Tensor, nn

from perdure import Backbone, FeatureStore
from perdure.backbone import settings
from perdure.backbone.settings import settings_of, stock_settings, unusual_settings
from perdure.data import load_stream
from perdure.errors import BackboneError
from tiny_vit import tiny


class Scaled(nn.Module):
    """An adapter whose strength is a plain attribute that no ``extra_repr`` tells."""

    def __init__(self, dim: int, scale: object) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.ones(dim), requires_grad=False)

    def forward(self, u: Tensor) -> Tensor:
        return u * self.weight * float(self.scale)  # type: ignore[arg-type]


def scaled(stock: Backbone, scale: object) -> Backbone:
    view = stock.view()
    view.insert("mlp", lambda site: Scaled(site.n_in, scale))
    return view


def test_a_plain_attribute_of_an_inserted_module_is_seen(backbone: Backbone, store: FeatureStore) -> None:
    data = load_stream("synthetic", tasks=1).test(0)
    weak, strong = scaled(backbone, 0.1), scaled(backbone, 2.0)
    assert len({weak.fingerprint, strong.fingerprint, backbone.fingerprint}) == 3
    assert weak.fingerprint == scaled(backbone, 0.1).fingerprint
    for view in (weak, strong):
        _, pixels = next(data.batches(view.preprocess, 8))
        assert torch.equal(store.features(view, data)[:8], view.features(pixels))
    for module in strong.insertions.modules():
        if isinstance(module, Scaled):
            module.scale = 0.1
    assert strong.fingerprint == weak.fingerprint


def function(x: Tensor) -> Tensor:
    return 2 * x


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (None, False), (1, 1.0), (1, True), ("1", 1), ((1, 2), [1, 2]), ((1, 2), (2, 1)), ({1, 2}, {1, 3}),
        ({"a": 1}, {"a": 2}), ({"a": {"b": (1,)}}, {"a": {"b": (2,)}}), (1 + 2j, 2 + 2j), (b"a", b"b"),
        (slice(1), slice(2)), (torch.float32, torch.float64), (np.float32(1), np.float32(2)),
        (torch.zeros(2), torch.zeros(3)), (torch.zeros(2), torch.ones(2)), (torch.zeros(2), torch.zeros(2).half()),
        (np.zeros(2), np.ones(2)), (nn.ReLU, nn.GELU), (torch.relu, torch.tanh), (function, torch.relu),
        (functools.partial(function, x=1), functools.partial(function, x=2)),
        (nn.functional.gelu, nn.functional.relu),
    ],
)  # fmt: skip
def test_different_values_are_told_apart(one: object, other: object) -> None:
    module = nn.Identity()
    told = []
    for value in (one, other, one):
        module.kept = value
        told.append(settings_of(module))
    assert told[0] == told[2] != told[1]


def strength(by: float) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor, shift: float = 1.0) -> Tensor:
        return x * by + shift

    return forward


def test_what_a_function_closes_over_is_seen() -> None:
    module, told = nn.Identity(), []
    for by in (1.0, 2.0, 1.0):
        module.kept = strength(by)
        told.append(settings_of(module))
    module.kept.__defaults__ = (3.0,)
    assert told[0] == told[2] != told[1]
    assert settings_of(module) != told[0]


class Holder:
    """Something of which nobody knows what it does."""


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (Holder(), "a Holder"), (nn.Linear(2, 2), "a Linear"), (torch.Generator(), "a Generator"),
        ({"inside": [Holder()]}, "a Holder"), (strength(Holder()), "a Holder"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_what_cannot_be_told_apart_is_refused(value: object, got: str, backbone: Backbone) -> None:
    view = backbone.view()
    view.insert("mlp", lambda site: Scaled(site.n_in, 1.0), blocks=[2])
    inserted = next(m for m in view.insertions.modules() if isinstance(m, Scaled))
    inserted.__dict__["odd"] = value  # past nn.Module, which would register a module
    with pytest.raises(BackboneError) as error:
        view.fingerprint  # noqa: B018
    told = f"Backbone.fingerprint: +0.inserted.0.odd must be something that can be told apart, but got '{got}'. Keep it"
    assert str(error.value).startswith(told)
    with pytest.raises(BackboneError, match="odd"):
        view.shelf  # noqa: B018


def changed(**how: Any) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model("test_vit", num_classes=0, **how)
    return model


def test_pooling_makes_another_fingerprint_and_another_shelf(backbone: Backbone, store: FeatureStore) -> None:
    data = load_stream("synthetic", tasks=1).test(0)
    averaging = changed(global_pool="avg", fc_norm=False)
    averaging.load_state_dict(backbone.model.state_dict())
    other = Backbone(averaging, name=backbone.name, preprocess=backbone.preprocess, device="cpu")
    assert other.fingerprint != backbone.fingerprint
    rows = [store.features(b, data)[:] for b in (backbone, other)]
    assert (rows[0] - rows[1]).abs().max() > 0.1


def edit_act(model: Any) -> None:
    model.blocks[3].mlp.act = nn.ReLU()


def edit_gelu(model: Any) -> None:
    model.blocks[0].mlp.act.approximate = "tanh"


def edit_stride(model: Any) -> None:
    model.patch_embed.proj.stride = (8, 8)


def edit_eps(model: Any) -> None:
    model.norm.eps = 1e-3


def edit_heads(model: Any) -> None:
    model.blocks[1].attn.num_heads = 1


def edit_hook(model: Any) -> None:
    model.norm.register_forward_hook(lambda layer, args, out: 2 * out)


def edit_pre_hook(model: Any) -> None:
    model.blocks[0].register_forward_pre_hook(lambda layer, args: (2 * args[0],))


def edit_forward(model: Any) -> None:
    model.blocks[0].forward = strength(2.0)


def edit_order(model: Any) -> None:
    model.blocks = nn.Sequential(*reversed(list(model.blocks)))


def edit_missing(model: Any) -> None:
    model.norm = nn.Identity()


def edit_training(model: Any) -> None:
    model.blocks[2].train()


def edit_buffer(model: Any) -> None:
    model.register_buffer("unsaved", torch.ones(1), persistent=False)


EDITS = [edit_act, edit_gelu, edit_stride, edit_eps, edit_heads, edit_hook, edit_pre_hook, edit_forward, edit_order,
         edit_missing, edit_training, edit_buffer]  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
def test_whatever_the_forward_pass_reads_is_in_the_fingerprint(edit: Callable[[nn.Module], None]) -> None:
    backbone = Backbone.load("test_vit", pretrained=False, device="cpu")
    before = backbone.fingerprint
    edit(backbone.model)
    assert backbone.fingerprint != before


def test_a_buffer_that_is_never_saved_is_seen(backbone: Backbone) -> None:
    found = set()
    for value in (0.0, 1.0):
        backbone.model.register_buffer("unsaved", torch.full((1,), value), persistent=False)
        found.add(backbone.fingerprint)
    assert len(found) == 2


@pytest.mark.parametrize("name", ["default", "efficientnet_lite0", "test_vit", "test_efficientnet", "test_convnext"])
def test_a_model_as_it_is_loaded_has_no_setting_of_its_own(name: str) -> None:
    built_in = name in ("default", "efficientnet_lite0")
    backbone = Backbone.load(name, pretrained=built_in, device="cpu")
    assert unusual_settings(backbone.model, backbone.name) == ()
    assert len(stock_settings(name)) > 100
    assert stock_settings("test_vit.r160_in1k") == stock_settings("test_vit")


def test_a_model_of_an_unknown_name_tells_all_its_settings() -> None:
    model = tiny().model
    assert stock_settings("nobody's") == {}
    assert dict(unusual_settings(model, "nobody's")) == settings_of(model)


def test_a_model_that_is_built_from_values_of_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    built = timm.create_model

    def create(name: str, **options: Any) -> nn.Module:
        float(torch.zeros(1))  # a tensor on the device "meta" has no value
        return built(name, **options)

    stock = stock_settings("test_vit")
    stock_settings.cache_clear()
    monkeypatch.setattr(timm, "create_model", create)
    before = torch.get_rng_state()
    assert stock_settings("test_vit") == stock
    assert torch.equal(torch.get_rng_state(), before)


def test_new_settings_of_an_upgraded_library_leave_the_fingerprint(
    monkeypatch: pytest.MonkeyPatch, backbone: Backbone
) -> None:
    before, init = backbone.fingerprint, timm.layers.Attention.__init__

    def upgraded(self: nn.Module, *args: Any, **options: Any) -> None:
        init(self, *args, **options)
        self.switch = 7

    stock_settings.cache_clear()
    monkeypatch.setattr(timm.layers.Attention, "__init__", upgraded)
    newer = Backbone.load("test_vit", pretrained=False, device="cpu")
    assert newer.model.blocks[0].attn.switch == 7
    assert newer.fingerprint == before
    stock_settings.cache_clear()


@pytest.mark.parametrize("library", [torch, timm, PIL])
def test_the_shelf_follows_the_libraries_and_the_fingerprint_does_not(
    library: Any, monkeypatch: pytest.MonkeyPatch, backbone: Backbone
) -> None:
    fingerprint, shelf, view = backbone.fingerprint, backbone.shelf, scaled(backbone, 1.0).shelf
    monkeypatch.setattr(library, "__version__", "99.9")
    assert backbone.fingerprint == fingerprint
    assert backbone.shelf != shelf
    assert scaled(backbone, 1.0).shelf != view


def test_fused_attention_is_another_shelf_of_the_same_model(backbone: Backbone) -> None:
    fingerprint, shelf = backbone.fingerprint, backbone.shelf
    backbone.model.blocks[0].attn.fused_attn = not backbone.model.blocks[0].attn.fused_attn
    assert backbone.fingerprint == fingerprint
    assert backbone.shelf != shelf


STRENGTH = 1.0


def twins() -> list[type[nn.Module]]:
    """Two classes of one name that do different things."""
    found = []

    class Twin(nn.Module):
        def forward(self, u: Tensor) -> Tensor:
            return u * STRENGTH

    found.append(Twin)

    class Twin(nn.Module):  # type: ignore[no-redef]
        def forward(self, u: Tensor) -> Tensor:
            return u + STRENGTH

    found.append(Twin)
    return found


def test_what_a_users_code_does_is_in_the_shelf(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    shelves = []
    for kind in twins():
        view = backbone.view()
        view.insert("mlp", lambda site, kind=kind: kind())
        shelves.append(view.shelf)
        assert view.shelf == shelves[-1]
    assert shelves[0] != shelves[1]
    monkeypatch.setitem(globals(), "STRENGTH", 2.0)  # which forward reads
    assert view.shelf not in shelves


def test_a_users_property_class_method_and_partial_are_code_too(backbone: Backbone) -> None:
    def kinds(by: int) -> list[type[nn.Module]]:
        class Property(nn.Module):
            factor = property((lambda self: 1) if by == 1 else (lambda self: 2))

        class Method(nn.Module):
            factor = classmethod((lambda cls: 1) if by == 1 else (lambda cls: 2))

        class Partial(nn.Module):
            factor = functools.partial((lambda cls: 1) if by == 1 else (lambda cls: 2))

        return [Property, Method, Partial]

    for one, other in zip(kinds(1), kinds(2), strict=True):
        shelves = set()
        for kind in (one, other):
            view = backbone.view()
            view.insert("mlp", lambda site, kind=kind: kind())
            shelves.add(view.shelf)
        assert len(shelves) == 2, one


def test_an_inserted_module_is_in_eval_mode(backbone: Backbone) -> None:
    view = backbone.view()
    view.insert("mlp", lambda site: nn.Dropout(0.5))
    pixels = torch.zeros(2, 3, 160, 160, dtype=torch.uint8)
    assert not any(m.training for m in view.insertions.modules())
    assert torch.equal(view.features(pixels), view.features(pixels))


def test_the_shelf_follows_the_reading_rule(monkeypatch: pytest.MonkeyPatch, backbone: Backbone) -> None:
    fingerprint, shelf, view = backbone.fingerprint, backbone.shelf, scaled(backbone, 1.0).shelf
    monkeypatch.setattr(settings, "READING", "another")
    assert backbone.fingerprint == fingerprint
    assert backbone.shelf != shelf
    assert scaled(backbone, 1.0).shelf != view
