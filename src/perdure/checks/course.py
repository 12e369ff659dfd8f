"""Fits that several checks look at: a method learns a stream once, and what it shows on the way is written down."""

from __future__ import annotations

import copy
import dataclasses as dc
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
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
from perdure.data import LabelledImages, Stream, Task
from perdure.methods import Method
from perdure.run.checkpoint import load_state, save_state


@dc.dataclass(frozen=True)
class Step:
    """What a method showed after one task; its tests are the last task's, whose classes it may not know yet.

    Args:
        is_returned: ``fit_task`` returned the method.
        is_careful: it left the task's images and labels as they were.
        classes: ``classes_``.
        scores: of the tests' pixels.
        predicted: the ids predicted for the tests.
        state: a copy of the state, taken after the questions.
        trained: scores of the task's training images; only of a method that is to learn well.
    """

    is_returned: bool
    is_careful: bool
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
        end: a copy of its state, when all had been asked.
        tested: scores of every task's tests at the end, asked for as whole data.
        asked: pixels of the tests in the steps.
        images: pixels of one test of every class.
        backbone: the one it was given.
        weights: copies of that backbone's before.
        drawn: the global generators that were drawn from.
        spent: passes through the backbone and its copies, but for those of ``scores``.
        watch: sees what images pass through, of the backbone and of its copies.
    """

    method: Method[Any]
    stream: Stream
    steps: list[Step]
    end: dict[str, Any]
    tested: list[Tensor]
    asked: Tensor
    images: Tensor
    backbone: Backbone
    weights: dict[str, Tensor]
    drawn: list[str]
    spent: int
    watch: Watch


def attended(s: Subject, *, learns: bool = False) -> Course:
    """The course that all checks of one method share; if a question has changed the method's state, it is put back.

    A method that cannot be put back attends the course anew.

    Args:
        s: the method under test.
        learns: with the settings of a learning check, and more images. A method that has none has one course.
    """
    name = "learns" if learns and s.kind.tags.learns else "course"
    course: Course | None = s.shared.get(name)
    if course is None or not _put_back(course):
        course = s.shared[name] = attend(s, learns=learns)
    return course


def attend(s: Subject, *, learns: bool = False, scramble: int = 1, upto: int | None = None) -> Course:
    """A course of one's own.

    Args:
        s: the method under test.
        learns: with the settings of a learning check, and more images. In a course of that alone, nothing but the
            training images and, at the end, all tests are asked for.
        scramble: what the global generators are seeded with.
        upto: stop before this task.
    """
    alone = learns and bool(s.kind.tags.learns)
    learns = learns or not s.kind.tags.learns
    stream, given = small_stream(test_per_class=6 if learns else 3), s.make_backbone()
    watch, passes, apart = Watch(given.model), given.passes, 0
    with scrambled_global_rngs(scramble):
        before = global_rngs()
        m, steps = s.method(learns=learns, backbone=given), []
        backbone, weights = m.backbone, {k: v.clone() for k, v in m.backbone.state_dict().items()}
        tests = stream.test(len(stream) - 1)
        asked, none = pixels(m, tests), torch.zeros(0)
        for task in stream[:upto]:
            content = _content(task.train)
            is_returned = m.fit_task(task) is m
            is_careful = content == _content(task.train)
            trained = torch.cat(list(m.scores_of(task.train))) if learns else none
            scores, predicted = none, none
            if not alone:
                already = passes.images
                scores = m.scores(asked.clone())
                apart += passes.images - already
                predicted = m.predict(tests)
            steps.append(Step(is_returned, is_careful, list(m.classes_), scores, predicted, frozen_state(m), trained))
        every = [stream.test(task.index) for task in stream[:upto]]
        tested, spent = [torch.cat(list(m.scores_of(test))) for test in every], passes.images - apart
        end = frozen_state(m)
        after = global_rngs()
    drawn = [name for name in before if before[name] != after[name]]
    images = torch.cat([pixels(m, test.subset(np.unique(test.labels, return_index=True)[1])) for test in every])
    return Course(m, stream, steps, end, tested, asked, images, backbone, weights, drawn, spent, watch)


def retaken(s: Subject) -> bool:
    """Whether the shared course ends the same, to the last bit, with all at once done to it that must not matter.

    Nothing is asked between tasks, the global generators hold something else, and before the last task the state goes
    to disk and into a fresh method, with which that task fails once half way. A check of one of these need look no
    further if so; if not, it does its own alone, to tell which one mattered.
    """
    if "retaken" not in s.shared:
        s.shared["retaken"] = False
        with suppress(Exception):  # whatever a broken method raises
            s.shared["retaken"] = _is_retaken(s, attended(s))
    return bool(s.shared["retaken"])


def _is_retaken(s: Subject, straight: Course) -> bool:
    stream, last = straight.stream, straight.steps[-1]
    with scrambled_global_rngs(2):
        m, fresh = (s.method(backbone=s.make_backbone()) for _ in range(2))
        known = through_disk(s.fitted(stream, len(stream) - 1, m).state_dict())
        fresh.load_state_dict(known)
        try:
            fresh.fit_task(failing(stream[-1]))
        except OSError:
            is_intact = equal(known, fresh.state_dict())
        else:
            is_intact = False
        fresh.fit_task(stream[-1])
        return is_intact and equal(last.scores, fresh.scores(straight.asked)) and equal(last.state, fresh.state_dict())


def through_disk(state: dict[str, Any]) -> dict[str, Any]:
    """A state as it comes back from a run directory."""
    with tempfile.TemporaryDirectory() as folder:
        save_state(Path(folder), state)
        return load_state(Path(folder))


def failing(task: Task) -> Task:
    """The task with a last training image that cannot be read."""
    return dc.replace(task, train=LabelledImages(_Failing(task.train), task.train.labels))


def _content(data: LabelledImages) -> bytes:
    """All labels and pixels."""
    images = [data.source.read(int(row)).tobytes() for row in data.rows]
    return b"".join([data.labels.tobytes(), *images])


def _put_back(course: Course) -> bool:
    """Whether the method's state is that at the end, or could be made so."""
    m = course.method
    if not equal(course.end, m.state_dict()):
        with suppress(Exception):  # whatever a broken method raises
            m.load_state_dict(copy.deepcopy(course.end))
    return equal(course.end, m.state_dict())


class _Failing:
    """An image source whose last row cannot be read, with content of its own so that no cache knows it."""

    def __init__(self, data: LabelledImages) -> None:
        self._data = data
        self.keys = np.array([b"!" + key[1:] for key in data.keys], dtype=data.keys.dtype)

    def read(self, row: int):  # type: ignore[no-untyped-def]  # -> PIL image
        if row == len(self._data) - 1:
            raise OSError("this image cannot be read (planted by check_failed_task_changes_nothing)")
        return self._data.source.read(int(self._data.rows[row]))

    def bytes_of(self, row: int) -> bytes:
        return self._data.bytes_of(row)

    def name(self, row: int) -> str:
        return f"planted[{row}]"
