"""Which lines of ``src`` each test reaches, and how long each takes."""

from __future__ import annotations

import dataclasses as dc
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scripts.mutant_runs import ROOT, STALL, Job, run_all

CACHE = ROOT / ".mutants"
# these read the source as text, keep away from our copy of it, or measure a project of their own
NOT_RUN = {"tests/rules/test_rules.py", "tests/rules/test_import_is_silent.py", "tests/scripts/test_mutants.py"}


@dc.dataclass
class Reach:
    """What each test takes, and which tests reach each line.

    Args:
        tests: seconds of each test, and the fixtures it shares with others of its file.
        shared: seconds of each such fixture, as "file name".
        lines: file, line, tests; "" among them stands for the import.
    """

    tests: dict[str, tuple[float, list[str]]] = dc.field(default_factory=dict)
    shared: dict[str, float] = dc.field(default_factory=dict)
    lines: dict[str, dict[int, set[str]]] = dc.field(default_factory=lambda: defaultdict(lambda: defaultdict(set)))
    failed: list[str] = dc.field(default_factory=list)

    def add(self, file: str, report: dict[str, Any]) -> None:
        """Takes in the report of one test file."""
        users = defaultdict(set)
        failed = set(report["failed"])
        for test, (seconds, fixtures) in report["tests"].items():
            if test not in failed:
                self.tests[test] = (seconds, [f"{file} {name}" for name in fixtures])
                for name in (test, *fixtures):
                    users[name].add(test)
        self.shared |= {f"{file} {name}": seconds for name, seconds in report["shared"].items()}
        self.failed += sorted(failed)
        for path, lines in report["reached"].items():
            for line, contexts in lines.items():
                for context in contexts:
                    self.lines[path][int(line)] |= users[context] if context else {""}


def measured_reach(workers: int) -> Reach:
    """Runs the test files that have changed since they were last measured, and reads what the others reach."""
    CACHE.mkdir(exist_ok=True)
    reach, jobs = Reach(), []
    files = [p.relative_to(ROOT).as_posix() for p in sorted(ROOT.glob("tests/**/test_*.py"))]
    kept = {file: CACHE / f"reach-{Path(file).stem}-{state_of([file])}.json" for file in files if file not in NOT_RUN}
    for file, path in kept.items():
        if not path.exists():
            jobs.append(Job(Path(file).stem, [file], cover=True))
    failing = []  # perhaps for being measured only
    for result in run_all(jobs, workers) if jobs else ():
        (file,) = result.job.files
        if "reached" not in result.report:
            raise SystemExit(f"{file} cannot be measured (exit code {result.code}):\n{result.output}")
        if failed := result.report["failed"]:
            failing.append(Job(Path(file).stem, [file], dict.fromkeys(failed, 10 * STALL), about=result.report))
        else:
            kept[file].write_text(json.dumps(result.report), encoding="utf-8")
        print(f"measured {file} in {result.seconds:.0f} s", flush=True)
    for result in run_all(failing, workers):
        (file,) = result.job.files
        kept[file].write_text(json.dumps(result.job.about | {"failed": result.report["failed"]}), encoding="utf-8")
    for file, path in kept.items():
        reach.add(file, json.loads(path.read_text(encoding="utf-8")))
    return reach


def state_of(tests: Iterable[str] | None = None) -> str:
    """A hash of the source, of what tests share, and of these test files (or all)."""
    files = sorted([*ROOT.glob("src/**/*.py"), *ROOT.glob("src/**/*.j2"), *ROOT.glob("tests/**/*.py")])
    digest = hashlib.sha256()
    for path in files:
        name = path.relative_to(ROOT).as_posix()
        if tests is None or not path.name.startswith("test_") or name in tests:
            digest.update(name.encode() + path.read_bytes())
    return digest.hexdigest()[:12]
