"""Pools that grow, and the choice of prompts: matching, ties, votes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from perdure.modules.prompts import (
    Init,
    PromptPool,
    TaskBlocks,
    best_slots,
    cosine_match,
    picked,
    selection_entropy,
    uniform,
    unit,
    vote,
    vote_in_groups,
)


def blocks(*sizes: int, dim: int = 3) -> TaskBlocks:
    made = TaskBlocks()
    for i, n in enumerate(sizes):
        made.add(torch.full((n, dim), float(i)))
    return made


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- initial values, and a pool of fixed size


@pytest.mark.parametrize(
    ("init", "low", "high"), [("uniform_pm1", -1, 1), ("uniform_0_001", 0, 0.01), ("uniform_0_1", 0, 1)]
)
def test_initial_values_fill_their_range(init: Init, low: float, high: float) -> None:
    values, width = uniform(init, (100, 7), rng()), high - low
    assert values.shape == (100, 7)
    assert low <= values.min() < low + 0.01 * width
    assert high - 0.01 * width < values.max() <= high
    assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.05 * width)


def test_initial_values_draw_from_their_generator_alone() -> None:
    first = uniform("uniform_0_1", (5,), rng())
    torch.manual_seed(3)
    assert torch.equal(uniform("uniform_0_1", (5,), rng()), first)
    draw = rng()
    assert not torch.equal(uniform("uniform_0_1", (5,), draw), uniform("uniform_0_1", (5,), draw))


def test_a_pool_draws_its_prompts_and_then_its_keys() -> None:
    pool, draw = PromptPool(4, 3, 2, "uniform_pm1", rng()), rng()
    assert torch.equal(pool.prompts, uniform("uniform_pm1", (4, 3, 2), draw))
    assert torch.equal(pool.keys, uniform("uniform_pm1", (4, 2), draw))
    assert [(name, p.requires_grad) for name, p in pool.named_parameters()] == [("prompts", True), ("keys", True)]


def test_prompts_are_copied_to_other_slots_and_keys_are_not() -> None:
    pool = PromptPool(5, 3, 2, "uniform_0_1", rng())
    prompts, keys = pool.prompts, pool.keys
    before = [p.detach().clone() for p in (prompts, keys)]
    pool.copy(torch.tensor([0, 1]), to=torch.tensor([3, 0]))
    assert torch.equal(pool.prompts, before[0][[1, 1, 2, 0, 4]])
    assert torch.equal(pool.keys, before[1])
    assert pool.keys is keys
    assert torch.equal(prompts, before[0]), "a learned tensor is replaced, never changed in place"
    assert pool.prompts.requires_grad


# --- pools that grow


def test_blocks_stand_in_the_order_of_their_tasks() -> None:
    made = blocks(2, 1, 3)
    assert len(made) == 3
    assert made()[:, 0].tolist() == [0, 0, 1, 2, 2, 2]
    assert torch.equal(made.newest, torch.full((3, 3), 2.0))


def test_a_block_is_a_copy() -> None:
    rows, made = torch.ones(2, 3, requires_grad=True), TaskBlocks()
    made.add(rows)
    with torch.no_grad():
        rows.zero_()
    assert (made() == 1).all()
    assert made.newest.is_leaf


def test_only_the_newest_block_learns() -> None:
    made = blocks(2, 1)
    assert [p.requires_grad for p in made.parameters()] == [False, True]
    made().square().sum().backward()
    assert made.blocks[0].grad is None
    assert made.newest.grad.tolist() == [[2, 2, 2]]
    made.add(torch.zeros(1, 3))
    assert [p.requires_grad for p in made.parameters()] == [False, False, True]
    assert made.blocks[1].grad is None, "or it would be kept as long as the block"
    made.freeze()
    assert not any(p.requires_grad for p in made.parameters())
    assert not made().requires_grad


def test_older_blocks_are_out_of_the_optimisers_reach() -> None:
    """Weight decay and momentum included."""
    made = blocks(2, 2)
    optimizer = torch.optim.SGD([p for p in made.parameters() if p.requires_grad], 0.1, 0.9, weight_decay=0.5)
    for _ in range(3):
        made().sum().backward()
        optimizer.step()
    assert (made.blocks[0] == 0).all()
    assert (made.newest != 1).all()


@pytest.mark.parametrize("sizes", [(), (1,), (2, 1), (3, 1, 4, 1)])
def test_a_loaded_state_decides_how_many_blocks_there_are(sizes: tuple[int, ...]) -> None:
    saved, other = blocks(2, 5), blocks(*sizes)
    other.load_state_dict(saved.state_dict())
    assert len(other) == 2
    assert torch.equal(other(), saved())
    assert not any(p.requires_grad for p in other.parameters())
    other.blocks[0].data.fill_(9)
    assert not (saved() == 9).any(), "loading copies"
    other.add(torch.zeros(1, 3))
    assert [p.requires_grad for p in other.parameters()] == [False, False, True]


def test_a_state_without_blocks_empties() -> None:
    made = blocks(2)
    made.load_state_dict(TaskBlocks().state_dict())
    assert len(made) == 0


def test_blocks_load_inside_other_modules() -> None:
    saved, other = nn.ModuleList([blocks(1, 2), blocks(3)]), nn.ModuleList([TaskBlocks(), blocks(1, 1, 1)])
    other.load_state_dict(saved.state_dict())
    assert [len(b) for b in other] == [2, 1]
    assert torch.equal(other[1](), saved[1]())


def test_a_state_with_a_missing_block_is_refused_by_name() -> None:
    state = blocks(1, 1, 1).state_dict()
    del state["blocks.1"]
    with pytest.raises(KeyError, match=r"blocks\.1"):
        TaskBlocks().load_state_dict(state)


@pytest.mark.filterwarnings("ignore:for blocks.* copying from a non-meta parameter")
def test_loaded_blocks_go_where_the_module_was_sent() -> None:
    """An empty one too; the state holds blocks and nothing else."""
    other = TaskBlocks().to("meta")
    other.load_state_dict(blocks(2, 1).state_dict())
    assert {p.device.type for p in other.parameters()} == {"meta"}
    assert list(blocks(2, 1).state_dict()) == ["blocks.0", "blocks.1"]


def test_blocks_keep_their_type() -> None:
    saved, other = TaskBlocks(), TaskBlocks()
    saved.add(torch.ones(1, 2, dtype=torch.float64))
    other.load_state_dict(saved.state_dict())
    assert other().dtype == torch.float64


# --- matching


def test_a_cosine_by_hand() -> None:
    queries, keys = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, -7.0], [6.0, 8.0]])
    torch.testing.assert_close(cosine_match(queries, keys), torch.tensor([[0.6, -0.8, 1.0], [0.0, 0.0, 0.0]]))


def test_rows_too_short_are_divided_by_a_millionth() -> None:
    torch.testing.assert_close(unit(torch.tensor([[3e-7, 0.0], [3e-6, 4e-6]])), torch.tensor([[0.3, 0.0], [0.6, 0.8]]))


def near_tie() -> tuple[Tensor, Tensor]:
    """A query to which the second key is nearer, by less than bfloat16 can tell."""
    return torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.02], [1.0, 0.01]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_near_ties_do_not_flip_under_autocast(dtype: torch.dtype) -> None:
    queries, keys = near_tie()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = unit(queries) @ unit(keys).T
        match = cosine_match(queries.to(dtype), keys)
    assert rounded[0, 0] == rounded[0, 1], "bfloat16 cannot tell"
    assert match.dtype == torch.float32
    assert torch.equal(match, cosine_match(queries, keys))
    assert best_slots(match, 1).tolist() == [[1]]


def test_keys_get_a_gradient_across_themselves() -> None:
    keys = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cosine_match(torch.ones(2, 6), keys).sum().backward()
    assert (keys.grad.norm(dim=1) > 0.1).all()
    assert (keys.grad * keys).sum(1).abs().max() < 1e-6


# --- choosing


def test_the_best_come_first_and_ties_go_to_the_smaller_index() -> None:
    match = torch.tensor([[0.1, 0.7, 0.7, 0.9, 0.7], [0.5, 0.5, 0.5, 0.5, 0.5]])
    assert best_slots(match, 3).tolist() == [[3, 1, 2], [0, 1, 2]]
    assert best_slots(match, 5).tolist() == [[3, 1, 2, 4, 0], [0, 1, 2, 3, 4]]
    many = torch.zeros(2, 1000)
    assert best_slots(many, 20).tolist() == [list(range(20))] * 2


def test_the_most_votes_win_and_ties_go_to_the_smaller_index() -> None:
    assert vote(torch.tensor([[4, 2], [2, 5], [5, 1]]), 6).tolist() == [[2, 5]] * 3
    assert vote(torch.tensor([[5, 4], [3, 2]]), 6).tolist() == [[2, 3]] * 2
    assert vote(torch.arange(600).flip(0).view(300, 2), 600).tolist() == [[0, 1]] * 300


def test_a_vote_of_one_is_its_own_choice_in_the_order_of_slots() -> None:
    assert vote(torch.tensor([[4, 2]]), 6).tolist() == [[2, 4]]


def test_the_order_of_voters_does_not_matter() -> None:
    rng = torch.Generator().manual_seed(0)
    picks = torch.rand(40, 12, generator=rng).argsort(1)[:, :4]
    assert torch.equal(vote(picks, 12), vote(picks[torch.randperm(40, generator=rng)], 12))


def test_groups_vote_apart() -> None:
    picks = torch.tensor([[0, 1], [0, 2], [3, 2], [3, 1], [5, 4]])
    assert vote_in_groups(picks, 6, 2).tolist() == [[0, 1]] * 2 + [[3, 1]] * 2 + [[4, 5]]
    assert vote_in_groups(picks, 6, 5).tolist() == vote_in_groups(picks, 6, 99).tolist() == vote(picks, 6).tolist()
    assert vote_in_groups(picks, 6, 1).tolist() == picks.sort(1).values.tolist()
    assert vote_in_groups(picks[:0], 6, 0).shape == (0, 2)


def test_slots_are_picked_alone_in_groups_or_by_the_whole_batch() -> None:
    """Own slots: 2 0, 2 1, 0 1, 1 0, 1 2."""
    match = torch.tensor([[0.5, 0.1, 0.9], [0.1, 0.5, 0.9], [0.9, 0.5, 0.1], [0.5, 0.9, 0.1], [0.1, 0.9, 0.5]])
    alone = [[2, 0], [2, 1], [0, 1], [1, 0], [1, 2]]
    assert picked(match, 2).tolist() == picked(match, 2, None).tolist() == alone
    assert picked(match, 2, 2).tolist() == [[2, 0]] * 2 + [[0, 1]] * 2 + [[1, 2]]
    assert picked(match, 2, "batch").tolist() == picked(match, 2, 9).tolist() == [[1, 0]] * 5
    assert picked(match[:2], 2, "batch").tolist() == [[2, 0]] * 2
    assert picked(match[:0], 2, "batch").shape == (0, 2)


# --- how evenly


@pytest.mark.parametrize(
    ("shares", "entropy"),
    [
        ([0.25] * 4, 1.0),
        ([3.0] * 7, 1.0),
        ([0.0, 1.0, 0.0], 0.0),
        ([0.5, 0.5, 0.0, 0.0], 0.5),
        ([0.75, 0.25], 0.811278),
        ([1.0], 0.0),
        ([], 0.0),
        ([0.0, 0.0], 0.0),
    ],
)
def test_entropy_of_shares(shares: list[float], entropy: float) -> None:
    assert selection_entropy(torch.tensor(shares)) == pytest.approx(entropy, abs=1e-6)
