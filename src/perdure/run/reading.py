"""What a finished run left in its directory: predictions, results, and the method it learned."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from perdure.errors import CheckpointError, RunDirectoryError
from perdure.eval import Predictions
from perdure.memory import FeatureStore
from perdure.methods import Method
from perdure.run.checkpoint import restored
from perdure.run.method_file import Kind
from perdure.run.recipe import Recipe
from perdure.run.results import Results, TaskCost


def task_folder(run: Path, index: int) -> Path:
    """The directory of one task of a run."""
    return run / "tasks" / f"{index:03d}"


def read_recipe(file: Path) -> dict[str, Any]:
    """The values in a run's ``recipe.yaml``.

    Raises:
        CheckpointError: if it is damaged.
    """
    with _damage_named(file):
        return dict(yaml.safe_load(file.read_text()))


def read_predictions(task: Path) -> Predictions:
    """The predictions in one task's directory.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    file = task / "predictions.npz"
    # opened here: np.load leaves a damaged file open
    with _damage_named(file), open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        return Predictions(**arrays)


def read_cost(task: Path) -> TaskCost:
    """What one task cost, from its directory.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    with _damage_named(task / "cost.json"):
        return TaskCost(**json.loads((task / "cost.json").read_text()))


@contextlib.contextmanager
def _damage_named(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, yaml.YAMLError) as error:
        hint = f"Remove the run directory and run the same command again; features are kept ({error})"
        raise CheckpointError("run", file.name, "readable", str(file.parent), hint) from error


def read_results(run: Path) -> Results:
    """The results of a finished run.

    Raises:
        RunDirectoryError: if the directory is not a finished run.
        CheckpointError: if ``results.json`` does not follow the schema.
    """
    file = run / "results.json"
    if not file.is_file():
        hint = "Finish it with the command in its recipe.yaml" if (run / "recipe.yaml").exists() else "Check the path"
        raise RunDirectoryError("report", "run", "a finished run directory", str(run), hint)
    try:
        return Results.model_validate_json(file.read_text())
    except ValueError as error:
        hint = "It was written by another version of perdure, or edited"
        raise CheckpointError("report", str(file), "valid results", str(error).splitlines()[0], hint) from error


def read_method(run: Path, *, store: FeatureStore | None = None, method: Kind | None = None) -> Method:
    """The method as a finished run left it, on its backbone.

    Args:
        run: the run directory.
        store: the feature store; the machine's default if not given.
        method: the method's class, for a run whose method came from a file: that file is not run here.

    Raises:
        RunDirectoryError: if the directory is not a finished run.
        RecipeError: if its recipe cannot be used here, as that its method came from a file and no class is given.
        CheckpointError: if its last state is missing or damaged, or the backbone's weights are others than then.
    """
    results = read_results(run)
    told = results.provenance
    recipe = Recipe.from_values(told.recipe, method=method)
    learned = recipe.make_method(recipe.load_backbone(), store or FeatureStore())
    if learned.backbone.fingerprint != told.fingerprints["backbone"]:
        was, hint = told.fingerprints["backbone"], "Use the weights, device and precision it was run with"
        raise CheckpointError("read_method", "backbone", f"{was}, as in the run", learned.backbone.fingerprint, hint)
    return restored(learned, task_folder(run, len(results.task_classes) - 1), results.task_classes)
