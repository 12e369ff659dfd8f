"""A method in a folder: what it is, and what it learned, so that another process on another machine goes on with it.

    folder/
      method.json    the method's name and settings, its backbone, where its state is, versions for information
      state-…/       state.safetensors + state.json: what it learned, its classes' names among it

``method.json`` is replaced last, so that whoever reads while another saves, or after a kill, gets one whole method.

A finished run's directory holds the same, elsewhere: :func:`load` opens both.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

from perdure.backbone import Backbone, require_kind
from perdure.config import load as load_config
from perdure.data.reading import READING
from perdure.errors import CheckpointError, ConfigError, DataNotFoundError, StorageError
from perdure.memory import FeatureStore
from perdure.methods import Method, methods
from perdure.run.checkpoint import load_state, save_state, state_after
from perdure.run.method_file import Kind, names_file, registered_method
from perdure.run.reading import read_results, task_folder
from perdure.run.results import Results
from perdure.run.summary import versions

FORMAT = 1
ABOUT = "method.json"
AGAIN = "Copy the whole folder again from where it came, or save the method again"
NAMED: Final = {"method": str, "settings": dict, "seed": int, "backbone": dict, "reading": str, "state": str}
BACKBONE: Final = {"name": str, "identity": str, "loaded": dict | None}


class ReadingWarning(UserWarning):
    """Image files become RGB by another rule than when the method was taught."""


def save(method: Method[Any], folder: str | Path) -> None:
    """Writes a method into a folder, whole or not at all; one that was saved there before is replaced.

    Args:
        method: any, taught or not.
        folder: where; it is made if need be.

    Raises:
        CheckpointError: if the folder holds other things and no saved method.
        StorageError: if the disk does not take it; what was there before stays.
    """
    place = Path(folder).expanduser()
    before, is_new = require_place(place), not place.exists()
    state, backbone = place / f"state-{uuid.uuid4().hex[:8]}", method.backbone
    about = {
        "format": FORMAT,
        "method": _name_of(type(method)),
        "settings": method.config.model_dump(mode="json"),
        "seed": method.seed,
        "backbone": {
            "name": backbone.name,
            "identity": backbone.identity,
            "loaded": backbone.source,
            "preprocess": dc.asdict(backbone.preprocess),
        },
        "reading": READING,
        "state": state.name,
        "versions": versions(),
    }
    with _writing(place):
        try:
            state.mkdir(parents=True)
            save_state(state, method.state_dict())
            draft = state / ABOUT
            draft.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            os.replace(draft, place / ABOUT)
        except BaseException:
            shutil.rmtree(place if is_new else state, ignore_errors=True)
            raise
    if before is not None:
        shutil.rmtree(place / before, ignore_errors=True)


def load(
    folder: str | Path,
    *,
    backbone: Backbone | None = None,
    device: str = "auto",
    store: FeatureStore | None = None,
    method: Kind | None = None,
) -> Method[Any]:
    """The method that :func:`save` wrote, or that a finished run left, ready to predict and to learn on.

    Args:
        folder: of either.
        backbone: its backbone; loaded as it was then, if not given.
        device: where a backbone that is loaded here computes: any, whatever the method learned on.
        store: the feature store; the machine's default if not given.
        method: the method's class, where it is not registered, as one from a file: that file is not run here.

    Raises:
        DataNotFoundError: if the folder holds neither.
        RunDirectoryError: for a run that is not finished.
        ConfigError, RecipeError: if the method or its backbone cannot be made here.
        BackboneError: if the backbone's weights cannot be had.
        CheckpointError: if a file is missing or damaged, or the backbone is not the one that the method learned on.

    Warns:
        ReadingWarning: if image files became RGB by another rule then (:mod:`perdure.data.reading`).
    """
    place, kept = Path(folder).expanduser(), store or FeatureStore()
    if (place / ABOUT).is_file():
        about = _read_about(place / ABOUT)
        if method is not None and _name_of(method) != about["method"]:
            must_be = f"the class {about['method']}"
            raise ConfigError("load", "method", must_be, _name_of(method), "Give the class it was")
        if about["reading"] != READING:
            message = f"{place} was taught on images read by rule {about['reading']}, and here it is rule {READING}"
            warnings.warn(ReadingWarning(f"{message}: answers may differ"), stacklevel=2)
        return _made(about, backbone, device, kept, method).load_state_dict(_state_of(place, about))
    if not (place / "recipe.yaml").is_file():
        hint = "Check the path; perdure.save(method, folder) writes one"
        must_be = "one that perdure.save wrote, or a finished run's"
        raise DataNotFoundError("load", "folder", must_be, str(place), hint)
    results = read_results(place)
    names = results.class_names
    tasks = [{c: names[str(c)] for c in classes} for classes in results.task_classes]
    state = state_after(task_folder(place, len(tasks) - 1), tasks)
    return _made(_about_run(results, state), backbone, device, kept, method).load_state_dict(state)


def _about_run(results: Results, state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What ``method.json`` says of a saved method, of a run's; its images may be gone."""
    recipe = results.provenance.recipe
    loaded = {key: value for key, value in recipe["backbone"].items() if key != "device"}
    backbone = {"name": loaded["name"], "identity": state.get("origin_"), "loaded": loaded}
    settings = {key: value for key, value in recipe["method"].items() if key != "name"}
    return {"method": recipe["method"]["name"], "settings": settings, "seed": recipe["seed"], "backbone": backbone}


def _state_of(place: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The state that ``method.json`` names, or named a moment ago: another process may just have saved anew."""
    try:
        return load_state(
            place / about["state"], "Copy the whole folder again from where it came, or save the method again"
        )
    except CheckpointError:
        now = _read_about(place / ABOUT)
        if now["state"] == about["state"] or {**now, "state": ""} != {**about, "state": ""}:
            raise
        return _state_of(place, now)


def _made(
    about: Mapping[str, Any], backbone: Backbone | None, device: str, store: FeatureStore, method: Kind | None
) -> Method:
    """The method as it was before it was taught."""
    name, then = about["method"], about["backbone"]
    if backbone is None and then["loaded"] is None:
        hint = "Give load(folder, backbone=...) the same model: it was not made by Backbone.load"
        raise ConfigError("load", "backbone", "given", None, hint)
    if method is None and not names_file(name) and name not in methods:
        hint = f"Give the class itself: load(folder, method=...); registered are {', '.join(methods.names())}"
        raise ConfigError("load", "method", "given, or registered", name, hint)
    kind = method or registered_method(name)[0]
    config = load_config(kind.Config, about["settings"], name)
    found = backbone or Backbone.load(**then["loaded"], device=device)
    _require_same(then["identity"], require_kind(found, kind.tags.backbone, "load"), then["name"])
    made: Method = kind(found, config, seed=about["seed"], store=store)
    return made


def _read_about(file: Path) -> Mapping[str, Any]:
    try:
        about: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        kept, backbone = about.get("format"), about.get("backbone")
    except (OSError, ValueError, AttributeError) as error:
        hint = f"Save the method again ({error})"
        raise CheckpointError("load", ABOUT, "readable", str(file), hint) from error
    lacking = [key for key, kind in NAMED.items() if not isinstance(about.get(key), kind)]
    if isinstance(backbone, Mapping):
        lacking += [f"backbone.{key}" for key, kind in BACKBONE.items() if not _is(backbone, key, kind)]
    if "state" not in lacking and not re.fullmatch(r"state-\w+", about["state"]):  # a path would lead elsewhere
        lacking.append("state")
    if kept != FORMAT or lacking:
        got = f"format {kept}" + (f" without {', '.join(lacking)}" if lacking else "")
        raise CheckpointError("load", ABOUT, f"of format {FORMAT}, whole", got, "Use the perdure that wrote it")
    return about


def _is(values: Mapping[str, Any], key: str, kind: Any) -> bool:
    return key in values and isinstance(values[key], kind)


def _require_same(identity: Any, backbone: Backbone, name: str) -> None:
    """Refuses weights, settings or an eval view that the method did not learn on."""
    if identity != backbone.identity:
        must_be = f"the one that the method learned on ({name}, {identity})"
        hint = "Give those weights: load(folder, backbone=Backbone.load(NAME, weights=FILE)); its eval view counts too"
        raise CheckpointError("load", "backbone", must_be, f"{backbone.name}, {backbone.identity}", hint)


def _name_of(kind: Kind) -> str:
    """The name it is registered by; else its class's own."""
    return next((name for name in methods.names() if methods.get(name) is kind), kind.__name__)


def require_place(place: Path) -> str | None:
    """Refuses a place where no method can be saved.

    Args:
        place: the folder.

    Returns:
        The folder of the state that a new one will replace, if there is one.

    Raises:
        CheckpointError: if it holds other things, or is a file.
    """
    if place.exists() and not place.is_dir():
        raise CheckpointError("save", "folder", "a folder", str(place), "Give another name")
    if (place / ABOUT).is_file():
        with contextlib.suppress(CheckpointError):  # a damaged one is replaced, and its state left alone
            return str(_read_about(place / ABOUT)["state"])
        return None
    others = sorted(p.name for p in place.iterdir()) if place.is_dir() else []
    if others:
        must_be, hint = "new, empty, or a saved method's", "Give another folder"
        others.sort(key=lambda name: name.startswith("."))  # what a listing shows comes first
        raise CheckpointError("save", "folder", must_be, f"{place} holding {others[0]}", hint)
    return None


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, SafetensorError) as error:
        hint = f"Free some space or give another folder ({error})"
        raise StorageError("save", "folder", "writable", str(folder), hint) from error
