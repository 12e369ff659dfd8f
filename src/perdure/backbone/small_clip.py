"""Two small CLIPs that work with no network: stock image towers whose features are mapped among MiniLM's texts.

Source: ``backbone/convex.py``. EfficientNet-Lite0's own classifier says how much of each ImageNet class is in an image;
    for the built-in Vision Transformer, a linear classifier was fitted to those answers, on images without labels.
Use when: methods that need class names are to be tried and compared, offline. docs/small_clips.md is the model card.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from torch import Tensor, nn

from perdure.backbone.convex import ConvexCombination
from perdure.backbone.default import load_default, read_weights
from perdure.backbone.lite0 import PREPROCESS, load_whole_lite0
from perdure.backbone.minilm import MiniLM
from perdure.backbone.registered import Stock
from perdure.backbone.two_towers import TwoTowers
from perdure.data.preprocess import Preprocess
from perdure.errors import BackboneError

SMALL_CLIP: Final = Path(__file__).with_name("small_clip.safetensors")
CLASSES, DIM, WIDTH = 1000, 384, 192
TEMPERATURES: Final = {"lite0": 2.0, "default": 1.5}  # chosen on training images: benchmarks/small_clips.py

ImageSide = tuple[nn.Module, Preprocess, ConvexCombination, float]
"""The image tower, its eval view, what maps its pooled features to raw embeddings, and the scale of cosines."""


def load_clip_lite0(weights: Path = SMALL_CLIP) -> ImageSide:
    """EfficientNet-Lite0, whose own classifier weighs the texts.

    Args:
        weights: the file that ``scripts/make_small_clips.py`` writes.

    Raises:
        BackboneError: if the file is damaged or made for another architecture.
    """
    tensors = _tensors(weights)
    model = load_whole_lite0()
    projection = ConvexCombination(model.get_classifier(), tensors["anchors"], TEMPERATURES["lite0"])  # type: ignore[operator]
    model.reset_classifier(0)  # type: ignore[operator]
    return model, PREPROCESS, projection, float(tensors["lite0.logit_scale"])


def load_clip_default(weights: Path = SMALL_CLIP) -> ImageSide:
    """The built-in Vision Transformer, with the classifier that was fitted for it.

    Args:
        weights: as for :func:`load_clip_lite0`.

    Raises:
        BackboneError: as for :func:`load_clip_lite0`.
    """
    tensors = _tensors(weights)
    model, preprocess = load_default()
    classifier = nn.Linear(WIDTH, CLASSES, device="meta")  # draws no weights that nobody needs
    classifier.load_state_dict({k: tensors[f"default.{k}"] for k in ("weight", "bias")}, assign=True)
    projection = ConvexCombination(classifier, tensors["anchors"], TEMPERATURES["default"])
    return model, preprocess, projection, float(tensors["default.logit_scale"])


def with_minilm(load: Callable[[], ImageSide], classifier: str) -> Stock:
    """An image side beside MiniLM.

    Args:
        load: of the two above.
        classifier: the attribute of its model that the projection takes the place of.

    Raises:
        BackboneError: if the extra ``clip`` is not installed, or a file is damaged.
    """
    text = MiniLM()
    model, preprocess, projection, scale = load()
    setattr(model, classifier, projection)
    return Stock(model, preprocess, TwoTowers, {"text": text, "logit_scale": scale})


def _tensors(file: Path) -> dict[str, Tensor]:
    """The file's tensors as float32, verified."""
    tensors, _ = read_weights(file, "small_clip")
    wanted = {"anchors": (CLASSES, DIM), "default.weight": (CLASSES, WIDTH), "default.bias": (CLASSES,)}
    wanted |= {"default.logit_scale": (), "lite0.logit_scale": ()}
    given = {k: tuple(v.shape) for k, v in tensors.items()}
    if given != wanted:
        odd = sorted(k for k in wanted.keys() | given.keys() if wanted.get(k) != given.get(k))
        got, hint = f"{len(odd)} that are not, as {odd[0]}", "Install perdure again"
        raise BackboneError("small_clip", "tensors of the weights file", f"the two CLIPs' {len(wanted)}", got, hint)
    return {k: v.float() for k, v in tensors.items()}
