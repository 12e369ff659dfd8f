"""The numbered golden tests of VPT's specification, section 12: L = 2, D = 8, H = 2, s = 4, images of 8 px."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from perdure import Backbone, FeatureStore, Stream, load_stream
from perdure.backbone.vit import Prompt, TokenOutput, embed_patches
from perdure.checks.subject import equal
from perdure.config import laid_over
from perdure.data import LabelledImages, Preprocess
from perdure.methods.vpt import VPT, VPTConfig
from perdure.train.batches import Rows
from perdure.train.session import Session
from perdure.train.settings import Adam, Cosine, Training
from perdure.types import Event
from tiny_vit import tiny

DEEP_AND_SHALLOW = pytest.mark.parametrize("variant", ["deep", "shallow"])


def vpt(backbone: Backbone, store: FeatureStore | None = None, **config: Any) -> VPT:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="VPT: init=zeros")
        return VPT(backbone, VPTConfig(**laid_over({"train": {"epochs": 1, "batch_size": 4}}, config)), store=store)


def exact(**options: Any) -> tuple[Backbone, Tensor]:
    """The tiny ViT in float64, and the embedded tokens of three images."""
    backbone = tiny(**options)
    backbone.model.double()
    return backbone, embed_patches(backbone.vit, torch.randn(3, 3, 8, 8, dtype=torch.float64))


def prompted(method: VPT, embedded: Tensor, *tokens: Tensor) -> TokenOutput:
    """The method's own pass, with these (p, D) tokens in place of its prompts."""
    if tokens:
        method.prompts_ = nn.ParameterList(tokens)
    passes: list[TokenOutput] = []
    walk = method.backbone.walk
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method.backbone, "walk", lambda *args: passes.append(walk(*args)) or passes[0])
        method._prompted(embedded)
    (out,) = passes
    return out


@pytest.fixture
def stream() -> Stream:
    return load_stream("synthetic", tasks=3)


@DEEP_AND_SHALLOW
@pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 2}, {"pre_norm": True}, {"pre_norm": True, "reg_tokens": 1, "no_embed_class": True}]
)
def test_01_no_prompts_are_the_stock_model_bit_for_bit(variant: str, options: dict[str, Any]) -> None:
    """1. The settings refuse p = 0, so the tokens are taken away by hand."""
    backbone, _ = exact(**options)
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    embedded = embed_patches(backbone.vit, images)
    method, stock = vpt(backbone, variant=variant), backbone.model.forward_features(images)
    assert (prompted(method, embedded).without_prompts - stock).abs().max() > 1e-3
    none = [torch.zeros(0, 8, dtype=torch.float64)] * len(method.prompts_)
    assert torch.equal(prompted(method, embedded, *none).all, stock)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}])
def test_02_copies_of_all_tokens_do_not_move_the_class_token(options: dict[str, Any]) -> None:
    """2. Duplicated keys leave every softmax average unchanged, shallow and deep."""
    backbone, embedded = exact(**options)
    plain, close = backbone.walk(embedded).cls, {"atol": 1e-10, "rtol": 0}
    clean: list[Tensor] = []

    def copies(x: Tensor) -> Tensor:
        clean.append(x)
        return x

    by_function = backbone.walk(embedded, {i: Prompt(copies) for i in range(2)}).cls
    torch.testing.assert_close(by_function, plain, **close)
    for i in range(3):
        shallow = prompted(vpt(backbone, variant="shallow"), embedded[[i]], embedded[i])
        torch.testing.assert_close(shallow.cls, plain[[i]], **close)
        deep = prompted(vpt(backbone), embedded[[i]], clean[0][i], clean[1][i])
        torch.testing.assert_close(deep.cls, plain[[i]], **close)
        swapped = prompted(vpt(backbone), embedded[[i]], clean[1][i], clean[0][i])
        assert (swapped.cls - plain[[i]]).abs().max() > 1e-6


def test_03_a_zero_token_attends_by_the_norms_bias() -> None:
    """3. Its key and value are W b + c; its weight for query q is exp(q k / √d) / (Z + exp(q k / √d))."""
    backbone, embedded = exact(depth=1)
    block, rows, outputs = backbone.vit.blocks[0], [], []
    block.attn.qkv.register_forward_hook(lambda module, args, out: rows.append(out))
    block.attn.proj.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    backbone.walk(embedded)
    prompted(vpt(backbone, init="zeros", length=1), embedded)
    _, key, value = F.linear(block.norm1.bias, block.attn.qkv.weight, block.attn.qkv.bias).unflatten(0, (3, 2, 4))
    token = rows[1].unflatten(2, (3, 2, 4))[:, 1]  # behind the class token
    torch.testing.assert_close(token[:, 1:], torch.stack([key, value]).expand(3, -1, -1, -1), atol=1e-12, rtol=0)

    q, k, v = rows[0].unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)  # of the other rows, without the prompt
    own = (q @ k.mT / 2).exp()  # √d = 2
    mine = (q @ key[:, :, None] / 2).exp()
    weight = mine / (own.sum(-1, keepdim=True) + mine)
    expected = weight * value[:, None] + (1 - weight) * (own / own.sum(-1, keepdim=True)) @ v
    found = torch.cat([outputs[1][:, :1], outputs[1][:, 2:]], 1).unflatten(2, (2, 4)).transpose(1, 2)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert (weight > 1e-3).all()


@DEEP_AND_SHALLOW
def test_04_neither_order_nor_place_of_the_tokens_matters(variant: str) -> None:
    """4."""
    backbone, embedded = exact()
    method = vpt(backbone, variant=variant, length=4)
    tokens = [torch.randn(4, 8, dtype=torch.float64) for _ in method.prompts_]
    here = prompted(method, embedded, *tokens).without_prompts
    permuted = prompted(method, embedded, *(t[[2, 0, 3, 1]] for t in tokens)).without_prompts
    torch.testing.assert_close(permuted, here, atol=1e-12, rtol=0)

    x = embedded
    for i, block in enumerate(backbone.vit.blocks):
        if i < len(tokens):
            x = torch.cat([x, tokens[i].expand(3, -1, -1)], 1)
        x = block(x)
        x = x[:, :-4] if variant == "deep" or i == 1 else x
    torch.testing.assert_close(backbone.vit.norm(x), here, atol=1e-12, rtol=0)


@DEEP_AND_SHALLOW
def test_05_zero_prompts_stay_equal_and_uniform_ones_differ(variant: str) -> None:
    """5. 50 steps of Adam; the rows of one block that start equal get equal gradients for ever."""
    backbone, embedded = exact()
    towards = torch.randn(3, 8, dtype=torch.float64)
    for init in ("zeros", "uniform"):
        method = vpt(backbone, variant=variant, init=init, length=3)
        method.prompts_.double()
        config = Training(lr=0.01, epochs=50, batch_size=3, optimizer=Adam(), schedule=Cosine())
        session = Session(Rows(3, config), config, torch.Generator(), fast=[method.prompts_])
        session.run(lambda _, m=method: (prompted(m, embedded).cls - towards).square().sum())
        for tokens in (p.detach() for p in method.prompts_):
            gap = float((tokens - tokens[:1]).abs().max())
            assert tokens.abs().max() > 0.05
            assert gap < 1e-9 if init == "zeros" else gap > 0.05


def test_06_uniform_initial_values() -> None:
    """6. Twelve times the same block of width 768: 46,080 numbers from U(-v, v), v = √(6 / (3 s² + D)) = 0.0625."""
    model = VisionTransformer(img_size=32, patch_size=16, embed_dim=768, depth=1, num_heads=12, num_classes=0)
    model.blocks = nn.Sequential(*[model.blocks[0]] * 12)
    backbone, v = Backbone(model, name="wide", preprocess=Preprocess(image_size=32), device="cpu"), 0.0625
    for variant, n_blocks in (("deep", 12), ("shallow", 1)):
        method = vpt(backbone, variant=variant, length=5)
        assert [tuple(p.shape) for p in method.prompts_] == [(5, 768)] * n_blocks
        assert method.learned_parameters() == n_blocks * 5 * 768  # no head yet
        values = torch.cat([p.flatten() for p in method.prompts_]).detach()
        assert 0.99 * v < values.abs().max() <= v
        assert float(values.std()) == pytest.approx(v / math.sqrt(3), rel=0.05)
        assert len(values.unique()) > 0.99 * len(values)
    assert vpt(backbone, length=5).learned_parameters() == 46_080
    assert all((p == 0).all() for p in vpt(backbone, init="zeros").prompts_)


def test_06_a_patch_behind_a_hybrid_stem_is_as_large_as_all_its_reductions() -> None:
    """6. The built-in ViT: 16 pixels by the stem, twice that by the patches of 2, D = 192."""
    values = torch.cat([p.flatten() for p in vpt(Backbone.load("default", device="cpu"), length=50).prompts_])
    v = math.sqrt(6 / (3 * 32**2 + 192))
    assert 0.99 * v < values.abs().max() <= v


def test_07_one_step_moves_prompts_and_the_tasks_own_head_rows(stream: Stream, store: FeatureStore) -> None:
    """7."""
    backbone = tiny()
    before = {k: v.clone() for k, v in backbone.model.state_dict().items()}
    method = vpt(backbone, store, train={"batch_size": 64}).fit_task(stream[0])
    prompts = [p.detach().clone() for p in method.prompts_]
    weight, bias = method.head_.weight.detach().clone(), method.head_.bias.detach().clone()
    initial: list[Tensor] = []
    inner = method._prompted
    method._prompted = lambda embedded: (initial.append(method.head_.weight.detach().clone()), inner(embedded))[1]
    method.fit_task(stream[1])
    assert all(torch.equal(v, before[k]) for k, v in backbone.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    assert not backbone.model.training
    assert all((p != old).all() for p, old in zip(method.prompts_, prompts, strict=True))
    assert torch.equal(method.head_.weight[:2], weight)
    assert torch.equal(method.head_.bias[:2], bias)
    assert len(initial) == 1
    assert (method.head_.weight[2:] != initial[0][2:]).all()
    assert (method.head_.bias[2:] != 0).all()  # where they began


@pytest.mark.parametrize("still", [0, 1])
def test_08_each_block_has_prompts_of_its_own(still: int, stream: Stream, store: FeatureStore) -> None:
    """8. A gradient of zero, which Adam turns into no step, does what a learning rate of zero for one block would."""
    method = vpt(tiny(), store)
    before = [p.detach().clone() for p in method.prompts_]
    method.prompts_[still].register_hook(torch.zeros_like)
    method.fit_task(stream[0])
    assert torch.equal(method.prompts_[still], before[still])
    assert (method.prompts_[1 - still] != before[1 - still]).all()


def two_branches(method: VPT, data: LabelledImages) -> Tensor:
    """[frozen; prompted] features of the eval view, block by block, float64."""
    ((_, pixels),) = data.batches(method.backbone.preprocess, len(data))
    vit = method.backbone.vit
    x = first = embed_patches(vit, method.backbone.preprocess.normalise(pixels))
    for block, tokens in zip(vit.blocks, method.prompts_, strict=True):
        x = block(torch.cat([x[:, :1], tokens.detach().expand(len(x), -1, -1), x[:, 1:]], 1))
        x = torch.cat([x[:, :1], x[:, -4:]], 1)
    return torch.cat([vit.norm(vit.blocks(first))[:, 0], vit.norm(x)[:, 0]], 1).double()


def test_09_first_task_freezes_prompts_and_classifies_by_class_means(stream: Stream, store: FeatureStore) -> None:
    """9. Training images are augmented, their means are not."""
    method = vpt(tiny(), store, preset="pilot_deep", init="uniform", train={"lr": 0.1})
    initial = [p.detach().clone() for p in method.prompts_]
    method.fit_task(stream[0])
    prompts = [p.detach().clone() for p in method.prompts_]
    assert all((p != old).all() for p, old in zip(prompts, initial, strict=True))
    assert not any(p.requires_grad for p in method.prompts_)
    assert len(method.head_.weight) == 0
    old = method.prototypes
    method.fit_task(stream[1]).fit_task(stream[2])
    assert all(torch.equal(p, q) for p, q in zip(method.prompts_, prompts, strict=True))
    assert torch.equal(method.prototypes[:2], old)
    means = torch.stack([
        two_branches(method, task.train)[torch.from_numpy(task.train.labels == c)].mean(0)
        for task in stream for c in task.classes
    ])  # fmt: skip
    torch.testing.assert_close(method.prototypes, means, atol=1e-5, rtol=0)
    assert (means[:, :8] - means[:, 8:]).abs().max() > 0.01
    scores = torch.cat(list(method.scores_of(stream.test(1))))
    expected = F.normalize(two_branches(method, stream.test(1)), dim=1) @ F.normalize(means, dim=1).T
    torch.testing.assert_close(scores.double(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("config", "stop"),
    [
        ({}, ("learning prompts", 7, 1)),
        ({"mode": "first_task", "head": "cosine"}, ("learning prompts", 7, 0)),
        ({"mode": "first_task", "head": "cosine"}, ("testing", 16, 0)),
        ({"mode": "first_task"}, ("testing", 16, 1)),
    ],
)
def test_10_interrupted_in_an_epoch_and_resumed_is_straight(
    config: dict[str, Any], stop: tuple[str, int, int], store: FeatureStore, tmp_path: Path, stream: Stream
) -> None:
    """10. What is saved is the end of a task: a task that is cut off is undone, and learned again to the same bits.

    It is cut off in the second of three epochs of four steps, or when class means have half of the task's images.
    """
    config = {"train": {"epochs": 3}, **config}
    straight = learned(vpt(tiny(), store, **config), stream)

    def progress(event: Event) -> None:
        if (event.stage, event.done, cut.tasks_seen_) == stop:
            cut.store.progress = store.progress
            raise InterruptedError

    cut = vpt(tiny(), FeatureStore(tmp_path / "other", progress=progress), **config)
    with pytest.raises(InterruptedError):
        learned(cut, stream)
    assert cut.tasks_seen_ == stop[2]
    resumed = vpt(tiny(), store, **config).load_state_dict(copy.deepcopy(cut.state_dict()))
    for method in (learned(cut, stream), learned(resumed, stream)):
        assert equal(method.state_dict(), straight.state_dict())
        assert torch.equal(*(torch.cat(list(m.scores_of(stream.test(2)))) for m in (method, straight)))


def learned(method: VPT, stream: Stream) -> VPT:
    """The method when it knows the whole stream."""
    for task in stream[method.tasks_seen_ :]:
        method.fit_task(task)
    return method
