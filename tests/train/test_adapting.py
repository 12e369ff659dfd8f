"""Training views, and the parts that may learn, as they are at first and while they adapt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from perdure import Backbone, FeatureStore
from perdure.data import LabelledImages, Task
from perdure.data.images import ArraySource
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import ConfigError
from perdure.modules.adapter import Adapter
from perdure.modules.ssf import ScaleShift
from perdure.train.adapting import (
    AdapterPart,
    AdapterStack,
    DeepPrompts,
    FirstSession,
    ScaleShiftPart,
    ShallowPrompts,
    adapt,
    adaptable,
)
from perdure.train.batches import TaskImages
from perdure.train.settings import Augment, ImageTraining
from tiny_vit import behind

VIEWS = {(1.0, False): False, (1.0, True): True, (0.3, False): True, (0.3, True): True}  # crop and flip: whether any
PROMPTS = {"vpt_shallow": ShallowPrompts, "vpt_deep": DeepPrompts}


@pytest.fixture
def images() -> LabelledImages:
    return synthetic_dataset([0, 1], train_per_class=6, test_per_class=1).train


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def training(epochs: int = 1, batch_size: int = 48, **augment: object) -> ImageTraining:
    return ImageTraining(lr=0.01, epochs=epochs, batch_size=batch_size, augment=Augment.model_validate(augment))


def seen(backbone: Backbone, data: LabelledImages, config: ImageTraining, store: FeatureStore) -> list[torch.Tensor]:
    """Each epoch's images in stored order, while all of the backbone learns."""
    source = TaskImages(backbone, data, torch.arange(len(data)), config, store, backbone.parameters())
    draw, out = rng(), []
    with source.open():
        for _ in range(config.epochs):
            epoch = [source.batch(plan, draw) for plan in source.plan(draw)]
            out.append(torch.cat([b.images for b in epoch])[torch.cat([b.columns for b in epoch]).argsort()])
    return out


@pytest.mark.parametrize(("view", "changes"), VIEWS.items())
def test_either_of_crop_and_flip_makes_views_change(
    view: tuple[float, bool], changes: bool, backbone: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    config = training(2, 5, min_scale=view[0], flip=view[1])
    assert config.augment.changes_views is changes
    (plain,) = [x for _, x in images.batches(backbone.preprocess, 12)]
    first, second = seen(backbone, images, config, store)
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


def test_crops_without_flips_are_those_with_flips_unmirrored(
    backbone: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    plain, flipped = (
        seen(backbone, images, training(min_scale=0.3, flip=flip), store)[0].int() for flip in (False, True)
    )
    same = (plain == flipped).flatten(1).all(1)
    mirrored = ((plain.flip(-1) - flipped).abs() <= 1).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 2 < mirrored.sum() < 10


def test_windows_are_cut_from_whole_images_resized(backbone: Backbone, store: FeatureStore) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 60, 90, 3), dtype=np.uint8)
    images = LabelledImages(ArraySource(pixels, "oblong"), np.zeros(4, int))
    config = training(2, resize=170, flip=False, min_scale=1.0)
    assert config.augment.changes_views
    first, second = seen(backbone, images, config, store)
    assert not torch.equal(first, second)
    for i, window in enumerate(first):
        whole = images.source.read(int(images.rows[i])).resize((170, 170), Image.Resampling.BICUBIC)
        views = torch.from_numpy(np.array(whole)).permute(2, 0, 1).unfold(1, 160, 1).unfold(2, 160, 1)  # (3, 11, 11, …)
        same = (views == window[:, None, None]).all(0).flatten(2).all(2)
        assert same.sum() == 1


def test_a_window_larger_than_the_resized_image_is_refused(
    backbone: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    told = r"augment\.resize must be at least the backbone's 160, but got 159\. Raise train\.augment\.resize"
    with pytest.raises(ConfigError, match=told):
        seen(backbone, images, training(resize=159), store)
    assert len(seen(backbone, images, training(resize=160), store)) == 1


class Stem(nn.Sequential):
    """Halves the side."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU())


@pytest.fixture
def hybrid() -> Backbone:
    """A backbone whose stem is a network itself."""
    torch.manual_seed(0)
    return behind(Stem())


@pytest.mark.parametrize("what", ["nothing", "prompts", "adapters", "everything"])
@pytest.mark.parametrize("stem", [False, True])
def test_what_is_stored_is_taken_where_no_view_changes(
    what: str, stem: bool, backbone: Backbone, hybrid: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    given = hybrid if stem else backbone
    assert given.has_stem is stem
    view, part = adaptable(given, AdapterPart(rank=2), rng())
    learned = {"adapters": list(part.parameters()), "everything": list(view.parameters())}.get(what, [])
    still = {"nothing": "rows", "everything": "images"}.get(what, "tokens" if stem else "images")
    for (min_scale, flip), changes in VIEWS.items():
        config = training(min_scale=min_scale, flip=flip)
        source = TaskImages(view, images, torch.arange(12), config, store, learned, prompted=what == "prompts")
        with source.open():
            batch = source.batch(torch.arange(3), rng())
        found = {"rows": batch.rows is not None, "tokens": batch.tokens is not None, "images": len(batch.images) == 3}
        assert [kind for kind, there in found.items() if there] == ["images" if changes else still]


@pytest.mark.parametrize("variant", PROMPTS)
def test_prompts_start_uniform_as_vpt_draws_them_or_at_zero(variant: str, backbone: Backbone) -> None:
    patch, d, p = 16, 64, 50
    _, part = adaptable(backbone, PROMPTS[variant](prompt_length=p), rng())
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
    zeros = adaptable(backbone, PROMPTS[variant](prompt_init="zeros"), torch.Generator())[1]
    assert all((v == 0).all() for v in zeros.parameters())


def test_a_fresh_adapter_changes_nothing_and_fresh_scales_are_near_one(backbone: Backbone) -> None:
    x = torch.randint(0, 256, (3, 3, 160, 160), dtype=torch.uint8, generator=rng())
    plain, draw = backbone.features(x), rng()
    assert torch.equal(adaptable(backbone, AdapterPart(rank=4), draw)[0].features(x), plain)
    _, part = adaptable(backbone, ScaleShiftPart(), draw)
    scales = [m for m in part.modules() if isinstance(m, ScaleShift)]
    assert torch.cat([m.gamma for m in scales]).mean() == pytest.approx(1, abs=0.005)
    assert torch.cat([m.beta for m in scales]).std() == pytest.approx(0.02, abs=0.002)


@pytest.mark.parametrize("variant", PROMPTS)
def test_shallow_prompts_enter_before_the_first_block_and_leave_after_the_last(
    variant: str, backbone: Backbone
) -> None:
    view, part = adaptable(backbone, PROMPTS[variant](prompt_length=3), rng())
    widths: list[tuple[int, int]] = []
    for block in view.vit.blocks:
        block.attn.register_forward_pre_hook(lambda m, args: widths.append((0, args[0].shape[1])))
        block.register_forward_hook(lambda m, args, out: widths.append((1, out.shape[1])))
    view.vit.norm.register_forward_pre_hook(lambda m, args: widths.append((2, args[0].shape[1])))
    x = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8, generator=rng())
    view.features(x)
    n, blocks = backbone.tokens_shape[0], len(view.vit.blocks)
    assert blocks > 2
    inside, between = n + 3, n + 3 if variant == "vpt_shallow" else n
    assert widths == [*[(0, inside), (1, between)] * (blocks - 1), (0, inside), (1, n), (2, n)]
    assert len(list(part.parameters())) == (1 if variant == "vpt_shallow" else blocks)


def test_adapters_drop_out_while_they_adapt_and_only_then_and_every_step_is_told(
    backbone: Backbone, images: LabelledImages, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    store = FeatureStore(tmp_path / "told", progress=lambda e: told.append((e.stage, e.done, e.total)))
    view, part = adaptable(backbone, AdapterPart(rank=2), rng())
    adapters = [m for m in part.modules() if isinstance(m, Adapter)]
    used: list[torch.Generator | None] = []
    for adapter in adapters:
        adapter.register_forward_pre_hook(lambda m, args: used.append(m.dropout_rng))
    assert len(adapters) > 1
    adapt(view, part, images, torch.tensor(images.labels), training(2, 8), rng(1), store)
    assert len(used) == 4 * len(adapters)
    assert {id(generator) for generator in used} == {id(used[0])} != {id(None)}
    assert [a.dropout_rng for a in adapters] == [None] * len(adapters)
    assert told == [("adapting", done, 4) for done in (1, 2, 3, 4)]


def test_the_first_session_adapts_to_the_first_task_alone(
    backbone: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    columns = torch.tensor(images.labels)
    first = FirstSession(backbone, AdapterPart(rank=2, train=training()), rng())
    known = [p.clone() for p in first.part.parameters()]
    for index, changes in ((1, False), (0, True)):
        first.adapt(Task(index, images, (0, 1)), columns, rng(1), store)
        now = list(first.part.parameters())
        assert all(torch.equal(a, b) for a, b in zip(known, now, strict=True)) is not changes
    nothing = FirstSession(backbone, None, rng())
    nothing.adapt(Task(0, images, (0, 1)), columns, rng(1), store)
    assert nothing.backbone is backbone
    assert not list(nothing.part.parameters())


def test_a_stack_has_as_many_adapters_as_the_state_that_it_loads(backbone: Backbone) -> None:
    added: list[int] = []
    full, empty = (AdapterStack(backbone, AdapterPart(rank=2), rng, added.append) for _ in range(2))
    for go_on in (True, False, True):
        full.add(go_on=go_on)
    flat = [torch.cat([p.flatten() for p in part.parameters()]) for part in full.parts]
    assert [torch.equal(flat[i], flat[j]) for i, j in ((0, 1), (1, 2))] == [False, True]
    one = AdapterStack(backbone, AdapterPart(rank=2), rng)
    one.add()
    assert added == [0, 1, 2]
    empty.load_state_dict(full.state_dict())
    assert added == [0, 1, 2] * 2
    full.load_state_dict(one.state_dict())
    for stack, n in ((full, 1), (empty, 3)):
        assert len(stack) == len(stack.views) == n
    assert all(torch.equal(full.state_dict()[k], v) for k, v in one.state_dict().items())


def test_a_stack_trains_an_adapter_and_gives_features_under_any(
    backbone: Backbone, images: LabelledImages, store: FeatureStore
) -> None:
    stack = AdapterStack(backbone, AdapterPart(rank=2, train=training(batch_size=4)), rng)
    columns = torch.from_numpy(images.labels)
    for _ in range(2):
        stack.adapt(images, columns, rng(1), store)
    view, part = adaptable(backbone, AdapterPart(rank=2), rng(1))
    adapt(view, part, images, columns, training(batch_size=4), rng(1), store)
    trained = stack.parts[1].state_dict()
    assert all(torch.equal(value, trained[name]) for name, value in part.state_dict().items())
    positions, (_, pixels) = torch.tensor([7, 2]), next(iter(images.batches(backbone.preprocess, len(images))))
    wanted = view.features(pixels[positions])
    assert torch.equal(stack.of(pixels)(1, positions), wanted)
    asked = stack.stored(images, store, "some")
    assert torch.equal(asked(1, positions), wanted)
    assert not torch.equal(asked(0, positions), wanted)
    before = backbone.passes.images
    asked(1, positions)
    assert backbone.passes.images == before
