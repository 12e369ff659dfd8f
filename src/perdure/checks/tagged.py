"""Common checks of what a method says of itself: its tags are true, whether they say yes or no."""

from __future__ import annotations

import dataclasses as dc
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from perdure.backbone import Backbone, require_kind
from perdure.backbone.tiny import TINY
from perdure.checks.course import attended
from perdure.checks.subject import CLASS_IDS, Subject, equal, frozen_state, named_task, pixels, small_stream
from perdure.data import Candidate, Stream
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError, PerdureError, UnknownNameError
from perdure.methods import Method


def check_works_on_another_backbone(s: Subject) -> None:
    """A tiny backbone of other sizes and of the kind that ``tags.backbone`` needs works too, and no other kind would.

    The method need not refuse another kind itself: its tag does.
    Where a setting's part has no seat on it, it may be refused too, and the next one is tried.
    """
    stream, need = small_stream((2, 2), train_per_class=3), s.kind.tags.backbone
    for make in TINY.values():
        other = dc.replace(s, make_backbone=make, shared={})
        backbone = make()
        try:
            require_kind(backbone, need, s.kind.__name__)
        except BackboneError:
            if _works_untagged(other, backbone, stream):
                hint = "Set tags.backbone to what it needs"
                got = f"a fit on {backbone.name}"
                raise s.fail("tags.backbone", f"in need of what it asks for ({need})", got, hint) from None
            continue
        try:
            m = other.fitted(stream, method=other.method(backbone=backbone))
        except PerdureError as error:
            if error.name != "seat":
                hint = "Set tags.backbone to what it needs"
                raise s.fail(
                    "tags.backbone", f"content with what it asks for ({need})", f"on {backbone.name}: {error}", hint
                ) from error
            if re.search("backbone", str(error), re.IGNORECASE):
                continue
            raise
        scores = m.scores(pixels(m, stream.test(0)))
        if scores.shape[1] != 4:
            raise s.fail("scores", "4 columns wide", tuple(scores.shape), "Take sizes from backbone.dim")
        return
    raise s.fail("fit_task", f"at work on one of {list(TINY)}", "refusals", "Take sizes from backbone.dim")


def check_features_come_from_where_the_tags_say(s: Subject) -> None:
    """Images pass through other weights, inserted parts, or beside prompts if, and only if, the tags say so.

    Weights that a method trained are ``trains_backbone`` where images pass through them anew whenever they are asked
    for, and ``adapts`` where the features are kept.
    """
    course = attended(s)
    m, watch, passes = course.method, course.watch, course.backbone.passes
    prompts = passes.prompts
    with watch.seeing():
        m.scores(course.images)
    prompted, before = passes.prompts > prompts, passes.images
    m.predict(course.stream.test(len(course.stream) - 1))  # asked before, after the last task
    anew = passes.images > before
    found = {
        "trains_backbone": watch.other_weights and anew,
        "adapts": watch.inserted or (watch.other_weights and not anew),
        "prompted": prompted,
    }
    lies = {f"{tag}={not does}" for tag, does in found.items() if getattr(s.kind.tags, tag) != does}
    if lies:
        true = ", ".join(f"{tag}={does}" for tag, does in found.items())
        raise s.fail("tags", f"one with {true}", ", ".join(sorted(lies)), "Correct the tag, or the method")


def check_data_are_kept_if_the_tag_says_so(s: Subject) -> None:
    """The state grows with the number of training images if, and only if, the method is tagged ``keeps_data``.

    A class's statistics may grow until it has more images than features have dimensions. Plain values count too; the
    hash of every image's content, by which all methods know what they were taught, does not.
    """
    n, told = 2, s.kind.tags.keeps_data
    sizes, n_exemplars = _sizes(s, n)
    if not told and (n_exemplars > 0 or sizes[1] > sizes[0]):
        n = s.backbone.dim + 1
        sizes, n_exemplars = _sizes(s, n)
    if (n_exemplars > 0 or sizes[1] > sizes[0]) != told:
        must_be = "one that keeps something of every image" if told else "one that keeps nothing of single images"
        kept = f"one that keeps {n_exemplars or 'no'} training images"
        got = f"{kept}, with a state that is {_compared(*sizes)} after {n + 4} images of a class than after {n}"
        hint = f"Set tags.keeps_data={not told}, or correct the method"
        raise s.fail("tags.keeps_data", f"{must_be}, as keeps_data={told} says", got, hint)


def check_candidates_are_known_by_their_names(s: Subject) -> None:
    """``scores_among`` gives every candidate a column, in any order; what it is asked changes nothing learned later.

    A class that was not taught is scored if, and only if, the method is ``open_vocabulary``.
    """
    course = attended(s)
    m, images = course.method, course.stream.test(0).subset(np.arange(2))
    taught, others = [Candidate(name, name) for name in m.names_], _planted("one name")
    if not m.promises.open_vocabulary:
        try:
            next(m.scores_among(images, others))
        except UnknownNameError:
            if type(m)._scores_among is Method._scores_among:  # columns of its scores, which other checks look at
                return
            others = []
        else:
            hint = "Set tags.open_vocabulary=True if it can score it"
            raise s.fail("scores_among", "unwilling to score a class that was not taught", "an answer", hint)
    asked = [*taught, *others]
    there, back = (torch.cat([*m.scores_among(images, each)]) for each in (asked, asked[::-1]))
    shape = (len(images), len(asked))
    if there.shape != shape or not torch.isfinite(there).all():
        hint = "Give every candidate a column, in their order"
        raise s.fail("scores_among", f"finite, of shape {shape}", tuple(there.shape), hint)
    if not torch.allclose(there, back.flip(1), rtol=1e-4, atol=1e-5):
        hint = "Find a candidate by its name, whatever its place"
        raise s.fail("scores_among", "the same for a candidate at any place", "other scores", hint)
    if m.promises.open_vocabulary:
        one, another = (_taught_after(s, course.stream, name) for name in ("one name", "another"))
        if not equal(*(frozen_state(each) for each in (one, another))):
            hint = "Keep nothing of the candidates: they come at test time alone"
            raise s.fail("fit_task", "blind to names that were asked about before", "another state", hint)


def _planted(name: str) -> list[Candidate]:
    """Classes that nobody was taught."""
    return [Candidate(f"{name} {i}", f"{name} {i}") for i in range(2)]


def _taught_after(s: Subject, stream: Stream, name: str) -> Method[Any]:
    """A method that is asked about classes between two tasks."""
    m = s.method().fit_task(stream[0])
    for _ in m.scores_among(stream.test(0).subset(np.arange(1)), _planted(name)):
        pass
    return m.fit_task(stream[1])


def _sizes(s: Subject, n: int) -> tuple[list[int], int]:
    """A state's sizes after ``n`` images of a class and after four more, and how many of those were kept."""
    sizes, data = [], synthetic_dataset(CLASS_IDS[:1], train_per_class=n + 4).train
    for images in (data.subset(np.arange(n)), data):
        m = s.method(batch_size=len(data)).fit_task(named_task(0, images, CLASS_IDS[:1]))
        sizes.append(_size({name: part for name, part in m.state_dict().items() if name != "taught_"}))
    return sizes, m.n_exemplars


def _works_untagged(s: Subject, backbone: Backbone, stream: Stream) -> bool:
    """Whether a method learns on a backbone that its tag refuses."""
    kind = type(s.kind.__name__, (s.kind,), {"tags": dc.replace(s.kind.tags, backbone="any")})
    untagged = dc.replace(s, kind=kind)
    try:
        untagged.fitted(stream, method=untagged.method(backbone=backbone))
    except Exception:  # it has no need to say what it lacks: its tag does
        return False
    return True


def _compared(few: int, many: int) -> str:
    """How large a state is beside an earlier one, in words."""
    if many == few:
        return "no larger"
    return f"{'larger' if many > few else 'smaller'} by {abs(many - few)} (bytes of tensors, and other values)"


def _size(state: Any) -> int:
    """Bytes of a state's tensors, and the number of its plain values."""
    if isinstance(state, Tensor):
        return state.nbytes
    inner = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else None
    return 1 if inner is None else sum(map(_size, inner))
