"""The script that made the built-in weights: its views, its resuming, and what it writes."""

from __future__ import annotations

import dataclasses as dc
import json
import logging
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.backbone.default import hybrid_vit, lite0_stem, load_default, read_weights
from perdure.backbone.lite0 import PREPROCESS, load_lite0
from scripts import distill_default_backbone as distill
from scripts.distill_views import SIDE, TARGETS, Shards, Teacher, Views, mix, render

SMALL = distill.Settings(views=24, epochs=2, batch_size=8, lr=1e-3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two photographs and six small images, of noise."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i, side in enumerate((150, 340, *[32] * 6)):
        Image.fromarray(rng.integers(0, 256, (side, side + i, 3), dtype=np.uint8)).save(root / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Shards:
    work = tmp_path_factory.mktemp("work")
    render(Views([folder], 0, 0.6), work, SMALL.views)
    return Shards(work, SMALL.views)


def student(shards: Shards) -> distill.Student:
    torch.manual_seed(0)
    return distill.Student(shards[np.arange(SMALL.views)])


def test_a_view_is_a_function_of_seed_and_index(folder: Path) -> None:
    one, other = Views([folder], 3, 0.6), Views([folder], 3, 0.6)
    for index in (5, 0, 11):
        for mine, theirs in zip(one(index), other(index), strict=True):
            assert np.array_equal(mine, theirs)
    assert not np.array_equal(one(5)[0], Views([folder], 4, 0.6)(5)[0])
    assert (len(one.photos), len(one.icons)) == (2, 6)
    assert min(one.photos[1].size) == 320  # shrunk once, not for every view
    pixels, colour, mixing = one(1)
    assert (pixels.shape, pixels.dtype) == ((SIDE, SIDE, 3), np.uint8)
    assert (colour.shape, mixing.shape) == ((3, 4), (4,))


def test_mixing_takes_from_the_view_before() -> None:
    pixels = torch.stack([torch.full((3, SIDE, SIDE), v) for v in (0.0, 0.5, 1.0)])
    out = mix(pixels, torch.tensor([[0.9, 0.5, 0.5, 0.5], [0.1, 1.0, 0, 0], [0.3, 1.0, 0.5, 0.5]]))
    assert torch.equal(out[0], pixels[0])
    torch.testing.assert_close(out[1], torch.full_like(out[1], 0.25))
    share = float((out[2] == 0.5).float().mean())
    assert share == pytest.approx(0.5, abs=0.01)
    assert set(out[2].unique().tolist()) == {0.5, 1.0}


def test_shards_hold_the_teachers_answers(shards: Shards) -> None:
    batch = shards[np.array([0, 7])]
    assert batch["stem"].shape == (2, 112, 14, 14)
    assert {k: tuple(v.shape[1:]) for k, v in batch.items() if k != "stem"} == {
        k: v for k, v in TARGETS.items() if k != "stem"
    }
    lite0, teacher = load_lite0()[0].eval(), Teacher()
    pixels = torch.rand(3, 3, SIDE, SIDE)
    told, x = teacher(pixels), PREPROCESS.normalise((pixels * 255).round().to(torch.uint8))
    with torch.inference_mode():
        expected = lite0(x)
    likeness = torch.cosine_similarity(told["pooled"], expected)
    assert likeness.min() > 0.99  # bf16 against float32


def test_training_goes_on_where_it_stopped(
    shards: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(distill, "SAVE_EVERY", 2)
    monkeypatch.setattr(distill, "LOG_EVERY", 1)
    ends = {}
    for name in ("straight", "resumed"):
        work = tmp_path / name
        work.mkdir()
        if name == "resumed":
            broken = student(shards)
            losses, calls = broken.losses, iter(range(99))
            monkeypatch.setattr(
                broken, "losses", lambda *a, f=losses, n=calls: f(*a) if next(n) < 3 else pytest.fail("killed")
            )
            with pytest.raises(pytest.fail.Exception, match="killed"):
                distill.train(broken, shards, SMALL, work)
        trained = student(shards)
        with caplog.at_level(logging.INFO):
            distill.train(trained, shards, SMALL, work)
        ends[name] = trained.folded()
    assert all(torch.equal(v, ends["resumed"][k]) for k, v in ends["straight"].items())
    assert sum("step 3 of 6" in line for line in caplog.messages) == 2  # straight, and after resuming at step 2
    start = student(shards).folded()
    assert any(not torch.equal(v, start[k]) for k, v in ends["straight"].items())


def test_folding_keeps_the_function(shards: Shards) -> None:
    trained = student(shards)
    stem = shards[np.arange(4)]["stem"]
    model = hybrid_vit(lite0_stem(load_lite0()[0])).eval()
    model.load_state_dict({k: v.float() for k, v in trained.folded().items()}, strict=False)
    model.patch_embed.backbone = torch.nn.Identity()
    with torch.inference_mode():
        mine, theirs = model.forward_features(stem), trained.vit.forward_features(stem)
    assert torch.cosine_similarity(mine.flatten(1), theirs.flatten(1)).min() > 0.9999  # float16 weights


def test_the_command_writes_a_loadable_file_and_guards_its_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, work = tmp_path / "weights.safetensors", tmp_path / "work"
    command = ["distill", str(folder), "--work", str(work), "--out", str(out), "--views", "8", "--batch-size", "4"]
    monkeypatch.setattr(sys, "argv", [*command, "--epochs", "1"])
    monkeypatch.setattr(distill, "tune_allocator", lambda: True)  # process-wide
    distill.main()
    model, _ = load_default(out)
    assert sum(p.numel() for p in model.parameters()) == 3_466_336
    _, facts = read_weights(out)
    assert "8 views, no labels" in facts["data"]
    out.unlink()
    distill.main()  # everything is there already
    assert read_weights(out)[1] == facts
    monkeypatch.setattr(sys, "argv", [*command, "--epochs", "2"])
    with pytest.raises(SystemExit, match="other settings"):
        distill.main()


def test_settings_on_the_command_line_are_those_of_the_shipped_file() -> None:
    facts = read_weights(Path(distill.__file__).parents[1] / "src/perdure/backbone/default.safetensors")[1]
    assert json.loads(facts["settings"]) == dc.asdict(distill.Settings())
