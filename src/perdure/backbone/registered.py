"""Backbones by name that are no timm names: those of perdure, and those of plug-ins.

A loader takes nothing and returns a model with its weights, without classifier, and the eval view that they want. The
model offers what a timm model of ``num_classes=0`` does: ``forward_features``, ``forward_head``, ``head_hidden_size``.
"""

from __future__ import annotations

from collections.abc import Callable

from timm.models import is_model, split_model_name_tag
from torch import nn

from perdure.data.preprocess import Preprocess
from perdure.errors import BackboneError
from perdure.registry import Registry

Loader = Callable[[], tuple[nn.Module, Preprocess]]
PAIR = (nn.Module, Preprocess)
OFFERED = ("forward_features", "forward_head", "head_hidden_size")

backbones: Registry[Loader] = Registry("backbone", "perdure.backbone", "perdure.backbones")


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
    if name not in backbones:
        return False
    if not own_weights and not in_timm:
        got, hint = "random ones or those of a file", "Leave out weights and pretrained, or name a timm model"
        raise BackboneError("Backbone.load", f"weights of {name}", "its own", got, hint)
    return own_weights


def load_registered(name: str) -> tuple[nn.Module, Preprocess]:
    """A registered model and its eval view.

    Args:
        name: of a registered backbone.

    Raises:
        BackboneError: if its loader returns something else.
        UnknownNameError: if there is none, or its plug-in could not be loaded.
    """
    made = backbones.get(name)()
    hint = "Correct the loader; perdure.backbone.registered says what it returns"
    if not (isinstance(made, tuple) and len(made) == 2 and all(map(isinstance, made, PAIR))):
        raise BackboneError("Backbone.load", f"what the loader of {name} returns", "(model, Preprocess)", made, hint)
    lacking = [part for part in OFFERED if not hasattr(made[0], part)]
    if lacking:
        got = f"a {type(made[0]).__name__} without {', '.join(lacking)}"
        raise BackboneError("Backbone.load", f"model of {name}", f"one with {', '.join(OFFERED)}", got, hint)
    return made
