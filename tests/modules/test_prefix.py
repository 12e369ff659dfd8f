from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F

from perdure.errors import ShapeError
from perdure.modules.prefix import (
    ExhaustedSpaceWarning,
    component_weights,
    orthogonality_penalty,
    orthonormal_block,
    split_heads,
)
from rows import drawn, gap_to_identity, generator


def test_each_head_reads_its_own_part_of_the_width() -> None:
    rows = torch.arange(24.0).reshape(1, 3, 8)  # one image, three rows of width 8
    heads = split_heads(rows, 2)
    assert heads.shape == (1, 2, 3, 4)
    assert heads[0, 0].tolist() == rows[0, :, :4].tolist()
    assert heads[0, 1].tolist() == rows[0, :, 4:].tolist()


def test_weights_by_hand() -> None:
    weights = component_weights(
        torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.0, 5.0], [1.0, 1.0]])
    )
    torch.testing.assert_close(weights, torch.tensor([[0.8, 0.5**0.5]]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_are_float32_whatever_the_autocast(dtype: torch.dtype) -> None:
    q, a, k = (drawn(3, 64, seed=i).to(dtype) for i in range(3))
    plain = component_weights(q, a, k)
    with torch.autocast("cpu", torch.bfloat16):
        cast = component_weights(q, a, k)
    assert plain.dtype == cast.dtype == torch.float32
    assert torch.equal(plain, cast)
    exact = F.cosine_similarity(q.double()[:, None] * a.double(), k.double(), dim=2)
    torch.testing.assert_close(plain.double(), exact, atol=1e-6, rtol=0)


def test_a_query_that_is_masked_away_weighs_nothing_and_has_a_finite_gradient() -> None:
    q = torch.tensor([[0.0, 1.0]])
    a, k = (torch.tensor([[1.0, 0.0]], requires_grad=True) for _ in range(2))
    weights = component_weights(q, a, k)
    weights.sum().backward()
    assert weights.tolist() == [[0.0]]
    assert a.grad.isfinite().all()
    assert k.grad.isfinite().all()


@pytest.mark.parametrize("how", ["qr", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_first_block_is_orthonormal(how, dtype: torch.dtype) -> None:
    block = orthonormal_block(torch.empty(0, 12, dtype=dtype), 5, generator(), how)
    assert block.dtype == dtype
    assert block.shape == (5, 12)
    assert gap_to_identity(block) < 1e-6


def test_both_ways_are_gram_schmidt_where_the_old_rows_are_orthonormal() -> None:
    old = orthonormal_block(torch.empty(0, 12, dtype=torch.float64), 4, generator())
    qr, reference = (orthonormal_block(old, 3, generator(1), how) for how in ("qr", "reference"))
    torch.testing.assert_close(qr, reference, atol=1e-12, rtol=0)
    first = drawn(3, 12, seed=1)[0]
    torch.testing.assert_close(qr[0], F.normalize(first - old.T @ (old @ first), dim=0), atol=1e-12, rtol=0)


def test_rows_come_from_the_given_generator_alone_and_old_rows_are_left_alone() -> None:
    old = drawn(2, 8).requires_grad_(True)
    before, state = old.detach().clone(), torch.get_rng_state()
    blocks = [orthonormal_block(old, 3, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(blocks[0], blocks[1])
    assert (blocks[0] - blocks[2]).abs().max() > 0.01
    assert torch.equal(old, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not blocks[0].requires_grad


@pytest.mark.parametrize("how", ["qr", "reference"])
def test_old_rows_of_any_length_and_rank_are_no_obstacle(how) -> None:
    old = torch.cat([1e3 * drawn(1, 8), 1e3 * drawn(1, 8), torch.zeros(1, 8, dtype=torch.float64)])
    block = orthonormal_block(old, 2, generator(1), how)
    assert block.isfinite().all()
    torch.testing.assert_close(block.norm(dim=1), torch.ones(2, dtype=torch.float64))
    if how == "qr":
        assert gap_to_identity(block) < 1e-12
        assert (block @ old.T).abs().max() < 1e-9


@pytest.mark.parametrize("how", ["qr", "reference"])
@pytest.mark.parametrize("length", [1e-3, 1.0, 50.0])
def test_rows_are_orthogonal_to_orthogonal_rows_of_any_length(how, length: float) -> None:
    old = length * orthonormal_block(torch.empty(0, 8, dtype=torch.float64), 3, generator())
    block = orthonormal_block(old, 2, generator(1), how)
    assert (block @ old.T).abs().max() < 1e-12 * max(length, 1)
    assert gap_to_identity(block) < 1e-12


@pytest.mark.parametrize("how", ["qr", "reference"])
def test_an_exhausted_space_is_told_and_gives_rows_orthogonal_to_each_other(how) -> None:
    old = drawn(6, 8)
    with pytest.warns(ExhaustedSpaceWarning, match=r"6 old and 3 new rows .* 8 dimensions"):
        block = orthonormal_block(old, 3, generator(1), how)
    assert gap_to_identity(block) < 1e-12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        last = orthonormal_block(old, 2, generator(1))
    assert (last @ old.T).abs().max() < 1e-12


def test_more_orthogonal_rows_than_dimensions_are_refused() -> None:
    with pytest.raises(ShapeError, match="width 8, but got 9"):
        orthonormal_block(torch.empty(0, 8), 9, generator())


def test_penalty_by_hand() -> None:
    assert orthogonality_penalty(torch.eye(3, 5)).item() == 0
    rows = torch.tensor([[1.0, 1.0], [0.0, 2.0]])  # X Xᵀ - I = [[1, 2], [2, 3]]
    assert orthogonality_penalty(rows).item() == 4.5
    assert orthogonality_penalty(rows.reshape(2, 1, 2)).item() == 4.5
