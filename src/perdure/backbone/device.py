"""Where a backbone computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

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


@contextlib.contextmanager
def exact_convolutions() -> Iterator[None]:
    """Convolutions on CUDA in float32 inside, as everywhere else.

    PyTorch's own default there, and there alone, is TF32: ten bits of mantissa, by which an image's features would
    depend on its batch in the third digit.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
