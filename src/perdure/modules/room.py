"""What this machine's memory can hold, asked before it is needed."""

from __future__ import annotations

import os

from perdure.errors import ConfigError


def require_room(where: str, name: str, value: int, needed: int, hint: str) -> None:
    """Refuses what this machine's memory cannot hold.

    Args:
        where: who asks.
        name: of what is too large.
        value: how large it is.
        needed: bytes that it takes.
        hint: what to do.

    Raises:
        ConfigError: with the bytes needed.
    """
    there = machine_memory()
    if there is not None and needed > there:
        must_be = f"smaller: it takes {needed:,} bytes, and this machine has {there:,}"
        raise ConfigError(where, name, must_be, value, hint)


def machine_memory() -> int | None:
    """Bytes of this machine's memory; None where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not POSIX
        return None
