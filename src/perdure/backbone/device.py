"""Where a backbone computes."""

from __future__ import annotations

import contextlib
import threading
from typing import Final

import torch

from perdure.errors import ConfigError


def device_of(name: str) -> torch.device:
    """The device of that name.

    Args:
        name: ``auto`` (CUDA, then Apple's MPS, then CPU), or any torch device.

    Raises:
        ConfigError: if this machine does not have it.
    """
    if name == "auto":
        return torch.device(
            "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        )
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError("Backbone", "device", "available", name, f"Use device=auto ({reason})") from None
    return device


class _ExactConvolutions(contextlib.AbstractContextManager[None]):
    """One for the process: the first thread that enters takes the user's setting away, the last that leaves puts it
    back, so that a thread which is done first does not change what the others compute."""

    def __init__(self) -> None:
        self._lock, self._inside, self._before = threading.Lock(), 0, True

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._before = torch.backends.cudnn.allow_tf32
                torch.backends.cudnn.allow_tf32 = False
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                torch.backends.cudnn.allow_tf32 = self._before


exact_convolutions: Final = _ExactConvolutions()
"""Convolutions on CUDA in float32 inside, as everywhere else.

PyTorch's own default there, and there alone, is TF32: ten bits of mantissa, by which an image's features would depend
on its batch in the third digit.
"""
