"""The parts of a backbone that may learn: nothing at first, each where it belongs, and refused where it has no seat."""

from __future__ import annotations

import pytest
import torch

from perdure import Backbone
from perdure.backbone.tiny import TINY
from perdure.errors import BackboneError
from perdure.modules.adapter import Adapter
from perdure.modules.lora import LoRA
from perdure.train.trainable import Adapters, Full, Head, LowRank, Part, made

PARTS = {"head": Head(), "adapter": Adapters(rank=3), "lora": LowRank(rank=2), "full": Full()}


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("how", PARTS.values(), ids=list(PARTS))
def test_a_part_starts_frozen_and_as_nothing(how: Part, backbone: Backbone) -> None:
    images = torch.randint(0, 256, (3, 3, 160, 160), generator=rng(), dtype=torch.uint8)
    view, part = made(backbone, how, rng())
    assert not any(p.requires_grad for p in (*view.parameters(), *part.parameters(), *backbone.parameters()))
    assert torch.allclose(view.features(images), backbone.features(images), atol=1e-6)
    assert view.passes is backbone.passes


def test_a_head_is_the_backbone_itself_and_the_others_learn_apart_from_it(backbone: Backbone) -> None:
    images = torch.randint(0, 256, (3, 3, 160, 160), generator=rng(), dtype=torch.uint8)
    view, part = made(backbone, Head(), rng())
    assert view is backbone
    assert not list(part.parameters())
    before = backbone.features(images)
    for how in (Adapters(rank=3), LowRank(rank=2), Full()):
        view, part = made(backbone, how, rng())
        with torch.no_grad():
            for p in part.parameters():
                p.add_(torch.randn(p.shape, generator=rng()))
        assert not torch.allclose(view.features(images), before, atol=1e-3)
        assert torch.equal(backbone.features(images), before)


def test_parts_stand_at_their_seats_with_their_rank_and_draws(backbone: Backbone) -> None:
    blocks = len(backbone.vit.blocks)
    _, part = made(backbone, Adapters(rank=3), rng())
    adapters = [m for m in part.modules() if isinstance(m, Adapter)]
    assert [a.down.out_features for a in adapters] == [3] * blocks
    _, part = made(backbone, LowRank(rank=2), rng())
    updates = [m for m in part.modules() if isinstance(m, LoRA)]
    assert [(u.parts, u.updated, [a.shape for a in u.a]) for u in updates] == [(3, (0, 2), [(2, 64), (2, 64)])] * blocks
    convolutions = TINY["any"]()
    _, part = made(convolutions, LowRank(rank=2), rng())
    updates = [m for m in part.modules() if isinstance(m, LoRA)]
    assert len(updates) > 10
    assert {(u.parts, u.a[0].ndim, len(u.a[0])) for u in updates} == {(1, 4, 2)}
    for how in (Adapters(rank=3), LowRank(rank=2)):
        same, other = (made(backbone, how, rng(s))[1].state_dict() for s in (0, 1))
        again = made(backbone, how, rng())[1].state_dict()
        assert all(torch.equal(same[k], again[k]) for k in same)
        assert any(not torch.equal(same[k], other[k]) for k in same)
    assert len(list(made(backbone, Full(), rng())[1].parameters())) == len(list(backbone.model.parameters()))


def test_a_part_without_a_seat_is_refused() -> None:
    with pytest.raises(BackboneError, match=r"seat must be among .* but got 'mlp'"):
        made(TINY["any"](), Adapters(), rng())
