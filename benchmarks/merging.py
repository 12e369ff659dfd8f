"""What `perdure merge` makes of two runs that learned different images of the same classes.

    OMP_NUM_THREADS=1 python -m benchmarks.merging [--methods simplecil ranpac slca finetune]

Of the first 20 classes of Caltech-101, 12 training images each (the first by name) are cut into two halves by turns.
recipes/caltech101/METHOD_default.yaml learns each half, and all of them, in two tasks. The two runs are merged linearly
and, where a network was fine-tuned, by Fisher information on all of the images. Every method is tested on the same
images, 10 per class. Figures stay in benchmarks/results/merging.json; a call adds what is missing.
Seconds are processor time.
"""

from __future__ import annotations

import argparse
import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import perdure
from benchmarks.records import ResultFile
from perdure import Method, tune_allocator
from perdure.run import Runner, load, load_recipe
from perdure.run.merger import How, merge_saved
from perdure.run.summary import now, versions

HERE = Path(__file__).parent
IMAGES, RUNS = HERE.parent.parent / "shared" / "data" / "caltech101", Path("runs/merging")
RESULTS = ResultFile(HERE / "results" / "merging.json", RUNS / "lock")
METHODS = ("simplecil", "ranpac", "slca", "finetune")
FINE_TUNED = ("slca", "finetune")
CLASSES, TRAIN, TEST = 20, 12, 10
PARTS = {"first half": slice(0, None, 2), "second half": slice(1, None, 2), "all": slice(None)}


def folder(part: str) -> Path:
    """The images of one part, with all test images."""
    place = RUNS / "images" / part.replace(" ", "-")
    for kind, which, most in (("train", PARTS[part], TRAIN), ("test", slice(None), TEST)):
        for source in sorted((IMAGES / kind).iterdir())[:CLASSES]:
            target = place / kind / source.name
            target.mkdir(parents=True, exist_ok=True)
            for file in sorted(source.iterdir())[:most][which]:
                shutil.copy(file, target / file.name)
    return place


def accuracy(method: Method[Any]) -> float:
    """On all test images, in percent."""
    stream = perdure.load_stream(folder("all"), tasks=1)
    tests = stream.test(0)
    names = [stream.class_names[c] for c in tests.labels.tolist()]
    right = [found == name for found, name in zip(method.predict_names(tests), names, strict=True)]
    return round(100 * sum(right) / len(right), 2)


def run(name: str, part: str) -> Method[Any]:
    """The method as it learned a part of the images."""
    overrides = [f"stream.data={folder(part)}", "stream.tasks=2"]
    out = RUNS / f"{name}-{part.replace(' ', '-')}"
    Runner(load_recipe(Path(f"recipes/caltech101/{name}_default.yaml"), overrides), out).run()
    return load(out)


def merged(name: str, how: How) -> Method[Any]:
    """The method that both halves make."""
    data = folder("all") if how == "fisher" else None
    halves = RUNS / f"{name}-first-half", RUNS / f"{name}-second-half"
    return merge_saved(*halves, RUNS / f"{name}-{how}", how=how, data=data)


def main() -> None:
    """Adds the missing figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=METHODS)
    for name in parser.parse_args().methods:
        steps: dict[str, Callable[[], Method[Any]]] = {
            part: functools.partial(run, name, part) for part in ("first half", "second half")
        }
        steps["merged, linear"] = functools.partial(merged, name, "linear")
        if name in FINE_TUNED:
            steps["merged, fisher"] = functools.partial(merged, name, "fisher")
        steps["all"] = functools.partial(run, name, "all")
        for what, step in steps.items():
            if what in RESULTS.read().get("rows", {}).get(name, {}):
                continue
            since = time.process_time()
            method = step()
            found = {"seconds": round(time.process_time() - since, 1), "taught": method.n_taught_}
            found["accuracy"] = accuracy(method)
            print(name, what, found, flush=True)
            with RESULTS.changing() as held:
                held.setdefault("rows", {}).setdefault(name, {})[what] = found
                held.update(classes=CLASSES, weight=0.5, versions=versions(), date=now())


if __name__ == "__main__":
    tune_allocator()
    main()
