"""Training views, and the parts that may learn, as they are at first."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from perdure import Backbone, FeatureStore
from perdure.data import LabelledImages
from perdure.data.images import ArraySource
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import ConfigError
from perdure.modules.adapter import Adapter
from perdure.modules.ssf import ScaleShift
from perdure.train.tuning import TuningConfig, adaptable, image_epochs, learning
from perdure.types import Event

VIEWS = {(1.0, False): False, (1.0, True): True, (0.3, False): True, (0.3, True): True}  # crop and flip: whether any


@pytest.fixture
def images() -> LabelledImages:
    return synthetic_dataset([0, 1], train_per_class=6, test_per_class=1).train


def seen(backbone: Backbone, data: LabelledImages, config: TuningConfig) -> list[torch.Tensor]:
    """Each epoch's images in stored order."""
    columns = torch.arange(len(data))
    with image_epochs(backbone, data, columns, config, torch.Generator().manual_seed(0)) as epochs:
        drawn = [list(epoch) for epoch in epochs]
    return [torch.cat([b.images for b in e])[torch.cat([b.columns for b in e]).argsort()] for e in drawn]


@pytest.mark.parametrize(("view", "changes"), VIEWS.items())
def test_either_of_crop_and_flip_makes_views_change(
    view: tuple[float, bool], changes: bool, backbone: Backbone, images: LabelledImages
) -> None:
    config = TuningConfig(min_scale=view[0], flip=view[1], epochs=2, batch_size=5)
    assert config.augments is changes
    (plain,) = [x for _, x in images.batches(backbone.preprocess, 12)]
    first, second = seen(backbone, images, config)
    assert torch.equal(first, second) is not changes
    same = (first == plain).flatten(1).all(1)
    mirrored = (first == plain.flip(-1)).flatten(1).all(1)
    if not changes:
        assert same.all()
    elif view[0] == 1:
        assert (same | mirrored).all(), "flips alone cut nothing"
        assert 2 < mirrored.sum() < 10
    else:
        assert not (same | mirrored).any(), "crops alone, and with flips, cut every image"


def test_crops_without_flips_are_those_with_flips_unmirrored(backbone: Backbone, images: LabelledImages) -> None:
    plain, flipped = (
        seen(backbone, images, TuningConfig(min_scale=0.3, flip=flip, epochs=1))[0].int() for flip in (False, True)
    )
    same = (plain == flipped).flatten(1).all(1)
    mirrored = ((plain.flip(-1) - flipped).abs() <= 1).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 2 < mirrored.sum() < 10


def test_windows_are_cut_from_whole_images_resized(backbone: Backbone) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 60, 90, 3), dtype=np.uint8)
    images = LabelledImages(ArraySource(pixels, "oblong"), np.zeros(4, int))
    config = TuningConfig(resize=170, flip=False, min_scale=1.0, epochs=2)
    assert config.augments
    first, second = seen(backbone, images, config)
    assert not torch.equal(first, second)
    for i, window in enumerate(first):
        whole = images.source.read(int(images.rows[i])).resize((170, 170), Image.Resampling.BICUBIC)
        views = torch.from_numpy(np.array(whole)).permute(2, 0, 1).unfold(1, 160, 1).unfold(2, 160, 1)  # (3, 11, 11, …)
        same = (views == window[:, None, None]).all(0).flatten(2).all(2)
        assert same.sum() == 1


def test_a_window_larger_than_the_resized_image_is_refused(backbone: Backbone, images: LabelledImages) -> None:
    with pytest.raises(ConfigError, match=r"resize must be at least the backbone's 160, but got 159\. Raise"):
        seen(backbone, images, TuningConfig(resize=159))
    assert len(seen(backbone, images, TuningConfig(resize=160, epochs=1))) == 1


def test_stored_patches_are_taken_where_no_view_changes(backbone: Backbone, images: LabelledImages) -> None:
    shape = backbone.tokens_shape
    asked: list[int] = []

    def patches(positions: np.ndarray) -> torch.Tensor:
        asked.extend(positions.tolist())
        return torch.zeros(len(positions), shape[0] * shape[1])

    for (min_scale, flip), changes in VIEWS.items():
        config = TuningConfig(min_scale=min_scale, flip=flip, epochs=1)
        asked.clear()
        columns, rng = torch.arange(len(images)), torch.Generator().manual_seed(0)
        with image_epochs(backbone, images, columns, config, rng, patches=patches) as epochs:
            (batch,) = next(epochs)
        assert (batch.tokens is None) is changes
        assert sorted(asked) == ([] if changes else list(range(12)))


@pytest.mark.parametrize("variant", ["vpt_shallow", "vpt_deep"])
def test_prompts_start_uniform_as_vpt_draws_them_or_at_zero(variant: str, backbone: Backbone) -> None:
    patch, d, p = 16, 64, 50
    config = TuningConfig(prompt_length=p)
    _, part = adaptable(backbone, variant, config, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    values = torch.stack([v for v in part.parameters()])
    blocks = len(backbone.vit.blocks)
    assert backbone.vit.patch_embed.patch_size == (patch, patch)
    assert values.shape == ({"vpt_shallow": 1, "vpt_deep": blocks}[variant], p, d)
    v = (6 / (3 * patch * patch + d)) ** 0.5
    n = values.numel()
    assert values.abs().max() <= v
    assert values.abs().max() > 0.99 * v
    assert abs(values.mean()) < 4 * v / (3 * n) ** 0.5
    assert float(values.std()) == pytest.approx(v / 3**0.5, rel=0.05)
    assert len(values.unique()) > 0.99 * n, "every value has a draw of its own"
    zeros = adaptable(backbone, variant, TuningConfig(prompt_init="zeros"), torch.Generator())[1]  # type: ignore[arg-type]
    assert all((v == 0).all() for v in zeros.parameters())


def test_a_fresh_adapter_changes_nothing_and_fresh_scales_are_near_one(backbone: Backbone) -> None:
    x = torch.randint(0, 256, (3, 3, 160, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    plain = backbone.features(x)
    config, rng = TuningConfig(rank=4), torch.Generator().manual_seed(0)
    assert torch.equal(adaptable(backbone, "adapter", config, rng)[0].features(x), plain)
    _, part = adaptable(backbone, "ssf", config, rng)
    scales = [m for m in part.modules() if isinstance(m, ScaleShift)]
    assert torch.cat([m.gamma for m in scales]).mean() == pytest.approx(1, abs=0.005)
    assert torch.cat([m.beta for m in scales]).std() == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize("variant", ["vpt_shallow", "vpt_deep"])
def test_shallow_prompts_enter_before_the_first_block_and_leave_after_the_last(
    variant: str, backbone: Backbone, store: FeatureStore
) -> None:
    config = TuningConfig(prompt_length=3)
    view, part = adaptable(backbone, variant, config, torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    widths: list[tuple[int, int]] = []
    for block in view.vit.blocks:
        block.attn.register_forward_pre_hook(lambda m, args: widths.append((0, args[0].shape[1])))
        block.register_forward_hook(lambda m, args, out: widths.append((1, out.shape[1])))
    view.vit.norm.register_forward_pre_hook(lambda m, args: widths.append((2, args[0].shape[1])))
    x = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view.features(x)
    n, blocks = backbone.tokens_shape[0], len(view.vit.blocks)
    assert blocks > 2
    inside, between = n + 3, n + 3 if variant == "vpt_shallow" else n
    assert widths == [*[(0, inside), (1, between)] * (blocks - 1), (0, inside), (1, n), (2, n)]
    assert len(list(part.parameters())) == (1 if variant == "vpt_shallow" else blocks)


def test_adapters_drop_out_while_they_learn_and_only_then(backbone: Backbone) -> None:
    _, part = adaptable(backbone, "adapter", TuningConfig(rank=2), torch.Generator().manual_seed(0))
    adapters = [m for m in part.modules() if isinstance(m, Adapter)]
    assert len(adapters) > 1
    with learning(part, torch.Generator().manual_seed(1)):
        assert {id(a.dropout_rng) for a in adapters} == {id(adapters[0].dropout_rng)} != {id(None)}
    assert [a.dropout_rng for a in adapters] == [None] * len(adapters)


def test_progress_counts_the_images_of_all_epochs(backbone: Backbone, images: LabelledImages) -> None:
    told: list[tuple[str, int, int]] = []
    config, rng = TuningConfig(epochs=2, batch_size=8), torch.Generator().manual_seed(0)

    def progress(event: Event) -> None:
        told.append((event.stage, event.done, event.total))

    with image_epochs(backbone, images, torch.arange(12), config, rng, progress=progress) as epochs:
        for epoch in epochs:
            list(epoch)
    assert told == [("training", done, 24) for done in (8, 12, 20, 24)]
