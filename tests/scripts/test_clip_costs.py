"""What a ZSCL step is counted to cost, on a CLIP whose parts are counted by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import clip_costs
from benchmarks.clip_costs import CLASSES, IMAGES, SENTENCES, costs
from perdure.backbone.clip import tiny_clip


def test_images_and_names_are_told_apart() -> None:
    found = costs(tiny_clip())
    passes = found["passes_of_a_step"]
    assert passes["student images"] == 2 * IMAGES
    assert passes["student texts"] == CLASSES[0]
    assert found["passes_of_the_teacher"] == {"images drawn": 2 * IMAGES, "sentences": len(SENTENCES)}
    assert found["teacher_per_reference_image_once_ever"] == pytest.approx(1, rel=0.01)
    assert 5 < found["student_per_task_image"] < 6.05, "a backward pass costs two forward ones, but for the first layer"
    three_texts = 3 * found["sentence_once_ever"] / 64
    assert found["names_per_class_and_task_image"] == pytest.approx(three_texts, rel=0.1)


def test_the_committed_figures_keep_what_is_promised() -> None:
    file = Path(clip_costs.__file__).parent / "results" / "clip_costs.json"
    row = json.loads(file.read_text(encoding="utf-8"))["rows"]["zscl"]
    assert row["counted"]["images_in_all"] <= row["at_most"]["images"] == 7
    assert row["counted"]["names_per_class_and_task_image"] <= row["at_most"]["names"] == 0.008
