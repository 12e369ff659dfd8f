"""A result file that several processes add to, and runs side by side of which one may fail and not stop the rest."""

from __future__ import annotations

import contextlib
import dataclasses as dc
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

from filelock import FileLock


@dc.dataclass(frozen=True)
class ResultFile:
    """Everything that one benchmark found.

    Args:
        path: of the file.
        lock: of the file that keeps other processes out while one writes.
    """

    path: Path
    lock: Path

    def read(self) -> dict[str, Any]:
        """What it holds."""
        held: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        return held

    @contextlib.contextmanager
    def changing(self) -> Iterator[dict[str, Any]]:
        """What it holds, to be changed in place; it is written at the end."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.lock):
            held = self.read()
            yield held
            self.path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")


def await_all(running: Iterable[Future[Any]]) -> Iterator[Any]:
    """Results as they come.

    Raises:
        SystemExit: at the end, if any of them failed, with what each says.
    """
    failed = []
    for one in as_completed(running):
        if error := one.exception():
            failed.append(str(error))
        else:
            yield one.result()
    if failed:
        raise SystemExit("\n\n".join(failed))
