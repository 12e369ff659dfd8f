"""Texts as items of a store: each is known by a hash of its letters, as an image is by one of its content."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perdure.data.reading import KEY_BYTES, content_key


class Texts:
    """Some texts in order.

    Args:
        texts: any.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self.keys = np.array([content_key(b"text\0" + text.encode()) for text in texts], dtype=f"S{KEY_BYTES}")

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, positions: np.ndarray) -> list[str]:
        """The texts at ``positions``, in that order."""
        return [self._texts[p] for p in positions.tolist()]

    def name(self, position: int) -> str:
        """What to call a text in a message: itself."""
        return self._texts[position]
