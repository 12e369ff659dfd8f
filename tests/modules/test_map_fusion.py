from __future__ import annotations

import torch
from torch import Tensor

from perdure.modules.map_fusion import fused


def by_the_formula(old: Tensor, new: Tensor, b: float, flips: Tensor) -> Tensor:
    """With every column of U, and row of Vᵀ, turned as told."""
    u, s, vh = torch.linalg.svd(old.double())
    u, vh = u * flips, vh * flips[:, None]
    p, d = u.T @ new.double(), s[:, None] * vh
    change = (p - d).abs()
    share = (change / change.max() + b).clamp(max=1)
    return u @ (share * p + (1 - share) * d)


def maps() -> tuple[Tensor, Tensor, torch.Generator]:
    rng = torch.Generator().manual_seed(0)
    return *(torch.randn(6, 6, generator=rng) for _ in range(2)), rng


def test_the_formula_whatever_the_signs() -> None:
    old, new, rng = maps()
    for b in (0.0, 0.3, 0.9):
        found = fused(old, new, b)
        assert found.tied == 0
        assert found.map.dtype == torch.float32
        for _ in range(3):
            flips = 2.0 * torch.randint(2, (6,), generator=rng) - 1
            torch.testing.assert_close(found.map.double(), by_the_formula(old, new, b, flips), atol=1e-6, rtol=0)


def test_neither_map_is_changed_or_shared() -> None:
    old, new, _ = maps()
    before = old.clone(), new.clone()
    for b in (0.5, 1.0):
        fused(old, new, b).map.add_(1)
        assert torch.equal(old, before[0])
        assert torch.equal(new, before[1])


def test_ties_are_counted() -> None:
    _, new, _ = maps()
    for old, tied in ((torch.eye(6), 5), (torch.diag(torch.tensor([1.0, 2, 3, 2, 5, 2])), 2)):
        assert [fused(old, new, b).tied for b in (0.5, 1.0)] == [tied, tied]
