"""The golden tests of LAE's specification, section 12, and its pitfalls."""

from __future__ import annotations

import copy
import dataclasses as dc
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn

from perdure import Backbone, FeatureStore, Stream
from perdure.backbone.tiny import small_vit
from perdure.checks import check_method
from perdure.checks.subject import pixels, small_stream
from perdure.config import laid_over, load
from perdure.data import Preprocess
from perdure.methods import lae as module
from perdure.methods.lae import LAE
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.modules.lora import LoRA
from perdure.modules.merging import pull_
from perdure.modules.prefix import Prefix
from perdure.train.adapting import adaptable
from perdure.train.calibrated import KINDS, CalibratedAdapter, CalibratedLoRA, CalibratedPrefix
from perdure.train.session import Session
from tiny_vit import tiny

STILL = {"min_scale": 1.0, "flip": False}
TRAIN: dict[str, Any] = {"lr": 0.1, "epochs": 4, "batch_size": 4, "augment": STILL}
VARIANTS = {"adapter": {"rank": 2}, "lora": {"rank": 2}, "prefix": {"length": 3}}
SOME = [
    "check_everything_learned_is_used", "check_batch_does_not_matter", "check_whole_data_equals_batches",
    "check_state_round_trip", "check_resumed_equals_straight", "check_state_is_declared",
]  # fmt: skip


def lae(store: FeatureStore, variant: str = "adapter", backbone: Backbone | None = None, **config: Any) -> LAE:
    values = {"module": {"variant": variant, **VARIANTS[variant]}, "train": TRAIN, "held": 0.5, **config}
    return LAE(backbone or tiny(), values, store=store)


def two(sizes: tuple[int, ...] = (2, 2)) -> Stream:
    return small_stream(sizes, train_per_class=4)


def convnext() -> Backbone:
    return small(ConvNeXt, depths=(1, 1, 1, 1), dims=(8, 12, 16, 24))


def small(kind: type[nn.Module], **sizes: Any) -> Backbone:
    """For images of 32 px, all weights shaken."""
    torch.manual_seed(0)
    model = kind(num_classes=0, **sizes)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return Backbone(model, name=f"a tiny {kind.__name__}", preprocess=Preprocess(image_size=32), device="cpu")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def values(part: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in part.parameters()]


def alike(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session[Any]]:
    """Every session that LAE makes."""
    made: list[Session[Any]] = []
    plain: Callable[..., Any] = module.on_images

    def spy(*args: Any, **options: Any) -> Any:
        made.append(plain(*args, **options))
        return made[-1]

    monkeypatch.setattr(module, "on_images", spy)
    return made


def test_01_the_average_has_a_fixed_point() -> None:
    on, start = torch.randn(50, generator=rng()), torch.randn(50, generator=rng(1))
    off = [start.clone()]
    for _ in range(30):
        pull_(off, [on], 0.1)
    torch.testing.assert_close(off[0], on + 0.9**30 * (start - on))
    same = [on.clone()]
    for _ in range(300):
        pull_(same, [on], 1e-4)
    assert torch.equal(same[0], on)


def test_02_the_average_of_one_two_three() -> None:
    off, seen = [torch.zeros(())], []
    for on in (1.0, 2.0, 3.0):
        pull_(off, [torch.tensor(on)], 0.5)
        seen.append(float(off[0]))
    assert seen == [0.5, 1.25, 2.125]
    off = [torch.zeros(())]
    for _ in range(3):
        pull_(off, [torch.ones(())], 0.1)
    assert float(off[0]) == pytest.approx(0.271)


@pytest.mark.parametrize("how", [CalibratedAdapter(), CalibratedLoRA(), CalibratedPrefix()])
def test_03_adapter_and_lora_start_as_nothing_and_a_prefix_does_not(how: Any) -> None:
    backbone = tiny()
    view, _ = adaptable(backbone, how, rng())
    x = torch.randint(0, 256, (3, 3, 8, 8), generator=rng(), dtype=torch.uint8)
    assert torch.equal(view.features(x), backbone.features(x)) == (how.variant != "prefix")


def test_04_lora_is_a_sum_of_weights_and_its_scales_wait_for_b() -> None:
    layer, x = nn.Linear(8, 24), torch.randn(5, 8, generator=rng())
    lora = LoRA(layer, 2, rng(), parts=3, updated=(1, 2), learned_scale=True)
    (layer(x) + lora(x)).square().sum().backward()
    assert [float(s.grad) for s in lora.scales] == [0, 0]  # type: ignore[arg-type]
    assert all(bool(b.grad.abs().max() > 0) for b in lora.b)  # type: ignore[union-attr]
    with torch.no_grad():
        for p in lora.parameters():
            p.add_(torch.randn(p.shape, generator=rng(1)))
        folded = copy.deepcopy(layer)
        lora.fold_into(folded)
        torch.testing.assert_close(folded(x), layer(x) + lora(x), atol=1e-5, rtol=1e-5)
        assert torch.equal(folded.weight[:8], layer.weight[:8])
        assert not torch.allclose(folded.weight[8:16], layer.weight[8:16])
        moved = lora.scales[1] * (lora.b[1] @ lora.a[1])  # of the values
        torch.testing.assert_close(folded.weight[16:], layer.weight[16:] + moved)


def test_05_the_prefix_always_has_weight_one() -> None:
    prefix = Prefix(4, 2, rng())
    with torch.no_grad():
        prefix.values.copy_(torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0]]))
    queries, tokens = torch.zeros(1, 1, 4, 4), torch.eye(4)[None]  # equal scores; values tell the weights
    attended = F.scaled_dot_product_attention(queries[0], queries[0], tokens)
    out = prefix(attended, queries, queries)[0]
    torch.testing.assert_close(out, (torch.full((4, 4), 1 / 6) + torch.tensor([0.5, 0.5, 0, 0])))
    assert out.sum(1).tolist() == pytest.approx([5 / 3] * 4)
    one, q, k, v = Prefix(8, 1, rng()), *torch.randn(3, 2, 2, 5, 4, generator=rng())
    with torch.no_grad():
        one.key_scale.fill_(30.0)
        one.value_scale.fill_(2.0)
    weights = (torch.cat([q @ (30 * one.keys).view(1, 2, 1, 4).mT, q @ k.mT], dim=3) / 2).softmax(3)
    wanted = (weights[..., 1:] @ v).transpose(1, 2).flatten(2) + 2 * one.values[0]
    plain = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(one(plain, q, k), wanted)


def test_05_a_block_with_a_prefix_is_the_formula() -> None:
    backbone = tiny(depth=1, qk_norm=True)
    view, part = adaptable(backbone, CalibratedPrefix(length=3), rng())
    [prefix] = part.inserted  # type: ignore[misc,union-attr]
    with torch.no_grad():
        for p in part.parameters():
            p.add_(torch.randn(p.shape, generator=rng(1)))
        x = torch.randn(2, 5, 8, generator=rng())
        [block] = backbone.vit.blocks
        a = block.attn
        q, k, v = a.qkv(block.norm1(x)).reshape(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q, k = a.q_norm(q), a.k_norm(k)
        p_k, p_v = (s * p for s, p in ((prefix.key_scale, prefix.keys), (prefix.value_scale, prefix.values)))
        rows = [p.view(1, 3, 2, 4).transpose(1, 2).expand(2, -1, -1, -1) for p in (p_k, p_v)]
        weights = (q @ torch.cat([k[:, :, :1], rows[0], k[:, :, 1:]], dim=2).mT / 2).softmax(3)  # behind CLS
        weights[..., 1:4] /= weights[..., 1:4].sum(3, keepdim=True)
        both = weights @ torch.cat([v[:, :, :1], rows[1], v[:, :, 1:]], dim=2)
        y = x + a.proj(both.transpose(1, 2).flatten(2))
        torch.testing.assert_close(view.vit.blocks[0](x), y + block.mlp(block.norm2(y)))
        assert not torch.allclose(view.vit.blocks[0](x), block(x), atol=1e-3)


def test_06_the_larger_probability_decides(store: FeatureStore) -> None:
    method, head = lae(store), GrowingLinear(3)
    head.grow(3, rng())
    with torch.no_grad():
        head.weight.copy_(torch.eye(3))
    method.head_, method.classes_ = head, [0, 1, 2]
    p_on, p_off = torch.tensor([[0.6, 0.4, 1e-30]]), torch.tensor([[0.1, 0.2, 0.7]])
    scores = method._ensemble([p_on.log(), p_off.log()])
    assert scores.exp()[0].tolist() == pytest.approx([0.6, 0.4, 0.7])
    assert int(scores.argmax(1)) == 2
    assert scores.softmax(1)[0].tolist() == pytest.approx([0.6 / 1.7, 0.4 / 1.7, 0.7 / 1.7])
    sure = method._ensemble([torch.tensor([[20.0, 0, 0]]), torch.tensor([[0, 25.0, 0]])])
    assert int(sure.argmax(1)) == 1  # both probabilities are 1 in float32


def test_07_the_online_module_is_held_and_the_offline_one_follows(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch, sessions: list[Session[Any]]
) -> None:
    method, stream, seen = lae(store), two(), []
    fresh = values(method.online_)

    def spy(*args: Any) -> None:
        pull_(*args)
        seen.append((values(method.online_), values(method.offline_), [p.clone() for p in sessions[-1].learned[-2:]]))

    monkeypatch.setattr(module, "pull_", spy)
    method.fit_task(stream[0])
    first = values(method.online_)
    assert not seen  # nothing to follow
    assert not any(map(torch.equal, fresh[::5], first[::5]))  # it learned from the first epoch on
    assert alike(first, values(method.offline_))
    method.fit_task(stream[1])
    assert len(seen) == 4 * 2
    for on, off, _ in seen[:4]:
        assert alike(on, first)
        assert alike(off, first)
    assert not alike(seen[0][2], seen[1][2])  # the head learns meanwhile
    for on, off, _ in seen[4:]:
        assert not any(map(torch.equal, on, first))
        assert not alike(off, first)
    steps = [float(sessions[-1].optimizer.state[p]["step"]) for p in sessions[-1].learned]
    assert steps == [4.0] * len(first) + [8.0] * 2  # Adam counts the online module's from where it is let go


@pytest.mark.parametrize("optimizer", [{"name": "adam"}, {"name": "adamw", "weight_decay": 0.01}])
def test_08_old_rows_of_the_head_stay_bit_for_bit(store: FeatureStore, optimizer: dict[str, Any]) -> None:
    method, stream = lae(store, train={**TRAIN, "optimizer": optimizer}), two()
    method.fit_task(stream[0])
    before = values(method.head_)
    method.fit_task(stream[1])
    assert alike([p[:2] for p in values(method.head_)], before)
    decayed = torch.nn.Parameter(before[0].clone())  # as it would be among what the optimiser has
    decayed.grad = torch.zeros_like(decayed)
    torch.optim.AdamW([decayed], weight_decay=0.01).step()
    assert not torch.equal(decayed, before[0])


def test_09_the_numbers_of_parameters() -> None:
    def count(how: Any, backbone: Backbone) -> int:
        return sum(p.numel() for p in adaptable(backbone, how, rng())[1].parameters())

    wide = tiny(embed_dim=768, depth=6, num_heads=12, mlp_ratio=0.01)
    assert [count(kind(), wide) for kind in KINDS] == [42_270, 76_810, 76_810]
    assert count(CalibratedAdapter(rank=2, blocks=1), tiny()) == 43
    assert count(CalibratedAdapter(rank=2, blocks=9), tiny()) == 2 * 43  # as many blocks as there are


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_10_and_03_every_module_gets_a_gradient_and_learns(variant: str, store: FeatureStore) -> None:
    method, stream = lae(store, variant), two()
    start = values(method.online_)
    found: list[float] = []
    plain = Session._step

    def step(session: Any, *args: Any) -> None:
        plain(session, *args)
        found.append(min(float(p.grad.abs().max()) for p in session.learned))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "_step", step)
        method.fit_task(stream[0])
    assert found[-1] > 0
    assert not any(map(torch.equal, values(method.online_), start))


@pytest.mark.parametrize(("dtype", "holds"), [(torch.float32, True), (torch.bfloat16, False), (torch.float16, False)])
def test_11_small_increments_need_float32(dtype: torch.dtype, holds: bool) -> None:
    off, on = [torch.ones(3, dtype=dtype)], [torch.full((3,), 2.0, dtype=dtype)]
    for _ in range(1000):
        pull_(off, on, 1 - 0.9999)
    assert (abs(float(off[0][0]) - 1.095167) < 5e-5) == holds
    assert (float(off[0][0]) == 1.0) != holds


def test_12_decay_is_for_24_images_and_turnover_for_a_task(store: FeatureStore) -> None:
    published = {"turnover": None, "train": {"batch_size": 24}}
    assert LAE(tiny(), published, store=store).share(1) == pytest.approx(1e-4)
    published["train"] = {"batch_size": 128}
    assert 1 - LAE(tiny(), published, store=store).share(1) == pytest.approx(0.999467, abs=1e-6)
    assert LAE(tiny(), {"preset": "pilot"}, store=store).share(1) == pytest.approx(1e-4, rel=1e-6)
    method, kept = LAE(tiny(), {"turnover": 0.3}, store=store), 1.0
    for _ in range(70):
        kept *= 1 - method.share(70)
    assert kept == pytest.approx(0.7)


def test_images_pass_once_where_nothing_learns_and_twice_for_tests(store: FeatureStore) -> None:
    method, stream = lae(store), two()
    passes = method.backbone.passes
    n_train, n_test = len(stream[0].train), len(stream.test(0))
    for task, epochs in zip(stream, (4, 2 + 1), strict=True):  # two epochs of four from one pass
        before = passes.images
        method.fit_task(task)
        assert passes.images - before == epochs * n_train
    before = passes.images
    method.predict(stream.test(1))
    assert passes.images - before == 2 * n_test
    list(method.members_of(stream.test(1))["offline"])
    assert passes.images - before == 2 * n_test
    alone = lae(store, backbone=method.backbone).fit_task(stream[0])
    before = passes.images
    alone.predict(stream.test(0))
    assert passes.images - before == n_test  # both experts are one


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_held_epochs_of_changing_views_build_no_graph(variant: str, store: FeatureStore) -> None:
    method, stream = lae(store, variant, train={**TRAIN, "augment": {"min_scale": 0.5}}), two()
    method.fit_task(stream[0])
    graphs: list[bool] = []
    plain = method.learner.embed
    method.learner.embed = lambda images: graphs.append((out := plain(images)).requires_grad) or out  # type: ignore
    method.fit_task(stream[1])
    assert graphs == [False] * 4 + [True] * 4


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_an_image_alone_scores_as_in_a_batch_by_each_expert(variant: str, store: FeatureStore) -> None:
    stream = two()
    method = lae(store, variant, backbone=small_vit(), train={**TRAIN, "epochs": 2})
    for task in stream:
        method.fit_task(task)
    x = torch.cat([pixels(method, stream.test(i)) for i in range(2)])
    experts = {"online": method.learner, "offline": method.follower}
    for name, view in experts.items():
        together = linear_scores(view.features(x), method.head_)
        alone = torch.cat([linear_scores(view.features(image[None]), method.head_) for image in x])
        assert torch.equal(together, alone)
        stored = torch.cat([row for i in range(2) for row in method.members_of(stream.test(i))[name]])
        assert torch.equal(stored, together.double().log_softmax(1).float())
    assert not alike(values(method.online_), values(method.offline_))
    assert torch.equal(method.scores(x), torch.cat([method.scores(image[None]) for image in x]))


def test_members_have_the_scores_whose_larger_one_decides(store: FeatureStore) -> None:
    method, stream = lae(store), two()
    for task in stream:
        method.fit_task(task)
        alone = [torch.cat(list(rows)) for rows in method.members_of(stream.test(0)).values()]
        assert torch.equal(torch.maximum(*alone), method.scores(stream.test(0)))
        assert torch.equal(*alone) == (task.index == 0)


def test_pilots_start_follows_from_the_initial_values_on(store: FeatureStore) -> None:
    method, stream = lae(store, pilot_start=True, turnover=0.2), two()
    start = values(method.online_)
    method.fit_task(stream[0])
    assert not alike(values(method.offline_), values(method.online_))
    moved = [(off - s).norm() / (on - s).norm() for s, on, off in zip(
        start, values(method.online_), values(method.offline_), strict=True
    )]  # fmt: skip
    assert float(torch.stack(moved).max()) < 0.2


PUBLISHED: dict[str, Any] = {
    "turnover": None, "decay": 0.9999, "held": 0.6, "head_init": "normal_0.001", "pilot_start": False,
    "module": {"variant": "adapter", "rank": 5, "blocks": None},
    "train": {
        "lr": 0.03, "epochs": 5, "batch_size": 24, "accumulate": 1, "scale_lr": True,
        "optimizer": {"name": "adam", "weight_decay": 0.0, "beta1": 0.9, "beta2": 0.999, "amsgrad": False},
        "schedule": {"name": "constant"}, "clip_norm": None, "shuffle": True, "drop_last": "always",
        "augment": {"min_scale": 0.08, "flip": True, "resize": None},
    },
}  # fmt: skip
IMAGENET_R = {"train": {"lr": 0.005, "epochs": 50}}
PILOT: dict[str, Any] = {
    "module": {"variant": "prefix", "length": 10, "blocks": None}, "decay": 0.99998124924, "pilot_start": True,
    "head_init": "kaiming_uniform", "train": {
        "lr": 0.0028125, "scale_lr": False, "batch_size": 128, "drop_last": "never", "augment": {"min_scale": 0.05},
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "differs"),
    [("paper", {}), ("official_cifar100", {}), ("official_imagenet_r", IMAGENET_R), ("pilot", PILOT)],
)
def test_presets_are_section_5(preset: str, differs: dict[str, Any]) -> None:
    wanted = laid_over(PUBLISHED, differs)
    wanted["module"] = differs.get("module", PUBLISHED["module"])
    config = load(module.LAEConfig, {"preset": preset})
    assert {k: v for k, v in config.model_dump().items() if k != "preset"} == wanted
    t = config.train
    assert t.peak == pytest.approx({"official_imagenet_r": 0.00046875}.get(preset, 0.0028125))
    assert int(config.held * t.epochs) == {"official_imagenet_r": 30}.get(preset, 3)


CASES = [("lora", tiny), ("prefix", tiny), ("adapter", convnext)]  # all checks meet the adapter on a ViT, many on Swin


@pytest.mark.parametrize(("variant", "make"), CASES)
def test_every_variant_keeps_the_common_promises(variant: str, make: Callable[[], Backbone]) -> None:
    small = {**LAE.tags.small, "module": {"variant": variant, **VARIANTS[variant]}}
    kind = type("LAE", (LAE,), {"tags": dc.replace(LAE.tags, small=small)})
    assert [str(r) for r in check_method(kind, only=SOME, make_backbone=make) if not r.ok] == []
