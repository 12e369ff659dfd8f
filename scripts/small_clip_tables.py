"""The tables of the small CLIPs' card, from their result file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from scripts.table_cells import head_of, row_of
from scripts.table_recipes import RESULTS

SETS = {
    "caltech101": "Caltech-101, 101 classes",
    "caltech101, new names": "its 70 names new to ImageNet",
    "cifar10": "CIFAR-10",
    "fashion-mnist": "Fashion-MNIST",
}


def _found() -> dict[str, Any]:
    held: dict[str, Any] = json.loads((RESULTS / "small_clips.json").read_text(encoding="utf-8"))
    return held


def small_clips_table() -> str:
    """Both CLIPs on the test images: in the chosen template and in the usual one; scale and probabilities."""
    lines = head_of("CLIP, template", [*SETS.values(), "logit scale"])
    for clip, found in _found()["shipped"].items():
        for template in (found["template"], "a photo of a {}."):
            cells = [f"{100 * found['all']['test'][template][name]:.1f}" for name in SETS]
            lines.append(row_of(f"`{clip}`, “{template}”", [*cells, f"{found['logit_scale']:.1f}"]))
        told = [f"{100 * found['mean_probability_of_the_answer']['test'][name]:.1f}" for name in SETS]
        lines.append(row_of(f"`{clip}`: its answers' mean probability, “{found['template']}”", [*told, ""]))
    return "\n".join(lines)


def small_clip_steps_table(clip: str) -> str:
    """What each step brings, on the training images that chose it and on the test images.

    Args:
        clip: whose steps.
    """
    shown = [name for name in SETS if name != "fashion-mnist"]
    lines = head_of("step, with its best template", ["mean of train", *(f"test: {SETS[name]}" for name in shown)])
    for step, found in _found()["steps"][clip].items():
        cells = [f"{100 * found['mean_of_train']:.1f}", *(f"{100 * found['test'][name]:.1f}" for name in shown)]
        lines.append(row_of(f"{step}, “{found['template']}”", cells))
    return "\n".join(lines)


SMALL_CLIP_TABLES: dict[str, Callable[[], str]] = {
    "table:small-clips": small_clips_table,
    "table:small-clip-lite0": lambda: small_clip_steps_table("clip_lite0"),
    "table:small-clip-default": lambda: small_clip_steps_table("clip_default"),
}
