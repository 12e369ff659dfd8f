"""What the prompt methods share, shown on two that do nothing else: training, queries, honest and published tests."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from perdure import Backbone, FeatureStore, Stream, Task
from perdure.backbone import Prompt
from perdure.checks.subject import equal, frozen_state
from perdure.config import load
from perdure.data import LabelledImages, images
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError, DataError, RecipeError
from perdure.methods import base_prompt
from perdure.methods.base_prompt import PromptBatch, PromptMethod
from perdure.methods.base_prompt_config import SelectionConfig
from perdure.modules.heads import GrowingLinear
from perdure.modules.losses import masked_cross_entropy
from perdure.modules.prompts import TaskBlocks
from perdure.train.loop import train
from tiny_vit import tiny

IDS = [70, -3, 12, 5, 8, 1]
N = 12  # training images per task of the stream below
STILL = {"flip": False, "min_scale": 1.0}  # every view is the eval view


class PlainConfig(SelectionConfig):
    """One batch is six images; a test's votes can be asked for."""

    batch_size: int = Field(6, ge=1, description="images per step")
    epochs: int = Field(2, ge=1, description="passes over each task")
    on_train_queries: bool = Field(True, description="whether training batches carry queries")


class Plain(PromptMethod[PlainConfig]):
    """A prompt token per task; what it reads in a test is shifted by the batch's mean query where the batch votes."""

    Config = PlainConfig

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.tokens_ = TaskBlocks().to(self.backbone.device)
        self.batches: list[PromptBatch] = []
        self.tested: list[Tensor] = []

    def _begin_task(self, task: Task, rng: torch.Generator) -> None:
        self.tokens_.add(torch.randn(1, self.backbone.dim, generator=rng))

    def _takes_train_queries(self) -> bool:
        return self.config.on_train_queries

    def _train_features(self, batch: PromptBatch) -> tuple[Tensor, Tensor]:
        self.batches.append(batch)
        return self._read(batch.embedded), torch.zeros(())

    def _test_features(self, embedded: Tensor, queries: Tensor) -> Tensor:
        self.tested.append(queries)
        return self._read(embedded) + (queries.mean(0) if self.depends_on_test_batch else 0)

    def _read(self, embedded: Tensor) -> Tensor:
        return self.backbone.pool(self.backbone.walk(embedded, {0: Prompt(self.tokens_()[None], stays=True)}))


class WithoutQueries(Plain):
    """As above, but no query is ever asked for."""

    uses_queries: ClassVar[bool] = False

    def _takes_train_queries(self) -> bool:
        return self.uses_queries


@pytest.fixture
def vit() -> Backbone:
    return tiny()


@pytest.fixture
def stream() -> Stream:
    """Three tasks of two classes, twelve training and eight test images each."""
    return class_incremental(synthetic_dataset(IDS, train_per_class=6, test_per_class=4), [2, 2, 2], IDS)


def plain(vit: Backbone, kind: type[Plain] = Plain, seed: int = 0, **config: Any) -> Plain:
    return kind(vit, PlainConfig(**config), seed=seed)


def pixels(vit: Backbone, data: LabelledImages) -> Tensor:
    return torch.cat([x for _, x in data.batches(vit.preprocess, 64)])


def passes(vit: Backbone, what: Callable[[], object]) -> int:
    """How many images ``what`` sends through the backbone."""
    before = vit.passes.images
    what()
    return vit.passes.images - before


# --- what it costs


@pytest.mark.parametrize(
    ("kind", "config", "queries"),
    [
        (Plain, {}, 2 * N),  # a crop's query is computed with the crop, every epoch
        (Plain, {"flip": False}, 2 * N),
        (Plain, {"min_scale": 1.0}, 2 * N),
        (Plain, STILL, N),  # the view never changes, nor does its query
        (Plain, {"query_view": "clean"}, N),
        (Plain, {**STILL, "query_view": "clean"}, N),
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
        method = Plain(vit, PlainConfig(**STILL), store=store)
        assert passes(vit, lambda method=method: method.fit_task(stream[0])) == cost


def test_every_tests_query_is_computed_once_however_many_tasks_follow(vit: Backbone, stream: Stream) -> None:
    method, tested = plain(vit, epochs=1), 0
    for task in stream:
        method.fit_task(task)
        before = vit.passes.images
        for i in range(task.index + 1):
            method.predict(stream.test(i))
        prompted, new_queries = 8 * (task.index + 1), 8
        assert vit.passes.images - before == prompted + new_queries
        tested += prompted + new_queries
    assert vit.passes.images == tested + 3 * 2 * N


@pytest.mark.parametrize(("kind", "queries"), [(Plain, 1), (WithoutQueries, 0)])
def test_an_image_alone_counts_once(kind: type[Plain], queries: int, vit: Backbone, stream: Stream) -> None:
    method = plain(vit, kind).fit_task(stream[0])
    one = stream.test(0).subset(np.array([3]))
    assert passes(vit, lambda: method.scores(pixels(vit, one))) == 1 + queries
    assert passes(vit, lambda: list(method.scores_of(one))) == 1 + queries
    assert passes(vit, lambda: list(method.scores_of(one))) == 1


# --- queries


@pytest.mark.parametrize("size", [1, 5, 16])
def test_cached_scores_equal_fresh_ones_bit_for_bit(
    size: int, vit: Backbone, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backbone, "batch_size", size)
    method = plain(vit).fit_task(stream[0])
    data = synthetic_dataset(IDS, test_per_class=4).test
    fresh = torch.cat([method.scores(x) for _, x in data.batches(vit.preprocess, size)])
    for _ in range(2):
        assert torch.equal(torch.cat(list(method.scores_of(data))), fresh)
    assert len(fresh) == 24


def test_queries_are_the_frozen_features_of_the_images_tested(vit: Backbone, stream: Stream) -> None:
    method = plain(vit).fit_task(stream[0])
    wanted = vit.features(pixels(vit, stream.test(1)))
    list(method.scores_of(stream.test(1)))
    method.scores(pixels(vit, stream.test(1)))
    assert all(torch.equal(queries, wanted) for queries in method.tested)
    assert len(method.tested) == 2


@pytest.mark.parametrize("config", [{}, STILL, {"query_view": "clean"}, {**STILL, "query_view": "clean"}])
def test_queries_in_training_are_those_of_the_view_asked_for(
    config: dict[str, Any], vit: Backbone, stream: Stream
) -> None:
    """Of the image as it is seen, or of the eval view, whichever way they come."""
    method = plain(vit, epochs=1, shuffle=False, **config).fit_task(stream[0])
    for i, batch in enumerate(method.batches):
        seen = vit.pool(vit.walk(batch.embedded))
        clean = vit.features(pixels(vit, stream[0].train)[6 * i : 6 * i + 6])
        wanted, other = (clean, seen) if "query_view" in config else (seen, clean)
        assert torch.equal(batch.queries, wanted)
        assert torch.equal(wanted, other) == ("flip" in config), "only unchanged views have the clean view's query"
        assert batch.queries.dtype == torch.float32


@pytest.mark.parametrize("kind", [Plain, WithoutQueries])
def test_no_query_is_handed_out_where_none_is_wanted(kind: type[Plain], vit: Backbone, stream: Stream) -> None:
    method = plain(vit, kind, on_train_queries=False).fit_task(stream[0])
    assert {tuple(batch.queries.shape) for batch in method.batches} == {(0, 8)}
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
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    planned: list[int] = []

    def watched(*args: Any, **options: Any) -> None:
        planned.append(options["n_steps"])
        train(*args, **options)

    monkeypatch.setattr(base_prompt, "train", watched)
    method = plain(vit, drop_last=drop_last, batch_size=batch_size).fit_task(stream[0])
    assert [len(batch.columns) for batch in method.batches] == 2 * sizes
    assert planned == [2 * len(sizes)]


def test_from_four_batches_on_the_last_is_left_out(vit: Backbone) -> None:
    data = synthetic_dataset([0, 1], train_per_class=(6, 5)).train
    for batch_size, sizes in ((3, [3, 3, 3]), (4, [4, 4, 3])):
        method = plain(vit, drop_last="from_4_batches", batch_size=batch_size, epochs=1)
        method.fit_task(Task(0, data, (0, 1)))
        assert [len(batch.columns) for batch in method.batches] == sizes


def test_nothing_left_to_learn_from_is_refused(vit: Backbone, stream: Stream) -> None:
    method = plain(vit, drop_last="always", batch_size=13)
    with pytest.raises(DataError, match=r"Plain: task must be of 13 images or more, but got 12\. Set .*=never"):
        method.fit_task(stream[0])
    assert method.classes_ == []
    assert len(method.head_.bias) == len(method.tokens_) == 0


def test_every_epoch_sees_every_image_once_in_an_order_of_its_own(vit: Backbone, stream: Stream) -> None:
    method = plain(vit, epochs=3, **STILL).fit_task(stream[0])
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
    method = plain(vit, shuffle=False).fit_task(stream[0])
    columns = torch.cat([batch.columns for batch in method.batches])
    assert columns.tolist() == 2 * method.columns(stream[0].train.labels).tolist()


@pytest.mark.parametrize(("config", "changes"), [(STILL, False), ({"flip": False}, True), ({"min_scale": 1.0}, True)])
def test_views_change_from_epoch_to_epoch_if_asked(
    config: dict[str, Any], changes: bool, vit: Backbone, stream: Stream
) -> None:
    method = plain(vit, shuffle=False, **config).fit_task(stream[0])
    first, second = method.batches[0].embedded, method.batches[2].embedded
    assert torch.equal(first, second) != changes


def test_only_what_is_handed_over_learns(vit: Backbone, stream: Stream) -> None:
    """The backbone has no gradient; older tasks' rows are frozen; a batch carries no graph."""
    before = frozen_state(vit)
    method = plain(vit).fit_task(stream[0])
    first = method.tokens_.newest.detach().clone()
    method.fit_task(stream[1])
    assert torch.equal(method.tokens_()[0], first[0])
    assert {id(p) for p in method.learning()} == {
        id(p) for p in (method.head_.weight, method.head_.bias, method.tokens_.newest)
    }
    assert all(p.grad is None and not p.requires_grad for p in vit.parameters())
    assert equal(before, dict(vit.state_dict()))
    assert not any(batch.embedded.requires_grad or batch.queries.requires_grad for batch in method.batches)


def test_training_works_where_gradients_are_off(vit: Backbone, stream: Stream) -> None:
    with torch.no_grad():
        off = plain(vit).fit_task(stream[0])
    assert equal(off.state_dict(), plain(vit).fit_task(stream[0]).state_dict())


def test_the_optimiser_gets_the_settings(vit: Backbone, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(base_prompt, "train", lambda *a, **options: calls.append(options))
    monkeypatch.setattr(Plain, "optimizer_options", lambda self: {"amsgrad": True})
    told = {"optimizer": "adamw", "schedule": "quarter_cosine", "milestone": 3, "weight_decay": 0.1, "clip_norm": None}
    method = plain(vit, lr=0.5, **told)
    method.fit_task(stream[0]).fit_task(stream[1])
    assert calls == [{**told, "amsgrad": True, "lr": 0.5, "n_steps": 4, "n_epochs": 2}] * 2
    calls.clear()
    plain(vit, lr=0.5, scale_lr=True).fit_task(stream[0])
    assert calls[0]["lr"] == 0.5 * 6 / 256


def test_a_new_task_begins_with_a_new_optimiser(vit: Backbone, stream: Stream) -> None:
    """A task whose classes are not in the loss would else be moved by what the optimiser remembers."""
    method = plain(vit).fit_task(stream[0])
    old = frozen_state(method)["head_"]
    method.fit_task(stream[1])
    assert torch.equal(method.head_.weight[:2], old["weight"])


@pytest.mark.parametrize(("init", "std"), [("normal_0.02", 0.02), ("normal_0.01", 0.01), ("zeros", 0.0)])
def test_new_classes_begin_as_told(init: str, std: float, vit: Backbone, stream: Stream) -> None:
    method = plain(vit, head_init=init, lr=1e-9).fit_task(stream[0])
    assert method.head_.weight.std().item() == pytest.approx(std, abs=0.4 * std + 1e-6)


def test_training_reports_progress(vit: Backbone, stream: Stream) -> None:
    heard: list[tuple[str, int, int]] = []
    store = FeatureStore(progress=lambda event: heard.append((event.stage, event.done, event.total)))
    Plain(vit, PlainConfig(), store=store).fit_task(stream[0])
    assert heard == [("learning prompts", done, 24) for done in (6, 12, 18, 24)]


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

    def loss(x: Tensor) -> Tensor:
        return masked_cross_entropy(head(x), columns, current)

    train(loss, head.parameters(), [[features] * 4], n_steps=4, lr=0.1, optimizer=optimizer, clip_norm=1.0)
    for name, values in head.state_dict().items():
        assert torch.equal(values[others], old[name][others])
        assert (values[current] != old[name][current]).all()


@pytest.mark.parametrize(("train_logits", "moves"), [("current", False), ("seen", True)])
def test_old_classes_take_part_in_the_loss_if_asked(
    train_logits: Literal["current", "seen"], moves: bool, vit: Backbone, stream: Stream
) -> None:
    method = plain(vit, train_logits=train_logits).fit_task(stream[0])
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
            patch.setattr(method, "_end_task", fail)
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


# --- votes in a test


def orders(vit: Backbone, data: LabelledImages, method: Plain) -> list[list[int]]:
    """Which images came together in a test, by position, in the order in which they came."""
    known = {row.numpy().tobytes(): i for i, row in enumerate(vit.features(pixels(vit, data)))}
    assert len(known) == len(data)
    method.tested.clear()
    list(method.scores_of(data))
    return [[known[query.numpy().tobytes()] for query in batch] for batch in method.tested]


def mixed(stream: Stream) -> LabelledImages:
    """Eight test images of two classes in turn: 70, -3, 70, -3, …"""
    return stream.test(0).subset(np.array([0, 4, 1, 5, 2, 6, 3, 7]))


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"eval_batch": 3}, [[0, 1, 2], [3, 4, 5], [6, 7]]),
        ({"eval_batch": 8}, [list(range(8))]),
        ({"eval_batch": 4, "eval_order": "class_sorted"}, [[1, 3, 5, 7], [0, 2, 4, 6]]),
    ],
)
def test_which_images_vote_together(
    config: dict[str, Any], wanted: list[list[int]], vit: Backbone, stream: Stream
) -> None:
    """By label, -3 before 70, where the published protocol sorts by class."""
    method = plain(vit, select_eval="batch_vote", **config).fit_task(stream[0])
    assert orders(vit, mixed(stream), method) == wanted


def test_shuffled_votes_are_drawn_by_the_seed(vit: Backbone, stream: Stream) -> None:
    config = {"select_eval": "batch_vote", "eval_order": "shuffled", "eval_batch": 5}
    drawn = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        np.random.seed(global_seed)
        state = np.random.get_state()[1].copy()
        method = plain(vit, seed=seed, **config).fit_task(stream[0])
        drawn.append([i for batch in orders(vit, mixed(stream), method) for i in batch])
        assert (np.random.get_state()[1] == state).all()
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(sorted(order) == list(range(8)) != order for order in drawn)


@pytest.mark.parametrize("eval_order", ["stored", "class_sorted", "shuffled"])
def test_scores_come_back_in_the_order_of_the_images(eval_order: str, vit: Backbone, stream: Stream) -> None:
    data = mixed(stream)
    config = {"select_eval": "batch_vote", "eval_order": eval_order, "eval_batch": 3}
    method = plain(vit, **config).fit_task(stream[0])
    found, x = torch.cat(list(method.scores_of(data))), pixels(vit, data)
    for group in orders(vit, data, method):
        torch.testing.assert_close(found[group], method.scores(x[group]))
    assert method.predict(data).tolist() == [method.classes_[c] for c in found.argmax(1)]
    whole = method.scores(x)
    assert (found - whole).abs().max() > 1e-4, "an image's scores depend on its company"


@pytest.mark.parametrize("eval_order", ["stored", "class_sorted", "shuffled"])
def test_without_votes_order_and_batch_have_no_effect(eval_order: str, vit: Backbone, stream: Stream) -> None:
    data = mixed(stream)
    usual = plain(vit).fit_task(stream[0])
    method = plain(vit, eval_order=eval_order, eval_batch=3).fit_task(stream[0])
    assert not method.depends_on_test_batch
    assert orders(vit, data, method) == [list(range(8))]
    assert torch.equal(torch.cat(list(method.scores_of(data))), torch.cat(list(usual.scores_of(data))))


def test_a_votings_last_image_may_be_alone(vit: Backbone, stream: Stream) -> None:
    """Seven images in threes: scored with its own query, as ever."""
    data = stream.test(0).subset(np.arange(7))
    method = plain(vit, select_eval="batch_vote", eval_batch=3).fit_task(stream[0])
    assert passes(vit, lambda: list(method.scores_of(data))) == 7 + 7
    assert [len(queries) for queries in method.tested] == [3, 3, 1]


@pytest.mark.parametrize("config", [{}, {"select_eval": "batch_vote", "eval_order": "shuffled"}])
@pytest.mark.parametrize("kind", [Plain, WithoutQueries])
def test_no_images_have_no_scores(kind: type[Plain], config: dict[str, Any], vit: Backbone, stream: Stream) -> None:
    method = plain(vit, kind, **config).fit_task(stream[0])
    assert method.predict(stream.test(0).subset(np.arange(0))).tolist() == []


def test_testing_reports_progress(vit: Backbone, stream: Stream) -> None:
    heard: list[tuple[str, int, int]] = []
    store = FeatureStore(progress=lambda event: heard.append((event.stage, event.done, event.total)))
    config = PlainConfig(select_eval="batch_vote", eval_order="class_sorted", eval_batch=3)
    method = Plain(vit, config, store=store).fit_task(stream[0])
    heard.clear()
    list(method.scores_of(mixed(stream)))
    by_label = collections.defaultdict(list)
    for label, done, total in heard:
        by_label[label].append((done, total))
    assert by_label["testing"] == [(3, 8), (6, 8), (8, 8)]
    assert by_label["test queries"][-1] == (8, 8)


@pytest.mark.parametrize(
    "bad", [{"batch_size": 0}, {"epochs": 0}, {"lr": 0}, {"clip_norm": 0}, {"min_scale": 0}, {"eval_batch": 0}]
)
def test_settings_out_of_bounds_are_named(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(RecipeError, match=rf"PlainConfig: {name} must be .* but got 0"):
        load(PlainConfig, bad)
