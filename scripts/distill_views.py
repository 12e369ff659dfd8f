"""The views on which the built-in backbone was distilled, and EfficientNet-Lite0's answers to them, on disk.

View ``i`` is a function of (seed, i) alone: rendering resumes anywhere, and a longer list starts with the shorter one.
"""

from __future__ import annotations

import concurrent.futures as futures
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor, nn

from perdure.backbone.default import STEM_STAGES, lite0_stem
from perdure.backbone.lite0 import load_lite0

log = logging.getLogger("distill")
SIDE, SHORT_SIDE, PHOTO_SIDE = 224, 320, 128
SHARD, BATCH = 2048, 16
TARGETS = {"stem": (14, 14, 112), "map": (7, 7, 320), "pooled": (1280,)}


class Views:
    """Random views of the folders' images; view ``i`` is a function of (seed, i).

    Args:
        folders: of images, searched recursively.
        seed: of all draws.
        photo_share: of the views, how many show a photograph (an image of at least 128 px) and not a small one.
    """

    def __init__(self, folders: list[Path], seed: int, photo_share: float) -> None:
        files = sorted(f for folder in folders for f in folder.rglob("*") if f.suffix.lower() in {".jpg", ".png"})
        with futures.ThreadPoolExecutor(2) as pool:
            images = list(pool.map(_open, files))
        self.photos = [x for x in images if min(x.size) >= PHOTO_SIDE]
        self.icons = [x for x in images if min(x.size) < PHOTO_SIDE]
        self.seed, self.photo_share = seed, photo_share

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(224, 224, 3) uint8 pixels, a 3 x 4 colour transform, and mixing numbers (kind, share, x, y)."""
        rng = np.random.default_rng((self.seed, index))
        of_photos = not self.icons or (bool(self.photos) and rng.random() < self.photo_share)
        images = self.photos if of_photos else self.icons
        image = images[rng.integers(len(images))]
        canvas = rng.random() < 0.15
        side = int(rng.integers(96, 208)) if canvas else SIDE
        low_res = of_photos and rng.random() < 0.2
        inner = int(rng.integers(24, 96)) if low_res else side
        box = _crop(rng, *image.size, 0.08 if of_photos else 0.3)
        view = image.resize((inner, inner), Image.Resampling.BICUBIC, box=box)
        if low_res:
            view = view.resize((side, side), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if rng.random() < 0.04:
            view = view.convert("L").filter(ImageFilter.CONTOUR).convert("RGB")
        if canvas:
            view = _on_plain_ground(rng, view)
        return np.asarray(view), _colour(rng), np.array([rng.random(), rng.beta(1, 1), *rng.random(2)])


def _open(file: Path) -> Image.Image:
    image = Image.open(file).convert("RGB")
    scale = SHORT_SIDE / min(image.size)
    return image.resize([round(scale * s) for s in image.size], Image.Resampling.BICUBIC) if scale < 1 else image


def _crop(rng: np.random.Generator, width: int, height: int, smallest: float) -> tuple[float, float, float, float]:
    """A random box inside the image: ``smallest`` to all of the area, of aspect 3:4 to 4:3."""
    area = width * height * rng.uniform(smallest, 1)
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    w, h = min(width, math.sqrt(area * aspect)), min(height, math.sqrt(area / aspect))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return x, y, x + w, y + h


def _on_plain_ground(rng: np.random.Generator, view: Image.Image) -> Image.Image:
    ground = rng.choice(["white", "black", "any"], p=[0.4, 0.3, 0.3])
    fill = {"white": (255, 255, 255), "black": (0, 0, 0)}.get(ground, tuple(int(v) for v in rng.integers(0, 256, 3)))
    if rng.random() < 0.3:
        view = view.rotate(rng.uniform(-25, 25), Image.Resampling.BILINEAR, fillcolor=fill)
    page = Image.new("RGB", (SIDE, SIDE), fill)
    page.paste(view, tuple(int(v) for v in rng.integers(0, SIDE - view.width + 1, 2)))
    return page


def _colour(rng: np.random.Generator) -> np.ndarray:
    """A random affine map of RGB in [0, 1], as 3 x 4: saturation, tint, contrast, brightness, inversion."""
    grey = np.full((3, 3), [0.299, 0.587, 0.114])
    matrix, shift = np.eye(3), np.zeros(3)
    if rng.random() < 0.7:
        saturation, contrast = rng.uniform(0.4, 1.6), rng.uniform(0.6, 1.4)
        tint = np.diag(rng.uniform(0.85, 1.15, 3))
        matrix = contrast * tint @ (saturation * np.eye(3) + (1 - saturation) * grey)
        shift = np.full(3, 0.5 * (1 - contrast) + rng.uniform(-0.2, 0.2))
    if rng.random() < 0.15:
        matrix, shift = grey @ matrix, grey @ shift
    if rng.random() < 0.05:
        matrix, shift = -matrix, 1 - shift
    return np.concatenate([matrix, shift[:, None]], 1)


def mix(pixels: Tensor, mixing: Tensor) -> Tensor:
    """A fifth of the views blended with, and a fifth with a rectangle from, the view before it in the batch.

    Args:
        pixels: (b, 3, h, w).
        mixing: (b, 4): kind, share, centre x, centre y in [0, 1].
    """
    other, out = pixels.roll(1, 0), pixels.clone()
    for i, (kind, share, x, y) in enumerate(mixing.tolist()):
        if kind < 0.2:
            out[i] = torch.lerp(pixels[i], other[i], 0.5 * share)
        elif kind < 0.4:
            half = SIDE * math.sqrt(0.5 * share) / 2
            left, right = (int(min(max(x * SIDE + s * half, 0), SIDE)) for s in (-1, 1))
            top, bottom = (int(min(max(y * SIDE + s * half, 0), SIDE)) for s in (-1, 1))
            out[i, :, top:bottom, left:right] = other[i, :, top:bottom, left:right]
    return out


class Teacher(nn.Module):
    """EfficientNet-Lite0: (b, 3, 224, 224) -> the student's input and targets, as in ``TARGETS``."""

    def __init__(self) -> None:
        super().__init__()
        lite0, self.preprocess = load_lite0()
        self.stem = lite0_stem(lite0)
        self.rest = nn.Sequential(*list(lite0.blocks.children())[STEM_STAGES:])
        self.head = nn.Sequential(lite0.conv_head, lite0.bn2)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        mean, std = (torch.tensor(v)[:, None, None] for v in (self.preprocess.mean, self.preprocess.std))
        x = ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            stem = self.stem(x)
            last = self.rest(stem)
            pooled = self.head(last).float().mean((2, 3))
        return {"stem": stem.permute(0, 2, 3, 1), "map": last.permute(0, 2, 3, 1), "pooled": pooled}


def render(views: Views, work: Path, n_views: int) -> None:
    """Fills ``work`` with float16 shards of the teacher's answers; finished shards stay as they are."""
    teacher, start = Teacher(), time.monotonic()
    with futures.ThreadPoolExecutor(2) as pool:
        for first in range(0, n_views, SHARD):
            done = work / f"{first:08d}"
            if done.exists():
                continue
            part = work / "part"
            part.mkdir(parents=True, exist_ok=True)
            size = min(SHARD, n_views - first)
            arrays = {k: np.empty((size, *shape), np.float16) for k, shape in TARGETS.items()}
            for at, drawn in _ahead(pool, views, first, size):
                pixels, colours, mixing = (torch.from_numpy(np.stack(x)) for x in zip(*drawn, strict=True))
                x = pixels.flatten(1, 2).float() / 255 @ colours[:, :, :3].mT.float() + colours[:, None, :, 3].float()
                x = x.clamp(0, 1).mT.unflatten(2, (SIDE, SIDE))
                for key, value in teacher(mix(x, mixing)).items():
                    arrays[key][at : at + len(x)] = value.float().numpy()
            for key, value in arrays.items():
                np.save(part / f"{key}.npy", value)
            part.rename(done)
            log.info("views %d of %d, %.0f s", first + size, n_views, time.monotonic() - start)


def _ahead(pool: futures.Executor, views: Views, first: int, size: int) -> Iterator[tuple[int, list]]:
    """Batches of views (position, views), always two in the making."""
    waiting: list[tuple[int, list]] = []
    for at in range(0, size, BATCH):
        waiting.append((at, [pool.submit(views, first + i) for i in range(at, min(at + BATCH, size))]))
        if len(waiting) > 2:
            at, jobs = waiting.pop(0)
            yield at, [job.result() for job in jobs]
    for at, jobs in waiting:
        yield at, [job.result() for job in jobs]


class Shards:
    """The rendered views, memory-mapped."""

    def __init__(self, work: Path, n_views: int) -> None:
        folders = [work / f"{first:08d}" for first in range(0, n_views, SHARD)]
        self.arrays = {k: [np.load(f / f"{k}.npy", mmap_mode="r") for f in folders] for k in TARGETS}

    def __getitem__(self, indices: np.ndarray) -> dict[str, Tensor]:
        """(b, *shape) float32 per name of ``TARGETS``; ``stem`` as (b, 112, 14, 14), channels last."""
        at = [divmod(int(i), SHARD) for i in indices]
        batch = {k: torch.from_numpy(np.stack([v[s][j] for s, j in at])).float() for k, v in self.arrays.items()}
        return batch | {"stem": batch["stem"].permute(0, 3, 1, 2)}
