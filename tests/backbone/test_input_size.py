"""A size that a model does not take is refused when the backbone is made; any other is not."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from perdure import Backbone
from perdure.backbone.input_size import require_size
from perdure.data import Preprocess
from perdure.errors import ConfigError
from perdure.run import Runner, load_recipe

FIXED = {  # small models of several families; each names its weights' size
    "vit_tiny_patch16_384": 384,
    "deit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "levit_128s": 224,
}


@pytest.mark.parametrize(("name", "own"), FIXED.items())
def test_a_model_of_one_size_takes_no_other(name: str, own: int) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=0)
    require_size(model, own, name)
    other = 224 if own != 224 else 256
    with pytest.raises(ConfigError) as caught:
        Backbone(model, name=name, preprocess=Preprocess(other), device="cpu")
    assert f"image size must be one that {name} takes, such as its own {own}, but got {other}." in str(caught.value)
    assert f"use {own} pixels, or take a model for images of {other} pixels" in str(caught.value)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "resnet18"])
@pytest.mark.parametrize("size", [96, 224])
def test_a_model_of_any_size_takes_them(name: str, size: int) -> None:
    model = timm.create_model(name, pretrained=False, num_classes=0)
    require_size(model, size, name)
    assert (
        Backbone(model, name=name, preprocess=Preprocess(size), device="cpu")
        .features(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        .isfinite()
        .all()
    )


def test_a_model_built_for_another_size_has_that_one() -> None:
    model = timm.create_model("vit_tiny_patch16_384", pretrained=False, num_classes=0, img_size=224, depth=1)
    require_size(model, 224, "built")
    with pytest.raises(ConfigError, match="its own 224, but got 384"):
        require_size(model, 384, "built")


class Stubborn(nn.Module):
    """Fails whatever it is given; and, like a plug-in's, tells no size unless it is asked to."""

    def __init__(self, **told: dict) -> None:
        super().__init__()
        self.__dict__ |= told

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError


def test_a_model_that_cannot_be_tried_is_not_refused() -> None:
    require_size(Stubborn(), 100, "stubborn")
    require_size(Stubborn(pretrained_cfg={"input_size": (3, 224, 224)}), 100, "stubborn")


def test_a_run_is_refused_before_its_directory_is_made(tmp_path: Path) -> None:
    backbone = ["backbone.name=vit_tiny_patch16_384", "backbone.pretrained=false", "backbone.preset=lamda"]
    recipe = load_recipe(None, ["stream.data=synthetic", "stream.tasks=3", "method.name=simplecil", *backbone])
    with pytest.raises(ConfigError, match="its own 384, but got 224"):
        Runner(recipe, tmp_path / "run").run()
    assert not (tmp_path / "run").exists()
