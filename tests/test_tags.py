"""What a method says of itself."""

from __future__ import annotations

import pytest

from perdure.errors import ConfigError
from perdure.tags import BACKBONES, Tags


def test_a_backbone_of_no_known_kind_is_refused_with_close_ones() -> None:
    for kind in BACKBONES:
        assert Tags(backbone=kind).backbone == kind
    with pytest.raises(ConfigError, match=r"'transformers'\. Did you mean 'transformer'"):
        Tags(backbone="transformers")
