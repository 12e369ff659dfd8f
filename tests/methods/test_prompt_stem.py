"""Backbones whose patch embedding is a network: its output is kept, and no bit of any result shows it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdure import Backbone, FeatureStore, Stream
from perdure.backbone import backbone as backbone_module
from perdure.checks.subject import equal, frozen_state
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import NonFiniteError
from perdure.methods.base import PromptMethod
from perdure.methods.dap import DAP, DAPConfig
from perdure.methods.l2p import L2P, L2PConfig
from perdure.methods.vpt import VPT, VPTConfig
from perdure.modules.adapter import Adapter
from tiny_vit import behind

IDS = [4, 1, 9, 3]
STILL = {"train": {"epochs": 2, "batch_size": 5, "augment": {"flip": False, "min_scale": 1.0}}}


class Stem(nn.Sequential):
    """Two convolutions that count the images they see, where no fingerprint looks."""

    seen: ClassVar = 0

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, 3, 2, 1), nn.GELU(), nn.Conv2d(4, 6, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        Stem.seen += len(x)
        return super().forward(x)


@pytest.fixture
def hybrid() -> Backbone:
    """A backbone whose stem is a network itself."""
    torch.manual_seed(0)
    return behind(Stem())


@pytest.fixture
def stream() -> Stream:
    """Two tasks of two classes, eleven training images and eight test images each."""
    data = synthetic_dataset(IDS, train_per_class=(6, 5, 6, 5), test_per_class=4)
    return class_incremental(data, [2, 2], IDS)


def learned(method: PromptMethod, stream: Stream) -> tuple[dict, list[Tensor]]:
    scores = []
    for task in stream:
        method.fit_task(task)
        scores += [torch.cat(list(method.scores_of(stream.test(i)))) for i in range(task.index + 1)]
    return frozen_state(method), scores


MAKERS = {
    "dap": lambda b, s: DAP(b, DAPConfig(n_prompts=2, embedding_dim=4, **STILL), store=s),
    "l2p": lambda b, s: L2P(b, L2PConfig(pool=3, top_k=2, length=2, **STILL), store=s),
    "vpt": lambda b, s: VPT(b, VPTConfig(length=2, **STILL), store=s),
    "vpt first task": lambda b, s: VPT(b, VPTConfig(length=2, mode="first_task", **STILL), store=s),
}


@pytest.mark.parametrize("name", MAKERS)
def test_kept_patches_change_no_bit_and_spare_the_stem(
    name: str, hybrid: Backbone, stream: Stream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hybrid.has_stem
    assert hybrid.tokens_shape == (5, 8)
    method = MAKERS[name](hybrid, FeatureStore(tmp_path / "kept"))
    Stem.seen = 0
    state, scores = learned(method, stream)
    with_store = Stem.seen
    images = sum(len(t.train) + len(stream.test(t.index)) for t in stream)
    assert with_store <= 2 * images  # each image once for its patches, once for its query

    monkeypatch.setattr(backbone_module.Backbone, "has_stem", False)
    Stem.seen = 0
    other_state, other_scores = learned(MAKERS[name](hybrid, FeatureStore(tmp_path / "plain")), stream)
    assert Stem.seen > with_store
    assert equal(state, other_state)
    assert all(torch.equal(a, b) for a, b in zip(scores, other_scores, strict=True))


def test_a_second_run_needs_no_stem_at_all(hybrid: Backbone, stream: Stream, tmp_path: Path) -> None:
    first = learned(MAKERS["l2p"](hybrid, FeatureStore(tmp_path)), stream)
    Stem.seen = 0
    second = learned(MAKERS["l2p"](hybrid, FeatureStore(tmp_path)), stream)
    assert Stem.seen == 0
    assert equal(first[0], second[0])


def test_augmented_views_always_pass_the_stem(hybrid: Backbone, stream: Stream, tmp_path: Path) -> None:
    task = stream[0]
    for _ in range(2):
        Stem.seen = 0
        config = VPTConfig(length=2, train={"epochs": 2, "batch_size": 5})
        VPT(hybrid, config, store=FeatureStore(tmp_path)).fit_task(task)
        assert Stem.seen >= 2 * len(task.train)


def test_stored_patches_are_the_input_of_the_first_block(hybrid: Backbone, stream: Stream, tmp_path: Path) -> None:
    data = stream[0].train
    store = FeatureStore(tmp_path)
    rows = store.patches(hybrid, data)
    assert len(rows) == len(data)
    pixels = torch.cat([x for _, x in data.batches(hybrid.preprocess, 4)])
    with torch.no_grad():
        wanted = hybrid.embed_tokens(pixels)
    assert tuple(wanted.shape[1:]) == hybrid.tokens_shape == (5, 8)
    got = torch.cat(list(rows.batches(3))).view(-1, *hybrid.tokens_shape)
    assert torch.equal(got, wanted)
    assert store.features(hybrid, data).dim == 8, "features keep a shelf of their own"


@pytest.mark.parametrize("batches", [0, 2])
@pytest.mark.parametrize("inserted", [False, True])
def test_a_last_batch_of_one_image_is_kept_like_any_other(
    batches: int, inserted: bool, hybrid: Backbone, tmp_path: Path
) -> None:
    n = batches * hybrid.batch_size + 1
    data = synthetic_dataset([0], train_per_class=n).train
    pixels = torch.cat([x for _, x in data.batches(hybrid.preprocess, n)])
    view = hybrid.view()
    if inserted:
        up = torch.Generator().manual_seed(1)
        adapters = view.insert("mlp", lambda site: Adapter(site.n_in, 4, torch.Generator().manual_seed(0), scale=1))
        for parameter in adapters.requires_grad_(False).parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=up))
    assert view.shares_stem == inserted
    before = view.passes.images
    rows = FeatureStore(tmp_path).features(view, data)
    assert view.passes.images == before + n
    assert rows[:].shape == (n, 8)
    torch.testing.assert_close(rows[:], view.features(pixels), atol=1e-5, rtol=0)
    assert torch.equal(rows[:], hybrid.features(pixels)) != inserted
    before = view.passes.images
    assert torch.equal(FeatureStore(tmp_path).features(view, data)[:], rows[:])
    assert view.passes.images == before
    mixed = data.subset(torch.randperm(n, generator=torch.Generator().manual_seed(2)).numpy())
    some = FeatureStore(tmp_path / "apart")
    some.features(view, mixed.subset(np.arange(n // 3)))  # then the others, in another order
    torch.testing.assert_close(some.features(view, data)[:], rows[:], atol=1e-5, rtol=0)
    with torch.no_grad():
        patches = FeatureStore(tmp_path).patches(hybrid, data)[:].view(-1, *hybrid.tokens_shape)
        torch.testing.assert_close(patches, hybrid.embed_tokens(pixels), atol=1e-5, rtol=0)


def test_features_of_patches_keep_their_image_in_any_batch_and_name_a_bad_one(hybrid: Backbone) -> None:
    pixels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole, patches = hybrid.features(pixels), hybrid.embed_tokens(pixels).detach().flatten(1)
    for size in (1, 2, 4, 5):
        before = hybrid.passes.images
        parts = [hybrid.features_of_patches(part) for part in patches.split(size)]
        torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
        assert hybrid.passes.images == before + 5
        assert not parts[-1].requires_grad
    assert hybrid.features_of_patches(patches[:0]).shape == (0, 8)
    patches[3, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="features of image 1 must be finite"):
        hybrid.features_of_patches(patches[2:])


def test_one_image_alone_is_embedded_as_in_a_batch(hybrid: Backbone) -> None:
    x = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(hybrid.embed_tokens(x[:1]), hybrid.embed_tokens(x)[:1])
        assert hybrid.embed_tokens(x[:0]).shape == (0, 5, 8)


def test_a_plain_patch_embedding_is_no_stem() -> None:
    assert not Backbone.load("test_vit", pretrained=False, device="cpu").has_stem
