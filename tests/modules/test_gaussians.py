from __future__ import annotations

import torch

from perdure.modules.gaussians import add_class_counts, add_class_sums, clusters


def test_sums_and_counts_by_hand() -> None:
    sums = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    columns, features = torch.tensor([0, 2, 2]), torch.tensor([[1.0, 0], [0, 1], [3, 4]])
    grown = add_class_sums(sums, columns, features, 4)
    assert grown.tolist() == [[2, 2], [0, 0], [3, 5], [0, 0]]
    assert grown.dtype == torch.float64
    counts = add_class_counts(torch.tensor([7]), columns, 4)
    assert counts.tolist() == [8, 0, 2, 0]
    assert counts.dtype == torch.long


def test_the_old_statistics_stay_as_they_were() -> None:
    sums, counts = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    columns = torch.tensor([0])
    assert add_class_sums(sums, columns, torch.ones(1, 1), 1).item() == 1
    assert add_class_counts(counts, columns, 1).item() == 1
    assert sums.item() == counts.item() == 0


def test_sums_are_exact_where_float32_is_not() -> None:
    features = torch.tensor([[2.0**24], [1.0], [1.0]])
    sums = add_class_sums(torch.zeros(0, 1, dtype=torch.float64), torch.zeros(3, dtype=torch.long), features, 1)
    assert sums.item() == 2**24 + 2


def test_any_cut_into_chunks_gives_the_same() -> None:
    rng = torch.Generator().manual_seed(0)
    features, columns = torch.randn(20, 3, generator=rng), torch.randint(4, (20,), generator=rng)
    sums, counts = torch.zeros(0, 3, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    for start in range(0, 20, 7):
        rows = slice(start, start + 7)
        sums, counts = (
            add_class_sums(sums, columns[rows], features[rows], 4),
            add_class_counts(counts, columns[rows], 4),
        )
    whole = add_class_sums(torch.zeros(0, 3, dtype=torch.float64), columns, features, 4)
    assert torch.equal(sums, whole)
    assert counts.tolist() == [int((columns == c).sum()) for c in range(4)]


def test_clusters_are_rows_that_lie_together() -> None:
    rows = torch.tensor([[0.0, 0], [9, 9], [0, 1], [9, 8], [1, 0]])
    found = sorted((part.sort(dim=0).values.tolist() for part in clusters(rows, 2, seed=-1)), key=len)
    assert found == [[[9, 8], [9, 9]], [[0, 0], [0, 0], [1, 1]]]
    assert [len(part) for part in clusters(rows, 10, seed=0)] == [1] * 5
    assert [part.tolist() for part in clusters(rows, 1, seed=0)] == [rows.tolist()]


def test_equal_rows_are_one_cluster() -> None:
    assert [len(part) for part in clusters(torch.ones(4, 3), 10, seed=0)] == [4]
    assert [len(part) for part in clusters(torch.ones(1, 3), 10, seed=0)] == [1]
