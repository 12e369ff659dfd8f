"""RanPAC's phase 1: the adaptation to the first task, below its statistics."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perdure import Backbone, FeatureStore, Stream
from perdure.checks import check_method
from perdure.data.stream import class_incremental
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError
from perdure.methods.aper import APER, APERConfig
from perdure.methods.base import Tags
from perdure.methods.ranpac import RanPAC, RanPACConfig
from perdure.modules.ridge import unpack

IDS = [4, 2, 7, 0, 5, 9]
TRAIN: dict[str, Any] = {"epochs": 2, "batch_size": 8, "augment": {"min_scale": 1.0, "flip": False}}
ADAPTER: dict[str, Any] = {"variant": "adapter", "rank": 4, "train": TRAIN}


def ranpac(backbone: Backbone, store: FeatureStore, adapt: Any = ADAPTER) -> RanPAC:
    return RanPAC(backbone, RanPACConfig(projection_dim=32, adapt=adapt), store=store)


@pytest.fixture
def stream() -> Stream:
    return class_incremental(synthetic_dataset(IDS, train_per_class=6, test_per_class=4), [2, 2, 2], IDS)


def test_statistics_are_of_adapted_features(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    method = ranpac(backbone, store)
    for task in stream:
        method.fit_task(task)
    assert method.first.backbone.fingerprint != backbone.fingerprint
    f = [method.first.backbone.features(x) for t in stream for _, x in t.train.batches(backbone.preprocess, 6)]
    lifted = torch.cat([method.lift(features) for features in f])
    torch.testing.assert_close(unpack(method.gram_, 32), lifted.T @ lifted, rtol=1e-5, atol=1e-4)
    assert method.learned_parameters() == sum(p.numel() for p in method.tuned_.parameters()) + 32 * 6


def test_it_adapts_as_aper_does(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    aper = APER(backbone, APERConfig(adapt=ADAPTER), store=store).fit_task(stream[0])
    method = ranpac(backbone, store).fit_task(stream[0])
    # so that features are shared between the two
    assert method.first.backbone.fingerprint == aper.first.backbone.fingerprint


def test_without_phase_1_the_given_backbone_is_used(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    method = ranpac(backbone, store, adapt="none")
    assert method.fit_task(stream[0]).embedder is backbone
    assert not list(method.tuned_.parameters())


def test_a_method_read_back_goes_on_alike(backbone: Backbone, store: FeatureStore, stream: Stream) -> None:
    straight = ranpac(backbone, store).fit_task(stream[0])
    resumed = ranpac(backbone, store).load_state_dict(straight.state_dict())
    for method in (straight, resumed):
        method.fit_task(stream[1])
    assert torch.equal(straight.gram_, resumed.gram_)
    assert torch.equal(straight.predict(stream.test(0)), resumed.predict(stream.test(0)))


def test_every_promise_is_kept() -> None:
    scales = {"variant": "ssf", "train": {**TRAIN, "epochs": 1}}

    class Adapting(RanPAC):
        __doc__ = RanPAC.__doc__
        tags = Tags(adapts=True, small={"adapt": scales, "projection_dim": 64})

    Adapting.__module__ = RanPAC.__module__
    assert [result.note for result in check_method(Adapting) if not result.ok] == []


def test_a_seat_that_is_not_there_is_named(store: FeatureStore) -> None:
    with pytest.raises(BackboneError, match="seat"):
        ranpac(Backbone.load("test_resnet", pretrained=False, device="cpu"), store)


@pytest.mark.parametrize(
    ("preset", "adapts", "head"),
    [("paper", "adapter", "linear"), ("paper_ssf", "ssf", "linear"), ("paper_vpt", "vpt_deep", "linear"),
     ("pilot", "adapter", "cosine"), ("default", "none", "linear")],
)  # fmt: skip
def test_presets(preset: str, adapts: str, head: str) -> None:
    c = RanPACConfig(preset=preset)
    assert (c.adapt.variant if c.adapt else "none", c.head) == (adapts, head)
    if c.adapt:
        t = c.adapt.train
        assert (t.epochs, t.lr, t.batch_size, t.optimizer.weight_decay) == (20, 0.01, 48, 5e-4)
        assert t.schedule.name == "epoch_cosine"
        assert getattr(c.adapt, "rank", None) == (64 if adapts == "adapter" else None)
