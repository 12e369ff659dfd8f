"""CODA-Prompt's components: what a state of theirs holds, pools that are orthogonal as a whole, layers."""

from __future__ import annotations

import pytest
import torch

from perdure.config import load
from perdure.errors import ConfigError, RecipeError
from perdure.modules.components import ComponentLayers, Components, PerTask, SharedPool
from rows import drawn, gap_to_identity, generator


def test_a_loaded_layer_has_the_blocks_of_its_state() -> None:
    one, other = Components(2, 4, 8), Components(2, 4, 8)
    for _ in range(2):
        one.grow(generator())
    assert {k: tuple(v.shape) for k, v in one.state_dict().items()} == {
        f"{kind}.blocks.{i}": shape
        for kind, shape in {"prompts": (2, 4, 8), "keys": (2, 8), "attention": (2, 8)}.items()
        for i in range(2)
    }
    assert not other.state_dict()
    other.load_state_dict(one.state_dict())
    queries = drawn(3, 8, dtype=torch.float32)
    assert torch.equal(one(queries), other(queries))
    assert one(queries).shape == (3, 4, 8)


def test_a_pool_is_orthogonal_as_a_whole_whatever_its_blocks_learned() -> None:
    layer = Components(2, 4, 8)
    layer.grow_from_pool(5, generator())
    first = [rows().detach().clone() for rows in (layer.keys, layer.attention, layer.prompts)]
    with torch.no_grad():
        layer.keys.newest.fill_(1.0)
    layer.grow_from_pool(5, generator())
    for kind, old in zip((layer.keys, layer.attention, layer.prompts), first, strict=True):
        assert gap_to_identity(torch.cat([old, kind.newest.detach()]).flatten(1)) < 1e-6
    assert layer.keys()[0].tolist() == [1.0] * 8


def layers(how: PerTask | SharedPool, n_tasks: int = 0, dim: int = 8) -> ComponentLayers:
    made = ComponentLayers(how, 2, 4, dim)
    for task in range(n_tasks):
        made.add(task, generator(task), generator(9))
    return made


def test_a_task_adds_a_block_to_every_layer() -> None:
    grown = layers(PerTask(each=2), 3)
    assert [tuple(layer.prompts().shape) for layer in grown.each] == [(6, 4, 8)] * 2
    assert not torch.equal(grown.each[0].keys(), grown.each[1].keys())
    pool = SharedPool(pool=7, tasks=3)
    assert layers(pool, 3).each[0].keys().shape == (6, 8), "floor(7 / 3) each"
    with pytest.raises(ConfigError, match=r"components\.tasks must be at least 4, but got 3"):
        layers(pool, 4)


def test_a_whole_pool_is_one_draw_whatever_the_tasks_draw() -> None:
    whole = layers(SharedPool(pool=6, tasks=3, ortho="whole"), 3)
    assert all(gap_to_identity(layer.keys().detach()) < 1e-6 for layer in whole.each)
    again = ComponentLayers(SharedPool(pool=6, tasks=3, ortho="whole"), 2, 4, 8)
    for task in range(3):
        again.add(task, generator(50 + task), generator(9))
    assert torch.equal(again.each[1].keys(), whole.each[1].keys())


def test_what_cannot_be_orthogonal_is_refused() -> None:
    with pytest.raises(ConfigError, match="width 8, to be orthogonal, but got 9"):
        layers(PerTask(each=9))
    with pytest.raises(ConfigError, match="width 8, to be orthogonal, but got 10"):
        layers(SharedPool(pool=10, tasks=5, ortho="whole"))
    layers(SharedPool(pool=10, tasks=5))
    with pytest.raises(RecipeError, match="tasks must be at most pool = 3, but got 4"):
        load(SharedPool, {"pool": 3, "tasks": 4})


def test_layers_mix_prefixes_and_tell_shares_and_penalties() -> None:
    grown, queries = layers(PerTask(each=2), 2), drawn(5, 8, dtype=torch.float32)
    for (keys, values), layer in zip(grown.prefixes(queries), grown.each, strict=True):
        assert torch.equal(torch.cat([keys, values], dim=1), layer(queries))
        assert keys.shape == values.shape == (5, 2, 8)
    assert grown.penalty().item() == pytest.approx(sum(layer.penalty().item() for layer in grown.each))
    weights = torch.stack([layer.weights(queries) for layer in grown.each]).abs().sum(1)
    shares = grown.shares(queries.split(2))
    torch.testing.assert_close(shares, (weights / weights.sum(1, keepdim=True)).mean(0))
    assert not shares.requires_grad
