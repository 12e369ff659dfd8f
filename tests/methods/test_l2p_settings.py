"""L2P beside its golden numbers: published settings, what the head reads, who votes with whom, and two backbones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from in_training import batch_of, loss_of
from perdure import Backbone, FeatureStore, Stream, load_stream
from perdure.backbone.vit import Prompt
from perdure.checks import check_method
from perdure.config import laid_over
from perdure.errors import ConfigError
from perdure.methods import l2p as l2p_module
from perdure.methods.l2p import L2P, L2PConfig
from tiny_vit import ON_ANOTHER_VIT, second_vit, tiny

SMALL = {"pool": 4, "length": 2, "top_k": 2, "train": {"epochs": 1, "batch_size": 8}}


def small(backbone: Backbone | None = None, seed: int = 0, **config: Any) -> L2P:
    return L2P(backbone or tiny(), L2PConfig(**laid_over(SMALL, config)), seed=seed)


@pytest.fixture
def stream() -> Stream:
    return load_stream("synthetic", tasks=3)


@pytest.mark.parametrize("preset", ["default", *L2PConfig.presets])
def test_every_preset_votes_and_says_so(preset: str) -> None:
    assert L2P(tiny(), L2PConfig(preset=preset)).promises.depends_on_test_batch == (preset != "default")


def test_presets_give_way_to_what_is_said() -> None:
    pilot_on_imagenet_r = L2PConfig(preset="pilot", train={"batch_size": 32, "epochs": 10}).train
    assert (pilot_on_imagenet_r.lr, pilot_on_imagenet_r.scale_lr, pilot_on_imagenet_r.epochs) == (0.001875, False, 10)


@pytest.mark.parametrize(("init", "low", "high"), [("pm1", -1, 1), ("0_001", 0, 0.01), ("0_1", 0, 1)])
def test_prompts_and_keys_begin_uniformly(init: str, low: float, high: float) -> None:
    pool = small(pool=100, length=10, init=f"uniform_{init}").pool_
    for values in (pool.prompts, pool.keys):
        assert low <= values.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < values.max() <= high
        assert values.mean().item() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert not torch.equal(pool.prompts[:, 0], pool.keys)
    cosines = F.normalize(pool.keys, dim=1) @ F.normalize(pool.keys, dim=1).T
    mean = (cosines.sum() - 100) / 9900
    assert mean.item() == pytest.approx(0 if init == "pm1" else 0.75, abs=0.05)


def test_the_pool_begins_as_the_seed_says() -> None:
    pools = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        backbone = tiny()
        torch.manual_seed(global_seed)
        pools.append(small(backbone, seed).pool_.state_dict())
    for name in ("prompts", "keys"):
        assert torch.equal(pools[0][name], pools[1][name])
        assert not torch.equal(pools[0][name], pools[2][name])


def test_more_prompts_than_there_are_cannot_be_chosen() -> None:
    with pytest.raises(ConfigError, match=r"L2P: top_k must be at most pool = 3, but got 4\. Raise method\.pool"):
        small(pool=3, top_k=4)
    assert small(pool=3, top_k=3).config.top_k == 3


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": False, "global_pool": "avg"},
        {"no_embed_class": True},
        {"pos_embed": "none"},
    ],
)
def test_a_class_token_without_position_is_refused_where_it_is_needed(options: dict[str, Any]) -> None:
    """Its first position vector would be a patch's."""
    with pytest.raises(ConfigError, match=r"backbone must be one whose class token .* but got 'tiny'\. Set .*=none"):
        small(tiny(**options), prompt_pos="cls")
    assert small(tiny(**options)).config.prompt_pos == "none"
    assert small(tiny(reg_tokens=2), prompt_pos="cls").config.prompt_pos == "cls"


@pytest.mark.parametrize("options", [{}, {"global_pool": "avg"}])
def test_what_the_head_reads(options: dict[str, Any]) -> None:
    """The mean prompt token, through the norm that a backbone puts behind its pooling if it has one."""
    backbone = tiny(**options)
    embedded, slots = backbone.embed_tokens(torch.randn(3, 3, 8, 8)), torch.tensor([[0, 1], [3, 0], [2, 1]])
    methods = {h: small(backbone, head_input=h) for h in ("prompt_mean", "cls", "cls+prompt")}
    out = backbone.walk(embedded, {0: Prompt(methods["cls"].pool_.prompts[slots].flatten(1, 2), stays=True)})
    read = {name: method._prompted(embedded, slots) for name, method in methods.items()}
    mean = out.prompts.mean(1)
    if options:
        assert isinstance(backbone.vit.fc_norm, nn.LayerNorm)
        mean = F.layer_norm(mean, (8,), backbone.vit.fc_norm.weight, backbone.vit.fc_norm.bias, eps=1e-6)
    torch.testing.assert_close(read["prompt_mean"], mean)
    torch.testing.assert_close(read["cls"], backbone.pool(out))
    torch.testing.assert_close(read["cls+prompt"], (mean + backbone.pool(out)) / 2)
    assert (read["cls"] - mean).abs().max() > 1e-3


@pytest.fixture
def slots_in_training(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[list[list[int]], float]]:
    """The slots of one training batch, and the term that pulls the keys."""

    def found(queries: Tensor, **config: Any) -> tuple[list[list[int]], float]:
        method, chosen = small(pool=8, **config), []
        loss, own = loss_of(method, stream[0]), method._prompted
        method.pool_.keys = nn.Parameter(torch.eye(8))
        monkeypatch.setattr(method, "_prompted", lambda x, slots: chosen.append(slots.tolist()) or own(x, slots))
        monkeypatch.setattr(l2p_module, "masked_cross_entropy", lambda *_: torch.zeros(()))
        pull = loss(batch_of(torch.randn(len(queries), 5, 8), queries))
        return chosen[0], pull.item()

    return found


def test_who_votes_in_training(slots_in_training: Callable[..., tuple[list[list[int]], float]]) -> None:
    eye = torch.eye(8)
    first = [(0, 1), (1, 2), (1, 3), (4, 5), (5, 6), (5, 7)]
    queries = torch.stack([eye[a] + 0.9 * eye[b] for a, b in first])
    alone, own_pull = slots_in_training(queries)
    assert alone == [list(pair) for pair in first]
    assert own_pull == pytest.approx(-0.1 * 1.9 / 1.81**0.5)
    together, pull = slots_in_training(queries, train_prompts={"vote": "batch"})
    assert together == [[1, 5]] * 6
    assert pull == pytest.approx(-0.1 * (0.9 + 1 + 1) * 2 / 6 / 1.81**0.5), "every query pulls the voted keys"
    groups, _ = slots_in_training(queries, train_prompts={"vote": 3})
    assert groups == [[1, 0]] * 3 + [[5, 4]] * 3


def test_selection_tells_the_shares_of_a_test(stream: Stream) -> None:
    method = small(pool=5).fit_task(stream[0])
    data = stream.test(0)
    shares = method.selection_of(data)
    queries = method.backbone.features(next(data.batches(method.backbone.preprocess, 64))[1])
    counts = np.bincount(method._test_slots(queries).flatten(), minlength=5)
    assert shares.tolist() == pytest.approx((counts / counts.sum()).tolist())
    assert shares.sum().item() == pytest.approx(1)
    assert method.selection_of(data.subset(np.arange(0))).tolist() == [0] * 5


def test_selection_votes_as_the_test_does(stream: Stream) -> None:
    """Labels a, b, a, b: as stored, 0 and 1 vote together and 2 and 3; sorted by class, 0 and 2 do and 1 and 3."""
    data = stream.test(0).subset(np.array([0, 4, 1, 5]))
    shares = {}
    for order, groups in {"stored": [[0, 1], [2, 3]], "class_sorted": [[0, 2], [1, 3]]}.items():
        method = small(pool=4, top_k=2, vote={"batch_size": 2, "order": order}).fit_task(stream[0])
        queries = method.backbone.features(next(data.batches(method.backbone.preprocess, 64))[1])
        method.pool_.keys = nn.Parameter(queries - queries.mean(0))  # each image's best key is its own
        wanted = torch.cat([method._test_slots(queries[group]) for group in groups])
        shares[order] = method.selection_of(data).tolist()
        assert shares[order] == (torch.bincount(wanted.flatten(), minlength=4) / 8).tolist()
    assert shares["stored"] != shares["class_sorted"]


def test_task_slots_give_every_task_prompts_of_its_own(backbone: Backbone) -> None:
    """The remedy against one set of prompts that serves all: after it, the tests' choices spread over the pool."""
    stream = load_stream("synthetic", tasks=3, order_seed=None)  # similar classes share a task, and so a key
    quick = {"epochs": 4, "lr": 0.3, "augment": {"min_scale": 1.0, "flip": False}}
    method = small(backbone, pool=6, init="uniform_0_001", train_prompts="task_slot", train=quick)
    for task in stream:
        method.fit_task(task)
    shares = torch.stack([method.selection_of(stream.test(i)) for i in range(3)])
    by_task = shares.unflatten(1, (3, 2)).sum(2)
    assert by_task.argmax(1).tolist() == [0, 1, 2]


@pytest.mark.parametrize("config", [{"prompt_pos": "cls"}, {"head_input": "cls"}, {"vote": {"batch_size": 16}}])
def test_a_saved_state_goes_on_as_if_nothing_had_been(config: Mapping[str, Any], store: FeatureStore) -> None:
    stream = load_stream("synthetic", tasks=3)
    straight = small(**config).fit_task(stream[0])
    resumed = small(**config).load_state_dict(straight.state_dict())
    for method in (straight, resumed):
        method.fit_task(stream[1])
    one, other = (torch.cat(list(m.scores_of(stream.test(0)))) for m in (straight, resumed))
    assert torch.equal(one, other)


def test_every_promise_is_kept_on_a_second_vit() -> None:
    results = check_method(L2P, only=ON_ANOTHER_VIT, make_backbone=second_vit)
    assert [(r.name, r.note) for r in results if not r.ok] == []
