"""What a finished run left in its directory: predictions, results, and the method it learned."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from perdure.errors import CheckpointError, RunDirectoryError
from perdure.eval import Predictions
from perdure.memory import FeatureStore
from perdure.methods import Method
from perdure.run.checkpoint import load_state
from perdure.run.recipe import Recipe
from perdure.run.results import Results


def read_predictions(task: Path) -> Predictions:
    """The predictions in one task's directory.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    try:
        with np.load(task / "predictions.npz", allow_pickle=False) as arrays:
            return Predictions(**arrays)
    except (OSError, ValueError, TypeError) as error:
        hint = f"Remove the run directory and run the same command again; features are kept ({error})"
        raise CheckpointError("run", "predictions.npz", "readable", str(task), hint) from error


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


def read_method(run: Path, *, store: FeatureStore | None = None) -> Method:
    """The method as a finished run left it, on its backbone.

    Args:
        run: the run directory.
        store: the feature store; the machine's default if not given.

    Raises:
        RunDirectoryError: if the directory is not a finished run.
        CheckpointError: if its last state is missing or damaged, or the backbone's weights are others than then.
    """
    told = read_results(run).provenance
    recipe = Recipe.from_values(told.recipe)
    method = recipe.make_method(recipe.load_backbone(), store or FeatureStore())
    if method.backbone.fingerprint != told.fingerprints["backbone"]:
        was, hint = told.fingerprints["backbone"], "Use the weights, device and precision it was run with"
        raise CheckpointError("read_method", "backbone", f"{was}, as in the run", method.backbone.fingerprint, hint)
    last = max(p for p in (run / "tasks").iterdir() if not p.name.startswith("."))
    return method.load_state_dict(load_state(last))
