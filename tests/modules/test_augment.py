"""Random crops and flips: one draw per image, from the generator given and nothing else."""

from __future__ import annotations

import pytest
import torch

from perdure.modules.augment import random_crop_flip


def noise(n: int, side: int = 12, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)


def augmented(images: torch.Tensor, min_scale: float = 0.3, seed: int = 0) -> torch.Tensor:
    return random_crop_flip(images, torch.Generator().manual_seed(seed), min_scale=min_scale)


def test_the_generator_decides_everything() -> None:
    images = noise(6)
    assert torch.equal(augmented(images), augmented(images))
    assert not torch.equal(augmented(images), augmented(images, seed=1))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    augmented(noise(4))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("shape", [(5, 3, 12, 12), (1, 3, 8, 20)])
def test_shape_and_type_stay(shape: tuple[int, ...]) -> None:
    images = torch.full(shape, 77, dtype=torch.uint8)
    out = augmented(images)
    assert (out.shape, out.dtype) == (images.shape, torch.uint8)
    assert torch.equal(out, images), "a crop of one colour is that colour"


def test_whole_images_come_back_as_they_are_or_mirrored() -> None:
    images = noise(32)
    out = augmented(images, min_scale=1)
    same = (out == images).flatten(1).all(1)
    mirrored = (out == images.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
    assert 4 < same.sum() < 28


def test_inputs_are_not_changed() -> None:
    images = noise(3)
    copy = images.clone()
    augmented(images)
    assert torch.equal(images, copy)


def test_an_image_does_not_depend_on_its_neighbours() -> None:
    images, others = noise(5), noise(5, seed=1)
    mixed = others.clone()
    mixed[2] = images[2]
    assert torch.equal(augmented(images)[2], augmented(mixed)[2])
    assert not torch.equal(augmented(images)[1], augmented(mixed)[1])


def test_each_image_has_a_draw_of_its_own() -> None:
    out = augmented(noise(1).expand(8, -1, -1, -1).contiguous())
    assert len({image.numpy().tobytes() for image in out}) == 8


def test_a_crop_keeps_at_least_its_share_of_the_image() -> None:
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(200, 3, 64, 64).contiguous()  # brightness tells the column
    out = augmented(ramp, min_scale=0.25).float()
    seen = (out[:, 0, 0, -1] - out[:, 0, 0, 0]).abs() / 256  # share of the width that a crop keeps
    assert seen.min() > 0.25**0.5 * 0.75**0.5 - 0.03
    assert seen.max() > 0.9
    left = out[:, 0, 0, 0] < out[:, 0, 0, -1]
    assert 70 < left.sum() < 130, "about half are mirrored"


def test_without_flips_no_image_is_mirrored() -> None:
    images = noise(32)
    rng = torch.Generator().manual_seed(0)
    assert torch.equal(random_crop_flip(images, rng, min_scale=1, flip=False), images)
    ramp = torch.arange(64, dtype=torch.uint8).mul(4).expand(64, 3, 64, 64).contiguous()  # brightness tells the column
    out = random_crop_flip(ramp, rng, min_scale=0.25, flip=False)
    assert (out[:, 0, 0, 0] < out[:, 0, 0, -1]).all()
    assert len({image.numpy().tobytes() for image in out}) == 64, "crops are drawn as ever"


def test_flips_change_nothing_but_the_side() -> None:
    """The same draws are made with and without, so that a crop is the same."""
    images = noise(16)
    plain, flipped = (
        random_crop_flip(images, torch.Generator().manual_seed(0), min_scale=0.3, flip=flip) for flip in (False, True)
    )
    same = (plain == flipped).flatten(1).all(1)
    mirrored = ((plain.flip(-1).int() - flipped).abs() <= 1).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 2 < same.sum() < 14
