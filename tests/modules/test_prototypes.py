"""Class means by hand: sums in chunks, completion, classes of several slots."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from perdure.modules.gaussians import add_class_sums
from perdure.modules.prototypes import add_class_chunks, best_of_slots, completed


def double(*rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("size", [1, 3, 7, 8])
def test_chunks_add_up_to_the_whole(size: int) -> None:
    rng = torch.Generator().manual_seed(0)
    features, columns = torch.randn(7, 3, generator=rng), torch.randint(4, (7,), generator=rng)
    old = torch.randn(2, 3, generator=rng, dtype=torch.float64)
    before = old.clone()
    found = add_class_chunks(old, columns, iter(features.split(size)), 5)
    assert torch.equal(found, add_class_sums(old, columns, features, 5))
    assert torch.equal(old, before)


def test_no_chunk_grows_the_sums_all_the_same() -> None:
    old = double([1.0, 2.0])
    found = add_class_chunks(old, torch.zeros(0, dtype=torch.long), [], 2)
    assert found.tolist() == [[1, 2], [0, 0]]
    assert found is not old


def test_old_classes_are_completed_in_newer_subspaces_from_the_newer_classes() -> None:
    """Class 0 is of task 0, the others of task 1; its cosines with them in subspace 0 are 1 and 0."""
    means = double([[2.0, 0.0], [5.0, 0.0], [0.0, 3.0]], [[9.0, 9.0], [1.0, 0.0], [0.0, 4.0]])
    given = means.clone()
    e = math.e
    found = completed(means, [0, 1, 1])
    torch.testing.assert_close(found[1, 0], double(e / (e + 1), 4 / (e + 1)))
    known = torch.tensor([[True, True, True], [False, True, True]])
    assert torch.equal(found[known], means[known])
    assert torch.equal(means, given)
    sharp = completed(means, [0, 1, 1], 0.1)[1, 0]
    torch.testing.assert_close(sharp, double(e**10 / (e**10 + 1), 4 / (e**10 + 1)))


def test_a_class_scores_by_its_best_slot() -> None:
    scores = torch.tensor([[0.5, -1.0, 0.25], [-3.0, -2.0, -1.0]])
    assert best_of_slots(scores, [1, 0, 1], 3).tolist() == [[-1.0, 0.5, -math.inf], [-2.0, -1.0, -math.inf]]
