from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn

from perdure.errors import ConfigError, TrainingError
from perdure.train.loop import lr_factor, scaled_lr, shuffled, train


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


def rates_of(n_epochs: int, per_epoch: int, schedule: str) -> list[float]:
    """The learning rate at each step: with a gradient of 1, Adam steps by it."""
    parameter, seen = nn.Parameter(torch.tensor(1.0, dtype=torch.float64)), []

    def loss(_: int) -> Tensor:
        seen.append(parameter.item())
        return parameter * 1.0

    epochs = [range(per_epoch)] * n_epochs
    n_steps = n_epochs * per_epoch
    train(loss, [parameter], epochs, n_steps=n_steps, lr=0.1, optimizer="adam", schedule=schedule, n_epochs=n_epochs)
    return [a - b for a, b in itertools.pairwise([*seen, parameter.item()])]


def test_a_constant_rate_stays() -> None:
    assert rates_of(3, 2, "constant") == pytest.approx([0.1] * 6, rel=1e-5)


def test_a_quarter_cosine_steps_by_epoch() -> None:
    """CODA-Prompt, golden test 9: K = 20 ends at 0.015707 of the peak."""
    by_epoch = [0.1 * math.cos(99 * math.pi * e / (200 * 19)) for e in range(20)]
    assert rates_of(20, 2, "quarter_cosine") == pytest.approx([r for r in by_epoch for _ in range(2)], rel=1e-5)
    assert lr_factor("quarter_cosine", 38, 40, 19, 20) == pytest.approx(0.015707, abs=1e-6)
    assert lr_factor("quarter_cosine", 0, 40, 0, 20) == 1


def test_a_quarter_cosine_of_one_epoch_is_constant() -> None:
    """CODA-Prompt, golden test 9: its formula divides by K - 1 = 0."""
    assert rates_of(1, 5, "quarter_cosine") == pytest.approx([0.1] * 5, rel=1e-5)


def test_a_cosine_goes_by_steps_whatever_the_epochs() -> None:
    assert [lr_factor("cosine", t, 4, 7, 8) for t in range(6)] == pytest.approx(
        [1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2, 0, 0]
    )


def after_gradients(gradients: list[float], **options: object) -> list[float]:
    """Where Adam takes a parameter from 0, gradient by gradient."""
    parameter, seen = nn.Parameter(torch.zeros((), dtype=torch.float64)), []

    def loss(gradient: float) -> Tensor:
        seen.append(parameter.item())
        return parameter * gradient

    train(loss, [parameter], [gradients], n_steps=len(gradients), lr=0.1, schedule="constant", **options)
    return [*seen[1:], parameter.item()]


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.8)])
@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_by_hand(optimizer: str, betas: tuple[float, float], amsgrad: bool) -> None:
    gradients = [2.0, 0.5, 0.1, 0.1, 0.1]
    m = v = largest = at = 0.0
    wanted = []
    for t, g in enumerate(gradients, 1):
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        largest = max(largest, v)
        used = largest if amsgrad else v
        at -= 0.1 * m / (1 - betas[0] ** t) / (math.sqrt(used / (1 - betas[1] ** t)) + 1e-8)
        wanted.append(at)
    assert after_gradients(gradients, optimizer=optimizer, betas=betas, amsgrad=amsgrad) == pytest.approx(wanted)


def test_betas_and_amsgrad_matter() -> None:
    gradients = [2.0, 0.5, 0.1, 0.1, 0.1]
    ends = {
        after_gradients(gradients, optimizer="adam", betas=(0.5, b), amsgrad=a)[-1] for b in (0.8, 0.9) for a in (0, 1)
    }
    assert len(ends) == 4
    usual = after_gradients(gradients, optimizer="adam")
    assert usual == after_gradients(gradients, optimizer="adam", betas=(0.9, 0.999), amsgrad=False)


def test_adams_weight_decay_is_part_of_the_gradient() -> None:
    """AdamW's is not: without a gradient Adam steps by lr, AdamW by lr times the weight's share."""
    ends = {o: values_during(2, lambda p: 0.0 * p, optimizer=o, weight_decay=0.5)[1] for o in ("adam", "adamw")}
    assert ends == {"adam": pytest.approx(0.9), "adamw": pytest.approx(0.95)}


def test_long_gradients_are_shortened_together() -> None:
    a, b = (nn.Parameter(torch.zeros(())) for _ in range(2))
    train(lambda _: 30 * a + 40 * b, [a, b], [[0]], n_steps=1, lr=0.1, clip_norm=1.0)
    assert (a.item(), b.item()) == pytest.approx((-0.06, -0.08), rel=1e-4)
    c = nn.Parameter(torch.zeros(()))
    train(lambda _: 0.5 * c, [c], [[0]], n_steps=1, lr=0.1, clip_norm=1.0)
    assert c.item() == pytest.approx(-0.05), "short ones stay"


@pytest.mark.parametrize(("batch_size", "lr"), [(16, 0.001875), (128, 0.015), (256, 0.03), (1, 0.03 / 256)])
def test_the_linear_scaling_rule(batch_size: int, lr: float) -> None:
    assert scaled_lr(0.03, batch_size) == pytest.approx(lr, rel=1e-12)


def test_epoch_cosine_and_milestone_change_by_epoch() -> None:
    cosine = [lr_factor("epoch_cosine", 99, 100, epoch, 4) for epoch in range(4)]
    assert cosine == pytest.approx([1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 - math.sqrt(0.5)) / 2])
    assert [lr_factor("milestone", 99, 100, epoch, 4, 2) for epoch in range(4)] == [1, 1, 0.1, 0.1]
    seen = values_during(4, lambda p: 1.0 * p, optimizer="adamw", schedule="milestone", milestone=1, n_epochs=2)
    assert [a - b for a, b in itertools.pairwise(seen)] == pytest.approx([0.1, 0.1, 0.01, 0.01])


@pytest.mark.parametrize(
    ("schedule", "missing"),
    [
        ("milestone", "milestone"),
        ("epoch_cosine", "n_epochs"),
        ("quarter_cosine", "n_epochs"),
        ("quarter_cosine_released", "n_epochs"),
    ],
)
def test_a_schedule_by_epoch_is_not_guessed_at(schedule: str, missing: str) -> None:
    """Without its milestone it would be at a tenth from the first step, or never; without n_epochs at the peak."""
    parameter = nn.Parameter(torch.tensor(1.0))
    others = {"n_epochs": 2, "milestone": 1}
    del others[missing]
    told = rf"train: {missing} must be given for schedule={schedule}, but got None\. Pass {missing} to train"
    with pytest.raises(ConfigError, match=told):
        train(lambda _: parameter * 1.0, [parameter], [[0]], n_steps=1, lr=0.1, schedule=schedule, **others)
    assert parameter.item() == 1


def test_a_slow_group_has_its_own_rate_and_the_same_schedule_decay_and_clipping() -> None:
    fast, slow = (nn.Parameter(torch.tensor(1.0, dtype=torch.float64)) for _ in range(2))
    seen: list[tuple[float, float]] = []
    train(
        lambda _: 3.0 * fast + 4.0 * slow, [fast], [range(2)],
        n_steps=2, lr=0.1, slow=[slow], slow_factor=0.01, optimizer="sgd", schedule="constant", clip_norm=1.0,
        after_step=lambda: seen.append((fast.item(), slow.item())),
    )  # fmt: skip
    assert seen[0] == pytest.approx((1 - 0.1 * 0.6, 1 - 0.001 * 0.8))  # the norm of both gradients is 5
    assert len(seen) == 2  # once after every step
    train(lambda _: 0.0 * (fast + slow), [fast], [range(1)], n_steps=1, lr=0.1, slow=[slow], slow_factor=0.01,
          weight_decay=0.5)  # fmt: skip
    assert (fast.item() / seen[1][0], slow.item() / seen[1][1]) == pytest.approx((1 - 0.05, 1 - 0.0005))
