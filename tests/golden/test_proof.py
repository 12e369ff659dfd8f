"""The numbered golden tests of PROOF's specification, section 12."""

from __future__ import annotations

import dataclasses as dc
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plain_proof import PlainProof
from stubs import KnownFeatures
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from perdure import FeatureStore, Stream, load_stream
from perdure.backbone import TwoTowers
from perdure.backbone.clip import tiny_clip
from perdure.checks.subject import named_task
from perdure.data import Candidate
from perdure.errors import ConfigError, RecipeError
from perdure.memory.exemplars import herding
from perdure.methods.proof import Proof, ProofConfig
from perdure.modules.contrastive import contrastive
from perdure.modules.cross_modal import CrossModal, CrossModalFusion, FusedRows, Projections
from perdure.train.fusing import FusedTraining, Learner
from perdure.types import no_progress
from rows import drawn, generator
from tiny_clip import clip

RELEASED = {"texts": "first", "freeze_old_text": False, "decay_frozen": True, "hold_scale": False}
QUICK = {"epochs": 5, "batch_size": 4, "lr": 0.005}


def made(store: FeatureStore, backbone: TwoTowers | None = None, **settings: Any) -> Proof:
    train = {**QUICK, **settings.pop("train", {})}
    values = {"templates": ["a {}.", "the {}."], "memory": {"n_per_class": 2}, "dropout": 0.0, **settings}
    values.setdefault("score_mode", "reference")
    return Proof(backbone or clip(), store=store, train=train, **values)


def stream_of(tasks: int = 2) -> Stream:
    return load_stream("synthetic", tasks=tasks)


def taught(method: Proof, tasks: int = 2) -> Proof:
    for task in stream_of(tasks):
        method.fit_task(task)
    return method


def fusion(dim: int = 6, dropout: float = 0.0) -> CrossModalFusion:
    return CrossModalFusion(dim, dropout, generator()).double()


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(drawn(*shape, seed=seed), dim=-1)


def test_01_projections_add_up() -> None:
    stack, f = Projections(5), drawn(3, 5)
    for t in (1, 2, 3):
        stack.add(generator())
        for part in stack.parts:
            part.weight.data, part.bias.data = torch.eye(5), torch.zeros(5)
        torch.testing.assert_close(stack(f), t * f)


def test_02_without_values_rows_are_normalised_inputs() -> None:
    layer, x, texts, prototypes = fusion(), unit(4, 6), unit(3, 6, seed=1), unit(3, 6, seed=2)
    layer.value.weight.data.zero_()
    layer.fc.bias.data.zero_()
    by_text, by_prototype, _ = FusedRows(layer, texts, prototypes, drawn(1, 3, 6), texts[:0]).similarities(x)

    def norm(rows: Tensor) -> Tensor:
        return F.layer_norm(rows, (6,))

    torch.testing.assert_close(by_text, norm(x) @ norm(texts).T)
    torch.testing.assert_close(by_prototype, norm(x) @ norm(prototypes).T)


def test_03_an_image_is_scored_alone_or_with_its_batch(store: FeatureStore) -> None:
    method, images = taught(made(store)), stream_of().test(0)
    features = store.features(clip(), images)[:]
    whole, order = method._scores_from_features(features), torch.randperm(len(features), generator=generator())
    torch.testing.assert_close(method._scores_from_features(features[order]), whole[order], atol=1e-6, rtol=1e-6)
    alone = torch.cat([method._scores_from_features(row[None]) for row in features])
    torch.testing.assert_close(alone, whole, atol=1e-6, rtol=1e-6)
    mean = made(store, fusion="batch_mean").load_state_dict(method.state_dict())
    assert (mean.promises.depends_on_test_batch, method.promises.depends_on_test_batch) == (True, False)
    torch.testing.assert_close(mean._scores_from_features(features[:1]), whole[:1])
    assert (mean._scores_from_features(features)[:1] - whole[:1]).abs().max() > 1e-4
    parts = [mean._scores_from_features(part) for part in features.split(4)]
    torch.testing.assert_close(torch.cat(list(mean.scores_of(images))), torch.cat(parts))  # as many as in training


@pytest.mark.parametrize("c", [1, 4])
@pytest.mark.parametrize("size", [1.0, 40.0])
def test_04_two_blocks_are_the_whole_softmax(c: int, size: float) -> None:
    layer, x = fusion(), size * drawn(3, 6)
    texts, prototypes, prompts = size * drawn(c, 6, seed=1), size * drawn(c, 6, seed=2), drawn(2, 3, 6, seed=3)
    names = size * drawn(2, 6, seed=4)
    rows = FusedRows(layer, texts, prototypes, prompts, names)

    def attended(sequence: Tensor) -> Tensor:
        q, k, v = (F.linear(sequence, part.weight) for part in (layer.query, layer.key, layer.value))
        return layer.norm(layer.fc((q @ k.T / math.sqrt(6)).softmax(1) @ v) + sequence)

    for i, image in enumerate(x):
        whole = attended(torch.cat([image[None], texts, prototypes, prompts.flatten(0, 1)]))
        z, ends = whole[0], whole[1 : 1 + 2 * c]
        by_text, by_prototype, by_name = (s[i] for s in rows.similarities(x))
        torch.testing.assert_close(torch.cat([by_text, by_prototype]), ends @ z, atol=1e-6, rtol=1e-6)
        for j, name in enumerate(names):  # as one row more, which only it and the image see
            beside = attended(torch.cat([image[None], texts, prototypes, prompts.flatten(0, 1), name[None]]))
            torch.testing.assert_close(by_name[j], beside[-1] @ z, atol=1e-6, rtol=1e-6)


def learner(network: CrossModal, old: int, prompts: int = 3) -> Learner:
    """For a task behind ``old`` others."""
    for _ in range(old):
        for side in (network.image, network.text):
            side.add(generator())
    return Learner(network, torch.ones(old, prompts, network.fusion.dim), torch.tensor(1.0), generator())


def learned(old: int, **settings: Any) -> int:
    """How many numbers learn at d = 512."""
    found, network = [], CrossModal(512, 0.0, generator())
    hook = register_optimizer_step_pre_hook(
        lambda o, *_: found.append(sum(p.numel() for g in o.param_groups for p in g["params"] if p.requires_grad))
    )
    try:
        part = learner(network, old)
        part.run(lambda at: part.new.sum(), 1, FusedTraining(epochs=1, **settings), no_progress)
    finally:
        hook.remove()
    return found[0]


def test_05_what_is_old_stays_to_the_bit(store: FeatureStore) -> None:
    assert [learned(old) for old in range(3)] == [1_576_961] * 3
    method = taught(made(store), 1)
    network, contexts = method.network_, method.contexts_.clone()
    old = [network.image.parts[0], network.text.parts[0]]
    before = [p.clone() for part in old for p in part.parameters()]
    for part in old:
        for p in part.parameters():
            p.grad = torch.ones_like(p)  # stale
    method.fit_task(stream_of()[1])
    assert all(torch.equal(p, q) for p, q in zip(before, (p for x in old for p in x.parameters()), strict=True))
    assert torch.equal(method.contexts_[:1], contexts)
    assert (len(network.image), len(network.text), len(method.contexts_)) == (2, 2, 2)


def test_06_released_text_projections_learn_and_frozen_ones_decay() -> None:
    assert [learned(old, freeze_old_text=False) for old in range(3)] == [1_576_961, 1_839_617, 2_102_273]


@pytest.mark.parametrize("freeze_old_text", [True, False])
def test_06b_what_stood_still_decayed(freeze_old_text: bool) -> None:
    """In 550 steps without a gradient."""
    network = CrossModal(1, 0.0, generator())
    part = learner(network, 1, prompts=1)
    old = [network.image.parts[0].weight, network.text.parts[0].weight]
    for p in old:
        p.data.fill_(1.0)
    c = FusedTraining(decay_frozen=True, freeze_old_text=freeze_old_text, batch_size=1)
    contexts, _ = part.run(lambda at: 0 * (old[1].sum() + part.new.sum()), 110, c, no_progress)
    assert [contexts[0, 0].item(), *(p.item() for p in old)] == pytest.approx([0.851225] * 3, abs=1e-6)


def test_07_a_prototype_is_a_mean_of_unit_rows_and_no_unit_row(store: FeatureStore, monkeypatch: Any) -> None:
    method, rows = made(store), torch.eye(48)[[0, 1, 0]] * torch.tensor([[3.0], [0.5], [2.0]])
    monkeypatch.setattr(store, "features", lambda backbone, data, label="": KnownFeatures(rows[: len(data)]))
    images = stream_of()[0].train.of_classes([0])
    method.fit_task(named_task(0, images.subset(np.arange(2))))
    assert method.prototypes[0, :3].tolist() == [0.5, 0.5, 0]
    method.fit_task(named_task(1, images.subset(np.arange(2, 3))))
    assert method.prototypes[0].tolist() == pytest.approx([2 / 3, 1 / 3, *[0.0] * 46]), "of all its images"


def test_08_equal_images_of_one_class() -> None:
    x, y = unit(1, 4).expand(2, -1), torch.zeros(2, dtype=torch.long)
    for scale in (1.0, 100.0):
        assert contrastive(x, x, y, scale).item() == pytest.approx(0.693147, abs=1e-6)
        assert contrastive(x, x, y, scale, multi_positive=True).item() == pytest.approx(0.0, abs=1e-6)


def test_08b_one_pair_each_is_cross_entropy() -> None:
    x, texts, y = unit(5, 4), unit(5, 4, seed=1), torch.arange(5)
    logits = 3.0 * x @ texts.T
    expected = (F.cross_entropy(logits, y) + F.cross_entropy(logits.T, y)) / 2
    for multi in (False, True):
        torch.testing.assert_close(contrastive(x, texts, y, 3.0, multi_positive=multi), expected)


@pytest.mark.parametrize("released", [False, True])
def test_09_stored_features_train_as_passing_ones(released: bool, store: FeatureStore) -> None:
    """Beside a loop that is written from the specification and embeds every batch anew."""
    backbone, stream = tiny_clip(), stream_of()
    settings: dict[str, Any] = {"train": RELEASED, "fusion": "batch_mean", "normalise_tests": False} if released else {}
    method = made(store, backbone, **settings)
    plain = PlainProof(method, released=released)
    for task in stream:
        plain.learn(task, QUICK["lr"], QUICK["batch_size"])
        method.fit_task(task)
        gaps = [
            (ours - theirs).abs().max()
            for ours, theirs in (
                *zip(method.network_.image.parameters(), plain.images.parameters(), strict=True),
                *zip(method.network_.text.parameters(), plain.texts.parameters(), strict=True),
                *zip(method.contexts_, plain.prompts, strict=True),
                (method.network_.fusion.fc.weight, plain.fc), (method.network_.fusion.query.weight, plain.q),
                (method.network_.fusion.norm.weight, plain.norm.weight), (method.log_scale_, plain.scale),
            )
        ]  # fmt: skip
        assert max(gaps) < 2e-5
        features = store.features(backbone, stream.test(0))[:4]
        with torch.no_grad():
            torch.testing.assert_close(
                method._scores_from_features(features), plain.scores(features), atol=1e-2, rtol=1e-4
            )


def test_09b_and_10_every_image_and_every_sentence_passes_once(store: FeatureStore) -> None:
    backbone, stream = tiny_clip(), stream_of(3)
    method, texts = made(store, backbone), []
    for task in stream:
        method.fit_task(task)
        texts.append(backbone.passes.texts)
        for index in range(task.index + 1):
            list(method.scores_of(stream.test(index)))
    assert texts == [4, 8, 12], "two templates of two new classes each"
    assert backbone.passes.images == sum(len(task.train) + len(stream.test(task.index)) for task in stream)
    assert method.n_exemplars == 12, "kept images cost no pass"


def test_11_herding_keeps_the_running_mean_near_the_mean() -> None:
    assert herding(torch.tensor([[0.0], [1.0], [5.0]]), 2).tolist() == [1, 2]


def test_12_a_state_brings_prototypes_back(store: FeatureStore) -> None:
    method, images = taught(made(store, score_mode="cosine")), stream_of().test(1)
    again = made(store, score_mode="cosine").load_state_dict(method.state_dict())
    assert torch.equal(again.prototypes, method.prototypes)
    assert torch.equal(*(torch.cat(list(m.scores_of(images))) for m in (method, again)))


def test_a_name_that_was_never_taught_changes_no_other_score(store: FeatureStore) -> None:
    stream = stream_of(3)
    for mode in ("cosine", "reference"):
        method, images = taught(made(store, score_mode=mode), 1), stream.test(0)
        known = [Candidate(name, name) for name in method.names_]
        new = [Candidate(stream.class_names[c], stream.display_names[c]) for c in stream[1].classes]
        own = torch.cat(list(method.scores_of(images)))
        assert torch.equal(torch.cat(list(method.scores_among(images, known))), own)
        both = torch.cat(list(method.scores_among(images, [new[1], *known, new[0]])))
        assert torch.equal(both[:, 1:-1], own)
        alone = torch.cat(list(method.scores_among(images, [new[0]])))
        torch.testing.assert_close(both[:, -1:], alone, atol=1e-6, rtol=1e-6)


def test_scores_are_three_cosines_times_the_scale(store: FeatureStore) -> None:
    method = taught(made(store, score_mode="cosine", projected=0.0))
    fused = method._scores_from_features(store.features(clip(), stream_of().test(0))[:])
    assert fused.abs().max() <= 2 * method.log_scale_.exp()
    weighted = made(store, score_mode="cosine", projected=3.0).load_state_dict(method.state_dict())
    first = (weighted._scores_from_features(store.features(clip(), stream_of().test(0))[:]) - fused) / 3
    x = method.network_.images(store.features(clip(), stream_of().test(0))[:])
    expected = method.log_scale_.exp() * x @ method.network_.texts(method.texts_).T
    torch.testing.assert_close(first, expected.detach(), atol=1e-4, rtol=1e-4)


def test_data_sets_may_have_different_numbers_of_templates(store: FeatureStore) -> None:
    templates = {"one": ["a {}.", "the {}."], "two": ["my {}."]}
    method, task = made(store, templates=templates), stream_of()[0]
    halves = [task.train.of_classes([c]) for c in task.classes[:2]]
    for index, (name, half) in enumerate(zip(templates, halves, strict=True)):
        method.fit_task(dc.replace(named_task(index, half), dataset=name))
    assert method.texts_.shape == (2, 2, 48)
    assert not method.texts_[1, 1].any()
    side = method.network_.text
    torch.testing.assert_close(method.network_.texts(method.texts_)[1], F.normalize(side(method.texts_[1, 0]), dim=0))


def test_a_memory_without_room_is_refused_before_anything_is_learned(store: FeatureStore) -> None:
    method = made(store, memory={"n_images": 1})
    with pytest.raises(ConfigError, match="n_images must be enough for one image of each of 3 classes, but got 1"):
        method.fit_task(stream_of()[0])
    assert (method.classes_, len(method.texts_), len(method.network_.image)) == ([], 0, 0)


def test_a_batch_passes_at_once_for_its_images_are_compared() -> None:
    with pytest.raises(RecipeError, match="accumulate must be 1, but got 2"):
        ProofConfig(train={"accumulate": 2})
