"""What the searches for settings share: grids that are tried on held-out training images, never on a test image.

A fifth of each class's training images is held out. A method learns the first tasks of the stream, and a point of its
grid is judged by what it knows of the held-out images; with several class orders, by the mean over them. Each point
runs in a process of one thread. Finished rows are added to the result file at once, so that a search that was stopped
goes on, and several processes may each take some methods. Ties go to fewer epochs, then to the smaller numbers.
"""

from __future__ import annotations

import argparse
import dataclasses as dc
import itertools
import multiprocessing
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, here and in the processes

import numpy as np

from benchmarks.records import ResultFile, await_all
from perdure import Backbone, FeatureStore, Stream, methods, tune_allocator
from perdure.config import MethodConfig, laid_over
from perdure.data import load_dataset
from perdure.data.order import order_classes
from perdure.data.stream import class_incremental, task_sizes
from perdure.eval import AccuracyMatrix, accuracy_over_samples, evaluate
from perdure.methods import Method
from perdure.run.summary import machine, now, versions

Point = dict[str, Any]


def product(**values: Sequence[Any]) -> tuple[Point, ...]:
    """Every combination of these values."""
    return tuple(dict(zip(values, point, strict=True)) for point in itertools.product(*values.values()))


@dc.dataclass(frozen=True)
class Grid:
    """The points that are tried for one method.

    Args:
        method: its registered name.
        points: the settings that differ; a key stands for the setting at ``places[key]``, or for the one of its name.
        common: the settings that all points have.
        places: where a key's setting is, as in ``-s method.PLACE``.
        backbones: those that it runs on.
        figures: what is written down of a point; see ``FIGURES``.
        by: the figure by which the best is chosen.
        first: tasks that are learned at most.
    """

    method: str
    points: tuple[Point, ...] = ({},)
    common: Mapping[str, Any] = dc.field(default_factory=dict)
    places: Mapping[str, str] = dc.field(default_factory=dict)
    backbones: tuple[str, ...] = ("default",)
    figures: tuple[str, ...] = ("accuracy",)
    by: str = "accuracy"
    first: int | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """What differs."""
        return tuple(self.points[0])

    def config(self, point: Point) -> MethodConfig:
        """The method's configuration at one point."""
        values: dict[str, Any] = dict(self.common)
        for key, value in point.items():
            for part in reversed(self.places.get(key, key).split(".")):
                value = {part: value}
            values = laid_over(values, value)
        made: MethodConfig = methods.get(self.method).Config(**values)
        return made

    def best(self, rows: Sequence[dict[str, Any]]) -> Point:
        """The point with the highest figure."""

        def rank(row: dict[str, Any]) -> tuple[float, ...]:
            found = row[self.by]
            smaller = (-row[key] for key in self.keys if key != "epochs")
            return (found[-1] if isinstance(found, list) else found, -row.get("epochs", 0), *smaller)

        top = max(rows, key=rank)
        return {key: top[key] for key in self.keys}


FIGURES = {  # of the accuracy matrices, one for each class order
    "accuracy": lambda ms: [_round(a) for a in np.mean([accuracy_over_samples(m) for m in ms], axis=0)],
    "last_accuracy": lambda ms: _round(np.mean([accuracy_over_samples(m)[-1] for m in ms])),
    "learning_accuracy": lambda ms: _round(np.mean([np.diag(m.values).mean() for m in ms])),
}


def _round(value: Any) -> float:
    return round(float(value), 4)


@dc.dataclass(frozen=True)
class Cut:
    """The stream of a search, and the images of it that are used.

    Args:
        data: a data set's name or an image folder.
        of: tasks into which it is cut.
        n_tasks: of these the first are learned.
        per_class: training images of each class; None for all.
    """

    data: str
    of: int
    n_tasks: int
    per_class: int | None = None

    def stream(self, order: int) -> Stream:
        """The first tasks of class order ``order``; tests are a fifth of the training images."""
        whole = load_dataset(self.data)
        rng, images = np.random.default_rng(0), whole.train
        drawn = [rng.permutation(np.flatnonzero(images.labels == c))[: self.per_class] for c in images.classes]
        held = np.concatenate([mine[: len(mine) // 5] for mine in drawn])
        fit = np.setdiff1d(np.concatenate(drawn), held)
        split = dc.replace(whole, train=images.subset(fit), test=images.subset(np.sort(held)))
        sizes = task_sizes(len(split.class_names), tasks=self.of)
        stream = class_incremental(split, sizes, order_classes(split.class_names, seed=order))
        tests = [stream.test(i) for i in range(self.n_tasks)]
        return Stream(stream[: self.n_tasks], tests, stream.class_names, {"search": self.n_tasks})

    def __str__(self) -> str:
        """What the result file calls it."""
        text = f"{Path(self.data).name}, first {self.n_tasks} of {self.of} tasks"
        return f"{text}, {self.per_class} images per class" if self.per_class else text


def learned(method: Method, stream: Stream) -> AccuracyMatrix:
    """Fits every task of a stream and tests after each."""
    after = []
    for task in stream:
        method.fit_task(task)
        after.append(evaluate(method, stream, upto=task.index))
    return AccuracyMatrix.from_predictions(after)


def score(cut: Cut, orders: list[int], backbone: str, grid: Grid, point: Point) -> dict[str, Any]:
    """One point's row: its figures, seconds, and the device."""
    tune_allocator()
    model, kind = Backbone.load(backbone), methods.get(grid.method)
    start = time.perf_counter()
    ms = [learned(kind(model, grid.config(point), store=FeatureStore()), cut.stream(order)) for order in orders]
    row = {**point, **{name: FIGURES[name](ms) for name in grid.figures}}
    if len(orders) > 1:
        row["last, each order"] = [_round(accuracy_over_samples(m)[-1]) for m in ms]
    return {**row, "seconds": round(time.perf_counter() - start, 1), "device": model.device.type}


@dc.dataclass(frozen=True)
class Search:
    """A result file and the grids it is made of.

    Args:
        name: of the module and of the result file.
        grids: by the names they have on the command line and in the result file.
        data: searched where the command line names none.
        tasks: the same, into which the stream is cut.
        first: the same, that are learned.
        place: where a grid's rows are in the result file, of ``searched``, ``data``, ``backbone`` and ``name``.
        about: what of the command line holds for the whole file, since ``place`` does not say it; where it is missing
            in the file, it is the default. Other values need another file.
    """

    name: str
    grids: Mapping[str, Grid]
    data: str
    tasks: int
    first: int
    place: tuple[str, ...]
    about: tuple[str, ...] = ()

    def main(self, description: str | None, argv: Sequence[str] | None = None) -> None:
        """Searches what is missing.

        Args:
            description: of the module.
            argv: the command line.
        """
        parser = self._parser(description)
        args = parser.parse_args(argv)
        file = ResultFile(args.out, Path("runs") / self.name / ".lock")
        self._open(file, args, parser.parse_args([]))
        with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
            jobs = self._missing(file.read(), args)
            running = [pool.submit(_scored, where, *job) for where, job in jobs]
            for where, grid, row in await_all(running):
                with file.changing() as held:
                    found = _at(held, where)
                    found["rows"].append(row)
                    found["best"] = grid.best(found["rows"])
                print(*where, row, flush=True)

    def _open(self, file: ResultFile, args: argparse.Namespace, default: argparse.Namespace) -> None:
        """Writes the facts, and a place for the rows of every grid."""
        here, asked, usual = machine(Backbone.load("default")), _facts(args), _facts(default)
        with file.changing() as held:
            before = {**usual, **held} if held else asked
            for key in self.about:
                was = before[key]
                if was != asked[key]:
                    raise SystemExit(f"{file.path} has {key} {was}, but asked for is {asked[key]}: give another --out")
                held[key] = asked[key]
            held |= {"command": f"python -m benchmarks.{self.name}", "date": now(), "versions": versions()}
            held.setdefault("machines", {})[here["device"]] = here  # each row says which device it was found on
            for where, grid, _, _ in self._cells(args):
                _at(held, where).setdefault("rows", [])
                if not _at(held, where)["rows"]:
                    _at(held, where).update(common=dict(grid.common), chosen_by=grid.by)

    def _cells(self, args: argparse.Namespace) -> Iterator[tuple[tuple[str, ...], Grid, str, Cut]]:
        for name, backbone in itertools.product(args.methods, args.backbones):
            grid = self.grids[name]
            if backbone in grid.backbones:
                cut = Cut(args.data, args.tasks, min(args.first, grid.first or args.first), args.per_class)
                searched = str(cut) + (f", orders {' '.join(map(str, args.orders))}" if args.orders != [1993] else "")
                told = {"searched": searched, "data": Path(args.data).name, "backbone": backbone, "name": name}
                yield tuple(part.format(**told) for part in self.place), grid, backbone, cut

    def _missing(self, held: dict[str, Any], args: argparse.Namespace) -> Iterator[tuple[tuple[str, ...], tuple]]:
        only = {name: float(value) for name, value in (one.split("=") for one in args.only)}
        for where, grid, backbone, cut in self._cells(args):
            known = [{key: row.get(key) for key in grid.keys} for row in _at(held, where)["rows"]]
            for point in grid.points:
                if point not in known and {**point, **only} == point:
                    yield where, (cut, args.orders, backbone, grid, point)

    def _parser(self, description: str | None) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        known = list(dict.fromkeys(backbone for grid in self.grids.values() for backbone in grid.backbones))
        several = {"nargs": 1, "default": known[:1]} if "backbone" in self.about else {"nargs": "+", "default": known}
        parser.add_argument("--data", default=self.data)
        parser.add_argument("--tasks", type=int, default=self.tasks, help="into which the stream is cut")
        parser.add_argument("--first", type=int, default=self.first, help="tasks that are learned")
        parser.add_argument("--per-class", type=int, help="training images of each class, all by default")
        parser.add_argument("--orders", nargs="+", type=int, default=[1993], help="class orders")
        parser.add_argument(
            "--only", nargs="+", default=[], metavar="NAME=VALUE", help="points of the grids with these"
        )
        parser.add_argument("--backbones", choices=known, **several)
        parser.add_argument("--methods", nargs="+", default=list(self.grids), choices=list(self.grids))
        parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes of one thread each")
        out = Path(__file__).parent / "results" / f"{self.name}.json"
        parser.add_argument("--out", type=Path, default=out, help="the result file")
        return parser


def _facts(args: argparse.Namespace) -> dict[str, Any]:
    return {**vars(args), "data": Path(args.data).name, "backbone": args.backbones[0]}


def _scored(where: tuple[str, ...], *job: Any) -> tuple[tuple[str, ...], Grid, dict[str, Any]]:
    return where, job[3], score(*job)


def _at(held: dict[str, Any], where: tuple[str, ...]) -> dict[str, Any]:
    for key in where:
        held = held.setdefault(key, {})
    return held
