"""The golden tests 1 to 9 of GEM's specification, section 12, and what real gradients are like besides."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from perdure.errors import TrainingError
from perdure.modules import gradient_projection as module
from perdure.modules.gradient_projection import Projection, dual, project, project_on_one

EXACT = Projection(ridge=0.0)


def t(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)


def gem(g: Tensor, rows: Tensor, how: Projection = EXACT) -> Tensor:
    found = project(g, rows, how)
    assert found is not None
    return found


def agem(g: Tensor, row: Tensor) -> Tensor:
    found = project_on_one(g, row)
    assert found is not None
    return found


def drawn(n: int, p: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(p, generator=rng, dtype=dtype), torch.randn(n, p, generator=rng, dtype=dtype)


def test_01_one_constraint() -> None:
    g, row = t(1, 1), t(-2, 0)
    torch.testing.assert_close(gem(g, row[None]), t(0, 1))
    torch.testing.assert_close(agem(g, row), t(0, 1))


def test_02_an_absolute_ridge() -> None:
    found = gem(t(1, 1), t(-2, 0)[None], Projection(ridge=1e-3, ridge_unit="absolute"))
    torch.testing.assert_close(found, t(1 - 2 * 2 / 4.001, 1), atol=1e-6, rtol=0)
    assert float(found[0]) == pytest.approx(0.00025, abs=1e-6)
    v = dual(np.array([[4.0]]), np.array([-2.0]), Projection(ridge=1e-3, ridge_unit="absolute"))
    assert float(v[0]) == pytest.approx(0.499875, abs=1e-6)
    assert float(dual(np.array([[4.0]]), np.array([-2.0]), Projection(ridge=1e-3))[0]) == pytest.approx(0.5 / 1.001)


@pytest.mark.parametrize(
    ("margin", "mode", "expected"),
    [(0.25, "bound", (0, 1)), (0.25, "added", (-0.5, 1)), (1.0, "bound", (-1, 1))],
)
def test_03_the_two_meanings_of_the_margin(margin: float, mode: Any, expected: tuple[float, float]) -> None:
    how = Projection(ridge=0.0, margin=margin, margin_mode=mode)
    torch.testing.assert_close(gem(t(1, 1), t(-2, 0)[None], how), t(*expected))


def test_03_with_a_margin_a_violation_pulls_towards_every_memory() -> None:
    g, rows = t(-1, 2), t([1, 0], [0, 1])  # the second is not violated
    torch.testing.assert_close(gem(g, rows, Projection(ridge=0.0, margin=0.5)), t(0, 2.5))
    assert project(t(1, 2), rows, Projection(ridge=0.0, margin=0.5)) is None  # without a violation it does nothing


@pytest.mark.parametrize(
    ("g", "rows", "expected"),
    [
        ((-1, -1), ([1, 0], [0, 1]), (0, 0)),
        ((-1, 0), ([1, 0], [1, 1]), (0, 0)),
        ((-1, 2), ([1, 0], [1, 1]), (0, 2)),
    ],
)
def test_04_and_05_two_constraints(g: Any, rows: Any, expected: Any) -> None:
    torch.testing.assert_close(gem(t(*g), t(*rows)), t(*expected))


def test_05_the_inactive_one_has_no_weight() -> None:
    v = dual(np.array([[1.0, 1], [1, 2]]), np.array([-1.0, -1]), EXACT)
    assert v == pytest.approx([1, 0], abs=1e-12)


def test_06_without_a_violation_no_program_is_solved() -> None:
    g, rows = t(1, 1), t([1, 0], [0, 0], [1, -1])  # the last at a right angle: below zero alone is a violation
    with mock.patch.object(module, "nnls", side_effect=RuntimeError):
        assert project(g, rows, EXACT) is None
    assert project_on_one(g, rows[2]) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_07_the_conditions_of_the_optimum(dtype: torch.dtype) -> None:
    close = 1e-6 if dtype == torch.float64 else 1e-4
    for seed in range(20):
        g, rows = drawn(5, 50, seed, dtype)
        v = dual((rows @ rows.T).double().numpy(), (rows @ g).double().numpy(), Projection(ridge=1e-9))
        found = gem(g, rows, Projection(ridge=1e-9))
        slack = (rows @ found).numpy()
        assert slack.min() >= -close
        assert v.min() >= 0
        assert np.abs(v * slack).max() < close
        torch.testing.assert_close(found, g + torch.from_numpy(v).to(g) @ rows)


def test_07_no_feasible_point_is_nearer() -> None:
    g, rows = drawn(5, 50)
    distance = (gem(g, rows) - g).square().sum()
    rng, lift = torch.Generator().manual_seed(1), torch.linalg.pinv(rows)
    for _ in range(1000):
        point = g + 0.5 * torch.randn(50, generator=rng, dtype=g.dtype)
        point = point + lift @ ((rows @ point).clamp(min=0) - rows @ point)  # onto the constraints it violates
        assert (rows @ point).min() > -1e-9
        assert (point - g).square().sum() >= distance


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_07_agrees_with_a_general_solver(margin: float) -> None:
    for seed in range(5):
        g, rows = drawn(5, 50, seed)
        gram, products = (rows @ rows.T).numpy(), (rows @ g).numpy()
        found = minimize(
            lambda v, q=gram, c=products: 0.5 * v @ q @ v + c @ v, np.ones(5),
            jac=lambda v, q=gram, c=products: q @ v + c, bounds=[(margin, None)] * 5,
            method="SLSQP", options={"ftol": 1e-15, "maxiter": 500},
        )  # fmt: skip
        assert dual(gram, products, Projection(ridge=0.0, margin=margin)) == pytest.approx(found.x, abs=1e-5)


def test_08_the_length_of_a_memorys_gradient_does_not_matter() -> None:
    g, rows = drawn(3, 20)
    g = g - rows.sum(0)
    scaled = rows * torch.tensor([[1e-3], [1.0], [1e3]], dtype=g.dtype)
    torch.testing.assert_close(gem(g, scaled), gem(g, rows))
    relative, absolute = Projection(ridge=0.1), Projection(ridge=0.1, ridge_unit="absolute")
    torch.testing.assert_close(gem(g, scaled, relative), gem(g, rows, relative))
    assert not torch.allclose(gem(g, 0.1 * rows, absolute), gem(g, rows, absolute), atol=0.1)


def test_08_an_absolute_ridge_halves_what_small_gradients_correct() -> None:
    g, row = t(1, 1), t(-(1e-3**0.5), 0)[None]
    torch.testing.assert_close(gem(g, row, Projection(ridge=1e-3, ridge_unit="absolute")), t(0.5, 1))
    torch.testing.assert_close(gem(g, row, Projection()), t(0, 1), atol=2e-6, rtol=0)


def test_09_one_memory_in_all() -> None:
    for seed in range(20):
        g, rows = drawn(1, 50, seed)
        row = rows[0] if rows[0] @ g < 0 else -rows[0]
        found = agem(g, row)
        assert found.norm() <= g.norm()
        assert abs(float(found @ row)) < 1e-10
    assert project_on_one(t(1, 1), t(0, 0)) is None
    assert project_on_one(t(1, 1), t(-1e-7, 0)) is None


def test_memories_without_a_gradient_are_passed_over() -> None:
    g, rows = t(1, 1), t([-2, 0], [0, 0], [0, -1e-7])
    torch.testing.assert_close(gem(g, rows, Projection(ridge=0.0, margin=0.25)), t(0, 1))
    assert project(g, rows[1:], EXACT) is None


@pytest.mark.parametrize("ridge", [0.0, 1e-6])
def test_memories_may_depend_on_each_other(ridge: float) -> None:
    g, row = t(1, 1), t(-2, 0)
    found = gem(g, torch.stack([row, row, 3 * row]), Projection(ridge=ridge))
    torch.testing.assert_close(found, t(0, 1), atol=1e-5, rtol=0)
    g, rows = drawn(12, 5, dtype=torch.float32)  # more memories than parameters
    assert (rows @ gem(g, rows, Projection(ridge=ridge))).min() > -1e-4


def test_nothing_is_feasible_but_standing_still() -> None:
    torch.testing.assert_close(gem(t(1, 1), t([1, 0], [-1, 0], [0, 1], [0, -1])), t(0, 0))


def test_clipping_afterwards_keeps_the_constraints_and_is_clipping_before() -> None:
    g, rows = drawn(4, 30)
    torch.testing.assert_close(gem(0.1 * g, rows), 0.1 * gem(g, rows))


def test_a_gradient_that_is_not_finite_is_told() -> None:
    g, rows = t(1, 1), t([-2, 0], [float("nan"), 0])
    with pytest.raises(TrainingError, match=r"inner products of gradients must be finite, but got \[-2.0, nan\]"):
        project(g, rows, EXACT)
    with pytest.raises(TrainingError, match=r"but got \[-inf\]\. Lower lr"):
        project_on_one(g, t(float("-inf"), 0))
