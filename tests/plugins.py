"""Distributions as pip leaves them, but made by hand: a module, and a folder of metadata that names entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from perdure.backbone import backbones
from perdure.data.datasets import datasets
from perdure.methods import methods
from perdure.registry import Registry

Install = Callable[..., None]


def look_again(registry: Registry[Any]) -> None:
    """Makes a registry look for plug-ins when it is asked next.

    Args:
        registry: one of perdure's, in a test that has the fixture ``install``.
    """
    registry._discovered = False


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Puts a distribution on the search path: its name, its entry points by group, and the text of its one module.

    perdure's registries discover it when they are asked next, and have forgotten it after the test.
    """
    site, modules = tmp_path / "site-packages", []
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    for registry in (backbones, datasets, methods):
        registry.names()
        as_it_was = {"_things": dict(registry._things), "_aliases": dict(registry._aliases)}
        for key, value in {**as_it_was, "_plugins": {}, "_broken": {}, "_discovered": False}.items():
            monkeypatch.setattr(registry, key, value)

    def install(name: str, points: Mapping[str, Mapping[str, str]], source: str, version: str = "1.0") -> None:
        modules.append(name.replace("-", "_"))
        (site / f"{modules[-1]}.py").write_text(source)
        info = site / f"{modules[-1]}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        groups = [f"[{g}]\n" + "".join(f"{k} = {v}\n" for k, v in each.items()) for g, each in points.items()]
        (info / "entry_points.txt").write_text("\n".join(groups))

    yield install
    for name in modules:
        sys.modules.pop(name, None)
