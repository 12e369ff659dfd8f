"""The small CLIPs that tests share: none of them is changed by a sound test."""

from __future__ import annotations

import functools

from perdure.backbone import TwoTowers
from perdure.backbone.clip import tiny_clip
from perdure.backbone.minilm import MiniLM

shared_clip = functools.cache(tiny_clip)
shared_minilm = functools.cache(MiniLM)


def clip() -> TwoTowers:
    """Random towers of 48 dimensions."""
    return shared_clip()


def minilm() -> MiniLM:
    """The pip package's sentence encoder."""
    return shared_minilm()
