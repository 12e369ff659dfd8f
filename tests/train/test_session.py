"""The training session: what it draws, what it changes, and that it goes on from any step with the same bits."""

from __future__ import annotations

import copy
import inspect
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure import Backbone, FeatureStore
from perdure.data import LabelledImages
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import CheckpointError, DataError, TrainingError
from perdure.modules.adapter import Adapter
from perdure.modules.heads import GrowingLinear
from perdure.train.batches import Batch, Kept, Rows, TaskImages
from perdure.train.session import Session, on_images
from perdure.train.settings import Augment, ImageTraining, Milestone, Training
from perdure.types import Event

STILL = Augment(min_scale=1.0, flip=False)


@pytest.fixture
def images() -> LabelledImages:
    return synthetic_dataset([0, 1], train_per_class=6, test_per_class=1).train


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def head(dim: int) -> GrowingLinear:
    made = GrowingLinear(dim)
    made.grow(2, rng(5))
    return made


def adapted(backbone: Backbone) -> tuple[Backbone, nn.Module]:
    view, draw = backbone.view(), rng(1)
    part = view.insert("mlp", lambda site: Adapter(site.n_in, 2, draw)).requires_grad_(False)
    return view, part


def session_on(
    view: Backbone, part: nn.Module, top: GrowingLinear, images: LabelledImages, store: FeatureStore, **settings: Any
) -> tuple[Session[Batch], Any]:
    config = ImageTraining(**{"lr": 0.1, "epochs": 3, "batch_size": 5, **settings})
    session = on_images(
        view, images, torch.tensor(images.labels), config, rng(2), store,
        fast=[part], slow=top.parameters(), slow_factor=0.5, stage="adapter",
    )  # fmt: skip
    return session, lambda batch: F.cross_entropy(top(batch.features(view)), batch.columns)


@pytest.mark.parametrize("stop", [1, 2, 3, 4, 8, 9])
def test_it_goes_on_from_any_step_with_the_same_bits(
    backbone: Backbone, images: LabelledImages, store: FeatureStore, stop: int
) -> None:
    """Nine steps in three epochs; crops, flips, dropout and momentum all have a past."""
    view, part = adapted(backbone)
    top = head(backbone.dim)
    first = copy.deepcopy((part.state_dict(), top.state_dict()))
    session, loss = session_on(view, part, top, images, store)
    progress: dict[str, Any] = {}
    for step in session.steps(loss):
        if step == stop:
            progress = session.state_dict()
    straight = copy.deepcopy((part.state_dict(), top.state_dict()))
    assert session.step == session.n_steps == 9

    part.load_state_dict(first[0])
    top.load_state_dict(first[1])
    again, loss = session_on(view, part, top, images, store)
    again.load_state_dict(progress)
    assert [*again.steps(loss)] == list(range(stop + 1, 10))
    for was, now in zip(straight, (part.state_dict(), top.state_dict()), strict=True):
        assert all(torch.equal(was[key], now[key]) for key in was)
    assert not torch.equal(straight[1]["weight"], first[1]["weight"])


def test_steps_epochs_and_the_task_end(backbone: Backbone, images: LabelledImages, store: FeatureStore) -> None:
    view, part = adapted(backbone)
    session, loss = session_on(view, part, head(backbone.dim), images, store)
    ended = [[step for step in ("step", "epoch", "task_end") if session.ends(step)] for _ in session.steps(loss)]
    assert list(map(len, ended)) == [1, 1, 2, 1, 1, 2, 1, 1, 3]


def test_progress_of_another_stage_or_of_other_parts_is_refused(
    backbone: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    view, part = adapted(backbone)
    session, _ = session_on(view, part, head(backbone.dim), images, store)
    good = session.state_dict()
    for bad in ({"stage": "head"}, {"learned": good["learned"][:-1]}):
        with pytest.raises(CheckpointError, match=r"Session: progress must be of \('adapter', .*, but got "):
            session.load_state_dict({**good, **bad})
    assert session.state_dict()["step"] == 0


def test_hooks_are_called_in_their_place(backbone: Backbone, images: LabelledImages, store: FeatureStore) -> None:
    view, part = adapted(backbone)
    session, loss = session_on(view, part, head(backbone.dim), images, store, epochs=2, batch_size=8, clip_norm=1e-9)
    heard: list[tuple[str, int, int]] = []
    norms: list[float] = []

    def tell(what: str) -> Any:
        return lambda: heard.append((what, session.epoch, session.step))

    def after_backward() -> None:
        tell("gradients")()
        norms.append(max(float(p.grad.norm()) for p in session.learned if p.grad is not None))

    session.run(loss, before_epoch=tell("epoch"), after_backward=after_backward, after_step=tell("step"))
    assert heard == [
        ("epoch", 0, 0), ("gradients", 0, 0), ("step", 0, 1), ("gradients", 0, 1), ("step", 0, 2),
        ("epoch", 1, 2), ("gradients", 1, 2), ("step", 1, 3), ("gradients", 1, 3), ("step", 1, 4),
    ]  # fmt: skip
    assert min(norms) > 1e-6, "not clipped yet"
    run, steps = (inspect.signature(ask).parameters for ask in (session.run, session.steps))
    assert list(run) == list(steps), "help() tells the hooks of both"


def test_events_tell_loss_rates_and_place(backbone: Backbone, images: LabelledImages, tmp_path: Path) -> None:
    heard: list[Event] = []
    view, part = adapted(backbone)
    store = FeatureStore(tmp_path / "heard", progress=heard.append)
    schedule = Milestone(milestone=1)
    session, loss = session_on(view, part, head(backbone.dim), images, store, epochs=2, batch_size=8, schedule=schedule)
    values: list[float] = []

    def told(batch: Batch) -> Tensor:
        values.append((value := loss(batch)).item())
        return value

    session.run(told)
    assert [(e.stage, e.done, e.total) for e in heard] == [("adapter", i, 4) for i in (1, 2, 3, 4)]
    assert [e.loss for e in heard] == values
    assert [e.rates for e in heard] == [pytest.approx(r) for r in [(0.1, 0.05)] * 2 + [(0.01, 0.005)] * 2]


def test_parts_of_a_batch_add_up_to_the_whole(backbone: Backbone, images: LabelledImages, store: FeatureStore) -> None:
    """Without dropout and with still views the gradient of a batch is the weighted sum of its parts'."""
    learned = []
    for accumulate in (1, 3):
        top = head(backbone.dim)
        config = ImageTraining(lr=0.1, epochs=2, batch_size=8, accumulate=accumulate, augment=STILL)
        session = on_images(backbone, images, torch.tensor(images.labels), config, rng(), store, fast=top.parameters())
        sizes: list[int] = []

        def loss(batch: Batch, top: GrowingLinear = top, sizes: list[int] = sizes) -> Tensor:
            sizes.append(len(batch.columns))
            return F.cross_entropy(top(batch.features(backbone)), batch.columns)

        session.run(loss)
        assert sizes == ([8, 4] * 2 if accumulate == 1 else [3, 3, 2, 2, 1, 1] * 2)
        learned.append(top.weight.detach())
    torch.testing.assert_close(learned[0], learned[1], atol=1e-6, rtol=0)


def test_what_stands_still_comes_from_the_store(
    backbone: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    """A head alone needs a pass per image, however many epochs; views that change need one per image and epoch."""
    columns, passes = torch.tensor(images.labels), []
    for augment in (STILL, Augment()):
        top, before = head(backbone.dim), backbone.passes.images
        config = ImageTraining(lr=0.1, epochs=3, batch_size=8, augment=augment)
        session = on_images(backbone, images, columns, config, rng(), store, fast=top.parameters())
        session.run(lambda batch, top=top: F.cross_entropy(top(batch.features(backbone)), batch.columns))
        passes.append(backbone.passes.images - before)
    assert passes == [12, 36]


def test_modules_learn_with_dropout_and_are_frozen_afterwards_even_if_training_fails(
    backbone: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    view, part = adapted(backbone)
    session, _ = session_on(view, part, head(backbone.dim), images, store)
    adapters = [m for m in part.modules() if isinstance(m, Adapter)]

    def loss(batch: Batch) -> Tensor:
        assert {id(a.dropout_rng) for a in adapters} == {id(session.dropout)}
        assert all(p.requires_grad for p in part.parameters())
        return torch.tensor(float("nan"))

    with pytest.raises(TrainingError, match=r"train: loss must be finite, but got nan\. Lower lr, now 0\.1"):
        session.run(loss)
    assert [a.dropout_rng for a in adapters] == [None] * len(adapters)
    assert not any(p.requires_grad for p in part.parameters())
    assert all(p.grad is None for p in session.learned)


def test_rows_are_planned_by_position() -> None:
    config = Training(lr=0.1, epochs=1, batch_size=3)
    rows, draw = Rows(7, config), rng()
    plans = rows.plan(draw)
    assert [len(p) for p in plans] == [3, 3, 1]
    assert torch.cat(plans).tolist() == torch.randperm(7, generator=rng()).tolist()
    assert all(rows.batch(p, draw) is p for p in plans)
    in_order = Rows(7, Training(lr=0.1, epochs=1, batch_size=3, shuffle=False)).plan(draw)
    assert torch.cat(in_order).tolist() == list(range(7))


@pytest.mark.parametrize(
    ("drop_last", "n", "sizes"),
    [
        ("never", 7, [3, 3, 1]), ("always", 7, [3, 3]), ("always", 6, [3, 3]), ("from_4_batches", 7, [3, 3, 1]),
        ("from_4_batches", 10, [3, 3, 3]), ("from_4_batches", 2, [2]),
    ],
)  # fmt: skip
def test_a_last_batch_may_be_left_out(drop_last: Any, n: int, sizes: list[int]) -> None:
    config = Training(lr=0.1, epochs=1, batch_size=3, drop_last=drop_last)
    assert [len(p) for p in Rows(n, config).plan(rng())] == sizes


def test_an_epoch_of_nothing_is_refused() -> None:
    config = Training(lr=0.1, epochs=1, batch_size=3, drop_last="always")
    with pytest.raises(DataError, match=r"task must be of 3 images or more, but got 2\. Set train\.drop_last=never"):
        Rows(2, config).plan(rng())


def test_images_are_decoded_only_while_they_are_needed(
    backbone: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    config = ImageTraining(lr=1, epochs=1, batch_size=4)
    source = TaskImages(backbone, images, torch.tensor(images.labels), config, store, list(backbone.parameters()))
    with source.open():
        batch = source.batch(torch.tensor([0, 3]), rng())
        assert batch.images.shape == (2, 3, 160, 160)
        assert batch.embedded(backbone).shape == (2, *backbone.tokens_shape)
    assert not len(source._pixels)


@pytest.mark.parametrize("still", [False, True])
def test_every_step_takes_some_kept_images_besides(
    backbone: Backbone, images: LabelledImages, store: FeatureStore, still: bool
) -> None:
    old = synthetic_dataset([7], train_per_class=5, test_per_class=1).train
    config = ImageTraining(lr=0.1, epochs=1, batch_size=8, augment=STILL if still else Augment())
    kept = Kept(old, torch.full((5,), 2), 3)
    top = GrowingLinear(backbone.dim)
    top.grow(3, rng())
    columns, seen = torch.tensor(images.labels), []
    session = on_images(backbone, images, columns, config, rng(), store, fast=top.parameters(), kept=kept)

    def loss(batch: Batch) -> Tensor:
        seen.append(batch)
        return F.cross_entropy(top(batch.features(backbone)), batch.columns)

    session.run(loss)
    assert [b.n_new for b in seen] == [8, 4]
    assert sorted(int(p) for b in seen for p in b.positions[: b.n_new]) == list(range(12))
    for batch in seen:
        assert len(set(batch.positions[batch.n_new :].tolist())) == 3
        assert set(batch.positions[batch.n_new :].tolist()) <= set(range(12, 17))
        assert batch.columns[batch.n_new :].tolist() == [2, 2, 2]
    if still:
        everything = store.features(backbone, images.joined(old))
        assert all(torch.equal(b.rows, everything[b.positions.numpy()]) for b in seen)


def test_no_kept_image_changes_nothing(backbone: Backbone, images: LabelledImages, store: FeatureStore) -> None:
    config, columns = ImageTraining(lr=0.1, epochs=1, batch_size=8), torch.tensor(images.labels)
    none = Kept(images.subset(np.arange(0)), columns[:0], 3)
    plans = [
        TaskImages(backbone, images, columns, config, store, [], prompted=True, kept=kept).plan(rng())
        for kept in (None, none)
    ]
    assert all(torch.equal(one, other) for one, other in zip(*plans, strict=True))


# --- parameters alone


def on_steps(
    fast: list[nn.Parameter], loss: Any, n: int = 1, *, slow: Sequence[nn.Parameter] = (), **settings: Any
) -> list[list[float]]:
    """Everything that learns, after each of ``n`` steps of one epoch."""
    config = Training(**{"lr": 0.1, "epochs": 1, "batch_size": 1, "shuffle": False, **settings})
    session = Session(Rows(n, config), config, rng(), fast=fast, slow=slow, slow_factor=0.01)
    return [[p.item() for p in session.learned] for _ in session.steps(loss)]


def single(value: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=torch.float64))


def test_the_learning_rate_follows_the_schedule() -> None:
    """A gradient of 1: Adam steps by the rate."""
    p = single()
    seen = [1.0, *(v for (v,) in on_steps([p], lambda _: 1.0 * p, 20, optimizer="adamw"))]
    steps = [a - b for a, b in itertools.pairwise(seen)]
    assert steps == pytest.approx([0.1 * (1 + math.cos(math.pi * t / 20)) / 2 for t in range(20)], rel=1e-5)


def test_it_minimises() -> None:
    p = single()
    assert on_steps([p], lambda _: (p - 3) ** 2, 200)[-1] == pytest.approx([3], abs=1e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_and_not_stepped_on(bad: float) -> None:
    p = single()
    with pytest.raises(TrainingError, match=rf"train: loss must be finite, but got {bad}\. Lower lr, now 0\.1"):
        on_steps([p], lambda _: p * bad)
    assert p.item() == 1


def test_long_gradients_are_shortened_together() -> None:
    a, b, c = (single(0.0) for _ in range(3))
    assert on_steps([a, b], lambda _: 30 * a + 40 * b, clip_norm=1.0)[0] == pytest.approx([-0.06, -0.08], rel=1e-4)
    assert on_steps([c], lambda _: 0.5 * c, clip_norm=1.0)[0] == pytest.approx([-0.05]), "short ones stay"


def test_what_is_slow_has_its_own_rate_and_the_same_schedule_decay_and_clipping() -> None:
    fast, slow = single(), single()
    (seen,) = on_steps([fast], lambda _: 3.0 * fast + 4.0 * slow, slow=[slow], clip_norm=1.0)
    assert seen == pytest.approx([1 - 0.1 * 0.6, 1 - 0.001 * 0.8])  # the norm of both gradients is 5
    decay = {"name": "sgd", "weight_decay": 0.5}
    (after,) = on_steps([fast], lambda _: 0.0 * (fast + slow), slow=[slow], optimizer=decay)
    assert [a / b for a, b in zip(after, seen, strict=True)] == pytest.approx([1 - 0.05, 1 - 0.0005])


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_what_is_not_to_decay_learns_at_the_peak_rate_without_decay(optimizer: str) -> None:
    p, config = single(), Training(lr=0.1, epochs=1, batch_size=1, optimizer={"name": optimizer, "weight_decay": 0.5})
    session = Session(Rows(1, config), config, rng(), fast=[single(3.0)], undecayed=[p])
    session.run(lambda _: 2.0 * p + 0.0 * session.learned[0])
    assert p.item() == pytest.approx(0.8 if optimizer == "sgd" else 0.9)
    assert session.learned[1] is p
    assert session.learned[0].item() < 3
    assert p.grad is None


@pytest.mark.parametrize("size", [1, 4, 10, 11])
def test_an_epoch_covers_each_position_once_in_an_order_of_its_own(size: int) -> None:
    config = Training(lr=0.1, epochs=1, batch_size=size)
    orders = []
    for draw, global_seed in ((rng(0), 1), (rng(0), 2), (rng(1), 1)):
        torch.manual_seed(global_seed)
        plans = Rows(10, config).plan(draw)
        assert [len(b) for b in plans[:-1]] == [size] * (math.ceil(10 / size) - 1)
        orders.append(torch.cat(plans).tolist())
        assert sorted(orders[-1]) == list(range(10))
    assert orders[0] == orders[1] != orders[2]
    assert torch.cat(Rows(10, config).plan(draw)).tolist() != orders[2], "the next epoch's"
