"""Reads the settings of results on record that were kept flat, before methods had sections, as they are written today.

Only form and names differ: what was kept is put in its section, and what the method did not use is left out.
"""

from __future__ import annotations

from typing import Any

TRAIN = {"finetune": "", "joint": "", "slca": "", "ease": "adapter", "mos": "adapter", "mos_release": "adapter"}
TRAIN |= {"aper": "adapt", "ranpac": "adapt", "fecam": "adapt"}
"""The section, of each method with sections, that has the section ``train`` in it."""

TRAINING = ("lr", "epochs", "batch_size", "clip_norm")
VIEWS = ("min_scale", "flip", "resize")
ALIGNMENT = {"align_epochs": "epochs", "align_lr": "lr", "align_batch": "batch_size"}
ALIGNMENT |= {key: key for key in ("samples", "tau", "mean_decay", "ridge")}
PART = {"adapter": ("rank",), "vpt_shallow": ("prompt_length", "prompt_init")}
PART["vpt_deep"] = PART["vpt_shallow"]


def in_sections(method: dict[str, Any]) -> dict[str, Any]:
    """A method's settings in sections.

    Args:
        method: name and settings as recorded, flat or in sections already, all of them or some.
    """
    name = method["name"]
    if name not in TRAIN or any(isinstance(value, dict) for value in method.values()):
        return method
    new = dict(method)
    train = _training(new)
    part = {key: new.pop(key) for key in ("rank", "prompt_length", "prompt_init") if key in new}
    if name in ("slca", "mos", "mos_release"):
        align = {to: new.pop(key) for key, to in ALIGNMENT.items() if key in new}
        new["align"] = None if align.get("epochs") == 0 else align
    if not TRAIN[name]:
        return new | {"train": train}
    variant = "adapter"
    if TRAIN[name] == "adapt":
        variant = new.pop("variant" if name == "aper" else "adapt", None)
        if variant in (None, "none"):
            return new | {"adapt": None}
    part = {key: part[key] for key in PART.get(variant, ()) if key in part}
    return new | {TRAIN[name]: {"variant": variant, **part, "train": train}}


def _training(old: dict[str, Any]) -> dict[str, Any]:
    """Takes the settings of a training out of ``old``."""
    train: dict[str, Any] = {key: old.pop(key) for key in TRAINING if key in old}
    names = {"optimizer": "name", "weight_decay": "weight_decay"}
    optimizer = {to: old.pop(key) for key, to in names.items() if key in old}
    schedule = {"name": old.pop("schedule")} if "schedule" in old else {}
    milestone = old.pop("milestone", None)
    schedule |= {"milestone": milestone} if milestone is not None else {}
    augment = {key: old.pop(key) for key in VIEWS if key in old}
    sections = {"optimizer": optimizer, "schedule": schedule, "augment": augment}
    return train | {key: values for key, values in sections.items() if values}
