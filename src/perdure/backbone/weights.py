"""timm models with hub, local or random weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from huggingface_hub import constants, get_session
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import nn

from perdure.errors import BackboneError, told


def timm_model(name: str, pretrained: bool, init_seed: int) -> nn.Module:
    """A timm model without classifier.

    Args:
        name: with the weights' tag.
        pretrained: whether to fetch them.
        init_seed: of random weights.

    Raises:
        BackboneError: if the weights cannot be had.
    """
    with fetching(name, pretrained, init_seed):
        model: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=0)
    return model


@contextlib.contextmanager
def fetching(name: str, pretrained: bool, init_seed: int, file: Path | None = None) -> Iterator[None]:
    """Weights come from the hub, or from its cache if the hub is silent; random ones are drawn with a seed.

    Args:
        name: whose weights.
        pretrained: whether to fetch them.
        init_seed: of random weights.
        file: where the weights are, if they are a file's.

    Raises:
        BackboneError: if the weights cannot be had, or do not fit.
    """
    silent = _why_the_hub_is_silent() if pretrained else None
    with _seeded(init_seed), _hub_cache_alone() if silent else contextlib.nullcontext():
        try:
            yield
        except Exception as error:  # hub, network and file errors of several libraries
            if file is not None:
                must_be, hint = "a checkpoint of that architecture", f"Check name and file ({told(error)})"
                raise BackboneError("Backbone.load", f"weights of {name}", must_be, str(file), hint) from error
            reason = silent if silent and _not_in_the_cache(error) else told(error)
            hint = f"Connect to the hub, give weights=FILE, or pretrained=false ({reason})"
            raise BackboneError("Backbone.load", f"weights of {name}", "reachable", "none", hint) from error


def _not_in_the_cache(error: BaseException | None) -> bool:
    """Whether a file was missing at the bottom of what went wrong."""
    while error is not None and not isinstance(error, LocalEntryNotFoundError):
        error = error.__cause__ or error.__context__
    return error is not None


def _why_the_hub_is_silent() -> str | None:
    """The error of one request to the hub; ``None`` if it answers, whatever it says, or need not be asked."""
    if constants.HF_HUB_OFFLINE:
        return None
    try:
        get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:  # of the hub's network library, which changes with its version
        return f"{constants.ENDPOINT}: {told(error)}"
    return None


@contextlib.contextmanager
def _hub_cache_alone() -> Iterator[None]:
    """Weights come from the hub's cache or not at all; its library would ask a silent hub for a minute, aloud."""
    was, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was


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
