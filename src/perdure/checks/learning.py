"""Common checks of learning: every task, image and label leaves its mark, and nothing is learned in vain."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perdure.checks.course import Course, attended
from perdure.checks.subject import CLASS_IDS, Subject, equal, frozen_state, named_task, pixels
from perdure.data import LabelledImages
from perdure.data.stream import Candidate
from perdure.data.synthetic import synthetic_dataset
from perdure.methods import Method

Leaves = dict[str, Tensor]
SETTINGS = "The settings are tags.small with tags.learns laid over them"
SMALL = "The settings are tags.small"


def check_learns_an_easy_task(s: Subject) -> None:
    """Nine of ten training images of an easy task are recognised as soon as it is learned.

    Those of the first task among all classes, those of later ones among their task's.
    """
    course = attended(s, learns=True)
    for task, step in zip(course.stream, course.steps, strict=True):
        accuracy = _accuracy(course.method, step.trained, task.train.labels, within=True)
        if accuracy < 0.9:
            hint = f"{SETTINGS}: look at these, then at the method"
            raise s.fail("fit_task", f"right on 90 % of task {task.index}, an easy one", accuracy, hint)


def check_remembers_every_task(s: Subject) -> None:
    """After three tasks, each task's tests are recognised at least twice as often as by chance."""
    course, least = attended(s, learns=True), 2 / len(CLASS_IDS)
    found = _accuracies(course, within=False)
    if min(found) < least:
        hint = f"It forgets or confuses tasks: say so in tags.expected_failures if that is its nature. {SETTINGS}"
        raise s.fail("fit_task", f"right on {least:.2f} or more of every task's tests at the end", found, hint)


def check_tells_the_classes_of_every_task_apart(s: Subject) -> None:
    """After three tasks, each task's tests are told apart among the classes of their task: three of four, not half."""
    course = attended(s, learns=True)
    found = _accuracies(course, within=True)
    if min(found) < 0.75:
        hint = f"Look whether later tasks are learned, and old ones kept. {SETTINGS}"
        raise s.fail("fit_task", "right on 0.75 or more among the classes of each task at the end", found, hint)


def check_every_image_and_label_matters(s: Subject) -> None:
    """With one training image of a task exchanged, or two labels, the scores are other ones."""
    spare = synthetic_dataset(CLASS_IDS[:2], train_per_class=4).train  # a class's fourth image is not learned
    rows = np.array([0, 1, 2, 4, 5])  # in batches of three and two
    images = pixels(s.method(), spare.subset(np.array([0, 3, 4, 7])))

    def scores(task: LabelledImages) -> Tensor:
        return s.method(batch_size=3).fit_task(named_task(0, task, CLASS_IDS[:2])).scores(images)

    known, ways = scores(spare.subset(rows)), {}
    for position in range(len(rows)):
        others = rows.copy()
        others[position] = rows[position] // 4 * 4 + 3
        ways[f"image {position} of {len(rows)}"] = spare.subset(others)
    labels = spare.labels[rows]
    labels[[0, 4]] = labels[[4, 0]]
    ways["labels"] = LabelledImages(spare.source, labels, spare.rows[rows])
    for what, task in ways.items():
        if torch.equal(known, scores(task)):
            hint = f"Look at which images and labels training gets. {SMALL}"
            raise s.fail("fit_task", f"touched by other {what}", "the same scores", hint)


def check_what_is_learned_depends_on_the_images(s: Subject) -> None:
    """What a task adds to the state or changes there comes from its images or its names, not from the seed alone.

    A module's parameters are there to learn from the first task on. A tensor of its own that the method never changes
    (a random projection) is a constant, and so is a module's buffer (BatchNorm's statistics).
    """
    course, constant = attended(s), _constants(s.method())
    before: list[dict[str, Any] | None] = [None, course.steps[0].state]
    for task, step, known in zip(course.stream[:2], course.steps, before, strict=False):
        m = s.method() if known is None else s.method().load_state_dict(known)
        others = synthetic_dataset(task.classes, train_per_class=6, seed=1)
        word = "other" if s.kind.tags.class_names else "pattern"  # a name's embedding comes from no image
        m.fit_task(named_task(task.index, others.train, task.classes, word=word))
        unmoved, other = constant if known is None else _leaves(known), _leaves(m.state_dict())
        depends: dict[str, bool] = {}
        for name, value in _leaves(step.state).items():
            if value.numel() and not (name in unmoved and torch.equal(value, unmoved[name])):
                kind = re.sub(r"\d+", "#", name)  # the same part of all blocks: in some, few steps may move little
                depends[kind] = depends.get(kind, False) or not equal(value, other.get(name))
        if not all(depends.values()):
            got = f"{sorted(name for name, does in depends.items() if not does)} the same for other images"
            hint = f"Train it, and keep what it became. {SMALL}"
            raise s.fail("fit_task", f"taught by the images of task {task.index}", got, hint)


def check_everything_learned_is_used(s: Subject) -> None:
    """With anything learned turned round, or noise added, scores are other ones: at once or after one more task."""
    course, rng = attended(s), torch.Generator().manual_seed(0)
    known, after = course.steps[1:3]
    whole = s.method(backbone=course.backbone).load_state_dict(known.state)
    images = course.asked

    def noisy(x: Tensor) -> Tensor:
        return x + (x.abs().mean() + 1e-3) * torch.randn(x.shape, generator=rng).to(x)

    def by_name(m: Method[Any]) -> Tensor:
        """The scores of a class that was never taught, where that is asked of a method."""
        if not s.kind.tags.open_vocabulary:
            return torch.zeros(0)
        return torch.cat(list(m.scores_among(course.stream.test(0), [Candidate("strange", "strange")])))

    def is_used(name: str) -> bool:
        # a key turned round is the last to be chosen; a Gaussian's factor turned round is the same Gaussian's
        for change in (torch.neg, noisy):
            m = s.method(backbone=course.backbone)
            m.load_state_dict({**known.state, name: _changed(known.state[name], change)})
            if not torch.equal(m.scores(images), known.scores) or not torch.equal(by_name(m), by_name(whole)):
                return True
        return not torch.equal(m.fit_task(course.stream[2]).scores(images), after.scores)

    for name, value in known.state.items():
        used = True  # who stumbles over such a state has used it
        if any(leaf.numel() for leaf in _leaves(value).values()):
            with suppress(Exception):
                used = is_used(name)
        if not used:
            raise s.fail("scores", f"decided by {name} too", "the same scores with others", "Use it, or do not keep it")


def _accuracies(course: Course, *, within: bool) -> list[float]:
    """Of every task's tests."""
    told = zip(course.stream, course.tested, strict=True)
    return [_accuracy(course.method, x, course.stream.test(t.index).labels, within=within) for t, x in told]


def _accuracy(m: Method[Any], scores: Tensor, labels: np.ndarray, *, within: bool) -> float:
    """The share of rows whose best column is the label's; ``within``: the best of the columns of these labels."""
    columns = m.columns(labels)
    among = columns.unique() if within else torch.arange(scores.shape[1])
    return float((among[scores[:, among].cpu().argmax(1)] == columns).float().mean())


def _constants(m: Method[Any]) -> Leaves:
    """The tensors of a new method's own, and its modules' buffers."""
    buffers = {
        f".{name}.{buffer}"
        for name, part in vars(m).items()
        if isinstance(part, nn.Module)
        for buffer, _ in part.named_buffers()
    }
    state = frozen_state(m)
    return {k: v for k, v in _leaves(state).items() if k in buffers or isinstance(state.get(k[1:]), Tensor)}


def _leaves(state: Any, name: str = "") -> Leaves:
    """The floating-point tensors of a state by their path."""
    if isinstance(state, Tensor):
        return {name: state} if state.is_floating_point() else {}
    inner: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(state, dict):
        inner = iter(state.items())
    elif isinstance(state, list | tuple):
        inner = iter(enumerate(state))
    return {path: leaf for key, value in inner for path, leaf in _leaves(value, f"{name}.{key}").items()}


def _changed(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """A state with ``change`` applied to its floating-point tensors."""
    if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
        return change(value)
    if isinstance(value, dict):
        return {key: _changed(v, change) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_changed(v, change) for v in value)
    return value
