"""GEM, A-GEM and experience replay on real images, by how many images of each class they keep.

    python -m benchmarks.replay_methods [--data cifar10 ...] [--methods er ...] [--seeds 1993 1994 1995] [--workers 2]

Runs recipes/DATA/METHOD_default.yaml, a head on cached features, with several budgets, and on CIFAR-10 once with
adapters that learn, into benchmarks/results/replay_methods.json; see comparison.py. The plot is made by
``python -m scripts.plot_replay``.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.comparison import SEEDS, Comparison, Job

DATA = ("fashion-mnist", "cifar10")
METHODS = ("er", "agem", "gem")
KEPT = (2, 5, 10, 20, 50)  # of each class
IN_ALL_ORDERS = (5, 20)
PARTS = ("adapter",)


def jobs(data: str, method: str, seed: int) -> Iterator[Job]:
    """The runs of one method.

    Args:
        data: a folder of recipes.
        method: its name.
        seed: of the class order.
    """
    for n in KEPT if seed == SEEDS[0] else IN_ALL_ORDERS:
        yield Job(data, f"{method}_default", seed, (f"method.memory.n_per_class={n}",))
    if data == "cifar10" and seed == SEEDS[0]:
        yield from (Job(data, f"{method}_{part}_default", seed) for part in PARTS)


def main() -> None:
    """Runs what is missing."""
    parser = Comparison.parser(__doc__, DATA)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = parser.parse_args()
    every = [job for s in args.seeds for d in args.data for m in args.methods for job in jobs(d, m, s)]
    every.sort(key=lambda job: not job.changes)  # heads first: seconds each
    Comparison("replay_methods").run_all(every, args.workers, args.set)


if __name__ == "__main__":
    main()
