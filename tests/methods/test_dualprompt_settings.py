"""DualPrompt's settings, its published test protocols, and the pitfalls of its specification's section 9."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor

from perdure import Backbone, FeatureStore
from perdure.checks import check_method
from perdure.checks.subject import small_stream
from perdure.config import laid_over, load
from perdure.data import LabelledImages, Preprocess, Stream, Task
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError, CheckpointError, ConfigError, NotFittedError, RecipeError
from perdure.methods.dualprompt import DualPrompt, DualPromptConfig
from perdure.modules.prompts import RANGES, TaskBlocks, unit
from perdure.run.checkpoint import load_state, save_state
from perdure.train.session import Session
from tiny_vit import ON_ANOTHER_VIT, second_vit

SMALL: dict[str, Any] = {"layers_g": [0], "layers_e": [1], "length_g": 2, "length_e": 2, "train": {"epochs": 1}}
STILL: dict[str, Any] = {"augment": {"min_scale": 1.0, "flip": False}}
SCRAMBLED = "scrambled"


def tiny(depth: int = 2, **options: Any) -> Backbone:
    """A ViT of random weights, all biases and scales shaken: 8 px images, 5 tokens of 8."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": depth, "num_heads": 2}
    model = VisionTransformer(num_classes=0, **(sizes | options))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return Backbone(model, name="tiny", preprocess=Preprocess(image_size=8), device="cpu")


def made(*, seed: int = 0, store: FeatureStore | None = None, **config: Any) -> DualPrompt:
    return DualPrompt(tiny(), DualPromptConfig(**laid_over(SMALL, config)), seed=seed, store=store)


def pixels(method: DualPrompt, data: LabelledImages) -> Tensor:
    return torch.cat([images for _, images in data.batches(method.backbone.preprocess, 64)])


@pytest.fixture
def stream() -> Stream:
    return small_stream((2, 2, 2), train_per_class=8)


def test_every_promise_is_kept_on_a_second_vit() -> None:
    results = check_method(DualPrompt, only=ON_ANOTHER_VIT, make_backbone=second_vit)
    assert [r for r in results if not r.ok] == []
    assert len(results) == len(ON_ANOTHER_VIT)


def test_a_misspelt_setting_is_refused() -> None:
    """Pitfall 3: mammoth's preset sets a flag that does not exist."""
    with pytest.raises(RecipeError, match=r"'kv_layuot'.*Did you mean 'kv_layout'"):
        load(DualPromptConfig, {"kv_layuot": "correct"})
    with pytest.raises(RecipeError, match=r"layers_e .*but got \[\]"):
        load(DualPromptConfig, {"layers_e": []})


@pytest.mark.parametrize("depth", [5, 6])
def test_the_defaults_fit_a_vit_of_five_blocks_and_more(depth: int) -> None:
    DualPrompt(tiny(depth))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, r"layers_e must be distinct and from 0 to 3 \(tiny has 4 blocks\), but got \[2, 3, 4\]"),
        ({"layers_g": [7, 0], "layers_e": [1]}, r"layers_g must be .* 4 blocks\), but got \[7, 0\]"),
        ({"layers_g": [], "layers_e": [2, -1]}, r"layers_e must be distinct and from 0 to 3 .*, but got \[2, -1\]"),
        ({"layers_g": [1, 1], "layers_e": [2]}, r"layers_g must be distinct.*but got \[1, 1\]"),
    ],
)
def test_blocks_that_are_not_there_are_refused_at_once(config: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        DualPrompt(tiny(4), DualPromptConfig(**config))


def test_blocks_without_plain_attention_are_refused(stream: Stream) -> None:
    method = DualPrompt(tiny(block_fn=ParallelScalingBlock), DualPromptConfig(**SMALL))
    with pytest.raises(BackboneError, match="ParallelScalingBlock"):
        method.fit_task(stream[0])
    assert method.tasks_seen_ == len(method.e_) == 0


@pytest.mark.parametrize("layers", [{"layers_g": []}, {"layers_g": [1], "layers_e": [1, 0]}])
def test_g_may_be_empty_or_share_its_blocks(stream: Stream, tmp_path: Path, layers: dict[str, Any]) -> None:
    method = made(**layers).fit_task(stream[0])
    save_state(tmp_path, method.state_dict())
    loaded = made(**layers).load_state_dict(load_state(tmp_path))
    images = pixels(method, stream.test(0))
    assert torch.equal(method.scores(images), loaded.scores(images))


@pytest.mark.parametrize("init", RANGES)
def test_initial_values_fill_their_range(stream: Stream, init: Any) -> None:
    """Pitfall 6: G, E and keys alike."""
    low, high = RANGES[init]
    method = made(init=init, train={"lr": 1e-12}, copy_prev=False).fit_task(stream[0]).fit_task(stream[1])
    slots = [*method.e_.blocks, *method.keys_.blocks]
    for rows in (*method.g_, *slots):
        assert low - 1e-6 <= rows.min()
        assert rows.max() <= high + 1e-6
        assert rows.max() - rows.min() > 0.4 * (high - low)
    assert not torch.equal(slots[0], slots[1])
    assert not torch.equal(made(init=init, seed=1).g_[0], made(init=init).g_[0])


@pytest.mark.parametrize(("keys", "queries"), [("sgd", 3), ("mean", 1)])
def test_the_mean_key_takes_no_queries_in_training(
    stream: Stream, keys: Any, queries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three epochs; the mean takes one stored query per image, and its key is none of the optimiser's business."""
    sessions, run = [], Session.run
    monkeypatch.setattr(Session, "run", lambda self, loss: sessions.append(self) or run(self, loss))
    method = made(keys=keys, train={"epochs": 3}).fit_task(stream[0])
    assert method.backbone.passes.images == 16 * (3 + queries)
    learned = {id(p) for p in sessions[0].learned}
    assert (id(method.keys_.newest) in learned) == (keys == "sgd")
    assert all(id(p) in learned for p in (*method.g_, method.e_.newest))
    method.predict(stream.test(0))
    method.predict(stream.test(0))
    assert method.backbone.passes.images == 16 * (3 + queries) + 6 * (1 + 2)


def test_mean_keys_point_at_their_tasks(stream: Stream) -> None:
    method = made(keys="mean", top_k=2)
    for task in stream:
        method.fit_task(task)
        rows = method.store.features(method.backbone, task.train)[np.arange(16)]
        expected = unit(unit(rows).mean(0)).expand(2, -1)
        torch.testing.assert_close(method.keys_.newest, expected, atol=1e-6, rtol=0)
    assert method.keys_().shape == (6, 8)
    with pytest.raises(RecipeError, match=r"keys\.pull"):  # no loss term, and nothing for the clip to see
        load(DualPromptConfig, {"keys": {"name": "mean", "pull": 9.0}})


def test_clipping_couples_the_keys_with_the_rest(stream: Stream) -> None:
    """Pitfall 5: the norm is that of all that learns together."""
    heads = {}
    for pull, clip in itertools.product((0.0, 50.0), (None, 0.5)):
        method = made(keys={"pull": pull}, train={"clip_norm": clip, "optimizer": "sgd"}).fit_task(stream[0])
        heads[pull, clip] = method.head_.weight
    assert torch.equal(heads[0.0, None], heads[50.0, None])
    assert not torch.equal(heads[0.0, 0.5], heads[50.0, 0.5])


@pytest.mark.parametrize(
    ("vote", "kv_layout", "depends"),
    [
        (None, "correct", False),
        ({"batch_size": 24}, "correct", True),
        (None, SCRAMBLED, True),
        ({"batch_size": 24}, "scrambled", True),
    ],
)
def test_what_depends_on_the_test_batch_says_so(stream: Stream, vote: Any, kv_layout: Any, depends: bool) -> None:
    config = {"vote": vote, "kv_layout": kv_layout, "copy_prev": False, "keys": "mean"}
    method = made(**config).fit_task(stream[0]).fit_task(stream[1])
    assert method.promises.depends_on_test_batch == depends
    images = torch.cat([pixels(method, stream.test(t)) for t in (0, 1)])
    ways = [
        method.scores(images),
        torch.cat([method.scores(one[None]) for one in images]),
        torch.cat([method.scores(part) for part in images.split(5)]),
    ]
    assert all(((way - ways[0]).abs().max() > 1e-5) == depends for way in ways[1:])


def test_a_lone_image_has_its_own_keys_and_values_even_scrambled(stream: Stream) -> None:
    """Pitfall 1: of an odd batch one image is right, and a batch of one stays one on a CPU."""
    scrambled = made(kv_layout=SCRAMBLED, train={"lr": 1.0}).fit_task(stream[0])
    correct = made()
    correct.load_state_dict({**scrambled.state_dict(), "meaning_": correct.meaning_})
    images = pixels(correct, stream.test(0))
    torch.testing.assert_close(scrambled.scores(images[:1]), correct.scores(images[:1]), atol=1e-6, rtol=0)
    right = (scrambled.scores(images[:3]) - correct.scores(images[:3])).abs().amax(1) < 1e-6
    assert right.tolist() == [False, True, False]


@pytest.mark.parametrize("setting", ["layers_g", "layers_e", "length_g", "length_e", "top_k", "kv_layout"])
def test_what_was_learned_with_other_settings_is_refused_by_each_of_them(stream: Stream, setting: str) -> None:
    state = made().fit_task(stream[0]).state_dict()
    meaning = {**state["meaning_"], setting: None}
    with pytest.raises(
        CheckpointError, match=rf"meaning_ \(.*\) must be .*'{setting}': (?!None).*, but got .*'{setting}': None"
    ):
        made().load_state_dict({**state, "meaning_": meaning})


@pytest.mark.parametrize("order", ["stored", "class_sorted", "shuffled"])
def test_whole_data_are_tested_in_the_published_batches(stream: Stream, order: Any) -> None:
    """Pitfall 2: order and size of the test batches are settings, and matter where they matter in print."""
    config = {"kv_layout": "scrambled", "vote": {"batch_size": 4, "order": order}, "train": {"lr": 1.0}}
    method = made(**config).fit_task(stream[0]).fit_task(stream[1])
    data = stream.test(0)
    mixed = data.subset(np.array([0, 3, 1, 4, 2, 5]))
    at = {
        "stored": np.arange(6),
        "class_sorted": np.argsort(mixed.labels, kind="stable"),
        "shuffled": np.random.default_rng(0).permutation(6),
    }[order]
    images = pixels(method, mixed)
    expected = torch.cat([method.scores(images[part]) for part in torch.from_numpy(at).split(4)])
    got = torch.cat(list(method.scores_of(mixed)))
    torch.testing.assert_close(got[at], expected, atol=1e-6, rtol=0)
    other = made(**laid_over(config, {"vote": {"batch_size": 3}})).load_state_dict(method.state_dict())
    assert (torch.cat(list(other.scores_of(mixed))) - got).abs().max() > 1e-5


def test_prefixes_of_another_layout_are_not_loaded(stream: Stream) -> None:
    state = made(kv_layout=SCRAMBLED).fit_task(stream[0]).state_dict()
    for other in ({}, {"kv_layout": SCRAMBLED, "layers_g": [1], "layers_e": [0]}, {"top_k": 2}):
        method = made(**other)
        with pytest.raises(CheckpointError, match=r"(e_|g_|meaning_)[.\w]*( \(.*\))? must be .*, but got "):
            method.load_state_dict(state)
        assert method.tasks_seen_ == len(method.e_) == 0


def test_shares_of_slots(stream: Stream) -> None:
    method = made(keys="mean", train=STILL)
    with pytest.raises(NotFittedError, match="selection_of"):
        method.selection_of(stream.test(0))
    for task in stream:
        method.fit_task(task)
    for test in map(stream.test, range(3)):
        queries = method.backbone.features(pixels(method, test))
        nearest = (unit(queries) @ method.keys_().T).argmax(1)
        assert method.selection_of(test).tolist() == pytest.approx((torch.bincount(nearest, minlength=3) / 6).tolist())
    assert method.selection_of(stream.test(0).subset(np.array([], dtype=int))).tolist() == [0, 0, 0]


@pytest.mark.parametrize(("order", "shares"), [("stored", [1.0, 0.0]), ("class_sorted", [0.5, 0.5])])
def test_shares_of_slots_are_those_of_the_votes(stream: Stream, order: Any, shares: list[float]) -> None:
    """Two of three neighbours like slot 0; sorted by class, one class's batch is for slot 1 (pitfall 2)."""
    method = made(vote={"batch_size": 3, "order": order}, train={"lr": 1e-9}).fit_task(stream[0])
    method.fit_task(stream[1])
    a, b = stream.test(0), stream.test(1)
    keys = TaskBlocks()
    for data in (a, b):
        keys.add(method.backbone.features(pixels(method, data)[:1]))
    method.keys_ = keys
    rows, labels = np.concatenate([a.rows[[0, 0, 0]], b.rows[[0, 0, 0]]]), np.array([0, 0, 0, 1, 1, 1])
    mixed = LabelledImages(a.source, labels, rows).subset(np.array([0, 1, 3, 2, 4, 5]))
    if order == "stored":
        mixed = mixed.subset(np.array([0, 1, 2]))
    assert method.selection_of(mixed).tolist() == shares


def test_slots_are_per_domain_where_domains_come() -> None:
    """Pitfall 13: the second domain lacks a class; seen logits teach its head row too, current ones do not."""
    ids = (5, 3, 9)
    day = synthetic_dataset(ids, train_per_class=6, test_per_class=2)
    night = synthetic_dataset(ids, train_per_class=6, test_per_class=2, seed=1, shift=-120.0)
    tasks = [Task(0, day.train, ids, "day"), Task(1, night.train.of_classes([5, 9]), (5, 9), "night")]
    for logits, learns in (("seen", True), ("current", False)):
        method = made(logits=logits, keys="mean", train=STILL).fit_task(tasks[0])
        before = method.head_.weight.detach().clone()
        method.fit_task(tasks[1])
        assert method.classes_ == [5, 3, 9]
        assert len(method.e_) == len(method.keys_) == 2
        assert torch.equal(method.head_.weight[1], before[1]) != learns
        assert not torch.equal(method.head_.weight[0], before[0])
    for t, domain in enumerate((day, night)):
        assert method.selection_of(domain.test)[t] > 0.5


def test_a_test_knows_no_task_and_its_answer_may_be_of_another_task(stream: Stream) -> None:
    """Section 7: the slot masks no logits."""
    method = made().fit_task(stream[0]).fit_task(stream[1])
    images = pixels(method, stream.test(0))
    method.head_.weight = torch.nn.Parameter(torch.zeros_like(method.head_.weight))
    for best in range(4):
        method.head_.bias = torch.nn.Parameter(10.0 * torch.eye(4)[best])
        assert set(method.predict(images).tolist()) == {method.classes_[best]}


def test_within_a_task_nothing_is_forgotten(backbone: Backbone, stream: Stream) -> None:
    """What the expected failure of check_remembers_every_task leaves standing."""
    config = {**laid_over(DualPrompt.tags.small, DualPrompt.tags.learns), "keys": "mean"}
    method = DualPrompt(backbone, DualPromptConfig(**config))
    for task in stream:
        method.fit_task(task)
    for t in range(3):
        data = stream.test(t)
        scores = torch.cat(list(method.scores_of(data)))[:, 2 * t : 2 * t + 2]
        assert torch.equal(scores.argmax(1) + 2 * t, method.columns(data.labels))
        assert method.selection_of(data)[t] == 1


def test_after_a_resume_old_slots_stay_and_the_new_one_is_a_copy(stream: Stream, tmp_path: Path) -> None:
    """Pitfall 10: nothing hangs on gradients that a loaded state does not have."""
    straight = made().fit_task(stream[0])
    save_state(tmp_path, straight.state_dict())
    resumed = made().load_state_dict(load_state(tmp_path))
    old, first = resumed.e_.newest.detach().clone(), resumed.g_[0].detach().clone()
    for method in (straight, resumed):
        method.fit_task(stream[1])
    assert torch.equal(resumed.e_.blocks[0], old)
    assert torch.equal(resumed.e_.newest, straight.e_.newest)
    assert not torch.equal(resumed.e_.newest, old)
    assert torch.equal(resumed.g_[0], straight.g_[0])
    assert not torch.equal(resumed.g_[0], first)


@pytest.mark.filterwarnings("ignore:.*meta parameter")
def test_loaded_blocks_go_where_the_backbone_is() -> None:
    blocks = TaskBlocks()
    blocks.add(torch.ones(2, 3))
    elsewhere = TaskBlocks().to("meta")
    elsewhere.load_state_dict(blocks.state_dict())
    assert elsewhere.newest.device.type == "meta"
    assert blocks.state_dict().keys() == {"blocks.0"}


def test_progress_is_told(stream: Stream, tmp_path: Path) -> None:
    heard: list[str] = []
    store = FeatureStore(tmp_path / "heard", progress=lambda event: heard.append(event.stage))
    method = made(store=store, keys="mean").fit_task(stream[0])
    method.selection_of(stream.test(0))
    assert list(dict.fromkeys(heard)) == ["train queries", "learning prompts", "test queries"]
