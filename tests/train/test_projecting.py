from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perdure.modules.adapter import Adapter
from perdure.train import projecting
from perdure.train.projecting import Guard, HeldTraining
from perdure.train.settings import SGD, Adam, AdamW

MEANS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])  # of three images' losses


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


class Images:
    """Image i's loss pulls ``w`` towards -MEANS[i]; the batches that were asked for."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def batch(self, plan: Tensor, rng: torch.Generator) -> Tensor:
        self.asked.append(plan.tolist())
        return plan


def a_guard(
    w: nn.Parameter,
    group_of: list[int],
    project: Callable[[Tensor, Tensor], Tensor | None],
    *,
    unused: nn.Parameter | None = None,
    per_group: int | None = None,
    modules: tuple[nn.Module, ...] = (),
    batch_size: int = 8,
) -> tuple[Guard, Images]:
    images = Images()
    session: Any = SimpleNamespace(
        learned=[p for p in (unused, w) if p is not None], modules=modules, source=images, rng=rng(),
        config=SimpleNamespace(batch_size=batch_size),
    )  # fmt: skip
    guard = Guard(session, lambda at: (MEANS[at - 10] @ w).mean(), 10, group_of, per_group, project)  # type: ignore[index, operator]
    return guard, images


def test_every_group_has_its_mean_gradient_and_the_step_gets_what_is_found() -> None:
    w, seen = nn.Parameter(torch.ones(2)), []
    w.grad = torch.tensor([3.0, 4.0])

    def project(g: Tensor, rows: Tensor) -> Tensor:
        seen.append((g, rows))
        return -g

    guard, images = a_guard(w, [5, 2, 5], project)
    guard()
    ((g, rows),) = seen
    assert torch.equal(g, torch.tensor([3.0, 4.0]))
    assert torch.equal(rows, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))  # group 2, and the mean of two images
    assert images.asked == [[11], [10, 12]]
    assert torch.equal(w.grad, torch.tensor([-3.0, -4.0]))


def test_a_group_may_pass_in_parts() -> None:
    w = nn.Parameter(torch.ones(2))
    guard, images = a_guard(w, [0, 0, 0], lambda g, rows: None, batch_size=2)
    torch.testing.assert_close(guard.gradients(2), MEANS.mean(0)[None])
    assert images.asked == [[10, 11], [12]]


def test_a_step_draws_some_of_every_group() -> None:
    guard, images = a_guard(nn.Parameter(torch.ones(2)), [0, 0, 1], lambda g, rows: None, per_group=1)
    for _ in range(20):
        guard.gradients(2)
    assert {tuple(x) for x in images.asked} == {(10,), (11,), (12,)}
    assert images.asked[1::2] == [[12]] * 20


def test_without_a_violation_gradients_stay_as_they_are() -> None:
    w, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    w.grad = before = torch.tensor([3.0, 4.0])
    a_guard(w, [0, 0, 0], lambda g, rows: None, unused=unused)[0]()
    assert w.grad is before
    assert unused.grad is None


def test_without_kept_images_nothing_is_asked() -> None:
    guard, images = a_guard(nn.Parameter(torch.ones(2)), [], lambda g, rows: pytest.fail("asked"))
    guard()
    assert images.asked == []


def test_parameters_that_the_batch_does_not_reach_get_their_part() -> None:
    w, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(1, 3))
    w.grad = torch.tensor([3.0, 4.0])
    a_guard(w, [0, 0, 0], lambda g, rows: g + torch.arange(5), unused=unused)[0]()
    assert torch.equal(unused.grad, torch.tensor([[0.0, 1.0, 2.0]]))  # type: ignore[arg-type]
    assert torch.equal(w.grad, torch.tensor([6.0, 8.0]))


def test_kept_images_drop_nothing_and_the_training_drops_on() -> None:
    adapter, drops = Adapter(2, 3, rng()), rng()
    adapter.dropout_rng = drops
    w, during = nn.Parameter(torch.ones(2)), []
    guard, _ = a_guard(w, [0, 0, 0], lambda g, rows: None, modules=(nn.Sequential(adapter),))
    loss = guard.loss
    guard.loss = lambda batch: (during.append(adapter.dropout_rng), loss(batch))[1]  # type: ignore[func-returns-value]
    guard()
    assert during == [None]
    assert adapter.dropout_rng is drops


def test_many_large_gradients_are_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(projecting, "LARGE_BYTES", 15)
    a_guard(nn.Parameter(torch.ones(2)), [0, 0, 0], lambda g, rows: None)
    with pytest.warns(UserWarning, match=r"gradients of 2 earlier tasks take 0\.0 GB: a smaller part, or agem"):
        a_guard(nn.Parameter(torch.ones(2)), [0, 1, 1], lambda g, rows: None)


def test_an_optimiser_that_changes_a_step_afterwards_is_announced() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert HeldTraining(optimizer={"momentum": 0}).optimizer == SGD(momentum=0.0)
    for how, told in (
        (SGD(), r"sgd, momentum 0\.9, weight decay 0\.0"),
        (SGD(momentum=0, weight_decay=0.1), r"sgd, momentum 0\.0, weight decay 0\.1"),
        (Adam(), r"adam, weight decay 0\.0"),
        (AdamW(), r"adamw, weight decay 0\.0"),
    ):
        with pytest.warns(UserWarning, match=rf"HeldTraining: {told}: they change a step after its projection"):
            HeldTraining(optimizer=how)
