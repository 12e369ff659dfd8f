"""What tells a backbone from every other: by its weights, by what it computes with them, and by who computes."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import split_model_name_tag
from torch import nn

from perdure.backbone.insertable import Insertable
from perdure.backbone.settings import digest_of, settings_of, tensors_of, unusual_settings, who_computes
from perdure.data.preprocess import Preprocess


class Identified(Insertable):
    """A stock model, what is inserted into it, and three hashes of it, each of more than the one before."""

    preprocess: Preprocess
    precision: str
    device: torch.device

    def __init__(self) -> None:
        super().__init__()
        self.source: dict[str, Any] | None = None  # what Backbone.load was asked for, if it made this one
        self._weights: tuple[object, str] | None = None

    @property
    def identity(self) -> str:
        """What a method learned on: architecture, weights, settings, insertions and eval view.

        The device and the precision are no part of it, so that a method learned on a GPU goes on on a CPU.

        Raises:
            BackboneError: as for :attr:`fingerprint`.
        """
        return digest_of(
            ("identity", split_model_name_tag(self.name)[0], *self._what_computes("Backbone.identity")), {}
        )

    @property
    def fingerprint(self) -> str:
        """What the model is, in one hash: name, weights, settings, insertions, preprocessing and arithmetic.

        Of the model's settings (pooling, activations, strides, …) it holds those that are not the stock model's, so
        that it outlasts an upgrade of the libraries. Features of equal fingerprints are equal up to rounding: see
        :attr:`shelf`.

        Raises:
            BackboneError: for a backbone of which something may still be trained: its features must not be kept; or
                for a setting that cannot be told apart, naming it.
        """
        return self._of_images

    @property
    def _of_images(self) -> str:
        """All that an image's features depend on, up to rounding."""
        tf32 = self.device.type == "cuda" and torch.backends.cuda.matmul.allow_tf32
        arithmetic = (self.name, self.precision, self.device.type, tf32)
        return digest_of((*arithmetic, *self._what_computes("Backbone.fingerprint")), {})

    @property
    def shelf(self) -> str:
        """What features must have in common to stand side by side, to the last bit, in one hash.

        Beside the fingerprint, that is who computes: the versions of torch, timm, Pillow and of the rule by which files
        become RGB (:mod:`perdure.data.reading`), attention fused or not, and the code of modules of no library.

        Raises:
            BackboneError: as for :attr:`fingerprint`.
        """
        parts = nn.ModuleList([self.model, self.insertions])
        return digest_of((self._of_images, *who_computes(parts)), {})

    def _what_computes(self, where: str) -> tuple[object, ...]:
        """The eval view, the settings that are not the stock model's, and one hash of all weights, made once."""
        self._require_frozen(where)
        tensors = {**tensors_of(self.model), **tensors_of(self.insertions, "+")}
        versions = tuple((k, v.data_ptr(), v._version) for k, v in tensors.items())
        if self._weights is None or self._weights[0] != versions:
            self._weights = (versions, digest_of((), tensors))
        inserted = tuple(settings_of(self.insertions, "+").items()) if len(self.insertions) else ()
        return self.preprocess, self._weights[1], *unusual_settings(self.model, self.name), *inserted
