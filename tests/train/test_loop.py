from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from perdure.errors import TrainingError
from perdure.train.loop import shuffled, train


def values_during(n_steps: int, loss_of: object, **options: float | str) -> list[float]:
    """A single parameter, started at 1, before every step and after the last."""
    parameter, seen = nn.Parameter(torch.tensor(1.0, dtype=torch.float64)), []

    def loss(_: int) -> Tensor:
        seen.append(parameter.item())
        return loss_of(parameter)

    halves = [range(n_steps // 2), range(n_steps // 2, n_steps)]
    train(loss, [parameter], halves, n_steps=n_steps, lr=0.1, **options)
    return [*seen, parameter.item()]


def test_the_learning_rate_follows_a_cosine_to_zero() -> None:
    n = 20
    seen = values_during(n, lambda p: 1.0 * p, optimizer="adamw")  # gradient 1: Adam steps by lr
    steps = [a - b for a, b in itertools.pairwise(seen)]
    assert steps == pytest.approx([0.1 * (1 + math.cos(math.pi * t / n)) / 2 for t in range(n)], rel=1e-5)
    assert steps[-1] < 0.001


def test_more_batches_than_planned_do_not_raise_the_rate_again() -> None:
    parameter = nn.Parameter(torch.tensor(1.0))
    after: list[float] = []
    train(lambda _: after.append(parameter.item()) or parameter * 1.0, [parameter], [range(9)], n_steps=4, lr=0.1)
    assert after[4] == after[5] == after[8] == parameter.item()
    assert after[3] != after[4]


def test_sgd_has_momentum() -> None:
    seen = values_during(1000, lambda p: 1.0 * p)
    assert seen[0] - seen[1] == pytest.approx(0.1)
    assert seen[1] - seen[2] == pytest.approx(0.19, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_without_a_gradient(optimizer: str) -> None:
    seen = values_during(4, lambda p: 0.0 * p, optimizer=optimizer, weight_decay=0.5)
    assert seen[1] == pytest.approx(1 - 0.1 * 0.5)
    assert seen[-1] < seen[1]
    assert values_during(4, lambda p: 0.0 * p, optimizer=optimizer)[-1] == 1


def test_minimises() -> None:
    seen = values_during(200, lambda p: (p - 3) ** 2)
    assert seen[-1] == pytest.approx(3, abs=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_names_lr(bad: float) -> None:
    with pytest.raises(TrainingError, match=rf"train: loss must be finite, but got {bad}\. Lower lr, now 0\.1"):
        values_during(2, lambda p: p * bad)


def test_a_bad_loss_is_not_stepped_on() -> None:
    parameter = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(TrainingError, match="nan"):
        train(lambda _: (parameter * float("nan")).detach(), [parameter], [[0]], n_steps=1, lr=0.1)
    assert parameter.item() == 1


@pytest.mark.parametrize("size", [1, 4, 10, 11])
def test_shuffled_covers_each_position_once(size: int) -> None:
    batches = list(shuffled(10, size, torch.Generator().manual_seed(0)))
    assert sorted(torch.cat(batches).tolist()) == list(range(10))
    assert [len(b) for b in batches[:-1]] == [size] * (len(batches) - 1)
    assert len(batches) == math.ceil(10 / size)


def test_shuffled_draws_from_its_generator_alone() -> None:
    orders = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        orders.append(torch.cat(list(shuffled(50, 7, torch.Generator().manual_seed(seed)))).tolist())
    assert orders[0] == orders[1] != orders[2]
    rng = torch.Generator().manual_seed(0)
    epochs = [torch.cat(list(shuffled(50, 7, rng))).tolist() for _ in range(2)]
    assert epochs[0] != epochs[1]
