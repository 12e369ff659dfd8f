"""Forward passes: how many there were, and batches in which an image's result does not depend on the others."""

from __future__ import annotations

import dataclasses as dc
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from perdure.errors import NonFiniteError

CPU_BATCH: Final = 8  # of 16 and more, some kernels round otherwise: docs/decisions/0006


@dc.dataclass(slots=True)
class Passes:
    """What went through a backbone and its copies, in whatever thread: images, prompts beside them, and texts."""

    images: int = 0
    prompts: int = 0  # of a block in a walk, for a whole batch
    texts: int = 0
    _lock: threading.Lock = dc.field(default_factory=threading.Lock, repr=False, compare=False)

    def __deepcopy__(self, memo: dict[int, Any]) -> Passes:
        """Copies of a backbone count together."""
        return self

    def add(self, n: int = 0, *, prompts: int = 0, texts: int = 0) -> None:
        """Counts ``n`` images more, and the rest."""
        with self._lock:
            self.images += n
            self.prompts += prompts
            self.texts += texts


def in_cpu_batches(
    compute: Callable[..., Tensor], rows: Sequence[Tensor], on_double: Callable[[], None]
) -> Float[Tensor, "n ..."]:
    """``compute`` of all rows, ``CPU_BATCH`` at a time; a single image is doubled, for one alone takes other kernels.

    Args:
        compute: maps a batch of each of ``rows`` to one result per image, (b, …).
        rows: of equal length.
        on_double: called for every double, so that it need not count.
    """
    found = []
    for batch in zip(*(r.split(CPU_BATCH) for r in rows), strict=True):
        alone = len(batch[0]) == 1
        if alone:
            on_double()
        found.append(compute(*(torch.cat([part, part]) if alone else part for part in batch))[: len(batch[0])])
    return torch.cat(found)


def finite(features: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
    """The features as they are.

    Raises:
        NonFiniteError: with the position of the first image whose features are not finite.
    """
    bad = ~torch.isfinite(features).all(dim=1)
    if bad.any():
        raise NonFiniteError(int(bad.nonzero()[0]))
    return features
