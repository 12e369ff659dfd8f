"""What a process may tune before it starts: the memory allocator, and what it cost afterwards."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

if sys.platform != "win32":
    import resource

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_KEEP_BELOW_BYTES = 256 << 20
_STATUS = Path("/proc/self/status")


def tune_allocator() -> bool:
    """Lets glibc keep freed memory for the next forward pass instead of returning it to the kernel.

    By default every activation above 32 MB is mapped and unmapped anew, and a CPU spends most of a forward pass on
    zeroing pages. Blocks above 256 MB, no activation of a sensible batch, are still given back. Process-wide, so only
    programs call it (``perdure run``, the demo, the benchmarks), never imports.

    Returns:
        Whether this platform's allocator took the settings; False is harmless.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _KEEP_BELOW_BYTES)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def peak_rss_bytes() -> int | None:
    """The most memory this process ever had resident; None where the platform does not tell."""
    if sys.platform == "win32":
        return None
    if sys.platform.startswith("linux"):  # ru_maxrss would do, but a child starts with its parent's
        with contextlib.suppress(OSError, IndexError):  # no /proc, or one that does not tell
            return int(_STATUS.read_text(encoding="utf-8").partition("VmHWM:")[2].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
