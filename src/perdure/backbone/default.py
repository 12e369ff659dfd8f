"""The built-in Vision Transformer: a stock timm model on a convolutional stem, with weights that ship in the package.

Source: a hybrid ViT (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, section 3.1). The stem is
    EfficientNet-Lite0 up to its fifth stage, with the ImageNet-1k weights of its pip package; the transformer on top
    (six blocks of width 192, 49 patches and CLS) was distilled, without labels, from EfficientNet-Lite0's own features.
Use when: every method is to be tried and compared, offline. For published numbers take the papers' ViT-B/16.
"""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from timm.layers import HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from perdure.backbone.lite0 import load_lite0
from perdure.backbone.registered import backbones
from perdure.data.preprocess import Preprocess
from perdure.errors import BackboneError

WEIGHTS: Final = Path(__file__).with_name("default.safetensors")
STEM_STAGES: Final = 5
STEM_PREFIX: Final = "patch_embed.backbone."


def lite0_stem(lite0: nn.Module) -> nn.Sequential:
    """EfficientNet-Lite0 up to and including ``blocks[4]``: (b, 3, 224, 224) -> (b, 112, 14, 14).

    Args:
        lite0: timm's ``efficientnet_lite0``.
    """
    layers = dict(lite0.named_children())
    return nn.Sequential(layers["conv_stem"], layers["bn1"], *list(layers["blocks"].children())[:STEM_STAGES])


def hybrid_vit(stem: nn.Module) -> VisionTransformer:
    """A stock :class:`VisionTransformer` on ``stem``, of random weights, without classifier.

    Args:
        stem: maps (b, 3, 224, 224) to (b, 112, 14, 14).
    """
    embed = functools.partial(HybridEmbed, backbone=stem)
    model: VisionTransformer = VisionTransformer(
        img_size=224, patch_size=2, embed_dim=192, depth=6, num_heads=3, num_classes=0, embed_layer=embed
    )
    return model


@backbones.register("default")
def load_default(weights: Path = WEIGHTS) -> tuple[nn.Module, Preprocess]:
    """The built-in model and the eval view it wants (EfficientNet-Lite0's).

    Args:
        weights: the transformer's, as :func:`read_weights` reads them.

    Raises:
        BackboneError: if the file is damaged or made for another architecture.
    """
    lite0, preprocess = load_lite0()
    with torch.random.fork_rng(devices=[]):
        model = hybrid_vit(lite0_stem(lite0))
    tensors, _ = read_weights(weights)
    own, given = ({k: tuple(v.shape) for k, v in t.items()} for t in (transformer_weights(model), tensors))
    if own != given:
        odd = sorted(k for k in own.keys() | given.keys() if own.get(k) != given.get(k))
        got, hint = f"{len(odd)} that are not, as {odd[0]}", "Install perdure again"
        raise BackboneError("default", "tensors of the weights file", f"the transformer's {len(own)}", got, hint)
    model.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    return model, preprocess


def transformer_weights(model: VisionTransformer) -> dict[str, Tensor]:
    """The state dict without the stem's part.

    Args:
        model: from :func:`hybrid_vit`.
    """
    return {k: v.contiguous() for k, v in model.state_dict().items() if not k.startswith(STEM_PREFIX)}


def read_weights(file: Path, where: str = "default") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The float16 tensors of a weights file, verified, and the facts it tells about itself.

    Args:
        file: safetensors, with the :func:`checksum` of its tensors as ``sha256`` in the metadata.
        where: whose weights they are, for messages.

    Raises:
        BackboneError: if the file is missing, damaged or does not match its checksum.
    """
    hint = "Install perdure again"
    try:
        with safe_open(file, framework="pt") as opened:
            tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
            facts: dict[str, str] = opened.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise BackboneError(where, "weights file", "a whole safetensors file", f"{file} ({error})", hint) from error
    found = checksum(tensors)
    if found != facts.get("sha256"):
        wanted = f"of checksum {facts.get('sha256')}"
        raise BackboneError(where, "weights file", wanted, found, hint)
    return tensors, facts


def checksum(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes, in the order of the names.

    Args:
        tensors: on the CPU.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
