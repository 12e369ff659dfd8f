"""The representation methods beside `simplecil` and `joint` on real images, three class orders each.

    python -m benchmarks.representation_methods [--data caltech101 ...] [--backbones default efficientnet_lite0]
        [--methods slca ...] [--seeds 1993 1994 1995] [--workers 2]

Runs recipes/DATA/METHOD_default.yaml on the built-in `default` and recipes/DATA/METHOD.yaml on `efficientnet_lite0`,
which has no seats for adapters and prompts, in processes of one thread each, into
benchmarks/results/representation_methods.json; see comparison.py.
"""

from __future__ import annotations

import itertools

from benchmarks.comparison import Comparison, Job

DATA = ("cifar10", "fashion-mnist", "caltech101")
CNN = ("simplecil", "joint", "fecam", "ranpac", "ranpac_cumulative", "aper_finetune", "aper_ssf", "ranpac_ssf", "slca")
VIT = (
    *CNN[:7],
    "aper_vpt_shallow",
    "aper_vpt_deep",
    "aper_adapter",
    "ranpac_adapter",
    "ease",
    "mos",
    "mos_release",
    "slca",
)
SUFFIXES = {"default": "_default", "efficientnet_lite0": ""}


def main() -> None:
    """Runs what is missing."""
    parser = Comparison.parser(__doc__, DATA)
    parser.add_argument("--backbones", nargs="+", default=list(SUFFIXES), choices=list(SUFFIXES))
    parser.add_argument("--methods", nargs="+", default=sorted({*CNN, *VIT}), choices=sorted({*CNN, *VIT}))
    args = parser.parse_args()
    cells = itertools.product(args.seeds, args.data, args.backbones, args.methods)
    jobs = [
        Job(data, name + SUFFIXES[backbone], seed)
        for seed, data, backbone, name in cells
        if name in (VIT if backbone == "default" else CNN)
    ]
    Comparison("representation_methods").run_all(jobs, args.workers, args.set)


if __name__ == "__main__":
    main()
