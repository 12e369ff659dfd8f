"""The methods on a CLIP beside SimpleCIL and RanPAC on the same image tower, on real images.

    python -m benchmarks.clip_methods [--data caltech101 ...] [--backbones clip_lite0 ...] [--methods coop ...]
        [--seeds 1993 1994 1995] [--workers 2]

Runs recipes/DATA/METHOD_BACKBONE.yaml in processes of one thread each into benchmarks/results/clip_methods.json; see
comparison.py. The data ``three-sets`` are Caltech-101, CIFAR-10 and Fashion-MNIST one after another, one task each, of
100 training and 100 test images of each class at most. A method without a recipe for some data, or for a tower, is
left out there: PromptFusion needs a Vision Transformer.
"""

from __future__ import annotations

import itertools
from pathlib import Path

from benchmarks.comparison import Comparison, Job

DATA = ("caltech101", "cifar10", "three-sets")
BACKBONES = ("clip_lite0", "clip_default")
METHODS = (
    "clip_zeroshot", "clip_prototypes", "clip_cache", "clip_linear", "coop", "proof", "rapf", "rapf_random", "rail",
    "rail_plain", "rail_dual", "promptfusion", "promptfusion_lite", "zscl", "zscl_finetune", "simplecil", "ranpac",
)  # fmt: skip


def main() -> None:
    """Runs what is missing."""
    parser = Comparison.parser(__doc__, DATA)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES, choices=BACKBONES)
    args = parser.parse_args()
    cells = itertools.product(args.seeds, args.methods, args.backbones, args.data)
    jobs = [Job(data, f"{method}_{backbone}", seed) for seed, method, backbone, data in cells]
    jobs = [job for job in jobs if Path(f"recipes/{job.data}/{job.recipe}.yaml").exists()]
    Comparison("clip_methods").run_all(jobs, args.workers, args.set)


if __name__ == "__main__":
    main()
