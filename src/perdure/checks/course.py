"""Fits that several checks look at: a method learns a stream once, and what it shows on the way is written down."""

from __future__ import annotations

import copy
import dataclasses as dc
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from perdure.backbone import Backbone
from perdure.checks.subject import (
    Subject,
    equal,
    frozen_state,
    global_rngs,
    pixels,
    scrambled_global_rngs,
    small_stream,
)
from perdure.checks.watch import Watch
from perdure.data import Stream
from perdure.methods import Method


@dc.dataclass(frozen=True)
class Step:
    """What a method showed after one task; its tests are the last task's, whose classes it may not know yet.

    Args:
        classes: ``classes_``.
        scores: of the tests' pixels.
        predicted: the ids predicted for the tests.
        state: a copy of the state, taken after the questions.
        trained: scores of the task's training images; only of a method that is to learn well.
    """

    classes: list[int]
    scores: Tensor
    predicted: Tensor
    state: dict[str, Any]
    trained: Tensor


@dc.dataclass(frozen=True)
class Course:
    """A method at the end of a stream, asked after every task. Checks that share one only ask.

    Args:
        method: the method.
        stream: what it learned.
        steps: what it showed, task by task.
        backbone: the one it was given.
        weights: copies of that backbone's before.
        drawn: the global generators that were drawn from.
        watch: sees what images pass through, of the backbone and of its copies.
    """

    method: Method[Any]
    stream: Stream
    steps: list[Step]
    backbone: Backbone
    weights: dict[str, Tensor]
    drawn: list[str]
    watch: Watch


def attended(s: Subject, *, learns: bool = False) -> Course:
    """The course that all checks of one method share; if a question has changed the method's state, it is put back.

    A method that cannot be put back attends the course anew.

    Args:
        s: the method under test.
        learns: with the settings of a learning check, and more images.
    """
    course = s.courses.get(learns)
    if course is None or not _put_back(course):
        course = s.courses[learns] = attend(s, learns=learns)
    return course


def attend(s: Subject, *, learns: bool = False, scramble: int = 1, upto: int | None = None) -> Course:
    """A course of one's own.

    Args:
        s: the method under test.
        learns: with the settings of a learning check, and more images.
        scramble: what the global generators are seeded with.
        upto: stop before this task.
    """
    stream, given = small_stream(test_per_class=6 if learns else 3), s.make_backbone()
    watch = Watch(given.model)
    with scrambled_global_rngs(scramble):
        before = global_rngs()
        m, steps = s.method(learns=learns, backbone=given), []
        backbone, weights = m.backbone, {k: v.clone() for k, v in m.backbone.state_dict().items()}
        tests = stream.test(len(stream) - 1)
        for task in stream[:upto]:
            m.fit_task(task)
            trained = torch.cat(list(m.scores_of(task.train))) if learns else torch.zeros(0)
            scores, predicted = m.scores(pixels(m, tests)), m.predict(tests)
            steps.append(Step(list(m.classes_), scores, predicted, frozen_state(m), trained))
        after = global_rngs()
    return Course(m, stream, steps, backbone, weights, [name for name in before if before[name] != after[name]], watch)


def _put_back(course: Course) -> bool:
    """Whether the method's state is that after the last task, or could be made so."""
    m, last = course.method, course.steps[-1].state
    if not equal(last, m.state_dict()):
        with suppress(Exception):  # whatever a broken method raises
            m.load_state_dict(copy.deepcopy(last))
    return equal(last, m.state_dict())
