"""Names for the few types that cross module borders."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Callable
from typing import TypeAlias

ClassId: TypeAlias = int
"""A class's own integer: any value, stable for ever; never a column of a score matrix."""


@dc.dataclass(frozen=True, slots=True)
class Event:
    """Something went on a bit.

    Args:
        stage: what is being done.
        done: how much of it is done: images, or steps of a training.
        total: how much there is.
        loss: of a training's step.
        rates: the learning rates of that step, one per group of parameters.
    """

    stage: str
    done: int
    total: int
    loss: float | None = None
    rates: tuple[float, ...] = ()


Progress: TypeAlias = Callable[[Event], None]
"""Called with every event of a run: images embedded or tested, steps trained."""


def no_progress(event: Event) -> None:
    """The silent ``Progress``."""
