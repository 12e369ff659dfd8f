"""The model mixture methods beside the baselines and the methods they come from, on real images.

    python -m benchmarks.mixture_methods [--data caltech101 ...] [--methods lae ...] [--seeds 1993 1994 1995]
        [--workers 2]

Runs recipes/DATA/METHOD_default.yaml in processes of one thread each into benchmarks/results/mixture_methods.json; see
comparison.py. ``slca_short`` has CoFiMA's epochs. Of Caltech-101 there are 12 training and 10 test images of each class
at most: the fine-tuned methods take minutes there then, not a quarter of an hour.
"""

from __future__ import annotations

import itertools

from benchmarks.comparison import Comparison, Job

DATA = ("fashion-mnist", "cifar10", "caltech101")
METHODS = (
    "simplecil", "finetune", "slca_short", "joint_finetune", "coma", "cofima", "esn", "lae", "lae_lora", "lae_prefix",
)  # fmt: skip
SMALLER = ("stream.train_per_class=12", "stream.test_per_class=10")


def main() -> None:
    """Runs what is missing."""
    parser = Comparison.parser(__doc__, DATA)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    args = parser.parse_args()
    cells = itertools.product(args.seeds, args.methods, args.data)
    jobs = [Job(d, f"{m}_default", s, SMALLER if d == "caltech101" else ()) for s, m, d in cells]
    Comparison("mixture_methods").run_all(jobs, args.workers, args.set)


if __name__ == "__main__":
    main()
