"""The built-in Vision Transformer: stock, frozen, verified, and the same in every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from timm.models.efficientnet import EfficientNet
from timm.models.vision_transformer import VisionTransformer

from perdure import Backbone, FeatureStore, load_stream, methods
from perdure.backbone.default import WEIGHTS, checksum, load_default, read_weights, transformer_weights
from perdure.backbone.lite0 import load_lite0
from perdure.backbone.vit import Prompt, embed_patches, walk
from perdure.errors import BackboneError
from perdure.eval import evaluate


@pytest.fixture(scope="module")
def default() -> Backbone:
    return Backbone.load("default", device="cpu")


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randint(0, 256, (5, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_it_is_a_stock_timm_model_with_every_weight_given(default: Backbone) -> None:
    assert type(default.model) is VisionTransformer
    assert default.dim == 192
    assert default.model.num_prefix_tokens == 1
    assert default.model.patch_embed.num_patches == 49
    tensors, _ = read_weights(WEIGHTS)
    assert {k: v.dtype for k, v in tensors.items()} == dict.fromkeys(tensors, torch.float16)
    state, stem = default.model.state_dict(), load_lite0()[0].state_dict()
    assert isinstance(load_lite0()[0], EfficientNet)
    for key, value in tensors.items():
        assert torch.equal(state.pop(key), value.float())
    kept = {k.removeprefix("patch_embed.backbone."): v for k, v in state.items()}
    assert len(kept) == len(state)
    names = ["conv_stem", "bn1", *(f"blocks.{i}" for i in range(5))]
    for key, value in kept.items():  # all that is not in the file is EfficientNet-Lite0's
        at, _, rest = key.partition(".")
        assert torch.equal(value, stem[f"{names[int(at)]}.{rest}"])


def test_block_walk_is_the_stock_forward_bit_for_bit(default: Backbone, images: torch.Tensor) -> None:
    pixels = default.preprocess.normalise(images)
    out = walk(default.model, embed_patches(default.model, pixels))
    assert torch.equal(out.all, default.model.forward_features(pixels))
    assert torch.equal(default.pool(default.tokens(images)), default.features(images))


def test_features_do_not_depend_on_the_batch(default: Backbone, images: torch.Tensor) -> None:
    together = default.features(images)
    torch.testing.assert_close(default.features(images.flip(0)).flip(0), together, atol=0, rtol=0)
    for i in range(5):
        torch.testing.assert_close(default.features(images[i : i + 1])[0], together[i], atol=2e-5, rtol=0)


def test_training_prompts_leaves_every_weight_and_statistic_as_it_was(default: Backbone, images: torch.Tensor) -> None:
    before = {k: v.clone() for k, v in default.model.state_dict().items()}
    default.train()
    assert not any(m.training for m in default.modules())
    assert not any(p.requires_grad for p in default.parameters())
    tokens = torch.zeros(1, 4, 192, requires_grad=True)
    default.tokens(images, {0: Prompt(tokens, stays=True)}).cls.square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.abs().max() > 0
    assert all(p.grad is None for p in default.parameters())
    assert all(torch.equal(v, before[k]) for k, v in default.model.state_dict().items())


def test_features_and_fingerprint_are_the_same_in_another_process(default: Backbone, images: torch.Tensor) -> None:
    program = """if True:
        import torch, json
        from perdure import Backbone
        images = torch.randint(0, 256, (5, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        torch.manual_seed(1)
        backbone = Backbone.load("default", device="cpu")
        print(json.dumps([backbone.fingerprint, backbone.features(images).tolist()]))
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    out = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True, env=environment
    ).stdout
    fingerprint, features = json.loads(out)
    assert fingerprint == default.fingerprint
    assert torch.equal(torch.tensor(features), default.features(images))


def test_loading_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    load_default()
    assert torch.equal(torch.rand(1), expected)


def test_the_file_is_small_and_tells_what_it_is() -> None:
    assert WEIGHTS.stat().st_size <= 12e6
    _, facts = read_weights(WEIGHTS)
    assert {"architecture", "teacher", "data", "settings", "licence", "card", "torch", "sha256"} <= facts.keys()
    assert json.loads(facts["settings"])["seed"] == 0
    assert (Path(__file__).parents[2] / facts["card"]).is_file()


def test_weights_make_the_round_trip(tmp_path: Path, default: Backbone, images: torch.Tensor) -> None:
    weights = {k: v.half() for k, v in transformer_weights(default.model).items()}
    file = tmp_path / "again.safetensors"
    save_file(weights, file, metadata={"sha256": checksum(weights)})
    again, _ = load_default(file)
    theirs = default.model.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in again.state_dict().items())
    assert checksum(weights) == read_weights(WEIGHTS)[1]["sha256"]


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    tensors, facts = read_weights(WEIGHTS)
    file = tmp_path / "damaged.safetensors"
    raw = bytearray(WEIGHTS.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(BackboneError, match="of checksum " + facts["sha256"]):
        load_default(file)
    file.write_bytes(raw[:-100])
    with pytest.raises(
        BackboneError, match=r"^default: weights file must be a whole safetensors file, but got .*damaged\.safetensors"
    ):
        load_default(file)
    with pytest.raises(BackboneError, match=r"missing\.safetensors"):
        load_default(tmp_path / "missing.safetensors")
    save_file(tensors, file)
    with pytest.raises(BackboneError, match="of checksum None"):
        load_default(file)
    fewer = {k: v for k, v in tensors.items() if k != "norm.bias"}
    save_file(fewer, file, metadata={"sha256": checksum(fewer)})
    with pytest.raises(BackboneError, match=r"must be the transformer's \d+, but got '1 that are not, as norm\.bias'"):
        load_default(file)
    other = {**tensors, "norm.weight": torch.zeros(3)}
    save_file(other, file, metadata={"sha256": checksum(other)})
    with pytest.raises(BackboneError, match=r"but got '1 that are not, as norm\.weight'\. Install"):
        load_default(file)


def test_it_knows_real_images_and_a_random_top_does_not(shared_data: Path, store: FeatureStore) -> None:
    stream = load_stream(shared_data / "caltech101", tasks=10, order_seed=1993, train_per_class=4, test_per_class=2)
    random_top = load_default()[0]
    torch.manual_seed(0)
    random_top.init_weights()
    accuracy = []
    for model, name in ((load_default()[0], "default"), (random_top, "random")):
        backbone = Backbone(model, name=name, preprocess=load_default()[1], device="cpu")
        method = methods.get("simplecil")(backbone, store=store)
        method.fit_task(stream[0])
        accuracy.append(evaluate(method, stream, upto=0).correct.mean())
    assert accuracy[0] > 0.7
    assert accuracy[1] < accuracy[0] - 0.6


def test_other_weights_for_the_built_in_name_are_refused() -> None:
    for options in ({"pretrained": False}, {"weights": "some.safetensors"}):
        with pytest.raises(BackboneError, match=next(iter(options))):
            Backbone.load("default", **options)  # type: ignore[arg-type]
