"""Names that a method cannot use are refused before a run learns anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from perdure.backbone.clip import tiny_clip
from perdure.errors import BackboneError, PerdureError, StreamError
from perdure.run import Recipe, Runner, load_recipe
from small_folders import fill_named


@pytest.mark.parametrize("method", ["clip_zeroshot", "coop", "promptfusion"])
@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("Cat", StreamError, "name of class 'cat' must be like no other class's"),
        ("a " * 74 + "word", BackboneError, "of at most 77 tokens, but got .*word"),
    ],
)
def test_a_run_refuses_them_at_its_start(
    method: str, name: str, error: type[PerdureError], match: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Recipe, "load_backbone", lambda self: tiny_clip())
    fill_named(tmp_path / "data", dict.fromkeys(["cat", "dog", name], 2))
    shown = ["stream.order_seed=null", "stream.tasks=3", f"stream.data={tmp_path / 'data'}", f"method.name={method}"]
    with pytest.raises(error, match=match):
        Runner(load_recipe(None, [*shown, "backbone.name=clip_lite0"]), tmp_path / "run").run()
    assert not (tmp_path / "run").exists()
