"""Training views: whole batches augmented on the device, each image by its own random draw."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

TRIES = 10  # torchvision's
WIDEST = 4 / 3  # aspect ratios lie between 3/4 and 4/3


def random_crop_flip(
    images: UInt8[Tensor, "b 3 h w"], rng: torch.Generator, *, min_scale: float, flip: bool = True
) -> UInt8[Tensor, "b 3 h w"]:
    """torchvision's RandomResizedCrop (bilinear) and horizontal flip, back at the same size.

    Every draw comes from ``rng`` in one call per quantity, so results do not depend on workers or devices.

    Args:
        images: pixels.
        rng: a CPU generator.
        min_scale: smallest share of the area a crop aims at; 1: the whole of a square image.
        flip: whether half of the images are mirrored.
    """
    b, _, height, width = images.shape
    left, top, w, h = crop_boxes(b, height, width, rng, min_scale=min_scale).unbind(1)
    mirror = (torch.rand(b, generator=rng) < 0.5) & flip
    x, y = _spread(left, w, width), _spread(top, h, height)
    x = torch.where(mirror[:, None], x.flip(1), x)
    # grid_sample's coordinates run from -1 to 1, edge to edge
    x, y = ((2 * at + 1) / side - 1 for at, side in ((x, width), (y, height)))
    across, down = x.float().to(images.device), y.float().to(images.device)
    grid = torch.stack([across[:, None].expand(b, height, width), down[:, :, None].expand(b, height, width)], dim=3)
    cropped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return cropped.round().clamp(0, 255).to(torch.uint8)


def random_window_flip(
    images: UInt8[Tensor, "b 3 h w"], rng: torch.Generator, *, side: int, flip: bool = True
) -> UInt8[Tensor, "b 3 s s"]:
    """A square cut out at a random place, its pixels as they are, and horizontal flip.

    Args:
        images: pixels.
        rng: a CPU generator.
        side: of the square, in pixels, at most the images'.
        flip: whether half of the images are mirrored.
    """
    b, _, height, width = images.shape
    across, down = torch.rand(2, b, generator=rng, dtype=torch.float64)
    mirror = (torch.rand(b, generator=rng) < 0.5) & flip
    left, top = (across * (width - side + 1)).long(), (down * (height - side + 1)).long()
    x = left[:, None] + torch.arange(side)
    x = torch.where(mirror[:, None], x.flip(1), x).to(images.device)
    y = (top[:, None] + torch.arange(side)).to(images.device)
    image, channel = torch.arange(b, device=images.device), torch.arange(3, device=images.device)
    return images[image[:, None, None, None], channel[:, None, None], y[:, None, :, None], x[:, None, None, :]]


def crop_boxes(n: int, height: int, width: int, rng: torch.Generator, *, min_scale: float) -> Int[Tensor, "{n} 4"]:
    """Boxes drawn by the rule of ``torchvision.transforms.RandomResizedCrop``: left, top, width and height, in pixels.

    Ten areas and aspect ratios are drawn; the first box that fits into the image is taken. If none does, it is the
    middle of the image, as much of it as the aspect ratio allows.

    Args:
        n: how many boxes.
        height: of the image.
        width: of the image.
        rng: a CPU generator.
        min_scale: smallest area drawn, as a share of the image's.
    """
    share, log_ratio = torch.rand(2, TRIES, n, generator=rng, dtype=torch.float64)
    across, down = torch.rand(2, n, generator=rng, dtype=torch.float64)
    area = height * width * (min_scale + (1 - min_scale) * share)
    ratio = WIDEST ** (2 * log_ratio - 1)
    w, h = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first, some = fits.int().argmax(0), fits.any(0)
    middle = torch.tensor([min(width, round(height * WIDEST)), min(height, round(width * WIDEST))])
    box = torch.stack([w, h])[:, first, torch.arange(n)].where(some, middle[:, None])
    free = torch.tensor([[width], [height]]) - box
    start = (torch.stack([across, down]) * (free + 1)).long().where(some, free // 2)
    return torch.cat([start, box]).T


def _spread(start: Int[Tensor, " b"], length: Int[Tensor, " b"], side: int) -> Float[Tensor, "b {side}"]:
    """Where the pixels lie that a stretch of ``length`` is resized to; its edges repeat, nothing beyond is read."""
    inside = (torch.arange(side, dtype=torch.float64) + 0.5) * (length / side)[:, None] - 0.5
    return start[:, None] + inside.clamp(min=0).minimum(length[:, None] - 1)
