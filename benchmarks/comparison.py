"""What the comparisons of methods share: recipes run as a user runs them, their figures kept in one result file.

Each finished run is added to the result file at once; one that is there with the same recipe is not repeated, one that
was stopped goes on. One that is marked ``made_before`` a change of the code counts as missing: it is run anew, and its
new figures have no mark. A comparison may be called until everything is there, and in several processes for different
runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses as dc
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.records import ResultFile, await_all
from perdure.errors import RecipeError
from perdure.run import Results, read_results
from perdure.run.recipe import Recipe, load_recipe
from scripts.old_settings import in_sections

FIGURES = ("last_accuracy", "average_incremental_accuracy", "forgetting")
SEEDS = (1993, 1994, 1995)


@dc.dataclass(frozen=True)
class Job:
    """One run: recipes/``data``/``recipe``.yaml in one class order, with ``changes`` as for ``perdure run -s``."""

    data: str
    recipe: str
    seed: int
    changes: tuple[str, ...] = ()

    @property
    def row(self) -> str:
        """What the result file calls it: the recipe, and what is changed."""
        return " ".join([self.recipe, *self.changes])


@dc.dataclass(frozen=True)
class Comparison:
    """A result file and the runs it is made of.

    Args:
        name: of the script, of its result file, and of its folder of runs.
    """

    name: str

    @property
    def results(self) -> ResultFile:
        """Data set, recipe and class order to a finished run's figures."""
        return ResultFile(Path(__file__).parent / "results" / f"{self.name}.json", self.folder / ".lock")

    @property
    def folder(self) -> Path:
        """Where the runs are."""
        return Path("runs") / self.name

    def recorded(self) -> dict[str, Any]:
        """What the result file holds."""
        runs: dict[str, Any] = self.results.read().get("runs", {})
        return runs

    def record(self, job: Job, results: Results) -> None:
        """Adds one run to the result file, which other processes may be writing too."""
        told, p = results.metrics.model_dump(), results.provenance
        run = {name: told[name] for name in FIGURES} | {"cost": results.cost.model_dump(), "recipe": p.recipe}
        run |= {"finished": p.finished, "machine": p.machine, "versions": p.versions}
        if results.selection and results.selection[-1]:
            run["selection_entropy"] = results.selection[-1].entropy
        if results.members:
            run["members"] = {name: member.last_accuracy for name, member in results.members.items()}
        if told.get("zero_shot_accuracy"):
            run |= {name: told[name] for name in ("zero_shot_transfer", "zero_shot_accuracy")}
        if results.datasets:
            run["datasets"] = results.datasets.model_dump()
        if results.fairness:
            run["fairness"] = results.fairness.model_dump()
        with self.results.changing() as held:
            held["command"] = f"python -m benchmarks.{self.name}"
            held.setdefault("runs", {}).setdefault(job.data, {}).setdefault(job.row, {})[str(job.seed)] = run
        shown = {name: told[name] and round(told[name], 4) for name in FIGURES}  # one task forgets nothing
        print(job.data, job.row, job.seed, shown, flush=True)

    def run(self, job: Job, overrides: Iterable[str] = ()) -> None:
        """One run in a process of its own, unless it is on record."""
        path = Path(f"recipes/{job.data}/{job.recipe}.yaml")
        overrides = [f"stream.order_seed={job.seed}", *job.changes, *overrides]
        known = self.recorded().get(job.data, {}).get(job.row, {}).get(str(job.seed), {})
        if known and "made_before" not in known and _same(known["recipe"], load_recipe(path, overrides)):
            return
        out = self.folder / job.data / f"{job.row.replace(' ', '+')}-{job.seed}"
        if known and (out / "results.json").exists():  # the run on record, not one that was stopped
            shutil.rmtree(out)
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
        set_ = [word for override in overrides for word in ("-s", override)]
        command = [sys.executable, "-m", "perdure", "run", str(path), *set_, "--out", str(out)]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout[-4000:]}")
        self.record(job, read_results(out))

    def run_all(self, jobs: Iterable[Job], workers: int, overrides: Iterable[str] = ()) -> None:
        """Runs what is missing, ``workers`` processes at a time; one that fails does not stop the others.

        Raises:
            SystemExit: at the end, if a run failed, with its output.
        """
        with ThreadPoolExecutor(workers) as pool:
            for _ in await_all([pool.submit(self.run, job, list(overrides)) for job in jobs]):
                pass

    @staticmethod
    def parser(description: str | None, data: Iterable[str]) -> argparse.ArgumentParser:
        """What every comparison can be told."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--data", nargs="+", default=list(data), choices=list(data))
        parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), choices=SEEDS)
        parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
        parser.add_argument("--set", nargs="+", default=[], help="overrides for every recipe, as for perdure run -s")
        return parser


def _same(recorded: dict[str, Any], recipe: Recipe) -> bool:
    """Whether a recorded recipe is this one; a setting that it does not name is at its default.

    One in the form of before there were sections is valid: no number has moved since. Its settings are put in theirs.
    """
    with contextlib.suppress(RecipeError):
        sections = {**recorded, "method": in_sections(recorded["method"])}
        return Recipe.from_values(sections).identity() == recipe.identity()
    return False
