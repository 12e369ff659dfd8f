"""The eval view equals timm's own, and bad inputs are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from perdure.data import Preprocess
from perdure.data.preprocess import PREPROCESS_PRESETS, preprocess_from_config
from perdure.errors import ShapeError, UnknownNameError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


AS_IT_IS = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # pixels in [0, 1]
CIFAR = {"mean": (0.5071, 0.4867, 0.4408), "std": (0.2675, 0.2565, 0.2761)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
PUBLISHED = {  # the short side before the centre crop of 224, how it is resized, and what is taken off and divided by
    "lamda": (256, "bicubic", AS_IT_IS),
    "lae": (256, "bilinear", AS_IT_IS),
    "ranpac_cifar": (224, "bicubic", AS_IT_IS),
    "fecam_cifar": (224, "bilinear", AS_IT_IS),
    "slca": (256, "bicubic", IMAGENET),
    "slca_cifar": (256, "bicubic", CIFAR),
    "proof": (224, "bicubic", CLIP),
}


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def timm_view(p: Preprocess, image: Image.Image) -> torch.Tensor:
    options = {"interpolation": p.interpolation, "crop_pct": p.crop_pct, "crop_mode": p.crop_mode}
    return create_transform((3, p.image_size, p.image_size), mean=p.mean, std=p.std, **options)(image)


@pytest.mark.parametrize("crop_mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(61, 40), (40, 61), (20, 20)])
def test_eval_view_equals_timms(crop_mode: str, crop_pct: float, interpolation: str, size: tuple[int, int]) -> None:
    p = Preprocess(32, interpolation, crop_pct, crop_mode, **IMAGENET)
    image = picture(*size)
    pixels = p.pixels(image)
    assert (pixels.shape, pixels.dtype) == ((3, 32, 32), np.uint8)
    torch.testing.assert_close(
        p.normalise(torch.from_numpy(pixels)[None])[0], timm_view(p, image), atol=1e-5, rtol=1e-5
    )


def test_eval_view_of_a_real_photograph_equals_timms(shared_data: Path) -> None:
    p = Preprocess(224, **IMAGENET)
    path = next((shared_data / "caltech101" / "test" / "lotus").iterdir())
    with Image.open(path) as image:
        photo = image.convert("RGB")
    ours = p.normalise(torch.from_numpy(p.pixels(photo))[None])[0]
    torch.testing.assert_close(ours, timm_view(p, photo), atol=1e-5, rtol=1e-5)


def test_normalise_maps_black_and_white_to_the_input_range() -> None:
    ends = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 2, 2)
    out = Preprocess(2, mean=(0.5, 0.0, 0.25), std=(0.5, 1.0, 0.25)).normalise(ends)
    torch.testing.assert_close(out[:, :, 0, 0], torch.tensor([[-1.0, 0.0, -1.0], [1.0, 1.0, 3.0]]))


def test_floating_point_images_count_as_normalised() -> None:
    images = torch.randn(1, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Preprocess(4).normalise(images), images.float())


@pytest.mark.usefixtures("any_shape")
@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 1, 4, 4)])
def test_normalise_refuses_what_is_no_batch_of_rgb_images(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError) as caught:
        Preprocess(4).normalise(torch.zeros(shape))
    assert str(shape) in str(caught.value)


def test_normalise_refuses_other_integers() -> None:
    with pytest.raises(ShapeError, match=r"torch\.int64"):
        Preprocess(4).normalise(torch.zeros(1, 3, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("name", sorted(PREPROCESS_PRESETS))
def test_presets_replace_the_whole_view(name: str) -> None:
    squashed = Preprocess(384, "bilinear", 0.9, "squash", **IMAGENET).with_preset(name)
    assert squashed == Preprocess(224).with_preset(name), "a published view does not depend on the weights"
    short_side, interpolation, normalised = PUBLISHED[name]
    assert (squashed.mean, squashed.std) == (normalised["mean"], normalised["std"])
    resampling, free = getattr(Image.Resampling, interpolation.upper()), (short_side - 224) // 2
    image = picture(32, 32)
    resized = np.asarray(image.resize((short_side, short_side), resampling)).transpose(2, 0, 1)
    assert (squashed.pixels(image) == resized[:, free : free + 224, free : free + 224]).all()


def test_what_is_not_said_is_timms_usual_view_between_minus_one_and_one() -> None:
    half = (0.5, 0.5, 0.5)
    assert Preprocess(64) == Preprocess(64, "bicubic", 0.875, "center", half, half)


def test_no_preset_changes_nothing() -> None:
    p = Preprocess(64)
    assert p.with_preset(None) is p


def test_an_unknown_preset_is_named_with_its_neighbour() -> None:
    with pytest.raises(UnknownNameError, match=r"'lambda'.*Did you mean 'lamda'"):
        Preprocess(64).with_preset("lambda")


def test_timm_configuration_is_taken_over() -> None:
    config = {"input_size": (3, 48, 48), "interpolation": "bilinear", "crop_pct": 0.9, "crop_mode": "squash"}
    p = preprocess_from_config({**config, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]})
    assert p == Preprocess(48, "bilinear", 0.9, "squash", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
