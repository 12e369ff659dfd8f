"""The prompt methods beside `finetune`, `simplecil` and `joint` on real images, three class orders each.

    python -m benchmarks.prompt_methods [--data caltech101 cifar10] [--methods l2p ...] [--seeds 1993 1994 1995]

Runs recipes/DATA/METHOD_default.yaml in processes of one thread each, one per core (that is faster than one process
with two threads), into benchmarks/results/prompt_methods.json; see comparison.py.
"""

from __future__ import annotations

import itertools

from benchmarks.comparison import Comparison, Job

DATA = ("cifar10", "caltech101")
METHODS = ("finetune", "simplecil", "joint", "vpt", "l2p", "dualprompt", "coda_prompt", "dap")


def main() -> None:
    """Runs what is missing."""
    parser = Comparison.parser(__doc__, DATA)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = parser.parse_args()
    jobs = [Job(d, f"{m}_default", s) for d, s, m in itertools.product(args.data, args.seeds, args.methods)]
    Comparison("prompt_methods").run_all(jobs, args.workers, args.set)


if __name__ == "__main__":
    main()
