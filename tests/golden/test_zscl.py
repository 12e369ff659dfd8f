"""The golden tests of ZSCL's specification, section 12, and what its reference data must be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure import FeatureStore
from perdure.backbone import TwoTowers
from perdure.backbone.clip import tiny_clip
from perdure.checks.subject import small_reference, small_stream
from perdure.config import laid_over
from perdure.eval.transfer import average_over_sets, last_over_sets, transfer_over_sets
from perdure.methods.zscl import ZSCL, ZSCLConfig
from perdure.modules.losses import distillation
from perdure.modules.weight_mean import WeightMean, add_pull_
from perdure.train.batches import Rows, TaskImages
from perdure.train.session import Session
from perdure.train.settings import Cosine
from perdure.train.teacher import CosineToZero, ReferenceBatch, StepTraining, Teacher
from tiny_clip import clip

QUICK: dict[str, Any] = {
    "train": {"iterations": 3, "batch_size": 6, "lr": 1e-3, "schedule": {"name": "constant"}},
    "distill": {"batch_size": 4}, "ensemble": 2,
}  # fmt: skip
PLAIN: dict[str, Any] = {"distill": None, "pull": 0.0, "ensemble": None}


def zscl(store: FeatureStore, backbone: TwoTowers | None = None, **settings: Any) -> ZSCL:
    config = ZSCLConfig(**laid_over(QUICK, settings))
    return ZSCL(backbone or clip(), config, store=store, reference=small_reference())


def weights(backbone: TwoTowers) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in backbone.named_parameters()}


def path(mean: WeightMean, p: nn.Parameter, values: range, every: int) -> float:
    """The mean at the end of a walk, whose first step counts."""
    for i, value in enumerate(values):
        p.data.fill_(value)
        if i % every == 0:
            mean.add()
    return float(mean.values[0])


def test_01_the_mean_is_uniform_and_holds_the_start() -> None:
    p = nn.Parameter(torch.zeros(1))
    assert path(WeightMean([p]), p, range(1, 4), 1) == 1.5
    p.data.fill_(2.0)
    assert path(WeightMean([p]), p, range(10, 20), 100) == (2 + 10) / 2, "the first step counts"
    p.data.fill_(0.0)
    mean = WeightMean([p])
    assert path(mean, p, range(1, 1002), 100) == pytest.approx(sum(range(1, 1002, 100)) / 12)
    assert mean.n == 12


def test_01_the_student_becomes_its_mean(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    method, seen = zscl(store, ensemble=1), []
    start, add = weights(method.student_), WeightMean.add

    def spy(self: WeightMean) -> None:
        seen.append([p.detach().clone() for p in self.parameters])
        add(self)

    monkeypatch.setattr(WeightMean, "add", spy)
    method.fit_task(small_stream()[0])
    assert len(seen) == 3
    for i, (name, p) in enumerate(method.student_.named_parameters()):
        expected = torch.stack([start[name], *(each[i] for each in seen)]).mean(0)
        torch.testing.assert_close(p, expected, atol=1e-6, rtol=0, msg=name)


def test_01_the_first_step_counts(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    means: list[int] = []
    monkeypatch.setattr(WeightMean, "take", lambda self: means.append(self.n))
    zscl(store, train={"iterations": 5}, ensemble=3).fit_task(small_stream()[0])  # steps 0 and 3
    zscl(store, train={"iterations": 2}, ensemble=100).fit_task(small_stream()[0])
    assert means == [1 + 2, 1 + 1]


def test_02_a_frozen_student_is_its_mean(store: FeatureStore) -> None:
    method = zscl(store, train={"lr": 1e-30, "schedule": {"name": "constant"}}, ensemble=1)
    start = weights(method.student_)
    method.fit_task(small_stream()[0])
    assert all(float((p - start[name]).abs().max()) < 1e-25 for name, p in method.student_.named_parameters())


def teacher_of(method: ZSCL) -> tuple[Teacher, ReferenceBatch]:
    """The teacher, and what it says of some images; the student is thawed."""
    teacher, data, backbone = method._teacher(), small_reference(), method.backbone
    assert teacher is not None
    images = next(data.images.batches(backbone.preprocess, 4))[1]
    rows = torch.tensor([0, 2, 3]) if teacher.how.texts_by == "symmetric" else torch.zeros(0, dtype=torch.long)
    method.student_.requires_grad_(True)
    return teacher, ReferenceBatch(images, backbone.features(images), rows)


def test_03_each_distillation_has_its_weight(store: FeatureStore) -> None:
    def loss(images: float, texts: float) -> float:
        method = zscl(store, distill={"images": images, "texts": texts})
        teacher, batch = teacher_of(method)
        return teacher.loss(method.student_.embed(batch.images), batch, method._read).item()

    by_images, by_texts = loss(1.0, 0.0), loss(0.0, 1.0)
    assert by_images != pytest.approx(by_texts, rel=0.01)
    assert loss(2.0, 5.0) == pytest.approx(2 * by_images + 5 * by_texts, rel=1e-4)


@pytest.mark.parametrize("by", ["transpose", "symmetric"])
def test_02_distillation_moves_nothing_at_the_teacher(by: str, store: FeatureStore) -> None:
    method = zscl(store, distill={"texts_by": by})
    teacher, batch = teacher_of(method)
    loss = teacher.loss(method.student_.embed(batch.images), batch, method._read)
    s = method.backbone.logits(batch.teacher, teacher.sentences) / 2
    by_text = s.T[batch.sentences] if by == "symmetric" else s.T
    entropy = [-(x.softmax(1) * x.log_softmax(1)).sum(1).mean() for x in (s, by_text)]
    assert loss.item() == pytest.approx(4 * float(sum(entropy)), rel=1e-4)
    loss.backward()
    assert max(float(p.grad.abs().max()) for p in method.student_.parameters() if p.grad is not None) < 1e-4


def test_03_distillation_by_hand() -> None:
    teacher = torch.tensor([[2.0, 0.0]])
    assert float(distillation(teacher, torch.zeros(1, 2), 2.0)) == pytest.approx(2.772589, abs=1e-6)
    assert float(distillation(teacher, teacher, 2.0)) == pytest.approx(2.328812, abs=1e-6)
    rows = torch.tensor([[2.0, 0.0], [2.0, 0.0]])
    assert float(distillation(rows, torch.zeros(2, 2), 2.0)) == pytest.approx(2.772589, abs=1e-6), "a mean over rows"


def test_04_the_pull_is_the_gradient_of_a_sum_of_squares() -> None:
    start = torch.randn(7, generator=torch.Generator().manual_seed(0))
    p, still = nn.Parameter(start + 0.5), nn.Parameter(torch.ones(2))
    value = 0.3 * (p - start).square().sum()
    assert value.item() == pytest.approx(0.3 * 7 * 0.25)
    value.backward()
    assert p.grad is not None
    by_autograd, p.grad = p.grad, torch.ones(7)
    add_pull_([p, still], [start, torch.zeros(2)], 0.3)
    torch.testing.assert_close(p.grad, 1 + by_autograd)
    torch.testing.assert_close(by_autograd, torch.full((7,), 2 * 0.3 * 0.5))
    assert still.grad is None, "what no loss reaches is where it was"
    add_pull_([still], [torch.zeros(2)], 0.3)


def test_04_the_anchor_is_the_start_of_the_task(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    anchors: list[list[Tensor]] = []
    monkeypatch.setattr("perdure.methods.zscl.add_pull_", lambda p, start, weight: anchors.append(start))
    method = zscl(store)
    for task in small_stream()[:2]:
        before = list(weights(method.student_).values())
        method.fit_task(task)
        assert all(torch.equal(a, b) for a, b in zip(anchors[-1], before, strict=True))
    assert not torch.equal(anchors[0][0], anchors[-1][0])


def test_05_the_schedule() -> None:
    def rate(step: int, warmup: int, n: int) -> float:
        return CosineToZero(warmup=warmup).factor(step, n + 1, 0, 1)

    assert [rate(i, 100, 1000) for i in (0, 99, 100, 550, 775, 1000)] == pytest.approx(
        [0.01, 1, 1, 0.5, 0.146447, 0], abs=1e-6
    )
    assert [rate(i, 30, 79) for i in (29, 30, 54, 79)] == pytest.approx([1, 1, 0.516026, 0], abs=1e-6)
    assert math.ceil(80 / 10) + 1 == 9
    assert rate(16, 30, 16) == pytest.approx(17 / 30), "a short task never leaves the warm-up"
    assert math.isfinite(rate(30, 30, 30))
    assert [Cosine(warmup=100).factor(i, 1000, 0, 1) for i in (99, 550)] == pytest.approx([1, 0.5])


@pytest.mark.parametrize(
    ("train", "n"),
    [
        ({"iterations": 5}, 5), ({"iterations": 5, "inclusive_last": True}, 6),
        ({"iterations": None, "epochs": 2}, 4), ({"iterations": None, "epochs": 2, "inclusive_last": True}, 5),
    ],
)  # fmt: skip
def test_05_so_many_steps(train: dict[str, Any], n: int, store: FeatureStore) -> None:
    method, steps = zscl(store, train={**train, "batch_size": 8}, **PLAIN), []
    method.store.progress = lambda event: steps.append(event.done) if event.stage == "training" else None
    method.fit_task(small_stream()[0])
    assert steps == list(range(1, n + 1))


def test_06_smoothing_of_uniform_logits(store: FeatureStore) -> None:
    ids = clip().text.tokens(["one name"] * 5)
    for smoothing in (0.0, 0.2, 0.7):
        smooth = zscl(store, smoothing=smoothing)
        u = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
        assert smooth._task_loss(u, torch.tensor([0, 4, 2]), ids).item() == pytest.approx(math.log(5), rel=1e-5)


@pytest.mark.parametrize(("by", "reached"), [("transpose", False), ("symmetric", True)])
def test_07_whether_distillation_reaches_the_text_tower(by: str, reached: bool, store: FeatureStore) -> None:
    method = zscl(store, distill={"texts_by": by})
    teacher, batch = teacher_of(method)
    with torch.no_grad():  # away from the teacher, where there is something to learn
        method.student_.text.model.text_projection.mul_(torch.linspace(0.5, 1.5, 48))
    teacher.loss(method.student_.embed(batch.images), batch, method._read).backward()
    grads = [p.grad for p in method.student_.text.parameters() if p.grad is not None]
    assert bool(grads) == reached
    assert any(p.grad is not None for p in method.student_.model.parameters())
    assert not reached or max(float(grad.abs().max()) for grad in grads) > 1e-4


def test_08_what_the_store_has_is_what_a_pass_would_give(store: FeatureStore, tmp_path: Path) -> None:
    def taught(folder: Path) -> tuple[ZSCL, int, int]:
        method = zscl(FeatureStore(folder), tiny_clip())
        method.fit_task(small_stream()[0])
        return method, method.backbone.passes.images, method.backbone.passes.texts

    first, images, texts = taught(tmp_path)
    again, fewer_images, fewer_texts = taught(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first.state_dict()["student_"].values(),
                                                 again.state_dict()["student_"].values(), strict=True))  # fmt: skip
    own, reference = 3 * 6, 3 * 4
    assert (fewer_images, fewer_texts) == (own + reference, 3 * 2), "each step's forward passes, and no other"
    assert images - fewer_images == 12, "the teacher sees each of the images that are drawn once"
    assert texts - fewer_texts == 5 + 2, "and each sentence once; the new names are read by the student"


def test_08_sentences_and_images_pass_the_teacher_once_in_a_run(tmp_path: Path) -> None:
    method = zscl(FeatureStore(tmp_path), tiny_clip(), train={"iterations": 4})
    for task in small_stream():
        method.fit_task(task)
    step_images, step_texts = 3 * 4 * (6 + 4), 3 * 4 * 2
    named = 2 + 4 + 6  # by the student, after each task
    assert method.backbone.passes.images == step_images + 12
    assert method.backbone.passes.texts == step_texts + 5 + named


def test_09_metrics_over_sets() -> None:
    a = np.array([[1, 0.5, 0.2], [0.8, 1, 0.4], [0.6, 0.8, 1]])
    assert transfer_over_sets(a) == pytest.approx(0.40)
    assert average_over_sets(a) == pytest.approx(0.70, abs=1e-4)
    assert last_over_sets(a) == pytest.approx(0.80)


def test_10_what_a_boundary_leaves(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, means = tiny_clip(), []
    take = WeightMean.take
    monkeypatch.setattr(WeightMean, "take", lambda self: (means.append(self.values), take(self)))
    method, before, scale = zscl(store, backbone), backbone.fingerprint, backbone.logit_scale
    for task in small_stream()[:2]:
        method.fit_task(task)
        assert all(torch.equal(a, b) for a, b in zip(method.student_.parameters(), means[-1], strict=True))
    assert backbone.fingerprint == before
    assert method.student_.logit_scale == scale
    assert not any("logit_scale" in name for name, _ in method.student_.named_parameters())
    assert all(p.grad is None and not p.requires_grad for p in method.student_.parameters())


def test_10_every_name_is_read_anew_by_the_text_tower_that_learned(store: FeatureStore) -> None:
    method, stream = zscl(store), small_stream()
    first = method.fit_task(stream[0]).texts_
    method.fit_task(stream[1])
    assert not torch.equal(method.texts_[:2], first)
    texts = [f"a photo of a {name}." for name in method.displays_]
    torch.testing.assert_close(method.texts_, F.normalize(method.student_.text_embeddings(texts)))
    scores = torch.cat(list(method.scores_of(stream.test(0))))
    images = next(stream.test(0).batches(method.backbone.preprocess, 99))[1]
    expected = method.student_.logits(method.student_.features(images), method.texts_)
    torch.testing.assert_close(scores, expected, atol=1e-4, rtol=1e-5)


def test_11_without_what_holds_it_it_is_plain_fine_tuning(store: FeatureStore) -> None:
    method, task = ZSCL(clip(), ZSCLConfig(**laid_over(QUICK, PLAIN)), store=store), small_stream()[0]
    method.fit_task(task)
    student, rng = clip().thawed_copy(text=True), method._generator(0)
    optimizer = torch.optim.AdamW(student.parameters(), 1e-3, weight_decay=0.0)
    config, targets = method.config.train, method.columns(task.train.labels)
    source = TaskImages(student, task.train, targets, config, store, list(student.parameters()))
    ids = student.text.tokens([f"a photo of a {task.display_names[c]}." for c in task.classes])
    with source.open():
        for plan in [plan for _ in range(2) for plan in source.plan(rng)][:3]:
            batch = source.batch(plan, rng)
            t = student.text.encode(student.text.vectors(ids), ids)
            logits = student.logit_scale * F.normalize(student.embed(batch.images)) @ F.normalize(t).T
            optimizer.zero_grad()
            F.cross_entropy(logits, batch.columns, label_smoothing=0.2).backward()
            optimizer.step()
    for (name, mine), theirs in zip(method.student_.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-7, rtol=1e-5, msg=name)
    assert method.reference_ == ""
    assert (ZSCLConfig(preset="finetune").uses_reference, ZSCLConfig().uses_reference) == (False, True)
    assert not ZSCLConfig(distill={"images": 0.0, "texts": 0.0}).uses_reference


def walk(upto: int, left: tuple[Any, Any] | None = None) -> tuple[Session[Tensor], WeightMean]:
    """A training of 1000 steps of a line, with a mean of every hundredth."""
    line, rng = nn.Linear(3, 2), torch.Generator().manual_seed(0)
    with torch.no_grad():
        line.weight.fill_(0.1)
        line.bias.zero_()
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(1))
    config = StepTraining(lr=0.01, epochs=25, batch_size=1, schedule=CosineToZero(warmup=100))
    session = Session(Rows(len(x), config), config, rng, fast=[line])
    mean = WeightMean(line.parameters())
    if left:
        session.load_state_dict(left[0])
        mean.load_state_dict(left[1])
    for step in session.steps(lambda rows: (line(x[rows]) - 1).square().mean()):
        if (step - 1) % 100 == 0:
            mean.add()
        if step == upto:
            break
    return session, mean


def test_12_a_training_that_was_left_goes_on_to_the_same_mean() -> None:
    _, straight = walk(1000)
    session, mean = walk(250)
    assert mean.n - 1 == 3
    _, resumed = walk(1000, (session.state_dict(), mean.state_dict()))
    assert straight.n == resumed.n == 11
    assert all(torch.equal(a, b) for a, b in zip(straight.values, resumed.values, strict=True))
