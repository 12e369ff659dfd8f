"""CPU seconds until the command line has said what it has to say, in processes of their own.

    python -m benchmarks.startup

Writes benchmarks/results/startup.json: user and system time together, the median of five starts.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path

from perdure import Backbone
from perdure.run.summary import machine, now, versions

RESULTS = Path(__file__).parent / "results" / "startup.json"
STARTS = 5
COMMANDS = (
    "--version", "--help", "run --help", "data check --help", "ls", "ls methods", "show", "show cifar100-b0-inc10",
    "show ranpac",
)  # fmt: skip


def cpu_seconds(*arguments: str) -> float:
    """Median CPU time of a Python process with one thread.

    Args:
        arguments: what Python is given.
    """
    measured = []
    for _ in range(STARTS):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([sys.executable, *arguments], check=True, env=environment, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        measured.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return round(statistics.median(measured), 2)


def main() -> None:
    """Measures one command after another and writes the result file."""
    rows = {f"python -c {code!r}": cpu_seconds("-c", code) for code in ("pass", "import perdure")}
    rows |= {f"perdure {command}": cpu_seconds("-m", "perdure", *command.split()) for command in COMMANDS}
    for command, seconds in rows.items():
        print(f"{seconds:5.2f} s  {command}")
    backbone = Backbone.load("test_vit", pretrained=False, device="cpu")
    report = {"command": "python -m benchmarks.startup", "date": now(), "cpu_seconds": rows}
    report |= {"machine": machine(backbone), "versions": versions()}
    RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
