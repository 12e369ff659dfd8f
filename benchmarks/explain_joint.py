"""Why joint fine-tuning is no upper bound on few images of many classes.

    python -m benchmarks.explain_joint [--workers 2]

On the small Caltech-101 of mixture_methods.py, all classes as one task: a head alone on frozen features, by the recipe
of `joint_finetune`; and SLCA, which trains a head and, slowly, the backbone, and aligns heads from the second task on.
Runs into benchmarks/results/explain_joint.json; see comparison.py.
"""

from __future__ import annotations

from benchmarks.comparison import Comparison, Job
from benchmarks.mixture_methods import SMALLER


def main() -> None:
    """Runs what is missing."""
    args = Comparison.parser(__doc__, ("caltech101",)).parse_args()
    jobs = [
        Job("caltech101", "joint_finetune_default", 1993, (*SMALLER, "method.part=head")),
        Job("caltech101", "slca_short_default", 1993, (*SMALLER, "stream.tasks=1")),
    ]
    Comparison("explain_joint").run_all(jobs, args.workers, args.set)


if __name__ == "__main__":
    main()
