from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from perdure.modules.gaussians import Gaussians
from perdure.modules.normal import Normal


def normal(covariance: Any) -> Normal:
    s = torch.tensor(covariance, dtype=torch.float64)
    values, vectors = torch.linalg.eigh(s)
    return Normal(torch.zeros(len(s), dtype=torch.float64), values.clamp(min=0).sqrt()[:, None] * vectors.T)


def rows_of(made: Normal, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What is drawn where the numbers drawn are the rows of an identity: the samples as a linear map."""
    widths = [len(made.z), *[len(made.mean)] * bool(made.noise), *[1] * bool(made.common)]
    parts = iter(torch.eye(sum(widths), dtype=torch.float64).split(widths, 1))

    def numbers(n: int, width: int, **_: Any) -> Tensor:
        part = next(parts)
        assert part.shape == (n, width)
        return part

    with monkeypatch.context() as patched:
        patched.setattr(torch, "randn", numbers)
        return made.sample(sum(widths), torch.Generator())


def test_samples_have_the_covariance_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    mean = torch.tensor([5.0, -3, 1], dtype=torch.float64)
    z = torch.tensor([[1.0, 2, 0], [0, 1, -1]], dtype=torch.float64)
    for noise, common in ((0.0, 0.0), (0.25, 0.0), (0.25, 0.5)):
        made = Normal(mean, z, noise, common)
        x = rows_of(made, monkeypatch) - mean
        told = z.T @ z + noise * torch.eye(3) + common * torch.ones(3, 3)
        torch.testing.assert_close(x.T @ x, told, atol=1e-12, rtol=0)
        torch.testing.assert_close(made.covariance(), told, atol=1e-12, rtol=0)


def test_a_covariance_is_shrunk_by_its_means() -> None:
    made = normal([[1.0, 0.5], [0.5, 3]]).shrunk()
    torch.testing.assert_close(made.covariance(), torch.tensor([[3.0, 1], [1, 5]], dtype=torch.float64))
    assert (made.noise, made.common) == (pytest.approx(1.5), pytest.approx(0.5))
    ridged = Normal(torch.zeros(2).double(), torch.tensor([[1.0, 1]]).double(), 0.5).shrunk()  # 1.5 and 1
    torch.testing.assert_close(ridged.covariance(), torch.tensor([[3.0, 2], [2, 3]], dtype=torch.float64))
    assert len(ridged.z) == 1


def test_zeros_off_the_diagonal_do_not_count() -> None:
    for s in (torch.diag(torch.tensor([2.0, 4])), torch.diag(torch.tensor([3.0]))):
        made = normal(s.tolist()).shrunk()
        assert made.common == 0
        torch.testing.assert_close(made.covariance(), (s + s.diag().mean() * torch.eye(len(s))).double())
    rounded = normal([[2.0, 1e-15, 1], [1e-15, 2, 0], [1, 0, 2]]).shrunk()
    assert rounded.common == pytest.approx(1.0), "neither do those that were zero before they were rounded"


def test_a_negative_mean_off_the_diagonal_is_exact() -> None:
    s = torch.tensor([[2.0, -1, -0.5], [-1, 3, -0.5], [-0.5, -0.5, 1]], dtype=torch.float64)
    off = float((s.sum() - s.trace()) / 6)
    told = s + s.trace() / 3 * torch.eye(3).double() + off * (1 - torch.eye(3).double())
    made = normal(s.tolist()).shrunk()
    assert (made.noise, made.common) == (0, 0)
    torch.testing.assert_close(made.covariance(), told, atol=1e-12, rtol=0)


def test_what_is_no_covariance_is_made_the_nearest_one() -> None:
    """Two of four dimensions vary, together: the mean of what is not zero is larger than the mean variance."""
    s = torch.zeros(4, 4, dtype=torch.float64)
    s[:2, :2] = 4.0
    told = s + 2 * torch.eye(4) + 4 * (1 - torch.eye(4))
    values, vectors = torch.linalg.eigh(told)
    assert float(values[0]) == pytest.approx(-2)
    with pytest.warns(UserWarning, match=r"shrunk by 4 off its diagonal, has a negative variance, -2, which is"):
        made = normal(s.tolist()).shrunk()
    nearest = vectors @ values.clamp(min=0).diag() @ vectors.T
    torch.testing.assert_close(made.covariance(), nearest, atol=1e-12, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a variance of zero is one, however it is rounded
        normal([[1.0, -1], [-1, 1]]).shrunk()


def test_a_class_gives_its_normal() -> None:
    g = Gaussians(2)
    g.append(torch.tensor([[0.0, 0], [2, 0]]))
    told = torch.tensor([[2.0001, 0], [0, 0.0001]], dtype=torch.float64)
    torch.testing.assert_close(g.normal(0, ridge=1e-4).covariance(), told, atol=1e-12, rtol=0)
    assert g.normal(0, scale=0.5).mean.tolist() == [0.5, 0]
    told = torch.tensor([[5.0, 0], [0, 3]], dtype=torch.float64)
    torch.testing.assert_close(g.normal(0, ridge=1.0, shrink=True).covariance(), told, atol=1e-12, rtol=0)
    one, two = (torch.Generator().manual_seed(3) for _ in range(2))
    assert torch.equal(g.sample(0, 4, one, ridge=0.1), g.normal(0, ridge=0.1).sample(4, two))
