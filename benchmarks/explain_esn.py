"""Where ESN errs: within the right task's classifier, or in the choice of the classifier.

    OMP_NUM_THREADS=1 python -m benchmarks.explain_esn [--data cifar10 ...]

Opens the runs that ``python -m benchmarks.mixture_methods --methods esn --seeds 1993`` left, and asks every task's
classifier about every test image:

* `last`: the run's accuracy;
* `task_told`: with the logits of the image's own task alone;
* `found_by_vote`: share of images given to a classifier of the right task, by the vote of temperatures;
* `found_by_probability`: the same by the largest probability that a classifier gives;
* `own_energy`, `strange_energy`: mean of log sum exp of the own task's logits and of the others'.

Each row replaces its earlier one in benchmarks/results/explain_esn.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from benchmarks.mixture_methods import DATA
from benchmarks.records import ResultFile
from perdure.methods.esn import ESN
from perdure.run import load, load_recipe, read_results
from perdure.run.summary import now, versions

FILE = ResultFile(Path(__file__).parent / "results" / "explain_esn.json", Path("runs/explain_esn/.lock"))


def run_of(data: str) -> Path:
    """Where the run of a data set is; of Caltech-101 that of fewer images."""
    (found,) = Path("runs/mixture_methods", data).glob("esn_default*-1993")
    return found


@torch.no_grad()
def explained(run: Path) -> dict[str, float]:
    """The figures of a finished run."""
    method, stream = load(run), load_recipe(run / "recipe.yaml").load_stream()
    assert isinstance(method, ESN)
    tests = [stream.test(task.index) for task in stream]
    logits = torch.cat([rows for test in tests for rows in method._logits_of(test)]).double()
    columns = torch.cat([method.columns(test.labels) for test in tests])
    task = torch.cat([torch.full((len(test),), i) for i, test in enumerate(tests)])
    parts, slots = logits.split(method.widths_, 1), torch.tensor(method.slot_columns_)
    at = torch.tensor([0, *method.widths_]).cumsum(0)
    local = torch.stack([z.argmax(1) for z in parts], 1).gather(1, task[:, None])[:, 0]
    energies = torch.stack([z.logsumexp(1) for z in parts], 1)
    likeliest = torch.stack([z.softmax(1).amax(1) for z in parts], 1).argmax(1)
    voted = method._vote(logits).argmax(1)
    task_of = torch.bucketize(torch.arange(len(slots)), at[1:], right=True)[slots.argsort()]
    own = torch.nn.functional.one_hot(task, len(parts)).bool()
    shares = {
        "last": voted == columns, "task_told": slots[at[task] + local] == columns,
        "found_by_vote": task_of[voted] == task, "found_by_probability": likeliest == task,
    }  # fmt: skip
    means = {"own_energy": energies[own], "strange_energy": energies[~own]}
    return {name: round(values.double().mean().item(), 4) for name, values in (shares | means).items()}


def main() -> None:
    """Explains the runs that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=DATA, choices=DATA)
    for data in parser.parse_args().data:
        run = run_of(data)
        row: dict[str, Any] = {"anchor": read_results(run).provenance.recipe["method"]["anchor"]["form"]}
        row |= explained(run)
        assert row["last"] == round(read_results(run).metrics.last_accuracy, 4)
        print(data, row, flush=True)
        with FILE.changing() as held:
            held |= {"command": "python -m benchmarks.explain_esn", "date": now(), "versions": versions()}
            held.setdefault("rows", {})[data] = row


if __name__ == "__main__":
    main()
