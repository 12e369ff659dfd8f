"""The main job in one script: a pretrained model learns product images, two classes at a time, by four methods.

`make demo` runs it. Real images: Fashion-MNIST, or scikit-learn's digits where there is neither file nor network.
"""

from __future__ import annotations

import time
from pathlib import Path

from perdure import tune_allocator
from perdure.cli import print_results, run_recipe
from perdure.errors import DataNotFoundError
from perdure.run import load_recipe
from perdure.run.report import write_report

METHODS = {
    "finetune": "trains the whole network on each task: forgets",
    "simplecil": "one mean feature per class: nothing to train, nothing to forget",
    "ranpac": "random projection and ridge regression: exact at every task",
    "joint": "a linear probe on all images so far: keeps everything, forgets nothing",
}


def recipe_of(method: str, data: str):
    """Five tasks of two classes, 100 training and 100 test images of each class."""
    stream = {"data": data, "tasks": 5, "train_per_class": 100, "test_per_class": 100}
    overrides = [f"stream.{key}={value}" for key, value in stream.items()]
    # tasks of two classes are too easy to choose RanPAC's ridge on one of them alone, as the paper does
    small = ["method.projection_dim=2000", "method.ridge=cumulative"] if method == "ranpac" else []
    return load_recipe(None, [f"method.name={method}", *small, *overrides])


def choose_data() -> str:
    """Fashion-MNIST if it can be had, else digits."""
    try:
        recipe_of("simplecil", "fashion-mnist").load_stream()
    except DataNotFoundError as error:
        print(f"No Fashion-MNIST here, so the demo shows handwritten digits instead.\n  {error}")
        return "digits"
    return "fashion-mnist"


def main() -> None:
    """Runs the four methods and writes one report comparing them."""
    start, data = time.perf_counter(), choose_data()
    tune_allocator()
    print(f"Data: {data}, 5 tasks of 2 classes. Backbone: the built-in Vision Transformer, offline.")
    runs = {}
    for method, about in METHODS.items():
        print(f"  {method:10} {about}", flush=True)
        recipe = recipe_of(method, data)
        runs[method] = run_recipe(recipe, Path("runs/demo") / recipe.label)
    print_results({method: results for method, (results, _) in runs.items()})
    print(f"report: {write_report([folder for _, folder in runs.values()]).resolve()}")
    print(f"The demo took {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
