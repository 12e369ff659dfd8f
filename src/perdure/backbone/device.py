"""Where a backbone computes."""

from __future__ import annotations

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
