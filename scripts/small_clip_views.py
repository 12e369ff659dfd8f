"""Views of unlabelled images, and what EfficientNet-Lite0 and the built-in Vision Transformer make of them, on disk.

View ``v`` of image ``i`` is a function of (seed, i, v) alone; view 0 is the eval view. Both models stand on the same
stem, so a view passes the stem once.
"""

from __future__ import annotations

import logging
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from perdure.backbone.default import STEM_STAGES, load_default
from perdure.backbone.lite0 import PREPROCESS, load_lite0

log = logging.getLogger("small_clips")
SIDE, PHOTO_SIDE, BATCH, SHARD = 224, 128, 16, 2048
GREY = np.array([0.299, 0.587, 0.114])


class Views:
    """The views of all images below some folders, in the order of their paths; labels in file names are not read.

    Args:
        folders: searched recursively.
        seed: of all draws.
        of_photos: views of an image of at least 128 px, the eval view included.
        of_icons: views of a smaller one; ``small`` tells which of all views are of these.
    """

    def __init__(self, folders: list[Path], seed: int, of_photos: int, of_icons: int) -> None:
        self.files = sorted(f for folder in folders for f in folder.rglob("*") if f.suffix.lower() in {".jpg", ".png"})
        self.seed = seed
        shapes = [_size(file) for file in self.files]
        self.n_photos = sum(min(shape) >= PHOTO_SIDE for shape in shapes)
        self.n_icons = len(shapes) - self.n_photos
        each = [of_photos if min(shape) >= PHOTO_SIDE else of_icons for shape in shapes]
        self.at = [(i, v) for i, n in enumerate(each) for v in range(n)]
        self.small = np.array([min(shapes[i]) < PHOTO_SIDE for i, _ in self.at])

    def __len__(self) -> int:
        return len(self.at)

    def __getitem__(self, index: int) -> np.ndarray:
        """(224, 224, 3) uint8."""
        i, v = self.at[index]
        with Image.open(self.files[i]) as opened:
            image = opened.convert("RGB")
        if v == 0:
            return PREPROCESS.pixels(image).transpose(1, 2, 0)
        rng = np.random.default_rng((self.seed, i, v))
        photo = min(image.size) >= PHOTO_SIDE
        box = _crop(rng, *image.size, 0.2 if photo else 0.5)
        side = int(rng.integers(28, 112)) if photo and rng.random() < 0.25 else SIDE
        view = image.resize((side, side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
        view = view.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return _coloured(rng, np.asarray(view)) if rng.random() < 0.5 else np.asarray(view)


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as opened:
        return opened.size


def _crop(rng: np.random.Generator, width: int, height: int, smallest: float) -> tuple[float, float, float, float]:
    """A random box inside the image: ``smallest`` to all of the area, of aspect 3:4 to 4:3."""
    area, aspect = width * height * rng.uniform(smallest, 1), math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return x, y, x + w, y + h


def _coloured(rng: np.random.Generator, pixels: np.ndarray) -> np.ndarray:
    """Other saturation, contrast and brightness; one in five grey."""
    saturation = 0.0 if rng.random() < 0.2 else rng.uniform(0.5, 1.5)
    contrast, shift = rng.uniform(0.7, 1.3), rng.uniform(-0.15, 0.15)
    x = pixels / 255
    x = saturation * x + (1 - saturation) * (x @ GREY)[..., None]
    x = contrast * (x - 0.5) + 0.5 + shift
    return (x.clip(0, 1) * 255).round().astype(np.uint8)


class Both(nn.Module):
    """(b, 224, 224, 3) uint8 -> the pooled features of EfficientNet-Lite0 (1280) and of ``default`` (192)."""

    def __init__(self) -> None:
        super().__init__()
        lite0, self.preprocess = load_lite0()
        self.vit = load_default()[0]
        self.stem = self.vit.patch_embed.backbone
        self.vit.patch_embed.backbone = nn.Identity()
        self.rest = nn.Sequential(*list(lite0.blocks.children())[STEM_STAGES:], lite0.conv_head, lite0.bn2)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = self.preprocess.normalise(pixels.permute(0, 3, 1, 2)).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            stem = self.stem(x)
            return {"lite0": self.rest(stem).float().mean((2, 3)).half(), "default": self.vit(stem).half()}


def features_of(views: Views, work: Path) -> dict[str, Tensor]:
    """Every view's features by model, float32; ``work`` keeps them, so that a stopped run goes on.

    Args:
        views: all.
        work: folder of the parts.
    """
    both, start = Both(), time.monotonic()
    work.mkdir(parents=True, exist_ok=True)
    parts = []
    for first in range(0, len(views), SHARD):
        file = work / f"{first:06d}.safetensors"
        if not file.exists():
            last = min(first + SHARD, len(views))
            batches = [range(at, min(at + BATCH, last)) for at in range(first, last, BATCH)]
            found = [both(torch.from_numpy(np.stack([views[i] for i in batch]))) for batch in batches]
            save_file({k: torch.cat([f[k] for f in found]) for k in found[0]}, file.with_suffix(".part"))
            file.with_suffix(".part").rename(file)
            log.info("views %d of %d, %.0f s", last, len(views), time.monotonic() - start)
        parts.append(load_file(file))
    return {k: torch.cat([part[k] for part in parts]).float() for k in parts[0]}
