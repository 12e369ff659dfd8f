"""How a prompt method trains, shown on one that does nothing else: batches, queries, what learns, what is undone."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from perdure import Backbone, FeatureStore, Stream, Task
from perdure.checks.subject import equal, frozen_state
from perdure.data import images
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError, DataError
from perdure.modules.heads import GrowingLinear
from perdure.modules.losses import masked_cross_entropy
from perdure.train.batches import Batch, Rows
from perdure.train.session import Session
from perdure.train.settings import QuarterCosine, Training
from plain_prompts import IDS, STILL, Plain, WithoutQueries, mixed, passes, pixels, plain, three_tasks
from tiny_vit import tiny

N = 12  # training images per task of the stream


@pytest.fixture
def vit() -> Backbone:
    return tiny()


@pytest.fixture
def stream() -> Stream:
    return three_tasks()


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session[Batch]]:
    """Every training session, in order."""
    found: list[Session[Batch]] = []
    run = Session.run

    def watched(session: Session[Batch], loss: Callable[[Batch], Tensor]) -> None:
        found.append(session)
        run(session, loss)

    monkeypatch.setattr(Session, "run", watched)
    return found


# --- what it costs


@pytest.mark.parametrize(
    ("kind", "config", "queries"),
    [
        (Plain, {}, 2 * N),  # a crop's query is computed with the crop, every epoch
        (Plain, {"augment": {"flip": False}}, 2 * N),
        (Plain, {"augment": {"min_scale": 1.0}}, 2 * N),
        (Plain, {"augment": STILL}, N),  # the view never changes, nor does its query
        (Plain, {"query_view": "clean"}, N),
        (Plain, {"augment": STILL, "query_view": "clean"}, N),
        (Plain, {"on_train_queries": False}, 0),
        (WithoutQueries, {}, 0),
        (WithoutQueries, {"query_view": "clean"}, 0),
    ],
)
def test_passes_per_training_image(
    kind: type[Plain], config: dict[str, Any], queries: int, vit: Backbone, stream: Stream
) -> None:
    """One prompted pass in each of two epochs, and the queries."""
    method = plain(vit, kind, **config)
    assert passes(vit, lambda: method.fit_task(stream[0])) == 2 * N + queries


def test_stored_queries_of_training_images_are_not_computed_again(vit: Backbone, stream: Stream) -> None:
    store = FeatureStore()
    for cost in (2 * N + N, 2 * N):
        method = plain(vit, augment=STILL, store=store)
        assert passes(vit, lambda method=method: method.fit_task(stream[0])) == cost


# --- queries


@pytest.mark.parametrize(
    "config", [{}, {"augment": STILL}, {"query_view": "clean"}, {"augment": STILL, "query_view": "clean"}]
)
def test_queries_in_training_are_those_of_the_view_asked_for(
    config: dict[str, Any], vit: Backbone, stream: Stream
) -> None:
    """Of the image as it is seen, or of the eval view, whichever way they come."""
    method = plain(vit, train={"epochs": 1, "shuffle": False}, **config).fit_task(task := mixed(stream[0]))
    for i, batch in enumerate(method.batches):
        seen = vit.pool(vit.walk(batch.embedded))
        clean = vit.features(pixels(vit, task.train)[6 * i : 6 * i + 6])
        wanted, other = (clean, seen) if "query_view" in config else (seen, clean)
        assert torch.equal(batch.queries, wanted)
        assert torch.equal(wanted, other) == ("augment" in config), "only unchanged views have the clean view's query"
        assert batch.queries.dtype == torch.float32


@pytest.mark.parametrize("kind", [Plain, WithoutQueries])
@pytest.mark.parametrize("config", [{}, {"augment": STILL}, {"query_view": "clean"}])
def test_no_query_is_handed_out_where_none_is_wanted(
    kind: type[Plain], config: dict[str, Any], vit: Backbone, stream: Stream
) -> None:
    method = plain(vit, kind, on_train_queries=False, **config).fit_task(stream[0])
    assert [batch.stored for batch in method.batches] == [None] * 4
    list(method.scores_of(stream.test(0)))
    method.scores(pixels(vit, stream.test(0)))
    assert [len(queries) for queries in method.tested] == ([8, 8] if kind.uses_queries else [0, 0])


# --- training


@pytest.mark.parametrize(
    ("drop_last", "batch_size", "sizes"),
    [
        ("never", 5, [5, 5, 2]),
        ("never", 4, [4, 4, 4]),
        ("never", 30, [12]),
        ("always", 5, [5, 5]),
        ("always", 4, [4, 4, 4]),
        ("always", 12, [12]),
        ("always", 7, [7]),
        ("from_4_batches", 5, [5, 5, 2]),
        ("from_4_batches", 3, [3, 3, 3, 3]),
        ("from_4_batches", 30, [12]),
    ],
)
def test_the_last_batch(
    drop_last: Literal["never", "from_4_batches", "always"],
    batch_size: int,
    sizes: list[int],
    vit: Backbone,
    stream: Stream,
    sessions: list[Session[Batch]],
) -> None:
    method = plain(vit, train={"drop_last": drop_last, "batch_size": batch_size}).fit_task(stream[0])
    assert [len(batch.columns) for batch in method.batches] == 2 * sizes
    assert [session.n_steps for session in sessions] == [2 * len(sizes)]


def test_from_four_batches_on_the_last_is_left_out(vit: Backbone) -> None:
    data = synthetic_dataset([0, 1], train_per_class=(6, 5)).train
    for batch_size, sizes in ((3, [3, 3, 3]), (4, [4, 4, 3])):
        method = plain(vit, train={"drop_last": "from_4_batches", "batch_size": batch_size, "epochs": 1})
        method.fit_task(Task(0, data, (0, 1)))
        assert [len(batch.columns) for batch in method.batches] == sizes


def test_nothing_left_to_learn_from_is_refused(vit: Backbone, stream: Stream) -> None:
    method = plain(vit, train={"drop_last": "always", "batch_size": 13})
    with pytest.raises(DataError, match=r"train: task must be of 13 images or more, but got 12\. Set .*=never"):
        method.fit_task(stream[0])
    assert method.classes_ == []
    assert len(method.head_.bias) == len(method.tokens_) == 0


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(vit: Backbone, stream: Stream) -> None:
    method = plain(vit, train={"epochs": 3}, augment=STILL).fit_task(stream[0])
    x = pixels(vit, stream[0].train)
    known, queries = vit.embed_tokens(x), vit.features(x)
    columns = method.columns(stream[0].train.labels)
    orders = []
    for epoch in (method.batches[i : i + 2] for i in (0, 2, 4)):
        embedded = torch.cat([batch.embedded for batch in epoch])
        order = (embedded[:, None] - known[None]).abs().amax((2, 3)).argmin(1)
        torch.testing.assert_close(embedded, known[order])
        assert torch.equal(torch.cat([batch.columns for batch in epoch]), columns[order]), "labels stay with images"
        assert torch.equal(torch.cat([batch.queries for batch in epoch]), queries[order])
        orders.append(order.tolist())
    assert [sorted(order) for order in orders] == [list(range(N))] * 3
    assert len(set(map(tuple, orders))) == 3


def test_without_shuffling_the_order_is_the_stored_one(vit: Backbone, stream: Stream) -> None:
    method = plain(vit, train={"shuffle": False}).fit_task(task := mixed(stream[0]))
    columns = torch.cat([batch.columns for batch in method.batches])
    assert columns.tolist() == 2 * method.columns(task.train.labels).tolist()


@pytest.mark.parametrize(("augment", "changes"), [(STILL, False), ({"flip": False}, True), ({"min_scale": 1.0}, True)])
def test_views_change_from_epoch_to_epoch_if_asked(
    augment: dict[str, Any], changes: bool, vit: Backbone, stream: Stream
) -> None:
    method = plain(vit, train={"shuffle": False}, augment=augment).fit_task(mixed(stream[0]))
    first, second = method.batches[0].embedded, method.batches[2].embedded
    assert torch.equal(first, second) != changes


def test_only_what_is_handed_over_learns(vit: Backbone, stream: Stream, sessions: list[Session[Batch]]) -> None:
    """The backbone has no gradient; older tasks' rows are frozen; a batch carries no graph."""
    before = frozen_state(vit)
    method = plain(vit).fit_task(stream[0])
    first = method.tokens_.newest.detach().clone()
    method.fit_task(stream[1])
    assert torch.equal(method.tokens_()[0], first[0])
    assert {id(p) for p in sessions[1].learned} == {
        id(p) for p in (method.head_.weight, method.head_.bias, method.tokens_.newest)
    }
    assert all(p.grad is None and not p.requires_grad for p in vit.parameters())
    assert equal(before, dict(vit.state_dict()))
    assert not any(batch.embedded.requires_grad for batch in method.batches)
    assert not any(batch.queries is None or batch.queries.requires_grad for batch in method.batches)


def test_training_works_where_gradients_are_off(vit: Backbone, stream: Stream) -> None:
    with torch.no_grad():
        off = plain(vit).fit_task(stream[0])
    assert equal(off.state_dict(), plain(vit).fit_task(stream[0]).state_dict())


def test_the_optimiser_gets_the_settings(vit: Backbone, stream: Stream, sessions: list[Session[Batch]]) -> None:
    optimizer = {"name": "adamw", "weight_decay": 0.1, "amsgrad": True}
    told = {"lr": 0.5, "optimizer": optimizer, "schedule": "quarter_cosine", "clip_norm": None}
    plain(vit, train=told).fit_task(stream[0]).fit_task(stream[1])
    for session in sessions:
        assert type(session.optimizer) is torch.optim.AdamW
        (group,) = session.optimizer.param_groups
        assert {k: group[k] for k in ("peak", "weight_decay", "amsgrad")} == {
            "peak": 0.5, "weight_decay": 0.1, "amsgrad": True
        }  # fmt: skip
        assert group["lr"] == pytest.approx(0.5 * math.cos(99 * math.pi / 200)), "in the second epoch of two"
        assert (session.config.schedule, session.config.clip_norm) == (QuarterCosine(), None)
        assert (session.step, session.n_steps, session.epoch) == (4, 4, 2)
    assert sessions[0].optimizer is not sessions[1].optimizer
    plain(vit, train={"lr": 0.5, "scale_lr": True}).fit_task(stream[0])
    assert sessions[2].optimizer.param_groups[0]["lr"] == 0.5 * 6 / 256


def test_a_new_task_begins_with_a_new_optimiser(vit: Backbone, stream: Stream) -> None:
    """A task whose classes are not in the loss would else be moved by what the optimiser remembers."""
    method = plain(vit).fit_task(stream[0])
    old = frozen_state(method)["head_"]
    method.fit_task(stream[1])
    assert torch.equal(method.head_.weight[:2], old["weight"])


@pytest.mark.parametrize(("init", "std"), [("normal_0.02", 0.02), ("normal_0.01", 0.01), ("zeros", 0.0)])
def test_new_classes_begin_as_told(init: str, std: float, vit: Backbone, stream: Stream) -> None:
    method = plain(vit, head_init=init, train={"lr": 1e-9}).fit_task(stream[0])
    assert method.head_.weight.std().item() == pytest.approx(std, abs=0.4 * std + 1e-6)


def test_training_reports_progress(vit: Backbone, stream: Stream) -> None:
    heard: list[tuple[str, int, int]] = []
    store = FeatureStore(progress=lambda event: heard.append((event.stage, event.done, event.total)))
    plain(vit, store=store).fit_task(stream[0])
    assert heard == [("learning prompts", done, 4) for done in (1, 2, 3, 4)]


# --- the loss


def test_the_loss_of_some_classes_is_that_of_their_logits_alone() -> None:
    logits, columns = torch.randn(7, 6), torch.tensor([5, 1, 5, 2, 1, 1, 2])
    current = torch.tensor([1, 2, 5])
    wanted = F.cross_entropy(logits[:, [1, 2, 5]], torch.tensor([2, 0, 2, 1, 0, 0, 1]))
    assert torch.equal(masked_cross_entropy(logits, columns, current), wanted)
    assert torch.equal(masked_cross_entropy(logits, columns, None), F.cross_entropy(logits, columns))
    assert not torch.equal(wanted, F.cross_entropy(logits, columns))


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_rows_of_other_classes_do_not_move_by_a_bit(optimizer: Literal["adam", "sgd"]) -> None:
    head, features = GrowingLinear(8), torch.randn(7, 8)
    head.grow(6, torch.Generator().manual_seed(0), "torch_linear")
    old = frozen_state(head)
    columns, current, others = torch.tensor([5, 1, 5, 2, 1, 1, 2]), torch.tensor([1, 2, 5]), torch.tensor([0, 3, 4])

    steps = Training(lr=0.1, epochs=4, batch_size=7, shuffle=False, optimizer=optimizer, clip_norm=1.0)
    Session(Rows(7, steps), steps, torch.Generator(), fast=[head]).run(
        lambda at: masked_cross_entropy(head(features[at]), columns[at], current)
    )
    for name, values in head.state_dict().items():
        assert torch.equal(values[others], old[name][others])
        assert (values[current] != old[name][current]).all()


@pytest.mark.parametrize(("logits", "moves"), [("current", False), ("seen", True)])
def test_old_classes_take_part_in_the_loss_if_asked(
    logits: Literal["current", "seen"], moves: bool, vit: Backbone, stream: Stream
) -> None:
    method = plain(vit, logits=logits).fit_task(stream[0])
    old = frozen_state(method)["head_"]
    method.fit_task(stream[1])
    for name in ("weight", "bias"):
        assert torch.equal(getattr(method.head_, name)[:2], old[name]) != moves


def test_a_domain_of_some_old_classes_trains_those_rows_alone(vit: Backbone, stream: Stream) -> None:
    method = plain(vit).fit_task(stream[0]).fit_task(stream[1])
    old = frozen_state(method)["head_"]["weight"]
    again = synthetic_dataset([IDS[3], IDS[0]], train_per_class=4, seed=1).train
    method.fit_task(Task(2, again, (IDS[3], IDS[0])))
    assert torch.equal(method.head_.weight[[1, 2]], old[[1, 2]])
    assert (method.head_.weight[[0, 3]] != old[[0, 3]]).all()
    assert len(method.head_.bias) == 4


# --- what must not matter


def test_neither_threads_nor_the_global_generator_matter(
    vit: Backbone, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, scores = [], []
    for threads, seed in ((1, 1), (2, 2), (5, 3)):
        monkeypatch.setattr(images, "DECODE_THREADS", threads)
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state()
        method = plain(vit).fit_task(stream[0]).fit_task(stream[1])
        scores.append(torch.cat(list(method.scores_of(stream.test(0)))))
        states.append(frozen_state(method))
        assert torch.equal(torch.get_rng_state(), before)
    assert equal(states[0], states[1])
    assert equal(states[0], states[2])
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])
    assert not equal(states[0], frozen_state(plain(vit, seed=1).fit_task(stream[0]).fit_task(stream[1])))


@pytest.mark.parametrize("failing", ["third step", "end of task"])
def test_a_task_that_fails_is_undone(
    failing: str, vit: Backbone, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = plain(vit).fit_task(stream[0])
    before, scores = frozen_state(method), method.scores(pixels(vit, stream.test(0)))

    def fail(*_: object) -> None:
        if failing == "end of task" or len(method.batches) == 4 + 3:
            assert not equal(before, method.state_dict()), "something was learned by now"
            raise MemoryError("planned")

    with monkeypatch.context() as patch:
        if failing == "end of task":
            train = method._train
            patch.setattr(method, "_train", lambda *args: (train(*args), fail()))
        else:
            patch.setattr(method.store, "progress", fail)
        with pytest.raises(MemoryError, match="planned"):
            method.fit_task(stream[1])
    assert equal(before, method.state_dict())
    assert (len(method.tokens_), len(method.head_.bias), method.tasks_seen_) == (1, 2, 1)
    assert torch.equal(method.scores(pixels(vit, stream.test(0))), scores)
    method.fit_task(stream[1])
    assert equal(method.state_dict(), plain(vit).fit_task(stream[0]).fit_task(stream[1]).state_dict())


def test_other_architectures_are_refused() -> None:
    cnn = Backbone.load("test_efficientnet", pretrained=False, device="cpu")
    with pytest.raises(BackboneError, match=r"backbone must be a timm VisionTransformer, but got 'test_efficientnet"):
        plain(cnn)
