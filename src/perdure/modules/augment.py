"""Training views: whole batches augmented on the device, each image by its own random draw."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from torch import Tensor


def random_crop_flip(
    images: UInt8[Tensor, "b 3 h w"], rng: torch.Generator, *, min_scale: float, flip: bool = True
) -> UInt8[Tensor, "b 3 h w"]:
    """RandomResizedCrop and horizontal flip, back at the same size.

    Every draw comes from ``rng`` in one call per quantity, so results do not depend on workers or devices.

    Args:
        images: pixels.
        rng: a CPU generator.
        min_scale: smallest share of the area a crop keeps; aspect ratios lie between 3/4 and 4/3.
        flip: whether half of the images are mirrored.
    """
    b = len(images)
    scale, log_ratio, x, y, mirror = torch.rand(5, b, generator=rng)
    area = min_scale + (1 - min_scale) * scale
    # a crop wider than the image would have to be cut, and keep less than its area: large crops are less oblong
    limit = torch.minimum(torch.log(torch.tensor(4 / 3)), -torch.log(area))
    ratio = torch.exp((2 * log_ratio - 1) * limit)
    width, height = (area * ratio).sqrt(), (area / ratio).sqrt()  # as shares of the image's side
    # affine_grid coordinates run from -1 to 1: a crop of half-width `width` may be centred within ±(1 - width)
    theta = torch.zeros(b, 2, 3)
    theta[:, 0, 0] = torch.where((mirror < 0.5) | (not flip), width, -width)
    theta[:, 1, 1] = height
    theta[:, 0, 2] = (2 * x - 1) * (1 - width)
    theta[:, 1, 2] = (2 * y - 1) * (1 - height)
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    cropped = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return cropped.round().clamp(0, 255).to(torch.uint8)
