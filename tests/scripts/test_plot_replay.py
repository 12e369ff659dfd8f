"""The drawing in the documents is that of the committed results."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.plot_replay import PLOT, drawn
from scripts.table_recipes import read

ROOT = Path(__file__).parents[2]


def test_the_drawing_is_that_of_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    drawing = drawn(read("replay_methods")["runs"], read("mixture_methods")["runs"])
    assert PLOT.read_text(encoding="utf-8") == drawing
    for title in ("ER", "GEM", "A-GEM", "SimpleCIL", "images kept of each class"):
        assert f">{title}</text>" in drawing
