"""Shared fixtures: no network, a cache of its own for every test, tiny random backbones."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from jaxtyping import config

from shapes import hold

os.environ["HF_HUB_OFFLINE"] = "1"  # before timm is imported
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is: test processes that share cores must not fight over them

hold("perdure")  # every call in a test keeps to the shapes its signature tells

from perdure import Backbone, FeatureStore  # noqa: E402
from plugins import install  # noqa: E402, F401

SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test starts with an empty cache and no data folder."""
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PERDURE_DATA", str(tmp_path / "data"))
    monkeypatch.delenv("PERDURE_CACHE_BYTES", raising=False)
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for the network fails at once."""

    def refuse(self: socket.socket, address: object) -> None:
        if self.family != socket.AF_UNIX:
            raise OSError(f"tests must not use the network, but one connects to {address!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def any_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions meet values of wrong shapes, which they refuse by themselves."""
    monkeypatch.setattr(config, "jaxtyping_disable", True)


@pytest.fixture
def backbone() -> Backbone:
    """A tiny stock ViT with random weights: 160 px, 64 features."""
    return Backbone.load("test_vit", pretrained=False, device="cpu")


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """An empty feature store."""
    return FeatureStore(tmp_path / "features")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images that lies beside a development checkout."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the real images in {SHARED_DATA}")
    return SHARED_DATA
