"""A stock pretrained model: frozen, fingerprinted, and counting every image that passes through it."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Self

import torch
from jaxtyping import Float, Num
from timm.data import resolve_data_config
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from perdure.backbone.device import device_of, exact_convolutions
from perdure.backbone.identity import Identified
from perdure.backbone.input_size import require_size
from perdure.backbone.names import full_timm_name
from perdure.backbone.passes import CPU_BATCH, Passes, finite, in_cpu_batches
from perdure.backbone.registered import Stock, load_registered, means_registered
from perdure.backbone.vit import Prompts, TokenOutput, check_vit, embed_patches, walk
from perdure.backbone.weights import load_weights, timm_model
from perdure.data.preprocess import Preprocess, preprocess_from_config
from perdure.errors import ConfigError

PRECISIONS: Final = {"float32": None, "bfloat16": torch.bfloat16}


class Backbone(Identified):
    """A stock timm model without its classifier, frozen and in eval mode.

    Args:
        model: a timm model with ``num_classes=0``.
        name: its full name, with the weights' tag.
        preprocess: the eval view its weights want.
        device: ``auto`` (CUDA, then Apple's MPS, then CPU), or any torch device.
        precision: ``float32`` or ``bfloat16`` (autocast; weights stay float32).

    Raises:
        ConfigError: for an unknown precision, a device this machine lacks, or an image size the model does not take.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        preprocess: Preprocess,
        device: str = "auto",
        precision: str = "float32",
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise ConfigError("Backbone", "precision", f"one of {sorted(PRECISIONS)}", precision, "Use float32")
        require_size(model, preprocess.image_size, name)
        self.device = device_of(device)
        # channels-last convolutions are up to five times faster on a CPU and no slower elsewhere
        self.model = model.eval().requires_grad_(False).to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.name, self.preprocess, self.precision = name, preprocess, precision
        self.width = int(model.head_hidden_size)  # type: ignore[arg-type]  # of a token too, in a Vision Transformer
        self.dim = self.width
        self.passes = Passes()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        weights: str | Path | None = None,
        pretrained: bool = True,
        preset: str | None = None,
        init_seed: int = 0,
        device: str = "auto",
        precision: str = "float32",
    ) -> Backbone:
        """A backbone by name.

        Args:
            name: ``default`` (the built-in Vision Transformer), ``efficientnet_lite0``, ``clip_default`` or
                ``clip_lite0``, all offline; one that a plug-in registers; ``open_clip/ARCHITECTURE/WEIGHTS``; or any
                timm name: give the full tag, as in ``vit_base_patch16_224.augreg_in21k``, for a bare name means
                whatever timm's default is.
            weights: a local safetensors file for the timm model ``name``, or any checkpoint of open_clip's.
            pretrained: ``False`` for random weights drawn with ``init_seed``.
            preset: a named preprocessing in place of the weights' own; see ``PREPROCESS_PRESETS``.
            init_seed: seed of random weights.
            device: see :class:`Backbone`.
            precision: see :class:`Backbone`.

        Raises:
            UnknownNameError: for an unknown name or preset, with close matches.
            BackboneError: if the weights cannot be had or do not fit.
        """
        own = pretrained and weights is None
        if means_registered(name, own_weights=own):
            file = None if weights is None else Path(weights)
            stock = load_registered(name, weights=file, pretrained=pretrained, init_seed=init_seed)
        else:
            name = full_timm_name(name, pretrained=own)
            model = timm_model(name, own, init_seed)
            if weights is not None:
                load_weights(model, Path(weights))
            stock = Stock(model, preprocess_from_config(resolve_data_config({}, model=model)))
        view = stock.preprocess.with_preset(preset)
        made = (stock.kind or cls)(
            stock.model, name=name, preprocess=view, device=device, precision=precision, **stock.parts
        )
        made.source = {
            "name": name, "weights": weights and str(Path(weights).absolute()), "pretrained": pretrained,
            "preset": preset, "init_seed": init_seed, "precision": precision,
        }  # fmt: skip
        return made

    @property
    def batch_size(self) -> int:
        """Images per frozen forward pass: few enough, on a CPU, that features do not depend on their number."""
        return CPU_BATCH if self.device.type == "cpu" else 256

    def features(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Pooled features without gradient, float32.

        An image's features do not depend on its batch, to the last bit where the kernels allow it: on a CPU images
        pass ``batch_size`` at a time and a single one is doubled, because convolutions and matrix products take other
        kernels for one image and for 16 or more, whose last bits differ.

        Args:
            images: uint8 pixels of the eval view, or floating point already normalised.

        Raises:
            ShapeError: if ``images`` is not a batch of RGB images.
            NonFiniteError: with the position of the first image whose features are not finite.
        """
        return self._frozen(self.embed, self.preprocess.normalise(images.to(self.device)))

    def features_of_patches(self, patches: Float[Tensor, "b nd"]) -> Float[Tensor, "b d"]:
        """:meth:`features` from :meth:`embed_tokens`, whose tokens stand side by side in a row.

        Args:
            patches: rows of ``FeatureStore.patches``.

        Raises:
            NonFiniteError: as for :meth:`features`.
        """
        x = patches.unflatten(1, (-1, self.tokens_shape[1])).to(self.device)  # as many tokens as the image size makes
        return self._frozen(lambda part: self.pool(self.walk(part)), x)

    def _frozen(self, compute: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with torch.no_grad():
            return finite(self.in_batches(compute, x) if len(x) else torch.zeros(0, self.dim, device=self.device))

    def in_batches(self, compute: Callable[..., Tensor], *rows: Tensor, passes: int = 1) -> Tensor:
        """``compute`` of all rows, by batches in which an image's result does not depend on the others.

        On a CPU these hold ``batch_size`` images, and a single image is doubled; elsewhere all pass at once.

        Args:
            compute: maps a batch of each of ``rows`` to one result per image, (b, …).
            rows: of equal length.
            passes: how many passes per image ``compute`` makes; a double counts as none.
        """
        if self.device.type != "cpu":
            return compute(*rows)
        return in_cpu_batches(compute, rows, lambda: self.passes.add(-passes))

    def embed(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Pooled features, with gradient where the backbone is thawed.

        Args:
            images: as for :meth:`features`.
        """
        x = self.preprocess.normalise(images.to(self.device)).contiguous(memory_format=torch.channels_last)
        self.passes.add(len(x))
        with self.autocast():
            tokens = self.model.forward_features(x)
            pooled: Tensor = self.model.forward_head(tokens, pre_logits=True)
        return pooled.float()

    @property
    def vit(self) -> VisionTransformer:
        """The model as a Vision Transformer that the block walk knows.

        Raises:
            BackboneError: if it is something else.
        """
        return check_vit(self.model, self.name)

    @functools.cached_property
    def tokens_shape(self) -> tuple[int, int]:
        """(n, d) of one image's :meth:`embed_tokens`."""
        size = self.preprocess.image_size
        with torch.no_grad():
            n, d = self.embed_tokens(torch.zeros(1, 3, size, size))[0].shape
        return n, d

    def embed_tokens(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """The input of a Vision Transformer's first block; several walks over the same images share it.

        Args:
            images: as for :meth:`features`.

        Raises:
            BackboneError: if the model is no Vision Transformer that the block walk knows.
        """
        vit = self.vit
        x = self.preprocess.normalise(images.to(self.device))
        with self.autocast():
            return self.in_batches(
                lambda part: embed_patches(vit, part.contiguous(memory_format=torch.channels_last)), x, passes=0
            )

    def walk(
        self, embedded: Float[Tensor, "b n d"], prompts: Prompts = None, *, before_norm: bool = False
    ) -> TokenOutput:
        """The final-norm tokens, with prompts; gradient reaches the prompts. Counts as one pass per image.

        Args:
            embedded: from :meth:`embed_tokens`.
            prompts: block index to what that block gets in addition.
            before_norm: whether to give the tokens before the final norm too.

        Raises:
            ShapeError: for prompts that do not fit.
            BackboneError: for prefixes beside inserted tokens.
        """
        self._require_prefixes_fit(i for i, prompt in (prompts or {}).items() if prompt.prefix is not None)
        self.passes.add(len(embedded), prompts=len(prompts or {}))
        with self.autocast():
            return walk(self.vit, embedded, prompts, before_norm=before_norm)

    def tokens(
        self, images: Num[Tensor, "b 3 h w"], prompts: Prompts = None, *, before_norm: bool = False
    ) -> TokenOutput:
        """:meth:`walk` over :meth:`embed_tokens`.

        Args:
            images: as for :meth:`features`.
            prompts: as for :meth:`walk`.
            before_norm: as for :meth:`walk`.
        """
        return self.walk(self.embed_tokens(images), prompts, before_norm=before_norm)

    def pool(self, tokens: TokenOutput) -> Float[Tensor, "b d"]:
        """The model's own pooled feature, prompt tokens left out.

        Args:
            tokens: from :meth:`tokens`.
        """
        with self.autocast():
            pooled: Tensor = self.model.forward_head(tokens.without_prompts, pre_logits=True)
        return pooled.float()

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The precision's context: autocast, or float32 for convolutions on CUDA too."""
        if dtype := PRECISIONS[self.precision]:
            return torch.autocast(self.device.type, dtype)
        return exact_convolutions if self.device.type == "cuda" else contextlib.nullcontext()

    def thawed_copy(self) -> Self:
        """A copy whose weights may be trained; passes are counted together with the original's.

        BatchNorm stays in eval mode with the pretrained statistics: a task's few images must not redefine them.
        """
        other = copy.deepcopy(self)
        other._viewed_shelf = ""
        other.model.requires_grad_(True)
        return other

    def train(self, mode: bool = True) -> Self:
        """Keeps eval mode whatever is asked: no batch statistics, no dropout."""
        return super().train(False)
