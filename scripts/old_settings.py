"""Reads the settings of results on record that were kept flat, before methods had sections, as they are written today.

Only form and names differ: what was kept is put in its section, and what the method did not use is left out.
"""

from __future__ import annotations

from typing import Any

TRAIN = {"finetune": "", "joint": "", "slca": "", "ease": "adapter", "mos": "adapter", "mos_release": "adapter"}
TRAIN |= {"aper": "adapt", "ranpac": "adapt", "fecam": "adapt"}
"""The section, of each method with sections, that has the section ``train`` in it."""

PROMPTS = ("vpt", "l2p", "dualprompt", "coda_prompt", "dap")
TRAIN |= dict.fromkeys(PROMPTS, "")
TRAINING = ("lr", "epochs", "batch_size", "clip_norm", "shuffle", "drop_last", "scale_lr")
VIEWS = ("min_scale", "flip", "resize")
ALIGNMENT = {"align_epochs": "epochs", "align_lr": "lr", "align_batch": "batch_size"}
ALIGNMENT |= {key: key for key in ("samples", "tau", "mean_decay", "ridge")}
PART = {"adapter": ("rank",), "vpt_shallow": ("prompt_length", "prompt_init")}
PART["vpt_deep"] = PART["vpt_shallow"]

CHOSEN = {"ridge_value": "first", "validation_fraction": "validation_fraction"}
RANPAC = {"ridge": {"per_task": CHOSEN, "cumulative": CHOSEN, "fixed": {"ridge_value": "value"}}}
SHRUNK = {key: key for key in ("shrink_diagonal", "shrink_off_diagonal", "normalise", "log_determinant")}
FECAM = {"features": {"unit": {}, "raw": {}, "tukey": {"power": "power"}}, "metric": {"shrunk": SHRUNK, "pilot": {}}}
KINDS: dict[str, dict[str, dict[str, dict[str, str]]]] = {"ranpac": RANPAC, "fecam": FECAM}
"""By method and section, the kinds, of which the first is the default: a kind's settings, as they were and are."""


def in_sections(method: dict[str, Any]) -> dict[str, Any]:
    """A method's settings in sections.

    Args:
        method: name and settings as recorded, flat or in sections already, all of them or some.
    """
    name = method["name"]
    if name not in TRAIN or any(isinstance(value, dict) for value in method.values()):
        return method
    new = _in_kinds(KINDS.get(name, {}), _covariance(method) if name == "fecam" else method)
    train = _training(new)
    part = {key: new.pop(key) for key in ("rank", "prompt_length", "prompt_init") if key in new}
    if name in ("slca", "mos", "mos_release"):
        align = {to: new.pop(key) for key, to in ALIGNMENT.items() if key in new}
        new["align"] = None if align.get("epochs") == 0 else align
    if name in PROMPTS:
        return _prompted(new) | {"train": train}
    if not TRAIN[name]:
        return new | {"train": train}
    variant = "adapter"
    if TRAIN[name] == "adapt":
        variant = new.pop("variant" if name == "aper" else "adapt", None)
        if variant in (None, "none"):
            return new | {"adapt": None}
    part = {key: part[key] for key in PART.get(variant, ()) if key in part}
    return new | {TRAIN[name]: {"variant": variant, **part, "train": train}}


def _prompted(old: dict[str, Any]) -> dict[str, Any]:
    """What else a prompt method has in sections."""
    name, new = old["name"], dict(old)

    def taken(**names: str) -> dict[str, Any]:
        return {to: new.pop(key) for key, to in names.items() if key in new}

    logits, query_view = taken(train_logits="logits"), taken(query_view="query_view")
    vote, votes = taken(eval_batch="batch_size", eval_order="order"), new.pop("select_eval", None)
    if votes is not None:
        new["vote"] = vote if votes == "batch_vote" else None
    if name == "vpt":
        seen = logits.get("logits") == "seen" and new.get("mode", "sequential") == "sequential"
        return new | ({"mode": "sequential_seen"} if seen else {})
    new |= logits
    if name == "l2p" and "train_prompt" in new:
        group, copy = taken(train_vote_group="vote"), taken(copy_prev="copy_prev")
        vote = {"vote": group.get("vote") or "batch"} if new.pop("select_train", "") == "batch_vote" else {"vote": None}
        new["train_prompts"] = {"name": new.pop("train_prompt"), **vote}
        if new["train_prompts"]["name"] == "task_slot":
            new["train_prompts"] = {"name": "task_slot", **copy}
    if name == "coda_prompt" and "components_per_task" in new:
        each, ortho, init = new.pop("components_per_task"), taken(ortho="ortho"), new.pop("init")
        pool = taken(pool="pool", tasks="tasks")
        kind = {"name": "per_task", "each": each, **ortho}
        if pool.get("pool") is not None:
            kind = {"name": "pool", **pool, **({"ortho": "whole"} if init == "pool" else ortho)}
        new["components"] = kind
    if name in ("dualprompt", "dap"):
        update, keys = new.pop("key_update", "sgd"), taken(pull="pull", pull_over="pull_over") | query_view
        return new | ({"keys": {"name": update, **(keys if update == "sgd" else {})}} if keys else {})
    return new | query_view


def _covariance(method: dict[str, Any]) -> dict[str, Any]:
    """FeCAM's matrix and its covariance by their names of today."""
    new = {key: value for key, value in method.items() if key != "returning"}
    if new.get("covariance", "class") == "class" and method.get("returning") == "half":
        new["covariance"] = "class_half"
    if "normalise" in new:
        new["metric"] = "pilot" if new["normalise"] == "pilot" else "shrunk"
        new["normalise"] = new["normalise"] == "correlation"
    return new


def _in_kinds(sections: dict[str, dict[str, dict[str, str]]], method: dict[str, Any]) -> dict[str, Any]:
    """What only one kind of a section has goes into that section; what the others have is left out."""
    new = dict(method)
    for section, kinds in sections.items():
        kept = {"name": new.pop(section)} if section in new else {}
        names = kinds[kept.get("name", next(iter(kinds)))]
        found = {key: new.pop(key) for key in {key: None for of in kinds.values() for key in of} if key in new}
        kept |= {names[key]: value for key, value in found.items() if key in names}
        new |= {section: kept} if kept else {}
    return new


def _training(old: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings of a training out of ``old``."""
    train: dict[str, Any] = {key: old.pop(key) for key in TRAINING if key in old}
    names = {"optimizer": "name", "weight_decay": "weight_decay"}
    optimizer = {to: old.pop(key) for key, to in names.items() if key in old}
    moments = {key: old.pop(key) for key in ("beta1", "beta2", "amsgrad") if key in old}
    optimizer |= moments if optimizer.get("name", "adam") != "sgd" else {}
    schedule = {"name": old.pop("schedule")} if "schedule" in old else {}
    if schedule.get("name") == "quarter_cosine_released":
        schedule = {"name": "quarter_cosine", "released": True}
    milestone = old.pop("milestone", None)
    schedule |= {"milestone": milestone} if milestone is not None else {}
    augment = {key: old.pop(key) for key in VIEWS if key in old}
    sections = {"optimizer": optimizer, "schedule": schedule, "augment": augment}
    return train | {key: values for key, values in sections.items() if values}
