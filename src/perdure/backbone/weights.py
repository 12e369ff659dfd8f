"""timm models with hub, local or random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from torch import nn

from perdure.errors import BackboneError


def timm_model(name: str, pretrained: bool, init_seed: int) -> nn.Module:
    """A timm model without classifier.

    Args:
        name: with the weights' tag.
        pretrained: whether to fetch them.
        init_seed: of random weights.

    Raises:
        BackboneError: if the weights cannot be had.
    """
    with _seeded(init_seed):
        try:
            model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
        except Exception as error:  # hub, network and file errors of several libraries
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            hint = f"Connect to the hub, give weights=FILE.safetensors, or pretrained=false ({reason})"
            raise BackboneError("Backbone.load", f"weights of {name}", "reachable", "none", hint) from error
    return model


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def load_weights(model: nn.Module, path: Path) -> None:
    """Loads a safetensors file into a model; entries the model lacks are ignored.

    Args:
        model: changed in place.
        path: the file.

    Raises:
        BackboneError: if there is no such file, it cannot be read, or a tensor is missing or of another shape.
    """
    where, hint = "Backbone.load", "Save the model's state dict with safetensors.torch.save_file"
    if not path.is_file():
        raise BackboneError(where, "weights", "an existing safetensors file", str(path), hint)
    try:
        given = load_file(path)
    except Exception as error:  # safetensors raises its own untyped error
        raise BackboneError(where, "weights", "a safetensors file", str(path), f"{hint} ({error})") from error
    wanted = model.state_dict()
    missing = [k for k in wanted if k not in given]
    misshapen = [f"{k} {tuple(given[k].shape)}" for k in wanted if k in given and given[k].shape != wanted[k].shape]
    if missing or misshapen:
        got = {"missing": missing[:5], "other shape": misshapen[:5]}
        raise BackboneError(where, f"weights in {path}", "this architecture's", got, "Check name and file")
    model.load_state_dict({k: given[k] for k in wanted})
