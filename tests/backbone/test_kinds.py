"""Which backbone is of which kind."""

from __future__ import annotations

import pytest

from perdure.backbone import require_kind
from perdure.backbone.tiny import TINY
from perdure.errors import BackboneError
from perdure.tags import BACKBONES


def test_every_kind_holds_those_after_it() -> None:
    kinds = list(BACKBONES)
    for made, make in TINY.items():
        for need in kinds[: kinds.index(made) + 1]:
            require_kind(make(), need, "mine")
        for need in kinds[kinds.index(made) + 1 :]:
            with pytest.raises(BackboneError, match="backbone must be a"):
                require_kind(make(), need, "mine")


def test_a_refusal_says_who_needs_what_and_what_is_there() -> None:
    with pytest.raises(BackboneError) as error:
        require_kind(TINY["any"](), "transformer", "mine")
    assert str(error.value) == (
        "mine: backbone must be a Vision Transformer or Swin, with a seat beside every MLP, but got "
        "'test_efficientnet (EfficientNet)'. Use the built-in 'default', or a ViT of timm's."
    )
