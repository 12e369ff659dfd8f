"""A learned state on disk: safetensors for tensors, JSON for the rest; no pickle, ever.

``state.json`` mirrors the state's nesting, with ``{"$tensor": key}`` where a tensor belongs, and carries a checksum of
that and of ``state.safetensors``, so that a file damaged or edited is noticed before anything is built on it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load, load_file, save_file
from torch import Tensor

from perdure.data.names import typed
from perdure.errors import CheckpointError

FORMAT = 3
REMOVE = "Remove this folder: the run resumes from the task before it, or starts again"


def save_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Writes ``state.safetensors`` and ``state.json`` into ``folder``.

    Args:
        folder: an existing directory.
        state: nested dicts and lists of tensors and plain values.

    Raises:
        CheckpointError: naming the entry that is neither a tensor nor a plain value.
    """
    tensors: dict[str, Tensor] = {}
    tree = _to_tree(state, "", tensors)
    save_file(_apart(tensors), folder / "state.safetensors")
    about = {"format": FORMAT, "checksum": _checksum(folder, tree), "state": tree}
    (folder / "state.json").write_text(json.dumps(about, allow_nan=False), encoding="utf-8")
    # safetensors lets nobody else read its file, whatever the umask says
    (folder / "state.safetensors").chmod((folder / "state.json").stat().st_mode)


def load_state(folder: Path, hint: str = REMOVE) -> dict[str, Any]:
    """Reads back what :func:`save_state` wrote.

    Args:
        folder: that it was written into.
        hint: what to do if it is damaged.

    Raises:
        CheckpointError: if a file is missing, damaged, or of an unknown format.
    """
    try:
        about = dict(json.loads((folder / "state.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError("checkpoint", "state.json", "readable", str(folder), f"{hint} ({error})") from error
    if about.get("format") != FORMAT:
        raise CheckpointError("checkpoint", "format", str(FORMAT), about.get("format"), "Use the perdure that wrote it")
    file, name = folder / "state.safetensors", "state.json and state.safetensors"
    try:
        if _checksum(folder, about.get("state")) != about.get("checksum"):
            raise CheckpointError("checkpoint", name, "complete and unchanged", str(folder), hint)
        # safetensors maps no file whose path is not UTF-8
        tensors = load_file(file) if typed(str(file)) == str(file) else load(file.read_bytes())
    except (OSError, RuntimeError) as error:  # it is not there, or another process has just removed it
        raise CheckpointError("checkpoint", name, "complete and unchanged", str(folder), f"{hint} ({error})") from error
    state: dict[str, Any] = _from_tree(about["state"], tensors)
    return state


def state_after(folder: Path, tasks: Sequence[Mapping[int, str]]) -> dict[str, Any]:
    """The state that a run's task left.

    Args:
        folder: of that task.
        tasks: class ids with their names, of that task and of all before.

    Raises:
        CheckpointError: if the state cannot be read, or is not of these tasks.
    """
    state, n, hint = load_state(folder), len(tasks), "Remove the run directory and start again"
    if state.get("tasks_seen_") != n:
        raise CheckpointError("run", f"state in {folder}", f"of {n} tasks", state.get("tasks_seen_"), hint)
    names = {c: name for task in tasks for c, name in task.items()}
    for key, wanted in (("classes_", list(names)), ("names_", list(names.values()))):
        if state.get(key) != wanted:
            must_be = f"of the stream's {n} first tasks, their classes in order"
            raise CheckpointError("run", f"state in {folder}", must_be, state.get(key), hint)
    return state


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in a state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(tensor_bytes(v) for v in state.values())
    return sum(tensor_bytes(v) for v in state) if isinstance(state, list | tuple) else 0


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each in a storage of its own; only views and aliases are copied."""
    found: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        storage = dense.untyped_storage()
        if storage.nbytes() != dense.numel() * dense.element_size() or storage.data_ptr() in storages:
            dense = dense.clone()
        storages.add(dense.untyped_storage().data_ptr())
        found[key] = dense
    return found


def _to_tree(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        tensors[path] = value
        return {"$tensor": path}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise CheckpointError("checkpoint", f"keys of {path}", "text", key, "Use str keys in learned dicts")
        return {k: _to_tree(v, f"{path}.{k}" if path else k, tensors) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_tree(v, f"{path}.{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        hint = "A method must not learn such a number; keep NaN in a tensor if it is meant"
        raise CheckpointError("checkpoint", path, "a finite number", value, hint)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    hint = "Keep learned attributes as tensors, modules, numbers, text, lists and dicts"
    raise CheckpointError("checkpoint", path, "a tensor or a plain value", type(value).__name__, hint)


def _from_tree(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if set(tree) == {"$tensor"}:
            return tensors[tree["$tensor"]]
        return {k: _from_tree(v, tensors) for k, v in tree.items()}
    return [_from_tree(v, tensors) for v in tree] if isinstance(tree, list) else tree


def _checksum(folder: Path, tree: Any) -> str:
    with open(folder / "state.safetensors", "rb") as stream:
        digest = hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16))
    digest.update(json.dumps(tree).encode())
    return digest.hexdigest()
