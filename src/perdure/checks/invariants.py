"""Common checks of invariance: what must not matter, must not matter at all."""

from __future__ import annotations

import dataclasses as dc
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from perdure.checks.course import attended, retaken, through_disk
from perdure.checks.subject import CLASS_IDS, Subject, equal, frozen_state, named_task, pixels, small_stream
from perdure.data import FileSource, LabelledImages, folders
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset

TOLERANCE = 1e-5


def check_batch_does_not_matter(s: Subject) -> None:
    """An image's scores are the same alone, in any batch and in any order (to 1e-5; labels exactly).

    Those of a method that says ``depends_on_test_batch`` are not.
    """
    course = attended(s)
    m, images = course.method, course.images
    whole = m.scores(images)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    ways: dict[str, Callable[[], Tensor]] = {
        "alone": lambda: torch.cat([m.scores(image[None]) for image in images]),
        "in batches of 4": lambda: torch.cat([m.scores(batch) for batch in images.split(4)]),
        "in another order": lambda: m.scores(images[order])[order.argsort()],
        "beside copies of one image": lambda: torch.cat([m.scores(_beside(i, images[:1]))[:1] for i in images]),
    }
    for way, ask in ways.items():
        scores = ask()
        gap = float((scores - whole).abs().max())
        if gap > TOLERANCE or not torch.equal(scores.argmax(1), whole.argmax(1)):
            if m.promises.depends_on_test_batch:
                return
            hint = "Use no statistic of the test batch, or set tags.depends_on_test_batch"
            raise s.fail("scores", f"the same {way}", f"scores up to {gap:g} apart", hint)
    if m.promises.depends_on_test_batch:
        must_be = "false: an image scores the same in every batch"
        raise s.fail("depends_on_test_batch", must_be, True, "Correct the tag, or the property")


def check_names_come_with_their_task(s: Subject) -> None:
    """Class names that later tasks bring change nothing of what a method has learned or answers before them."""
    data = synthetic_dataset(CLASS_IDS[:4], train_per_class=3, test_per_class=1)
    state, scores = [], []
    for later in ("one name", "another"):
        names = {c: f"class {i}" if i < 2 else f"{later} {i}" for i, c in enumerate(CLASS_IDS[:4])}
        place = s.folder / later
        paths = [place / names[c] / f"{i}.png" for i, c in enumerate(data.train.labels.tolist())]
        for row, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            data.train.source.read(row).save(path)
        train = LabelledImages(FileSource(paths, folders.keys_of(folders.check_files(paths))), data.train.labels)
        task = class_incremental(dc.replace(data, train=train, class_names=names), (2, 2), CLASS_IDS[:4])[0]
        m = s.method().fit_task(task)
        state.append(frozen_state(m))
        scores.append(m.scores(pixels(m, data.test)))
    if not equal(*state) or not torch.equal(*scores):
        hint = "Read task.class_names, and nothing else, for names: a stream's later classes are not there yet"
        raise s.fail("fit_task", "blind to the names of classes to come", "another state or other scores", hint)


def check_whole_data_equals_batches(s: Subject) -> None:
    """``scores_of`` a data set, caches and all, equals ``scores`` of its images."""
    course = attended(s)
    m, stream = course.method, course.stream
    whole, batch = course.tested[0], m.scores(pixels(m, stream.test(0)))
    gap = float((whole - batch).abs().max())
    if gap > TOLERANCE or not torch.equal(whole.argmax(1), batch.argmax(1)):
        raise s.fail("scores_of", "equal to scores", f"up to {gap:g} apart", "Cache only what is exact")


def check_state_round_trip(s: Subject) -> None:
    """The state survives safetensors and JSON, and makes a fresh object answer bit for bit the same."""
    course = attended(s)
    m, images = course.method, course.images
    fresh = s.method(backbone=s.make_backbone()).load_state_dict(through_disk(m.state_dict()))
    if not equal(frozen_state(m), fresh.state_dict()) or not torch.equal(m.scores(images), fresh.scores(images)):
        hint = "Every learned attribute must end in _ and be a tensor, a module or plain values"
        raise s.fail("state_dict", "the whole of what was learned", "other scores after loading", hint)


def check_resumed_equals_straight(s: Subject) -> None:
    """Saved before the last task, loaded into a fresh object and continued, it ends with the same bits.

    The one that went straight was asked after every task, so nothing kept from an earlier question may matter.
    """
    if retaken(s):
        return
    straight, fresh = attended(s), s.method(backbone=s.make_backbone())
    resumed = s.fitted(straight.stream, method=fresh.load_state_dict(through_disk(straight.steps[1].state)))
    scores = resumed.scores(straight.asked)
    resumed.predict(straight.stream.test(2))
    if not torch.equal(straight.steps[2].scores, scores) or not equal(straight.steps[2].state, resumed.state_dict()):
        hint = "Something outside the state is used: rename it to end in _, or derive it from the state"
        raise s.fail("fit_task", "the same after a resume", "other bits", hint)


def check_threads_do_not_matter(s: Subject) -> None:
    """Four threads that score at once get what one alone gets (to 1e-5)."""
    course = attended(s)
    m = course.method
    images = course.images
    batches = [images, images[:1], images[1:4], images.flip(0)] * 4
    alone, often = [m.scores(batch) for batch in batches[:4]] * 4, sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # so that passes meet, however few cores there are
    try:
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(m.scores, batches))
    except Exception as error:
        hint = "Keep what a pass needs in that pass, not in self or in a hook"
        raise s.fail("scores", "the same from four threads", f"{type(error).__name__}: {error}", hint) from error
    finally:
        sys.setswitchinterval(often)
    gap = max(float((one - other).abs().max()) for one, other in zip(alone, together, strict=True))
    if gap > TOLERANCE:
        hint = "Keep what a pass needs in that pass, not in self or in a hook"
        raise s.fail("scores", "the same from four threads", f"scores up to {gap:g} apart", hint)


def check_split_does_not_matter(s: Subject) -> None:
    """A method tagged ``split_invariant`` scores alike after 1, 2, 3 or 6 tasks of the same images (to rounding).

    Tasks bring whole classes, or portions of several: some new, some seen before.
    """
    if not s.kind.tags.split_invariant:
        return
    whole = small_stream((6,))
    images, known = pixels(s.method(), whole.test(0)), None
    for way, parts in _ways_to_split(whole[0].train).items():
        m = s.method()
        for index, part in enumerate(parts):
            m.fit_task(named_task(index, part))
        scores = m.scores(images)[:, m.columns(np.array(CLASS_IDS))]  # class by class, whatever came first
        known = scores if known is None else known
        gap = float((scores - known).abs().max() / known.abs().max())
        if not gap <= TOLERANCE:
            hint = "Drop the tag, or add up statistics"
            raise s.fail("fit_task", f"indifferent to a split into {way}", f"scores {gap:g} of the largest apart", hint)


def _ways_to_split(data: LabelledImages) -> dict[str, list[LabelledImages]]:
    """Six images of six classes, class after class, in tasks."""
    sizes = ((6,), (3, 3), (1, 2, 3), (1, 1, 1, 1, 1, 1))
    ways = {f"tasks of {size} classes": np.split(np.arange(36), np.cumsum(size)[:-1] * 6) for size in sizes}
    grid = np.arange(36).reshape(6, 6)  # (classes, images)
    last = np.concatenate([grid[3:, :4].ravel(), grid[:2, 4:].ravel()])  # no new class
    ways["portions of classes"] = [grid[:3, :4].ravel(), grid[2:, 4:].ravel(), last]
    return {way: [data.subset(rows) for rows in parts] for way, parts in ways.items()}


def _beside(image: Tensor, other: Tensor) -> Tensor:
    """(4, 3, h, w): an image and three copies of another."""
    return torch.cat([image[None], other.expand(3, -1, -1, -1)])
