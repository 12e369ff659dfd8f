"""A part of a test in a process of its own, which may be killed or run out of something: forked, with all imports."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable


def in_child(do: Callable[[], object]) -> tuple[int, str]:
    """What became of a child process that called ``do``, with warnings as errors.

    Args:
        do: must train nothing: PyTorch's gradients do not survive a fork.

    Returns:
        Its exit status (0, 1 if it raised something, or the negative number of the signal that ended it), and what it
        printed, with what it raised or left open.
    """
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)  # Python 3.12 and later, where threads run
        child = os.fork()
    if not child:
        _run(do, write)
    os.close(write)
    with open(read) as pipe:
        told = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), told


def _run(do: Callable[[], object], write: int) -> None:
    """Never returns."""
    code = 1
    try:
        signal.alarm(60)  # ends a child that hangs
        gc.freeze()  # what earlier tests left is not this one's
        sys.unraisablehook = sys.__unraisablehook__
        warnings.simplefilter("error")
        with open(write, "w", buffering=1) as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                do()
                code = 0
            except BaseException:
                traceback.print_exc()
            gc.collect()
    finally:
        os._exit(code)
