"""Steps with reference images beside a task's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from perdure import FeatureStore
from perdure.backbone import TwoTowers
from perdure.checks.subject import small_reference, small_stream
from perdure.errors import RecipeError
from perdure.train import teacher as module
from perdure.train.batches import TaskImages
from perdure.train.settings import Augment
from perdure.train.teacher import Distillation, Plan, StepsBeside, StepTraining, Teacher, batches_of
from tiny_clip import clip

STILL = Augment(min_scale=1.0, flip=False)


def source(store: FeatureStore, *, size: int = 5, by: str = "transpose") -> tuple[StepsBeside, Teacher, TwoTowers]:
    student, data = clip().thawed_copy(text=True), small_stream()[0].train
    config = StepTraining(lr=1.0, epochs=1, iterations=4, batch_size=8, augment=STILL)
    images = TaskImages(student, data, torch.zeros(len(data)).long(), config, store, list(student.parameters()))
    teacher = Teacher(clip(), small_reference(), Distillation(batch_size=size, texts_by=by), store)  # type: ignore[arg-type]
    return StepsBeside(images, config, store, teacher), teacher, student


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_positions_go_round() -> None:
    found = batches_of(5, 2, 7, rng())
    assert [len(each) for each in found] == [2, 2, 1, 2, 2, 1, 2]
    assert sorted(torch.cat(found[:3]).tolist()) == sorted(torch.cat(found[3:6]).tolist()) == list(range(5))
    assert torch.cat(found[:3]).tolist() != torch.cat(found[3:6]).tolist()


@pytest.mark.parametrize("kept", [1 << 31, 0])
def test_a_step_has_the_images_and_what_the_teacher_says(
    kept: int, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "KEPT_BYTES", kept)
    steps, teacher, _ = source(store)
    with steps.open():
        plans = steps.plan(rng())
        assert len(plans) == 4
        for plan in plans:
            own, batch = steps.batch(plan, rng())
            assert (len(own.images), own.positions.tolist()) == (len(plan.own), plan.own.tolist())
            assert batch is not None
            images = teacher.images.subset(plan.images.numpy())
            expected = next(images.batches(clip().preprocess, 99))[1]
            assert torch.equal(batch.images, expected)
            assert torch.equal(batch.teacher, clip().features(expected))
            assert len(batch.sentences) == 0
        assert bool(len(steps._pixels)) == bool(kept)
    assert len(steps._pixels) == 0


def test_sentences_are_drawn_where_the_student_reads_them(store: FeatureStore) -> None:
    steps, teacher, _ = source(store, size=2, by="symmetric")
    with steps.open():
        plans = steps.plan(rng())
        _, batch = steps.batch(plans[0], rng())
    assert [len(plan.sentences) for plan in plans] == [2, 2, 1, 2]
    assert batch is not None
    assert torch.equal(batch.sentences, plans[0].sentences)
    assert torch.equal(teacher.ids, clip().text.tokens(list(small_reference().sentences)))
    assert torch.equal(teacher.sentences, clip().text_embeddings(small_reference().sentences))


def test_the_same_generator_gives_the_same_steps(store: FeatureStore) -> None:
    def drawn(seed: int) -> Iterator[list[list[int]]]:
        steps = source(store)[0]
        with steps.open():
            yield from ([part.tolist() for part in Plan(*plan)] for plan in steps.plan(rng(seed)))

    assert list(drawn(3)) == list(drawn(3)) != list(drawn(4))


def test_a_step_passes_in_one_part() -> None:
    with pytest.raises(RecipeError, match="accumulate must be 1, but got 2"):
        StepTraining(lr=1.0, epochs=1, batch_size=1, accumulate=2)
