"""CLIPs of open_clip: the same embeddings as theirs, any image tower, and clear refusals."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from perdure import Backbone
from perdure.backbone import TwoTowers, normalised
from perdure.backbone import clip as clip_module
from perdure.backbone.clip import TINY, from_open_clip
from perdure.errors import BackboneError, PerdureError, UnknownNameError

TEXTS = ["a photo of a cat.", "a dog", "x " * 20]
VISION, TEXT = TINY["vision_cfg"], TINY["text_cfg"]
TIMM = {"timm_model_name": "test_vit", "image_size": 160}
TOWERS: dict[str, tuple[dict[str, Any], bool]] = {  # settings, and whether prompts may be added
    "the paper's": ({}, True),
    "with GELU": ({"quick_gelu": False}, True),
    "with other norms": ({"vision_cfg": {**VISION, "norm_kwargs": {"eps": 1e-3}}}, True),
    "timm's, with a projection behind": ({"vision_cfg": {**TIMM, "timm_pool": "", "timm_proj": "linear"}}, True),
    "timm's, whose classifier projects": ({"vision_cfg": {**TIMM, "timm_pool": "token", "timm_proj": ""}}, True),
    "timm's convolutions": (
        {"vision_cfg": {"timm_model_name": "test_efficientnet", "timm_pool": "avg", "timm_proj": "linear"}},
        False,
    ),
    "a ResNet": ({"vision_cfg": {**VISION, "layers": [1, 1, 1, 1], "width": 16}}, False),
    "with a pooling of its own": ({"vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2}}, False),
    "mean of tokens": ({"vision_cfg": {**VISION, "pool_type": "avg"}}, False),
    "CoCa's text side": ({"text_cfg": {**TEXT, "embed_cls": True}}, True),
    "a text side of open_clip's without a mask": ({"text_cfg": {**TEXT, "no_causal_mask": True}}, True),
}


def random_model(changes: dict[str, Any]) -> Any:
    """A model of open_clip's, small, with random weights."""
    settings = {**TINY, **changes}
    own = "timm_model_name" in settings["vision_cfg"] or settings["text_cfg"] != TEXT
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return (open_clip.CustomTextCLIP if own else open_clip.CLIP)(**settings).eval()


@pytest.mark.parametrize("kind", TOWERS)
def test_embeddings_are_open_clips(kind: str) -> None:
    changes, walkable = TOWERS[kind]
    model, tokenizer = random_model(changes), open_clip.get_tokenizer("ViT-B-32")
    side = model.visual.image_size
    side = side if isinstance(side, int) else side[0]
    images = torch.rand(9, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        image, text = model.encode_image(images), model.encode_text(tokenizer(TEXTS))
    stock = from_open_clip(model, tokenizer, "tiny")
    backbone = TwoTowers(stock.model, name="a CLIP", preprocess=stock.preprocess, device="cpu", **stock.parts)
    found = backbone.image_embeddings(images)
    torch.testing.assert_close(found, image, atol=1e-5, rtol=0)
    assert float(image.std()) > 1e-3 or kind == "timm's convolutions"
    assert torch.equal(backbone.text_embeddings(TEXTS), text)
    torch.testing.assert_close(found.norm(dim=1), image.norm(dim=1))  # raw: not of length 1
    torch.testing.assert_close(normalised(found).norm(dim=1), torch.ones(9))
    assert backbone.fingerprint
    if walkable:
        assert torch.equal(backbone.pool(backbone.tokens(images)), backbone.embed(images)), "no prompts: to the bit"
    else:
        with pytest.raises(BackboneError, match="VisionTransformer"):
            backbone.tokens(images)


def test_the_scale_and_the_view_are_the_models() -> None:
    model = random_model({})
    model.visual.preprocess_cfg = {"size": 64, "resize_mode": "squash", "mean": (0.1, 0.2, 0.3), "std": (1, 2, 3)}
    stock = from_open_clip(model, open_clip.get_tokenizer("ViT-B-32"), "tiny")
    assert stock.parts["logit_scale"] == pytest.approx(1 / 0.07)
    view = stock.preprocess
    assert (view.image_size, view.crop_mode, view.crop_pct, view.mean, view.std) == (
        64, "squash", 1.0, (0.1, 0.2, 0.3), (1, 2, 3),
    )  # fmt: skip


@pytest.fixture
def architecture(tmp_path: Path) -> Iterator[str]:
    """The tiny CLIP, under a name that open_clip knows."""
    before = dict(open_clip.factory._MODEL_CONFIGS), list(open_clip.factory._MODEL_CONFIG_PATHS)
    (tmp_path / "tiny-clip.json").write_text(json.dumps(TINY))
    open_clip.add_model_config(tmp_path)
    yield "tiny-clip"
    open_clip.factory._MODEL_CONFIGS.clear()
    open_clip.factory._MODEL_CONFIGS.update(before[0])
    open_clip.factory._MODEL_CONFIG_PATHS[:] = before[1]


def test_random_weights_by_name(architecture: str) -> None:
    handlers = list(logging.getLogger().handlers)
    one, same, other = (
        Backbone.load(f"open_clip/{architecture}", pretrained=False, init_seed=seed, device="cpu") for seed in (3, 3, 4)
    )
    assert isinstance(one, TwoTowers)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert logging.getLogger().handlers == handlers
    again = Backbone.load(**one.source, device="cpu")  # as a saved method does
    assert again.identity == one.identity


def test_weights_of_a_file(architecture: str, tmp_path: Path) -> None:
    model = random_model({})
    file = tmp_path / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, file)
    backbone = Backbone.load(f"open_clip/{architecture}", weights=file, device="cpu")
    with torch.no_grad():
        text = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS))
    assert isinstance(backbone, TwoTowers)
    assert torch.equal(backbone.text_embeddings(TEXTS), text)
    with pytest.raises(BackboneError, match=r"weights must be an existing checkpoint, but got '.*gone\.pt'"):
        Backbone.load(f"open_clip/{architecture}", weights=tmp_path / "gone.pt", device="cpu")
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(BackboneError, match=r"must be a checkpoint of that architecture, but got '.*junk\.pt'"):
        Backbone.load(f"open_clip/{architecture}", weights=tmp_path / "junk.pt", device="cpu")


@pytest.mark.parametrize(
    ("name", "kind", "told"),
    [
        ("open_clip/ViT-B-61/openai", UnknownNameError, "but got 'ViT-B-61'. Did you mean 'ViT-B-16'"),
        ("open_clip/ViT-B-16/laion", UnknownNameError, "but got 'laion'. Write open_clip/ViT-B-16/WEIGHTS with one of"),
        ("open_clip/ViT-B-16", UnknownNameError, "but got ''. Write open_clip/ViT-B-16/WEIGHTS"),
        (
            "open_clip/ViT-B-16/openai", BackboneError,
            "activation of ViT-B-16 must be QuickGELU, with which openai was trained, but got 'GELU'. "
            "Take open_clip/ViT-B-16-quickgelu/openai",
        ),
        (
            "open_clip/ViT-B-16-quickgelu/odd", BackboneError,
            "must be GELU, with which odd was trained, but got 'QuickGELU'. Take open_clip/ViT-B-16/odd",
        ),
    ],
)  # fmt: skip
def test_unknown_names_and_other_activations_are_refused(
    name: str, kind: type[PerdureError], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_quick = open_clip.pretrained._PRETRAINED["ViT-B-16-quickgelu"]
    monkeypatch.setitem(of_quick, "odd", {**of_quick["openai"], "quick_gelu": False})
    with pytest.raises(kind) as error:
        Backbone.load(name)
    assert told in str(error.value)


def test_a_silent_hub_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.backbone.weights._why_the_hub_is_silent", lambda: "https://hub: no route")
    with pytest.raises(BackboneError, match=r"open_clip/ViT-B-32/laion2b_s34b_b79k .*\(https://hub: no route"):
        Backbone.load("open_clip/ViT-B-32/laion2b_s34b_b79k")


def test_without_the_extra_it_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(clip_module, "optional", absent)
    with pytest.raises(BackboneError, match=r"open_clip must be installed, but got 'no such package'.*perdure\[clip\]"):
        Backbone.load("open_clip/ViT-B-32/openai")
