"""Backbones by name that are no timm names: those of perdure, and those of plug-ins.

A loader takes nothing and returns a model with its weights, without classifier, and the eval view that they want. The
model offers what a timm model of ``num_classes=0`` does: ``forward_features``, ``forward_head``, ``head_hidden_size``.
A loader of backbones with more to them, such as a text tower, returns a :class:`Stock`. One whose name ends in a slash
is of a whole family, ``open_clip/``: it takes the rest of the name, and the asked weights.
"""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from timm.models import is_model, split_model_name_tag
from torch import nn

from perdure.data.preprocess import Preprocess
from perdure.errors import BackboneError
from perdure.registry import Registry


@dc.dataclass(frozen=True)
class Stock:
    """What a backbone is made of.

    Args:
        model: with its weights, without classifier.
        preprocess: the eval view that they want.
        kind: the backbone's class; ``Backbone`` if not given.
        parts: its further arguments.
    """

    model: nn.Module
    preprocess: Preprocess
    kind: Callable[..., Any] | None = None
    parts: Mapping[str, Any] = dc.field(default_factory=dict)


Loader = Callable[..., Any]  # a Stock, or a pair
PAIR = (nn.Module, Preprocess)
OFFERED = ("forward_features", "forward_head", "head_hidden_size")
FAMILY = "/"

backbones: Registry[Loader] = Registry("backbone", "perdure.backbone", "perdure.backbones")


def family_of(name: str) -> str:
    """The registered family that a name belongs to, with its slash; empty if it is of none.

    Args:
        name: any.
    """
    family = name.partition(FAMILY)[0] + FAMILY
    return family if FAMILY in name and family in backbones else ""


def means_registered(name: str, *, own_weights: bool) -> bool:
    """Whether a backbone's name means a registered one, and not a timm model.

    Args:
        name: any.
        own_weights: whether it is to have the weights it comes with.

    Raises:
        BackboneError: for other weights of a registered one that timm does not know.
        UnknownNameError: for the name of a plug-in that could not be loaded.
    """
    in_timm = is_model(split_model_name_tag(name)[0])
    if name in backbones.broken() and not in_timm:
        backbones.get(name)
    if family_of(name):
        return True
    if name not in backbones:
        return False
    if not own_weights and not in_timm:
        got, hint = "random ones or those of a file", "Leave out weights and pretrained, or name a timm model"
        raise BackboneError("Backbone.load", f"weights of {name}", "its own", got, hint)
    return own_weights


def load_registered(name: str, **asked: Path | bool | int | None) -> Stock:
    """A registered model, its eval view, and what else it has.

    Args:
        name: of a registered backbone, or of a family.
        asked: ``weights``, ``pretrained`` and ``init_seed``; for a family alone.

    Raises:
        BackboneError: if its loader returns something else.
        UnknownNameError: if there is none, or its plug-in could not be loaded.
    """
    family = family_of(name)
    made = backbones.get(family)(name.removeprefix(family), **asked) if family else backbones.get(name)()
    hint = "Correct the loader; perdure.backbone.registered says what it returns"
    if isinstance(made, tuple) and len(made) == 2 and all(map(isinstance, made, PAIR)):
        made = Stock(*made)
    if not isinstance(made, Stock):
        raise BackboneError("Backbone.load", f"what the loader of {name} returns", "(model, Preprocess)", made, hint)
    lacking = [part for part in OFFERED if not hasattr(made.model, part)]
    if lacking:
        got = f"a {type(made.model).__name__} without {', '.join(lacking)}"
        raise BackboneError("Backbone.load", f"model of {name}", f"one with {', '.join(OFFERED)}", got, hint)
    return made
