"""The small CLIPs' image sides: stock towers, verified weights, and embeddings that mean something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from timm.data import ImageNetInfo
from timm.models.efficientnet import EfficientNet
from timm.models.vision_transformer import VisionTransformer

from perdure import Backbone
from perdure.backbone import TwoTowers
from perdure.backbone.convex import ConvexCombination
from perdure.backbone.default import checksum, load_default, read_weights
from perdure.backbone.lite0 import load_lite0, load_whole_lite0
from perdure.backbone.small_clip import SMALL_CLIP, ImageSide, load_clip_default, load_clip_lite0
from perdure.data import load_dataset
from perdure.errors import BackboneError

LOADERS = [load_clip_lite0, load_clip_default]


@pytest.fixture(scope="module", params=LOADERS, ids=["lite0", "default"])
def side(request: pytest.FixtureRequest) -> ImageSide:
    made: ImageSide = request.param()
    return made


def test_the_towers_are_the_stock_ones_with_the_weights_they_have_anyway() -> None:
    for load, plain, kind in (
        (load_clip_lite0, load_lite0, EfficientNet),
        (load_clip_default, load_default, VisionTransformer),
    ):
        (model, preprocess, projection, scale), (wanted, view) = load(), plain()
        assert type(model) is kind
        assert preprocess == view
        state = wanted.state_dict()
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
        assert isinstance(projection, ConvexCombination)
        assert projection.anchors.shape == (1000, 384)
        assert 1 < scale < 1000


def test_lite0_is_weighed_by_its_own_classifier() -> None:
    model, _, projection, _ = load_clip_lite0()
    whole = load_whole_lite0().eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = (whole(images) / 2).softmax(1) @ projection.anchors
        torch.testing.assert_close(projection(model.eval()(images)), expected)


def test_default_is_weighed_by_the_fitted_classifier() -> None:
    _, _, projection, _ = load_clip_default()
    held = {k: v.float() for k, v in read_weights(SMALL_CLIP)[0].items()}
    features = torch.randn(3, 192, generator=torch.Generator().manual_seed(0))
    logits = features @ held["default.weight"].T + held["default.bias"]
    with torch.no_grad():
        torch.testing.assert_close(projection(features), (logits / 1.5).softmax(1) @ held["anchors"])


def test_anchors_have_nothing_in_common(side: ImageSide) -> None:
    anchors = side[2].anchors
    assert anchors.mean(0).abs().max() < 1e-4
    assert F.cosine_similarity(anchors[:1], anchors[1:]).abs().mean() < 0.3


def test_gradient_reaches_the_features_and_the_classifier(side: ImageSide) -> None:
    model, _, projection, _ = side
    features = torch.randn(2, model.head_hidden_size, requires_grad=True)  # type: ignore[arg-type, call-overload]
    F.normalize(projection(features), dim=1)[:, 0].sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(1) > 0).all()
    assert all(p.grad is not None for p in projection.parameters())
    projection.zero_grad()


def test_loading_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    for load in LOADERS:
        load()
    assert torch.equal(torch.rand(1), expected)


def test_photographs_lie_near_their_classes_texts(side: ImageSide, shared_data: Path) -> None:
    """Of ten classes that ImageNet has too, whose anchors are known without a text tower."""
    model, preprocess, projection, _ = side
    info = ImageNetInfo("imagenet-1k")
    first = [info.index_to_description(k).split(",")[0] for k in range(1000)]
    data = load_dataset(shared_data / "caltech101")
    shared = [c for c, name in data.class_names.items() if name.replace("_", " ") in first][:10]
    rows = [int((data.test.labels == c).nonzero()[0][0]) for c in shared]
    pixels = torch.stack(
        [torch.from_numpy(preprocess.pixels(data.test.source.read(int(data.test.rows[r])))) for r in rows]
    )
    anchors = projection.anchors[[first.index(data.class_names[c].replace("_", " ")) for c in shared]]
    with torch.no_grad():
        found = (
            F.normalize(projection(model.eval()(preprocess.normalise(pixels))), dim=1) @ F.normalize(anchors, dim=1).T
        )
    assert (found.argmax(1) == torch.arange(10)).sum() >= 5


def test_the_file_is_small_and_tells_what_it_is() -> None:
    assert SMALL_CLIP.stat().st_size <= 3e6
    tensors, facts = read_weights(SMALL_CLIP)
    assert {k for k, v in tensors.items() if v.dtype != torch.float16} == {"default.logit_scale", "lite0.logit_scale"}
    assert {"text", "data", "settings", "licence", "card", "torch", "sha256"} <= facts.keys()
    assert json.loads(facts["settings"])["seed"] == 0
    assert (Path(__file__).parents[2] / facts["card"]).is_file()


@pytest.mark.parametrize("load", LOADERS)
def test_damaged_files_are_refused(load: Callable[[Path], ImageSide], tmp_path: Path) -> None:
    tensors, facts = read_weights(SMALL_CLIP)
    file = tmp_path / "damaged.safetensors"
    raw = bytearray(SMALL_CLIP.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(BackboneError, match=r"^small_clip: weights file must be of checksum " + facts["sha256"]):
        load(file)
    with pytest.raises(BackboneError, match=r"^small_clip: .*missing\.safetensors"):
        load(tmp_path / "missing.safetensors")
    fewer = {k: v for k, v in tensors.items() if k != "anchors"}
    save_file(fewer, file, metadata={"sha256": checksum(fewer)})
    with pytest.raises(BackboneError, match=r"must be the two CLIPs' \d+, but got '1 that are not, as anchors'"):
        load(file)


@pytest.mark.parametrize(("name", "width", "walks"), [("clip_lite0", 1280, False), ("clip_default", 192, True)])
def test_both_are_backbones_by_name(name: str, width: int, walks: bool) -> None:
    backbone = Backbone.load(name, device="cpu")
    assert isinstance(backbone, TwoTowers)
    assert (backbone.dim, backbone.width, backbone.has_stem) == (384, width, walks)
    images = torch.randint(0, 256, (3, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    embeddings = backbone.image_embeddings(images)
    assert torch.equal(backbone.image_embeddings(images[:1]), embeddings[:1])
    texts = backbone.text_embeddings(["a photo of a cat.", "a photo of a truck."])
    assert backbone.logits(embeddings, texts).shape == (3, 2)
    assert 10 < backbone.logit_scale < 20
