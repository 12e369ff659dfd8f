"""What images pass through: a backbone's own layers, copies with other weights, or views with something inserted."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn


class Watch:
    """Sees every layer that is called, of a backbone's model and of all its copies and views, made in whatever way.

    Args:
        model: the backbone's; the copies are made later.
    """

    def __init__(self, model: nn.Module) -> None:
        self._called: dict[int, tuple[nn.Module, nn.Module]] | None = None  # a layer, and the model's own of its name
        for layer in model.modules():
            layer.register_forward_hook(_Look(self, layer).look)

    @contextmanager
    def seeing(self) -> Iterator[None]:
        """While it lasts, calls are seen; those seen earlier are forgotten."""
        self._called = {}
        try:
            yield
        finally:
            self._seen, self._called = list(self._called.values()), None

    @property
    def inserted(self) -> bool:
        """Whether a layer that was called had a module inserted."""
        return any(_has_insertion(layer) for layer, _ in self._seen)

    @property
    def other_weights(self) -> bool:
        """Whether a layer that was called had other weights than the model's own."""
        return any(
            not torch.equal(one.to(own.device), own)
            for layer, known in self._seen
            if layer is not known
            for one, own in zip(layer.parameters(recurse=False), known.parameters(recurse=False), strict=True)
        )

    def called(self, layer: nn.Module, known: nn.Module) -> None:
        """Notes a call.

        Args:
            layer: what was called.
            known: the model's own layer of its name.
        """
        if self._called is not None:
            self._called[id(layer)] = (layer, known)


@dc.dataclass(slots=True, eq=False)
class _Look:
    """A forward hook that copies of its layer share."""

    is_insertion: ClassVar = True  # changes nothing, so no fingerprint tells it

    watch: Watch
    known: nn.Module

    def __deepcopy__(self, memo: dict[int, Any]) -> _Look:
        return self

    def look(self, layer: nn.Module, args: Any, out: Any) -> None:
        self.watch.called(layer, self.known)


def _has_insertion(layer: nn.Module) -> bool:
    hooks = (*layer._forward_hooks.values(), *layer._forward_pre_hooks.values())
    holders = [getattr(hook, "__self__", None) for hook in hooks]
    return any(getattr(h, "is_insertion", False) and not isinstance(h, _Look) for h in holders)
