from __future__ import annotations

from typing import get_args

import pytest
import torch

from perdure.modules.heads import GrowingLinear, HeadInit, cosine_scores


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_growing_keeps_old_columns() -> None:
    head = GrowingLinear(5)
    assert head(torch.ones(2, 5)).shape == (2, 0)
    head.grow(2, generator())
    old = head.weight.detach().clone()
    with torch.no_grad():
        head.bias.fill_(3)
    head.grow(3, generator(1))
    assert head.weight.shape == (3, 5)
    assert torch.equal(head.weight[:2], old)
    assert head.bias.tolist() == [3, 3, 0]
    head.grow(3, generator(2))
    assert head.weight.shape == (3, 5)


def test_new_weights_are_small_and_from_the_given_generator() -> None:
    heads = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        heads.append(GrowingLinear(400))
        heads[-1].grow(10, generator())
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert heads[0].weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert all(p.requires_grad for p in heads[0].parameters())


def test_forward_is_linear() -> None:
    head = GrowingLinear(2)
    head.grow(2, generator())
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, -1.0]]))
        head.bias.copy_(torch.tensor([0.5, 0.0]))
    assert head(torch.tensor([[3.0, 4.0]])).tolist() == [[11.5, -4.0]]


@pytest.mark.parametrize("width", [1, 4])
def test_loading_a_state_resizes(width: int) -> None:
    wide = GrowingLinear(3)
    wide.grow(2, generator())
    other = GrowingLinear(3)
    other.grow(width, generator(1))
    other.load_state_dict(wide.state_dict())
    assert torch.equal(other.weight, wide.weight)
    assert other.bias.shape == (2,)
    with torch.no_grad():
        other.weight.fill_(9)
    assert not (wide.weight == 9).any()


def test_cosine_scores_by_hand() -> None:
    features, prototypes = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, -7.0]])
    scores = cosine_scores(features, prototypes)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, torch.tensor([[0.6, -0.8], [0.0, 0.0]]))


def test_a_cosine_is_the_same_in_any_batch() -> None:
    features, prototypes = torch.randn(64, 256, generator=generator()), torch.randn(37, 256, generator=generator(1))
    whole = cosine_scores(features, prototypes)
    for size in (1, 3, 16):
        assert torch.equal(torch.cat([cosine_scores(f, prototypes) for f in features.split(size)]), whole)


@pytest.mark.parametrize(
    ("init", "std", "largest"),
    [
        ("normal_0.001", 0.001, None),
        ("normal_0.01", 0.01, None),
        ("normal_0.02", 0.02, None),
        ("zeros", 0.0, 0.0),
        ("torch_linear", 400**-0.5 / 3**0.5, 400**-0.5),
        ("kaiming_uniform", 400**-0.5 / 3**0.5, 400**-0.5),
        ("kaiming_fan_out", (2 / 50) ** 0.5, None),
    ],
)
def test_how_new_columns_begin(init: HeadInit, std: float, largest: float | None) -> None:
    head = GrowingLinear(400)
    head.grow(50, generator(), init)
    assert head.weight.std().item() == pytest.approx(std, rel=0.03)
    assert head.weight.mean().item() == pytest.approx(0, abs=0.03 * std + 1e-12)
    if largest is not None:
        assert 0.99 * largest <= head.weight.abs().max() <= largest
    if init == "torch_linear":
        assert head.bias.std().item() == pytest.approx(std, rel=0.2)
        assert 0 < head.bias.abs().max() <= largest
    else:
        assert (head.bias == 0).all()


def test_the_usual_beginning_is_normal_001() -> None:
    usual, named = GrowingLinear(5), GrowingLinear(5)
    usual.grow(3, generator())
    named.grow(3, generator(), "normal_0.01")
    assert torch.equal(usual.weight, named.weight)


@pytest.mark.parametrize("init", get_args(HeadInit))
def test_whatever_the_beginning_old_columns_stay_and_the_generator_decides(init: HeadInit) -> None:
    heads = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        head = GrowingLinear(6)
        head.grow(2, generator(), init)
        old = head.weight.detach().clone(), head.bias.detach().clone()
        before = torch.get_rng_state()
        head.grow(5, generator(1), init)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.equal(head.weight[:2], old[0])
        assert torch.equal(head.bias[:2], old[1])
        assert (head.weight[2:] != 0).all() == (init != "zeros")
        heads.append(head)
        head.grow(5, generator(2), init)
        assert torch.equal(head.weight, heads[0].weight), "no new column, no change"
    assert torch.equal(heads[0].bias, heads[1].bias)


def test_fan_out_counts_the_new_columns() -> None:
    head = GrowingLinear(2000)
    head.grow(2, generator(), "kaiming_fan_out")
    head.grow(10, generator(1), "kaiming_fan_out")
    assert [head.weight[rows].std().item() for rows in (slice(2), slice(2, 10))] == pytest.approx([1, 0.5], rel=0.05)
