"""Weights from the hub: one line where it is out of reach, and no change of its library that stays."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from perdure import Backbone
from perdure.backbone import weights
from perdure.errors import BackboneError


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A hub with an empty cache that does not answer; ``asked`` is how often it was asked, ``wait`` for how long."""
    hub = SimpleNamespace(asked=[], wait=[], cache=tmp_path / "hub", says=OSError("no route"))

    def head(url: str, timeout: float) -> None:
        hub.asked.append((url, timeout))
        if isinstance(hub.says, Exception):
            raise hub.says

    monkeypatch.setattr(weights, "get_session", lambda: SimpleNamespace(head=head))
    monkeypatch.setattr(time, "sleep", hub.wait.append)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return hub


def test_a_silent_hub_is_asked_once_and_named_in_one_line(
    hub: SimpleNamespace, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BackboneError) as error:
        Backbone.load("test_vit.r160_in1k", device="cpu")
    message = str(error.value)
    assert message.startswith("Backbone.load: weights of test_vit.r160_in1k must be reachable, but got 'none'. Connect")
    assert message.endswith(f"pretrained=false ({constants.ENDPOINT}: OSError: no route).")
    assert "\n" not in message
    assert hub.asked == [(constants.ENDPOINT, constants.HF_HUB_ETAG_TIMEOUT)]
    assert hub.wait == []
    assert capfd.readouterr() == ("", "")
    assert constants.HF_HUB_OFFLINE is False, "set for this one call alone"


def test_weights_that_the_hub_gave_before_need_no_hub(hub: SimpleNamespace) -> None:
    other, repository = (
        Backbone.load("test_vit", pretrained=False, init_seed=7, device="cpu").model,
        hub.cache / "models--timm--test_vit.r160_in1k",
    )
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("1")
    file = repository / "snapshots" / "1" / "model.safetensors"
    file.parent.mkdir(parents=True)
    head = {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}
    save_file({k: v.contiguous() for k, v in {**other.state_dict(), **head}.items()}, file)
    cached = Backbone.load("test_vit.r160_in1k", device="cpu").model.state_dict()
    assert all(torch.equal(cached[name], tensor) for name, tensor in other.state_dict().items())
    assert constants.HF_HUB_OFFLINE is False
    file.write_bytes(b"torn")
    with pytest.raises(BackboneError, match=r"pretrained=false \(SafetensorError: ") as error:
        Backbone.load("test_vit.r160_in1k", device="cpu")
    assert "no route" not in str(error.value), "the file is there: it is at fault"


def test_a_hub_that_answers_is_left_to_its_library(hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*_: object, **__: object) -> None:
        raise RuntimeError(f"offline: {constants.HF_HUB_OFFLINE}\nand a long explanation")

    hub.says = "404, but it is there"
    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(BackboneError, match=r"\(RuntimeError: offline: False\)\.$"):
        Backbone.load("test_vit.r160_in1k", device="cpu")


def test_a_user_who_is_offline_or_wants_random_weights_asks_no_hub(
    hub: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match=r"pretrained=false \(LocalEntryNotFoundError: "):
        Backbone.load("test_vit.r160_in1k", device="cpu")
    assert constants.HF_HUB_OFFLINE is True
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    Backbone.load("test_vit", pretrained=False, device="cpu")
    assert hub.asked == []
