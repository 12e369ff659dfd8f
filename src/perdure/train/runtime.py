"""What a process may tune before it starts: the memory allocator, and what it cost afterwards."""

from __future__ import annotations

import ctypes
import sys

if sys.platform != "win32":
    import resource

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h


def tune_allocator() -> bool:
    """Lets glibc keep freed memory for the next forward pass instead of returning it to the kernel.

    By default every activation above 32 MB is mapped and unmapped anew, and a CPU spends most of a forward pass on
    zeroing pages. Process-wide, so only programs call it (``perdure run``, the demo, the benchmarks), never imports.

    Returns:
        Whether this platform's allocator took the settings; False is harmless.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:  # musl
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def peak_rss_bytes() -> int | None:
    """The most memory this process ever had resident; None where the platform does not tell."""
    if sys.platform == "win32":
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
