"""Tokens behind the last block, with a prompt among them: where they come from and what is kept of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from perdure import FeatureStore, load_stream
from perdure.checks.subject import pixels
from perdure.config import laid_over
from perdure.errors import NonFiniteError
from perdure.methods.esn import ESN, ESNConfig
from tiny_vit import behind, tiny

SMALL = {"length": 2, "train": {"epochs": 1, "batch_size": 8}}


def esn(backbone: Any = None, store: FeatureStore | None = None, **config: Any) -> ESN:
    return ESN(backbone or tiny(), ESNConfig(**laid_over(SMALL, config)), store=store)


def test_the_prompt_stands_behind_the_class_token_without_a_position() -> None:
    """297 tokens for 197 and a prompt of 100; here 5 and 2. As they are before the last norm."""
    backbone, images = tiny(), torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    method = esn(backbone)
    tokens = method.outputs.of(images)
    assert tokens.shape == (3, 7, 8)
    assert method.prompt_.values.abs().max() <= 8**-0.5
    embedded = backbone.embed_tokens(images)
    x = torch.cat([embedded[:, :1], method.prompt_.values.expand(3, -1, -1), embedded[:, 1:]], 1)
    with torch.no_grad():
        for block in backbone.vit.blocks:
            x = block(x)
    torch.testing.assert_close(tokens, x)


def test_tokens_behind_a_stem_come_from_its_stored_outputs(store: FeatureStore) -> None:
    backbone = behind(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1))
    stream, kept = load_stream("synthetic", tasks=3), []
    for keep in (True, False):
        method = esn(backbone, store, store_tokens=keep).fit_task(stream[0]).fit_task(stream[1])
        kept.append(torch.cat(list(method.scores_of(stream.test(0)))))
        torch.testing.assert_close(kept[-1], method.scores(pixels(method, stream.test(0))))
    assert len(list(store.directory.glob("*-patches"))) == 1


def test_tokens_that_are_not_finite_name_the_image(store: FeatureStore) -> None:
    stream, method = load_stream("synthetic", tasks=3), esn(store=store)
    method.prompt_.values.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"0"):
        store.outputs(method.backbone, method.prompt_.values, stream[0].train)


def test_another_prompt_has_other_tokens(store: FeatureStore) -> None:
    stream, method = load_stream("synthetic", tasks=3), esn(store=store)
    data = stream[0].train
    one = store.outputs(method.backbone, method.prompt_.values, data)[:]
    other = store.outputs(method.backbone, method.prompt_.values + 1, data)[:]
    assert one.shape == (len(data), 7 * 8)
    assert not torch.equal(one, other)
    before = method.backbone.passes.images
    assert torch.equal(store.outputs(method.backbone, method.prompt_.values, data)[:], one)
    assert store.outputs(method.backbone, method.prompt_.values[:0], data)[:].shape == (len(data), 5 * 8)
    assert method.backbone.passes.images == before + len(data)
