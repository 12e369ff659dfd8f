from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure.errors import DataError
from perdure.modules.gaussians import Gaussians, add_class_counts, add_class_sums, clusters, sampled_epoch, tukey


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


# --- Gaussians of classes ---


def drawn(*shape: int, seed: int = 0) -> Tensor:
    scale = torch.logspace(-1, 1, shape[-1])  # every dimension at a scale of its own, off the origin
    return 3 + torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def gathered(*chunks: Tensor, column: int = 1, width: int = 3, halve: bool = False) -> Gaussians:
    made = Gaussians(chunks[0].shape[1])
    made.grow(width)
    for chunk in chunks:
        before = made.means.clone(), made.means, made.counts.clone(), made.counts
        made.add(column, chunk, **({"halve": True} if halve else {}))
        assert torch.equal(*before[:2]), "learned tensors are replaced, not changed"
        assert torch.equal(*before[2:])
    return made


def test_classes_are_appended_in_ascending_order() -> None:
    rows, columns = drawn(7, 3), torch.tensor([5, 2, 2, 5, 5, 2, 9])
    found, wanted = Gaussians(3), Gaussians(3)
    assert found.append_classes(rows, columns) == [2, 5, 9], "a class of one image is a class"
    assert found.append_classes(rows[:1], columns[:1]) == [5], "one that comes again gets one more"
    for which in (columns == 2, columns == 5, columns == 9, torch.arange(7) == 0):
        wanted.append(rows[which])
    assert torch.equal(found.means, wanted.means)
    assert found.counts.tolist() == [3, 3, 1, 1]
    assert all(map(torch.equal, found.factors, wanted.factors))


def test_a_cluster_of_one_image_beside_larger_ones_is_marked() -> None:
    rows = torch.tensor([[0.0], [0.1], [50.0], [7.0], [8.0]])
    found = Gaussians(1)
    columns = found.append_classes(rows, torch.tensor([0, 0, 0, 1, 1]), 2, seed=4)
    assert sorted(zip(found.counts.tolist(), columns, strict=True)) == [(1, -1), (1, 1), (1, 1), (2, 0)]


@pytest.mark.parametrize("sizes", [(9,), (1, 8), (4, 0, 1, 4), (2, 2, 2, 2, 1), (3,), (2,)])
def test_any_cut_gives_numpys_mean_and_covariance(sizes: tuple[int, ...]) -> None:
    rows = drawn(sum(sizes), 4)
    found, x = gathered(*rows.split(sizes)), rows.double().numpy()
    assert found.counts.tolist() == [0, len(rows), 0]
    np.testing.assert_allclose(found.means[1], x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.covariance(1), np.cov(x, rowvar=False), rtol=1e-9, atol=1e-12)
    assert found.factors[1].shape == (min(len(rows), 4), 4)
    assert found.means.dtype == found.factors[1].dtype == torch.float64
    assert not found.means[[0, 2]].any()


def test_a_class_of_one_image_or_none_has_no_covariance() -> None:
    found = gathered(drawn(1, 4))
    for column in (0, 1):
        assert found.deviation(column).shape == (0, 4)
        assert not found.covariance(column).any()
    assert found.pooled_deviation().shape == (0, 4)
    assert found.sample(1, 2, torch.Generator(), scale=2.0).tolist() == (2 * found.means[[1, 1]]).tolist()


def test_the_pooled_covariance_divides_by_images_less_classes() -> None:
    a, b, found = drawn(5, 3), drawn(3, 3, seed=1), Gaussians(3)
    found.grow(4)  # one of them stays empty, one has a single image
    for column, rows in ((0, a), (2, b), (3, drawn(1, 3, seed=2))):
        found.add(column, rows)
    z = found.pooled_deviation()
    scatter = sum(np.cov(x.double().numpy(), rowvar=False) * (len(x) - 1) for x in (a, b))
    np.testing.assert_allclose(z.T @ z, scatter / (5 - 1 + 3 - 1), rtol=1e-9)


def test_merging_is_gathering_together_and_leaves_the_other_alone() -> None:
    a, b, c = drawn(5, 3), drawn(4, 3, seed=1), drawn(2, 3, seed=2)
    mine, other = gathered(a, width=4), gathered(b, width=3)
    other.add(0, c)
    before = other.covariance(1).clone()
    mine.merge(other)
    both = torch.cat([a, b]).double().numpy()
    assert mine.counts.tolist() == [2, 9, 0, 0]
    np.testing.assert_allclose(mine.means[1], both.mean(0), rtol=1e-12)
    np.testing.assert_allclose(mine.covariance(1), np.cov(both, rowvar=False), rtol=1e-9)
    np.testing.assert_allclose(mine.covariance(0), np.cov(c.double().numpy(), rowvar=False), rtol=1e-9, atol=1e-12)
    assert torch.equal(other.covariance(1), before)
    assert other.counts.tolist() == [2, 4, 0]


@pytest.mark.parametrize("n", [2, 4])
def test_halved_covariances_keep_the_mean_of_all_images(n: int) -> None:
    a, b = drawn(6, 3), 10 + drawn(n, 3, seed=1)
    found = gathered(a, b, halve=True)
    both = torch.cat([a, b]).double().numpy()
    np.testing.assert_allclose(found.means[1], both.mean(0), rtol=1e-12)
    half = (np.cov(a.double().numpy(), rowvar=False) + np.cov(b.double().numpy(), rowvar=False)) / 2
    np.testing.assert_allclose(found.covariance(1), half, rtol=1e-9)
    once = gathered(a, b[:1], halve=True)  # one image has no covariance to take a half of
    seen = np.concatenate([a, b[:1]]).astype(np.float64)
    np.testing.assert_allclose(once.covariance(1), np.cov(seen, rowvar=False), rtol=1e-6)


def _by_rows(state: Any) -> Any:
    return {k: v.contiguous() for k, v in state.items()} if isinstance(state, dict) else state.contiguous()


def test_growing_keeps_what_is_there_and_a_state_brings_its_width() -> None:
    found = gathered(drawn(5, 3), width=2)
    before = found.covariance(1)
    found.grow(5)
    assert len(found) == len(found.means) == len(found.factors) == 5
    assert torch.equal(found.covariance(1), before)
    other = gathered(drawn(2, 3, seed=3), width=2)
    other.load_state_dict({k: _by_rows(v) for k, v in found.state_dict().items()})  # as files hold it
    assert other.counts.tolist() == [0, 5, 0, 0, 0]
    assert torch.equal(other.covariance(1), before)
    assert other.factors[1].stride() == found.factors[1].stride() == (1, 3), "on which last bits depend"
    other.factors[1].zero_()
    assert torch.equal(found.covariance(1), before), "loading copies"


@pytest.mark.parametrize("diagonal", [False, True])
def test_samples_have_the_mean_and_the_covariance_asked_for(diagonal: bool) -> None:
    rows = drawn(30, 3)
    found = gathered(rows)
    x = found.sample(1, 40_000, torch.Generator().manual_seed(0), ridge=0.5, scale=1.5, diagonal=diagonal)
    sigma = np.cov(rows.double().numpy(), rowvar=False)
    wanted = (np.diag(np.diag(sigma)) if diagonal else sigma) + 0.5 * np.eye(3)
    spread = np.sqrt(np.diag(wanted))
    assert x.dtype == torch.float64
    assert np.abs(x.mean(0).numpy() - 1.5 * rows.double().mean(0).numpy()).max() < 0.03 * spread.max()
    assert np.abs((np.cov(x.numpy(), rowvar=False) - wanted) / np.outer(spread, spread)).max() < 0.03
    same = found.sample(1, 5, torch.Generator().manual_seed(3)), found.sample(1, 5, torch.Generator().manual_seed(3))
    assert torch.equal(*same)


def test_an_epoch_of_samples_is_balanced_shuffled_and_cut() -> None:
    found = Gaussians(2)
    found.grow(3)
    for column, centre in enumerate((0.0, 100.0, 10_000.0)):
        found.add(column, centre + torch.tensor([[1.0, 0], [0, 1], [1, 1]]))
    options = {"batch_size": 4, "scales": [1.0, 2.0, 1.0]}

    def epoch(n_steps: int) -> list[tuple[Tensor, Tensor]]:
        return list(sampled_epoch(found, [7, 5, 5], 3, torch.Generator().manual_seed(1), n_steps=n_steps, **options))

    whole = epoch(99)
    assert [len(z) for z, _ in whole] == [4, 4, 1]
    z, columns = torch.cat([z for z, _ in whole]), torch.cat([c for _, c in whole])
    assert sorted(columns.tolist()) == [5] * 6 + [7] * 3
    assert columns.tolist() != sorted(columns.tolist())
    assert columns.tolist() != sorted(columns.tolist(), reverse=True)
    assert z.dtype == torch.float32
    near = {0: 7, 201: 5, 10_000: 5}  # the second one's mean is doubled
    for row, column in zip(z, columns.tolist(), strict=True):
        assert near[min(near, key=lambda centre: abs(centre - float(row.mean())))] == column
    assert sum(abs(float(row.mean()) - 201) < 10 for row in z) == 3
    assert all(torch.equal(a[0], b[0]) for a, b in zip(epoch(2), whole, strict=False))
    assert len(epoch(2)) == 2
    plain = sampled_epoch(found, [0, 1, 2], 50, torch.Generator().manual_seed(1), batch_size=200, n_steps=1)
    z, columns = next(plain)
    assert float(z[columns == 1].mean()) == pytest.approx(100.7, abs=0.5)
    wide = sampled_epoch(
        found, [0, 1, 2], 400, torch.Generator().manual_seed(1), batch_size=2000, n_steps=1, diagonal=True
    )
    z, columns = next(wide)
    cut = np.corrcoef(z[columns == 0].double().numpy(), rowvar=False)[0, 1]
    assert abs(cut) < 0.15  # the covariance of the three rows has a correlation of -0.5
    assert float(z[columns == 0].var(0).mean()) == pytest.approx(1 / 3, rel=0.15)
    z, columns = next(sampled_epoch(found, [0, 1, 2], 400, torch.Generator(), batch_size=2000, n_steps=1, ridge=4.0))
    assert float(z[columns == 0].var(0).mean()) == pytest.approx(4 + 1 / 3, rel=0.15)


def test_tukeys_ladder_by_hand() -> None:
    x = torch.tensor([[0.0, 4.0, 0.25]])
    assert tukey(x, 0.5).tolist() == [[0, 2, 0.5]]
    assert tukey(x, 0.5).dtype == torch.float64
    assert tukey(x, 0).tolist()[0] == pytest.approx([np.log(1e-12), np.log(4), np.log(0.25)])
    assert tukey(x[:0], 0.5).shape == (0, 3)
    with pytest.raises(DataError, match=r"0 or more, but got -0\.5"):
        tukey(torch.tensor([[1.0, -0.5]]), 0.5)


def test_appending_is_growing_by_one_and_adding() -> None:
    rows = torch.arange(12.0).view(4, 3)
    one, other = Gaussians(3), Gaussians(3)
    for part in (rows[:1], rows[1:]):
        one.append(part)
    other.grow(2)
    other.add(0, rows[:1])
    other.add(1, rows[1:])
    assert one.counts.tolist() == [1, 3]
    assert torch.equal(one.means, other.means)
    assert torch.equal(one.factors[1], other.factors[1])


def test_gaussians_stay_on_the_cpu_whatever_moves_them() -> None:
    """Their sums are float64 and meet features there; some devices have no float64 at all."""
    made = Gaussians(4)
    made.append(torch.ones(3, 4))
    inside = torch.nn.ModuleList([made]).to("meta")
    assert {x.device.type for x in inside.state_dict().values() if isinstance(x, Tensor)} == {"cpu"}
