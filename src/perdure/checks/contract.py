"""The common checks: promises every method makes, whatever it learns. Each is a function of a :class:`Subject`."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from pydantic import BaseModel

from perdure.checks.course import attend, attended, failing, retaken
from perdure.checks.subject import (
    CLASS_IDS,
    Subject,
    equal,
    frozen_state,
    named_task,
    pixels,
    small_stream,
)
from perdure.config import KINDS, load, sections
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import NotFittedError, RecipeError, StreamError

SECTIONS = ("Source:", "Use when:", "Deviations:", "Relations:", "Cost:")
FROM_STORE = (
    "Read features from self.store, for tests in _scores_of(data); if images must pass anew through trained weights or "
    "beside prompts, say so with tags.trains_backbone or tags.prompted"
)


def check_docstring_names_its_source(s: Subject) -> None:
    """The module says where the method comes from, how it deviates, when to use it and what it costs."""
    module = sys.modules[s.kind.__module__]
    missing = [section for section in SECTIONS if section not in (module.__doc__ or "")]
    if missing:
        hint = "Write these sections into the module's docstring"
        raise s.fail("docstring", f"documented with {', '.join(SECTIONS)}", f"without {', '.join(missing)}", hint)


def check_config_rejects_bad_numbers(s: Subject) -> None:
    """Every number among the settings, in every kind of every section, refuses NaN, infinity and what is too small.

    Too small is below a bound that the setting declares, or below zero.
    """
    for path, low, place in _numbers(s.kind.Config):
        for bad in (float("nan"), float("inf"), low - 1):
            try:
                load(s.kind.Config, place(bad))
            except RecipeError as error:
                if f"{path} must" in str(error):
                    continue
            raise s.fail("Config", f"strict about {path}", bad, "Give the field a bound, e.g. Field(..., gt=0)")


def _numbers(model: type[BaseModel]) -> Iterator[tuple[str, float, Callable[[object], dict[str, Any]]]]:
    """Every number's path, its least value, and what puts a value there, with the kinds of its sections."""
    kind = {key: model.model_fields[key].default for key in KINDS if key in model.model_fields}
    inner = sections(model)
    for name, field in model.model_fields.items():
        if field.annotation in (int, float, int | None, float | None):
            bounds = [getattr(m, key) for m in field.metadata for key in ("ge", "gt") if hasattr(m, key)]
            yield name, min([0, *bounds]), functools.partial(_put, kind, name, lambda value: value)
        for section in inner.get(name, []):
            for path, low, place in _numbers(section):
                yield f"{name}.{path}", low, functools.partial(_put, kind, name, place)


def _put(kind: dict[str, Any], name: str, place: Callable[[object], object], value: object) -> dict[str, Any]:
    return {**kind, name: place(value)}


def check_constructor_learns_nothing(s: Subject) -> None:
    """A new method has seen no task and no class."""
    m = s.method()
    if m.tasks_seen_ or m.classes_:
        got = f"{m.tasks_seen_} tasks, classes {m.classes_}"
        raise s.fail("__init__", "untrained after construction", got, "Learn in fit_task only")


def check_predicting_before_fitting_raises(s: Subject) -> None:
    """``scores`` and ``predict`` refuse to answer before the first task."""
    m = s.method()
    size = m.backbone.preprocess.image_size
    for ask in (m.scores, m.predict):
        try:
            ask(torch.zeros(1, 3, size, size))
        except NotFittedError:
            continue
        raise s.fail(ask.__name__, "unwilling before fit_task", "an answer", "Keep Method.scores as it is")


def check_tasks_out_of_order_raise(s: Subject) -> None:
    """Only the next unseen task is accepted."""
    try:
        s.method().fit_task(small_stream()[1])
    except StreamError:
        return
    raise s.fail("fit_task", "unwilling to skip a task", "task 1 accepted first", "Keep Method.fit_task as it is")


def check_fit_returns_self_and_leaves_the_task_alone(s: Subject) -> None:
    """``fit_task`` returns the method and does not write into the task's images or labels."""
    for step in attended(s).steps:
        if not step.is_returned:
            raise s.fail("fit_task", "returned by fit_task", "something else", "Return self")
        if not step.is_careful:
            raise s.fail("fit_task", "careful with its task", "changed images or labels", "Work on copies")


def check_scores_cover_the_seen_classes(s: Subject) -> None:
    """Scores are finite float32, one column per class seen; predictions are ids of seen classes, never columns."""
    for k, step in enumerate(attended(s).steps):
        seen = list(CLASS_IDS[: 2 * (k + 1)])
        if step.classes != seen:
            raise s.fail("classes_", f"{seen}, in order of arrival", step.classes, "Do not touch classes_")
        scores, shape = step.scores, (len(step.predicted), len(seen))
        if scores.shape != shape or scores.dtype != torch.float32 or not torch.isfinite(scores).all():
            got = f"{scores.dtype} {tuple(scores.shape)}"
            raise s.fail("scores", f"finite float32 of shape {shape}", got, "One column per seen class")
        foreign = set(step.predicted.tolist()) - set(seen)
        if foreign:
            raise s.fail("predict", f"within the seen ids {seen}", foreign, "Map columns through classes_")


def check_odd_tasks_work(s: Subject) -> None:
    """Tasks of one class, of one image, and of very unequal classes are learned without complaint."""
    for sizes, counts in (((1, 1), 4), ((2, 1), 1), ((1, 3), (1, 5, 2, 1))):
        stream = small_stream(sizes, train_per_class=counts)
        m = s.fitted(stream)
        scores = m.scores(pixels(m, stream.test(0)))
        if not torch.isfinite(scores).all():
            got = f"NaN or infinity for {counts} images per class in tasks of {sizes} classes"
            raise s.fail("scores", "finite", got, "Guard divisions and decompositions for few images")


def check_classes_may_come_again(s: Subject) -> None:
    """A task with classes seen before (a new domain) is learned, and adds no column for them.

    A method asked before answers from what it knows after, as one does that is loaded from its state.
    """
    ids = CLASS_IDS[:3]
    day = synthetic_dataset(ids, train_per_class=2)
    night = synthetic_dataset(ids[1:], train_per_class=2, seed=1, shift=-40.0)
    m = s.method().fit_task(named_task(0, day.train, ids, "day"))
    images = pixels(m, night.test)
    m.scores(images)
    m.fit_task(named_task(1, night.train, ids[1:], "night"))
    fresh = s.method().load_state_dict(frozen_state(m))
    scores = m.scores(images)
    if m.classes_ != list(ids) or scores.shape[1] != len(ids):
        got = f"classes {m.classes_}, {scores.shape[1]} columns"
        raise s.fail("fit_task", f"left with the classes {ids}", got, "Grow the head to len(self.classes_) only")
    if not torch.equal(scores, fresh.scores(images)):
        hint = "What is derived from the state must be derived anew when the state changes"
        raise s.fail("scores", "those of its state after a class came again", "other scores", hint)


def check_same_seed_same_bits(s: Subject) -> None:
    """Two runs with one seed give the same scores and state bit for bit, whatever the global generators hold."""
    if retaken(s):
        return
    one, other = (course.steps[1] for course in (attended(s), attend(s, scramble=2, upto=2)))
    if not torch.equal(one.scores, other.scores) or not equal(one.state, other.state):
        gap = float((one.scores - other.scores).abs().max())
        hint = "Draw from the generator given to _learn, or from self._generator(...)"
        raise s.fail("fit_task", "decided by its seed alone", f"another state, scores {gap:g} apart", hint)


def check_global_generators_untouched(s: Subject) -> None:
    """Building, fitting and predicting draw nothing from the global generators of torch, NumPy and Python."""
    drawn = attended(s).drawn
    if drawn:
        raise s.fail("method", "a stranger to global generators", drawn, "Pass generator=... everywhere")


def check_predicting_changes_nothing(s: Subject) -> None:
    """Scoring, twice, alters neither the state nor the answer."""
    course = attended(s)
    m, tests = course.method, course.stream.test
    images, before = course.images, frozen_state(m)
    first = m.scores(images)
    m.predict(tests(1))
    if not equal(before, m.state_dict()) or not torch.equal(first, m.scores(images)):
        raise s.fail("scores", "free of side effects", "a changed state or answer", "Write to self in _learn only")


def check_backbone_untouched(s: Subject) -> None:
    """The backbone given is bit-identical and still frozen after learning and predicting."""
    course = attended(s)
    m, given = course.method, course.backbone
    thawed = any(p.requires_grad for p in given.parameters()) or given.is_thawed
    if m.backbone is not given or thawed or not equal(course.weights, dict(given.state_dict())):
        raise s.fail("fit_task", "harmless to its backbone", "changed weights", "Train backbone.thawed_copy() instead")


def check_failed_task_changes_nothing(s: Subject) -> None:
    """If a task fails half way, everything learned before is intact and the task can be tried again."""
    if retaken(s):
        return
    stream = small_stream((2, 2), train_per_class=5)
    m = s.fitted(stream, 1)
    before = frozen_state(m)
    with suppress(OSError):
        m.fit_task(failing(stream[1]))
        raise s.fail("fit_task", "stopped by an unreadable image", "no error", "Do not swallow exceptions")
    if not equal(before, m.state_dict()):
        hint = "Replace learned tensors (self.x_ = self.x_ + ...) rather than change them in place"
        raise s.fail("fit_task", "as before after a failed task", "a changed state", hint)
    m.fit_task(stream[1])


def check_frozen_features_cost_one_pass(s: Subject) -> None:
    """A method that leaves the backbone alone sends each image through it once, however often it is asked.

    One that adapts parts of it sends no image a second time through what no longer changes.
    """
    if s.kind.tags.trains_backbone or s.kind.tags.prompted:
        return
    course = attended(s)
    stream, passes = course.stream, course.backbone.passes
    tests, before = [stream.test(task.index) for task in stream], passes.images
    for test in tests:
        course.method.predict(test)
    if passes.images > before:
        got = f"{passes.images - before} passes for a test repeated"
        raise s.fail("predict", "free when asked again", got, FROM_STORE)
    n = sum(len(task.train) for task in stream) + sum(map(len, tests))
    if course.spent > n and not s.kind.tags.adapts:
        raise s.fail("method", "content with one pass per image", f"{course.spent} passes for {n} images", FROM_STORE)
