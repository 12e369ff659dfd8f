"""What a method learned on: the weights and what is done with them, wherever and however precisely it is computed."""

from __future__ import annotations

import copy
import dataclasses as dc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from perdure import Backbone
from perdure.errors import BackboneError


def write(model: nn.Module, file: Path) -> Path:
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return file


def load(**options: object) -> Backbone:
    return Backbone.load("test_vit", **{"pretrained": False, "device": "cpu", **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def known() -> str:
    return load().identity


def test_it_is_the_same_for_the_same_model(known: str, tmp_path: Path) -> None:
    again = load()
    assert again.identity == again.identity == known
    assert copy.deepcopy(again).identity == known
    assert load(weights=write(again.model, tmp_path / "weights.safetensors")).identity == known


def test_precision_and_memory_layout_are_no_part_of_it(known: str) -> None:
    other = load(precision="bfloat16")
    assert other.identity == known
    assert other.fingerprint != load().fingerprint
    other.model.to(memory_format=torch.contiguous_format)
    assert other.identity == known


def test_the_device_is_no_part_of_it(known: str) -> None:
    other = load()
    other.device = torch.device("cuda")
    assert other.identity == known
    assert other.fingerprint != load().fingerprint


def test_the_tag_of_the_weights_is_no_part_of_it_but_the_architecture_is(known: str) -> None:
    other = load()
    other.name = "test_vit.r160_in1k"
    assert other.identity == known
    other.name = "test_vit2"
    assert other.identity != known


def _change_a_weight(b: Backbone) -> None:
    with torch.no_grad():
        b.model.blocks[0].mlp.fc1.weight[0, 0] += 1e-6


def _change_activation(b: Backbone) -> None:
    b.model.blocks[0].mlp.act = nn.ReLU()


def _change_pooling(b: Backbone) -> None:
    b.model.global_pool = "avg" if b.model.global_pool != "avg" else "token"


def _change_view(b: Backbone) -> None:
    b.preprocess = dc.replace(b.preprocess, crop_pct=0.5)


def _change_mean(b: Backbone) -> None:
    b.preprocess = dc.replace(b.preprocess, mean=(0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    "change",
    [_change_a_weight, _change_activation, _change_pooling, _change_view, _change_mean],
    ids=lambda f: f.__name__,
)
def test_what_decides_the_features_is_part_of_it(change: Callable[[Backbone], None], known: str) -> None:
    other = load()
    assert other.identity == known  # asked before, so that nothing old is kept
    change(other)
    assert other.identity != known


def test_other_weights_and_another_view_by_name(known: str) -> None:
    assert len({known, load(init_seed=1).identity, load(preset="lamda").identity}) == 3


def test_a_backbone_that_trains_has_none() -> None:
    with pytest.raises(BackboneError, match=r"Backbone\.identity"):
        _ = load().thawed_copy().identity


def test_what_it_was_loaded_from_is_kept(tmp_path: Path) -> None:
    wanted = {
        "name": "test_vit", "weights": None, "pretrained": False, "preset": "lamda", "init_seed": 3,
        "precision": "bfloat16",
    }  # fmt: skip
    found = load(init_seed=3, preset="lamda", precision="bfloat16")
    assert found.source == wanted
    assert Backbone.load(**found.source, device="cpu").identity == found.identity
    assert Backbone(found.model, name="mine", preprocess=found.preprocess).source is None


def test_a_file_of_weights_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(load(init_seed=2).model, tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    found = load(weights="mine.safetensors")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert found.source is not None
    assert Backbone.load(**found.source, device="cpu").identity == found.identity == load(init_seed=2).identity
