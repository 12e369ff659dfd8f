"""Full timm names: which weights a name means, said aloud when the name leaves it open."""

from __future__ import annotations

import warnings

import timm
from timm.models import get_pretrained_cfg, is_model, split_model_name_tag

from perdure.backbone.registered import backbones
from perdure.errors import UnknownNameError, did_you_mean


class BareNameWarning(UserWarning):
    """A timm name without its weights' tag: it means other weights in other timm versions."""


def full_timm_name(name: str, *, pretrained: bool) -> str:
    """``name`` with its weights' tag.

    Args:
        name: a timm model name, with or without tag.
        pretrained: whether its weights will be used; without them a bare name is complete.

    Raises:
        UnknownNameError: with close matches, for an unknown model or tag.
    """
    architecture, tag = split_model_name_tag(name)
    if not is_model(architecture):
        hint = did_you_mean(architecture, [*timm.list_models(), *backbones.names()])
        raise UnknownNameError("Backbone.load", "backbone", "a timm model", name, hint)
    known = [split_model_name_tag(full)[1] for full in timm.list_pretrained(architecture + ".*") + _bare(architecture)]
    if tag and tag not in known:
        hint = did_you_mean(name, [f"{architecture}.{t}" for t in known if t] or [architecture])
        raise UnknownNameError("Backbone.load", "weights tag", f"one timm has for {architecture}", name, hint)
    if tag or not pretrained:
        return name
    config = get_pretrained_cfg(architecture)
    taken = f"{architecture}.{config.tag}" if config is not None and config.tag else architecture
    message = (
        f"{name} names an architecture, not weights: taking {taken}, the default of timm {timm.__version__}. "
        "Write the full tag so that the run means the same everywhere."
    )
    if taken != name:
        warnings.warn(BareNameWarning(message), stacklevel=3)
    return taken


def _bare(architecture: str) -> list[str]:
    return [full for full in timm.list_pretrained(architecture) if full == architecture]
