"""What a run left in its directory: its recipe, predictions, costs and results."""

from __future__ import annotations

import contextlib
import dataclasses as dc
import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from perdure.errors import CheckpointError, RunDirectoryError
from perdure.eval import Answers, Predictions
from perdure.run.results import Results, TaskCost

MEMBER, ANSWERS = "member.", ("untaught", "among_all")  # before a member's name, and a field, in predictions.npz


def task_folder(run: Path, index: int) -> Path:
    """The directory of one task of a run."""
    return run / "tasks" / f"{index:03d}"


def read_recipe(file: Path) -> dict[str, Any]:
    """The values in a run's ``recipe.yaml``.

    Raises:
        CheckpointError: if it is damaged.
    """
    with _damage_named(file):
        return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def read_predictions(task: Path) -> Predictions:
    """The predictions in one task's directory.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    file = task / "predictions.npz"
    # opened here: np.load leaves a damaged file open
    with _damage_named(file), open(file, "rb") as stream, np.load(stream, allow_pickle=False) as arrays:
        own: dict[str, Any] = {name: arrays[name] for name in arrays if "." not in name}
        own |= {name: Answers(**found) for name in ANSWERS if (found := _behind(f"{name}.", arrays))}
        return Predictions(**own, members=_behind(MEMBER, arrays))


def write_predictions(task: Path, predictions: Predictions) -> None:
    """Puts predictions into one task's directory."""
    own = {field.name: getattr(predictions, field.name) for field in dc.fields(predictions)}
    arrays = {f"{MEMBER}{name}": best for name, best in own.pop("members").items()}
    for name in ANSWERS:
        if (answers := own.pop(name)) is not None:
            arrays |= {f"{name}.{field.name}": getattr(answers, field.name) for field in dc.fields(answers)}
    arrays |= {name: values for name, values in own.items() if values is not None}
    np.savez(task / "predictions.npz", **arrays)


def _behind(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def read_cost(task: Path) -> TaskCost:
    """What one task cost, from its directory.

    Raises:
        CheckpointError: if the file is missing or damaged.
    """
    with _damage_named(task / "cost.json"):
        return TaskCost(**json.loads((task / "cost.json").read_text(encoding="utf-8")))


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
        return Results.model_validate_json(file.read_text(encoding="utf-8"))
    except ValueError as error:
        hint = "It was written by another version of perdure, or edited"
        raise CheckpointError("report", str(file), "valid results", str(error).splitlines()[0], hint) from error
