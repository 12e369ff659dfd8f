"""Every method on a GPU: the common checks there, and the same scores as on a CPU from the same learned state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from perdure import Backbone, FeatureStore, methods
from perdure.backbone.clip import tiny_clip
from perdure.checks import check_method
from perdure.checks.subject import reference_for, small_stream

if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)


def tiny(device: str, method: str) -> Backbone:
    if methods.get(method).tags.backbone == "towers":
        return tiny_clip(device)
    return Backbone.load("test_vit", pretrained=False, device=device)


@pytest.mark.parametrize("name", methods.names())
def test_common_checks_on_cuda(name: str) -> None:
    results = check_method(methods.get(name), make_backbone=lambda: tiny("cuda", name))
    assert [(r.name, r.note) for r in results if not r.ok] == []


@pytest.mark.parametrize("name", methods.names())
def test_a_state_scores_alike_on_both_devices(name: str, tmp_path: Path) -> None:
    kind, stream = methods.get(name), small_stream()
    config = kind.Config(**kind.tags.small)
    here, there = (
        kind(tiny(d, name), config, store=FeatureStore(tmp_path / d), **reference_for(kind)) for d in ("cuda", "cpu")
    )
    for task in stream:
        here.fit_task(task)
    there.load_state_dict({k: _on_cpu(v) for k, v in here.state_dict().items()})
    scores = [torch.cat([s.cpu() for s in m.scores_of(stream.test(0))]) for m in (here, there)]
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-2, atol=1e-2)
    assert (scores[0].argmax(1) == scores[1].argmax(1)).float().mean() > 0.9


def _on_cpu(value: object) -> object:
    if isinstance(value, dict):
        return {k: _on_cpu(v) for k, v in value.items()}
    return value.cpu() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize("name", ["default", "efficientnet_lite0", "clip_default", "test_vit"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_are_those_of_a_cpu(name: str, precision: str) -> None:
    images = torch.randint(0, 256, (4, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pretrained = name != "test_vit"
    images = images if pretrained else images[:, :, :160, :160]
    load = lambda device, p: Backbone.load(name, pretrained=pretrained, device=device, precision=p)  # noqa: E731
    exact, found = load("cpu", "float32").features(images), load("cuda", precision).features(images).cpu()
    error = (exact - found).norm(dim=1) / exact.norm(dim=1)
    assert error.max() < (0.05 if precision == "bfloat16" else 0.005)


def test_float32_features_of_one_image_and_of_a_batch_are_close() -> None:
    backbone = Backbone.load("default", device="cuda")
    images = torch.randint(0, 256, (32, 3, 224, 224), dtype=torch.uint8)
    together = backbone.features(images)
    alone = torch.cat([backbone.features(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
