"""ESN's settings on backbones of several kinds, and a class that comes again."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perdure import load_stream
from perdure.backbone.tiny import TINY
from perdure.checks.subject import pixels
from perdure.config import laid_over
from perdure.data import Task
from perdure.errors import ConfigError
from perdure.methods.esn import ESN, ESNConfig
from tiny_vit import tiny

SMALL = {"length": 2, "train": {"epochs": 1, "batch_size": 8}}


def esn(backbone: Any = None, **config: Any) -> ESN:
    return ESN(backbone or tiny(), ESNConfig(**laid_over(SMALL, config)))


def test_heads_are_the_backbones_unless_told() -> None:
    assert esn().blocks_.heads == 2
    assert esn(TINY["vit"]()).blocks_.heads == 3
    assert esn(heads=4).blocks_.heads == 4
    with pytest.raises(ConfigError, match=r"heads must be a divisor of the backbone's width 8, but got 3\."):
        esn(heads=3)


def test_the_token_starts_as_the_class_token_where_there_is_one() -> None:
    backbone = tiny()
    assert torch.equal(esn(backbone).blocks_.start, backbone.vit.cls_token[0, 0])
    without = tiny(class_token=False, global_pool="avg")
    assert not esn(without).blocks_.start.any()
    stream = load_stream("synthetic", tasks=3)
    assert esn(without).fit_task(stream[0]).scores(pixels(esn(without), stream.test(0))).shape == (8, 2)


def test_a_class_that_comes_again_scores_by_its_best_stage() -> None:
    """Each domain has a stage of its own: twice two rows, for the same two columns."""
    stream, config = load_stream("synthetic", tasks=3), {"train": {"lr": 0.05}}
    again = Task(1, stream[0].train, stream[0].classes)
    method = esn(**config).fit_task(stream[0]).fit_task(again)
    assert method.slot_columns_ == [0, 1, 0, 1]
    assert method.widths_ == [2, 2]
    images = pixels(method, stream.test(0))
    scores, logits = method.scores(images), method._logits(method.outputs.of(images))
    assert scores.shape == (8, 2)
    leads = torch.stack([z.amax(1) for z in logits.split(2, 1)]).argmax(0)  # at T = 0.001 the largest logit
    method.temperatures_ = [0.001, 0.001]
    own = torch.stack(logits.split(2, 1))[leads, torch.arange(8)]
    assert torch.equal(method.scores(images).argmax(1), own.argmax(1))
    assert torch.allclose(method.scores(images).amax(1), torch.zeros(8))
