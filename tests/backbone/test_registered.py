"""Backbones of plug-ins: found by name everywhere a built-in one is, and refused by name where they are broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from perdure import Backbone, FeatureStore, load_stream
from perdure.backbone import backbones, registered
from perdure.data import Preprocess
from perdure.errors import BackboneError, ConfigError, RecipeError, UnknownNameError
from perdure.registry import PluginWarning, Registry
from perdure.run import load_recipe
from perdure.run.summary import versions
from plugins import Install
from tiny_vit import tiny

GROUP = "perdure.backbones"
BUILT_IN = ["clip_default", "clip_lite0", "default", "efficientnet_lite0", "open_clip/"]
SOURCE = """
from perdure.backbone import backbones
from perdure.data import Preprocess
from tiny_vit import tiny

@backbones.register("tiny_far")
def load_far():
    return tiny().model, Preprocess(image_size=8)
"""
RECIPE = ["stream.data=synthetic", "stream.tasks=2", "method.name=simplecil"]


def test_a_plugins_backbone_is_found_by_its_name(install: Install, store: FeatureStore) -> None:
    install("perdure-far", {GROUP: {"tiny_far": "perdure_far"}}, SOURCE, "0.7")
    backbone = Backbone.load("tiny_far", device="cpu")
    assert (backbone.name, backbone.dim, backbone.preprocess.image_size) == ("tiny_far", 8, 8)
    data = load_stream("synthetic", tasks=1).test(0)
    images = torch.cat([x for _, x in data.batches(backbone.preprocess, 8)])
    assert torch.equal(store.features(backbone, data)[:], tiny().features(images))
    with pytest.raises(ConfigError, match="tiny_far takes, such as its own 8, but got 224"):  # the preset's
        Backbone.load("tiny_far", preset="lamda")
    recipe = load_recipe(None, [*RECIPE, "backbone.name=tiny_far", "backbone.device=cpu"])
    assert recipe.backbone.name == "tiny_far"
    assert recipe.load_backbone().fingerprint == backbone.fingerprint
    assert versions()["perdure-far"] == "0.7"


def test_a_plugins_backbone_has_its_own_weights_or_none(install: Install) -> None:
    install("perdure-far", {GROUP: {"tiny_far": "perdure_far"}}, SOURCE)
    for options in ({"pretrained": False}, {"weights": "w.safetensors"}):
        with pytest.raises(BackboneError, match=r"weights of tiny_far must be its own, but got 'random ones or"):
            Backbone.load("tiny_far", **options)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"weights of tiny_far must be its own"):
        load_recipe(None, [*RECIPE, "backbone.name=tiny_far", "backbone.pretrained=false"])
    with pytest.raises(UnknownNameError, match="Did you mean 'tiny_far'"):
        Backbone.load("tiny_fra")


def test_a_broken_plugin_costs_no_other_backbone(install: Install) -> None:
    install("perdure-bad", {GROUP: {"tiny_bad": "perdure_bad", "test_vit": "perdure_bad"}}, "raise OSError('no disk')")
    with pytest.warns(PluginWarning, match="perdure-bad"):
        assert backbones.names() == BUILT_IN
    assert "perdure-bad" not in versions()
    assert Backbone.load("test_vit", pretrained=False).dim == 64  # which timm has under that name
    for own in (True, False):
        with pytest.raises(UnknownNameError, match=r"got 'tiny_bad'\. Mend .*no disk") as caught:
            Backbone.load("tiny_bad", pretrained=own)
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(RecipeError, match="no disk"):
        load_recipe(None, [*RECIPE, "backbone.name=tiny_bad"])


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (None, "(model, Preprocess), but got None"),
        ((nn.Identity(),), "(model, Preprocess), but got (Identity(),)"),
        ((nn.Identity(), 224), "(model, Preprocess), but got (Identity(), 224)"),
        (("vit", Preprocess(image_size=8)), "(model, Preprocess), but got ('vit'"),
        (
            (nn.Identity(), Preprocess(image_size=8)),
            "Identity without forward_features, forward_head, head_hidden_size",
        ),
    ],
)
def test_what_a_loader_returns_must_be_a_model_and_its_view(
    made: object, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine: Registry[Any] = Registry("backbone")
    mine.register("odd")(lambda: made)
    monkeypatch.setattr(registered, "backbones", mine)
    with pytest.raises(BackboneError) as caught:
        Backbone.load("odd")
    assert told in str(caught.value)


def test_what_is_built_in_is_registered_like_any_other() -> None:
    assert backbones.names() == BUILT_IN
    assert Backbone.load("efficientnet_lite0", pretrained=False, device="cpu").name == "efficientnet_lite0"
    with pytest.raises(BackboneError, match="weights of default must be its own"):
        Backbone.load("default", weights="w.safetensors")


def test_a_family_takes_the_rest_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    mine: Registry[Any] = Registry("backbone")
    asked: dict[str, Any] = {}

    @mine.register("far/")
    def load(name: str, **options: Any) -> registered.Stock:
        asked.update(name=name, **options)
        return registered.Stock(tiny().model, Preprocess(image_size=8))

    monkeypatch.setattr(registered, "backbones", mine)
    assert Backbone.load("far/one/two", weights="w.pt", init_seed=3, device="cpu").name == "far/one/two"
    assert asked == {"name": "one/two", "weights": Path("w.pt"), "pretrained": True, "init_seed": 3}
    assert registered.family_of("far") == registered.family_of("near/one") == ""
