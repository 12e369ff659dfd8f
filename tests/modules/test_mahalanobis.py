"""Distances against the explicit inverse, where nothing is symmetric, square or of unit scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure.modules.mahalanobis import Dense, LowRank, mixed, shrinkage


def drawn(*shape: int, seed: int = 0) -> Tensor:
    scale = torch.logspace(-1, 1, shape[-1], dtype=torch.float64)  # every dimension at a scale of its own
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale


def explicit(z: Tensor, a: float, b: float, rows: Tensor, normalise: bool) -> tuple[np.ndarray, float]:
    """Distances and log det R, by NumPy."""
    s = z.numpy().T @ z.numpy() + a * np.eye(z.shape[1]) + b
    r = s / np.sqrt(np.outer(np.diag(s), np.diag(s))) if normalise else s
    return np.einsum("ni,ij,nj->n", rows.numpy(), np.linalg.inv(r), rows.numpy()), float(np.linalg.slogdet(r)[1])


def test_shrinkage_has_a_weight_for_each_kind_of_entry() -> None:
    z = drawn(5, 3)
    sigma = z.numpy().T @ z.numpy()
    v1, v2 = np.trace(sigma) / 3, (sigma.sum() - np.trace(sigma)) / 6
    a, b = shrinkage(z, 2.0, 0.5)
    wanted = sigma + 2.0 * v1 * np.eye(3) + 0.5 * v2 * (1 - np.eye(3))
    np.testing.assert_allclose(sigma + a * np.eye(3) + b, wanted, rtol=1e-12)


@pytest.mark.parametrize(("share", "n"), [(0.25, 8), (0.0, 8), (1.0, 3)])
def test_two_covariances_are_mixed_by_their_shares(share: float, n: int) -> None:
    z, rows = drawn(3, 4), 5 + drawn(n, 4, seed=1)
    found = mixed(z, share, iter(rows.split(3)))
    wanted = share * z.numpy().T @ z.numpy() + (1 - share) * np.cov(rows.numpy().T)
    np.testing.assert_allclose(found.numpy().T @ found.numpy(), wanted, rtol=1e-10, atol=1e-10)
    assert len(found) <= 4


def test_shrinkage_of_one_dimension_has_no_other_entries() -> None:
    assert shrinkage(torch.tensor([[2.0], [1.0]], dtype=torch.float64), 3.0, 7.0) == (15.0, 0.0)


@pytest.mark.parametrize("kind", [Dense, LowRank])
@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("b", [0.0, 0.3, -0.02])
@pytest.mark.parametrize("log_determinant", [True, False])
def test_distances_are_those_of_the_explicit_inverse(
    kind: type[Dense | LowRank], normalise: bool, b: float, log_determinant: bool
) -> None:
    z, rows = drawn(3, 7), drawn(4, 7, seed=1)
    wanted, determinant = explicit(z, 2.5, b, rows, normalise)
    found = kind(z, 2.5, b, normalise=normalise, log_determinant=log_determinant).distances(rows)
    assert found.tolist() == pytest.approx(wanted + log_determinant * determinant, rel=1e-9)


@pytest.mark.parametrize("kind", [Dense, LowRank])
def test_the_determinant_is_left_out_unless_asked_for(kind: type[Dense | LowRank]) -> None:
    z, rows = drawn(3, 7), drawn(4, 7, seed=1)
    assert kind(z, 2.5, 0.1, normalise=False).distances(rows).tolist() == pytest.approx(
        explicit(z, 2.5, 0.1, rows, False)[0], rel=1e-9
    )


@pytest.mark.parametrize("kind", [Dense, LowRank])
@pytest.mark.parametrize("a", [0.0, -1.0])
def test_a_matrix_of_zeros_measures_as_euclid_does(kind: type[Dense | LowRank], a: float) -> None:
    rows = drawn(4, 3)
    metric = kind(torch.zeros(0, 3, dtype=torch.float64), a or 1e-300, -1e-300, normalise=True, log_determinant=True)
    assert metric.distances(rows).tolist() == pytest.approx(rows.square().sum(1).tolist())


@pytest.mark.parametrize("normalise", [True, False])
def test_one_dimension_without_variance_makes_it_euclid_too(normalise: bool) -> None:
    rows, z = drawn(4, 3), torch.tensor([[2.0, 0.0, 1.0]], dtype=torch.float64)
    metric = Dense(z, 0.0, 0.0, normalise=normalise)
    assert metric.distances(rows).tolist() == pytest.approx(rows.square().sum(1).tolist())


def test_a_singular_matrix_gets_a_hundred_millionth_of_its_mean_variance() -> None:
    metric = Dense(torch.tensor([[2.0, 2.0]], dtype=torch.float64), 0.0, 0.0, normalise=False)  # [[4, 4], [4, 4]]
    along, across = metric.distances(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)).tolist()
    assert along == pytest.approx(2 / 8, rel=1e-6)
    assert across == pytest.approx(2 / (4e-8), rel=1e-3)


def test_a_matrix_that_is_not_positive_gets_as_much_as_it_needs() -> None:
    # I - 0.51 J in two dimensions: eigenvalues 1 and -0.02, variances 0.49; a tenth of those is enough
    metric = Dense(torch.zeros(0, 2, dtype=torch.float64), 1.0, -0.51, normalise=False, log_determinant=True)
    along, across = metric.distances(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)).tolist()
    log_determinant = math.log(1.049) + math.log(0.029)
    assert along == pytest.approx(2 / 0.029 + log_determinant)
    assert across == pytest.approx(2 / 1.049 + log_determinant)


def test_an_inverse_is_taken_as_it_is_even_singular() -> None:
    root = drawn(2, 4)
    inverse, rows = root.T @ root, drawn(5, 4, seed=1)
    found = Dense.of_inverse(inverse).distances(rows)
    assert found.tolist() == pytest.approx((rows @ inverse @ rows.T).diagonal().tolist(), rel=1e-9)
