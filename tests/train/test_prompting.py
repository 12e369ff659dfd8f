"""What prompt methods hold: tests with queries that are computed once, honest and published; shared settings."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure import Backbone, FeatureStore, Stream
from perdure.config import load
from perdure.data import LabelledImages
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import ConfigError, RecipeError
from perdure.train.prompting import PromptTests, Vote, columns_in_loss, require_blocks
from plain_prompts import IDS, Plain, PlainConfig, WithoutQueries, passes, pixels, plain, three_tasks
from tiny_vit import tiny


@pytest.fixture
def vit() -> Backbone:
    return tiny()


@pytest.fixture
def stream() -> Stream:
    return three_tasks()


# --- queries


def test_every_tests_query_is_computed_once_however_many_tasks_follow(vit: Backbone, stream: Stream) -> None:
    method, tested = plain(vit, train={"epochs": 1}), 0
    for task in stream:
        method.fit_task(task)
        before = vit.passes.images
        for i in range(task.index + 1):
            method.predict(stream.test(i))
        prompted, new_queries = 8 * (task.index + 1), 8
        assert vit.passes.images - before == prompted + new_queries
        tested += prompted + new_queries
    assert vit.passes.images == tested + 3 * 2 * 12


@pytest.mark.parametrize(("kind", "queries"), [(Plain, 1), (WithoutQueries, 0)])
def test_an_image_alone_counts_once(kind: type[Plain], queries: int, vit: Backbone, stream: Stream) -> None:
    method = plain(vit, kind).fit_task(stream[0])
    one = stream.test(0).subset(np.array([3]))
    assert passes(vit, lambda: method.scores(pixels(vit, one))) == 1 + queries
    assert passes(vit, lambda: list(method.scores_of(one))) == 1 + queries
    assert passes(vit, lambda: list(method.scores_of(one))) == 1


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
    ("vote", "wanted"),
    [
        ({"batch_size": 3}, [[0, 1, 2], [3, 4, 5], [6, 7]]),
        ({"batch_size": 8}, [list(range(8))]),
        ({"batch_size": 4, "order": "class_sorted"}, [[1, 3, 5, 7], [0, 2, 4, 6]]),
    ],
)
def test_which_images_vote_together(
    vote: dict[str, Any], wanted: list[list[int]], vit: Backbone, stream: Stream
) -> None:
    """By label, -3 before 70, where the published protocol sorts by class."""
    method = plain(vit, vote=vote).fit_task(stream[0])
    assert orders(vit, mixed(stream), method) == wanted


def test_shuffled_votes_are_drawn_by_the_seed(vit: Backbone, stream: Stream) -> None:
    vote = {"order": "shuffled", "batch_size": 5}
    drawn = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        np.random.seed(global_seed)
        state = np.random.get_state()[1].copy()
        method = plain(vit, seed=seed, vote=vote).fit_task(stream[0])
        drawn.append([i for batch in orders(vit, mixed(stream), method) for i in batch])
        assert (np.random.get_state()[1] == state).all()
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(sorted(order) == list(range(8)) != order for order in drawn)


@pytest.mark.parametrize("order", ["stored", "class_sorted", "shuffled"])
def test_scores_come_back_in_the_order_of_the_images(order: str, vit: Backbone, stream: Stream) -> None:
    data = mixed(stream)
    method = plain(vit, vote={"order": order, "batch_size": 3}).fit_task(stream[0])
    found, x = torch.cat(list(method.scores_of(data))), pixels(vit, data)
    for group in orders(vit, data, method):
        torch.testing.assert_close(found[group], method.scores(x[group]))
    assert method.predict(data).tolist() == [method.classes_[c] for c in found.argmax(1)]
    whole = method.scores(x)
    assert (found - whole).abs().max() > 1e-4, "an image's scores depend on its company"


def test_without_votes_images_come_as_stored_as_many_as_fit(vit: Backbone, stream: Stream) -> None:
    method = plain(vit).fit_task(stream[0])
    assert not method.promises.depends_on_test_batch
    assert orders(vit, mixed(stream), method) == [list(range(8))]


def test_images_may_be_tested_together_without_a_vote(vit: Backbone, stream: Stream) -> None:
    """As stored; batches given by themselves stay whole, even larger ones than pass a backbone together."""
    heard: list[Tensor] = []

    def scorer(embedded: Tensor, queries: Tensor) -> Tensor:
        heard.append(queries)
        return queries[:, :2]

    tests = PromptTests(vit, FeatureStore(), scorer, vote=Vote(batch_size=3))
    scores, wanted = torch.cat(list(tests.scores_of(mixed(stream)))), vit.features(pixels(vit, mixed(stream)))
    assert [len(queries) for queries in heard] == [3, 3, 2]
    assert torch.equal(torch.cat(heard), wanted)
    assert torch.equal(scores, wanted[:, :2])
    heard.clear()
    tests.scores(pixels(vit, mixed(stream))[[*range(8), 0, 1, 2]])
    assert [len(queries) for queries in heard] == [11] != [vit.batch_size]


@pytest.mark.parametrize(
    ("vote", "groups"),
    [
        (None, [8]),
        (Vote(batch_size=3), [3, 3, 2]),
        (Vote(batch_size=3, order="class_sorted"), [3, 3, 2]),
    ],
)
def test_shares_are_counted_by_the_batches_that_vote(
    vote: Vote | None, groups: list[int], vit: Backbone, stream: Stream
) -> None:
    """Every image of a batch picks slot 0 and one that is the batch's number."""
    heard: list[Tensor] = []

    def choose(queries: Tensor) -> Tensor:
        heard.append(queries)
        return torch.tensor([0, len(heard)]).expand(len(queries), -1)

    data, wanted = mixed(stream), vit.features(pixels(vit, mixed(stream)))
    tests = PromptTests(vit, FeatureStore(), lambda embedded, queries: queries, vote=vote)
    shares = tests.shares(data, 5, choose)
    order = [1, 3, 5, 7, 0, 2, 4, 6] if vote and vote.order == "class_sorted" else list(range(8))
    assert torch.equal(torch.cat(heard), wanted[order])
    assert shares.tolist() == [0.5, *(n / 16 for n in groups), *[0] * (4 - len(groups))]
    assert tests.shares(data.subset(np.arange(0)), 5, lambda q: torch.zeros(0, 2, dtype=torch.long)).tolist() == [0] * 5


def test_a_votings_last_image_may_be_alone(vit: Backbone, stream: Stream) -> None:
    """Seven images in threes: scored with its own query, as ever."""
    data = stream.test(0).subset(np.arange(7))
    method = plain(vit, vote={"batch_size": 3}).fit_task(stream[0])
    assert passes(vit, lambda: list(method.scores_of(data))) == 7 + 7
    assert [len(queries) for queries in method.tested] == [3, 3, 1]


@pytest.mark.parametrize("config", [{}, {"vote": {"order": "shuffled"}}])
@pytest.mark.parametrize("kind", [Plain, WithoutQueries])
def test_no_images_have_no_scores(kind: type[Plain], config: dict[str, Any], vit: Backbone, stream: Stream) -> None:
    method = plain(vit, kind, **config).fit_task(stream[0])
    assert method.predict(stream.test(0).subset(np.arange(0))).tolist() == []


def test_testing_reports_progress(vit: Backbone, stream: Stream) -> None:
    heard: list[tuple[str, int, int]] = []
    store = FeatureStore(progress=lambda event: heard.append((event.stage, event.done, event.total)))
    method = plain(vit, vote={"order": "class_sorted", "batch_size": 3}, store=store).fit_task(stream[0])
    heard.clear()
    list(method.scores_of(mixed(stream)))
    by_label = collections.defaultdict(list)
    for label, done, total in heard:
        by_label[label].append((done, total))
    assert by_label["testing"] == [(3, 8), (6, 8), (8, 8)]
    assert by_label["test queries"][-1] == (8, 8)


# --- settings


@pytest.mark.parametrize(
    "name",
    ["train.batch_size", "train.epochs", "train.lr", "train.clip_norm", "train.augment.min_scale", "vote.batch_size"],
)
def test_settings_out_of_bounds_are_named(name: str) -> None:
    bad: Any = 0
    for key in reversed(name.split(".")):
        bad = {key: bad}
    with pytest.raises(RecipeError, match=rf"PlainConfig: {name} must be .* but got 0"):
        load(PlainConfig, bad)


@pytest.mark.parametrize("blocks", [[2], [-1], [1, 1], [0, 1, 0]])
def test_blocks_must_be_there_and_be_named_once(blocks: list[int], vit: Backbone) -> None:
    require_blocks("Plain", vit, layers=[1, 0])
    require_blocks("Plain", vit, layers=[])
    with pytest.raises(ConfigError) as told:
        require_blocks("Plain", vit, layers=blocks)
    must_be = "distinct and from 0 to 1 (tiny has 2 blocks)"
    assert str(told.value) == f"Plain: layers must be {must_be}, but got {blocks}. Set method.layers."


def test_a_loss_compares_the_tasks_own_classes_or_all() -> None:
    columns = torch.tensor([4, 1, 4, 2])
    assert columns_in_loss(columns, "current").tolist() == [1, 2, 4]
    assert columns_in_loss(columns, "seen") is None
