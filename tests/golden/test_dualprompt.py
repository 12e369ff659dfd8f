"""The numbered golden tests of DualPrompt's specification, section 12, on the method itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from in_training import batch_of, loss_of
from perdure import Backbone
from perdure.backbone.vit import Prompt, embed_patches
from perdure.checks.subject import small_stream
from perdure.data import Preprocess, Stream
from perdure.errors import ConfigError
from perdure.methods import dualprompt
from perdure.methods.dualprompt import DualPrompt, DualPromptConfig
from perdure.modules.prefix import split_heads
from perdure.modules.prompts import TaskBlocks, unit
from perdure.train.batches import Batch

SMALL: dict[str, Any] = {"layers_g": [0], "layers_e": [1], "length_g": 3, "length_e": 2}
STILL: dict[str, Any] = {"min_scale": 1.0, "flip": False}
SCRAMBLED = "scrambled"
N = 5  # tokens of an 8 px image


def made(*, depth: int = 3, dim: int = 8, heads: int = 2, double: bool = False, **config: Any) -> DualPrompt:
    """A method on a ViT of random weights, all biases and scales shaken: 8 px images, patches of 4 px."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": dim, "depth": depth, "num_heads": heads}
    model = VisionTransformer(num_classes=0, mlp_ratio=0.25, **sizes)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    backbone = Backbone(model, name="tiny", preprocess=Preprocess(image_size=8), device="cpu")
    return DualPrompt(backbone.double() if double else backbone, DualPromptConfig(**{**SMALL, **config}))


def with_slots(method: DualPrompt, keys: Tensor, dtype: torch.dtype = torch.float32) -> DualPrompt:
    """The method as if tasks had left these keys, one slot each."""
    c = method.config
    for key in keys:
        method.keys_.add(key[None])
        method.e_.add(torch.randn(1, len(c.layers_e), 2, c.length_e, method.backbone.dim, dtype=dtype))
    return method


def fill(method: DualPrompt, key: float, value: float, dtype: torch.dtype = torch.float64) -> None:
    """Constant key and value rows in G and in all slots of E."""
    for i, g in enumerate(method.g_):
        method.g_[i] = nn.Parameter(torch.stack([torch.full_like(g[0], x, dtype=dtype) for x in (key, value)]))
    for i, e in enumerate(method.e_.blocks):
        rows = [torch.full_like(e[:, :, 0], x, dtype=dtype) for x in (key, value)]
        method.e_.blocks[i] = nn.Parameter(torch.stack(rows, dim=2))


def embedded(method: DualPrompt, n: int = 3, seed: int = 1) -> Tensor:
    dtype = next(method.backbone.parameters()).dtype
    images = torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return embed_patches(method.backbone.vit, images)


def head_reads(method: DualPrompt, x: Tensor, queries: Tensor) -> Tensor:
    """What the head reads of images in a test."""
    return method._prompted(x, method.e_()[method._test_slots(queries)])


def matching_term(loss: Callable[[Batch], Tensor], batch: Batch, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The keys' own term of a training batch's loss."""
    with monkeypatch.context() as patch:
        patch.setattr(dualprompt, "masked_cross_entropy", lambda *_: torch.zeros(()))
        return loss(batch)


@pytest.fixture
def attention(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(q, k, v) as every attention really gets them, in the order of the calls."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    plain = F.scaled_dot_product_attention

    def spy(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
        seen.append((q.detach(), k.detach(), v.detach()))
        return plain(q, k, v, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", spy)
    return seen


@pytest.fixture
def stream() -> Stream:
    return small_stream((2, 2, 2), train_per_class=8)


@pytest.mark.parametrize("c", [0.0, 1.7])
def test_01_02_zero_keys_with_constant_values_have_their_closed_form(attention: list[Any], c: float) -> None:
    """1 and 2: y = (Z y0 + m c) / (Z + m), in a block of G (m = 3) and in one of E (m = 2); c = 0 is no no-op."""
    method = with_slots(made(double=True), torch.eye(8)[:1], torch.float64)
    fill(method, 0.0, c)
    outputs: list[Tensor] = []
    for block in method.backbone.vit.blocks:
        block.attn.proj.register_forward_pre_hook(lambda module, args: outputs.append(args[0]))
    head_reads(method, embedded(method), torch.eye(8)[:3])
    for layer, m in ((0, 3), (1, 2), (2, 0)):
        q, k, v = attention[layer]
        assert k.shape[2] == v.shape[2] == m + N
        logits = q @ k[:, :, m:].mT / 2  # √d = 2
        z, y0 = logits.exp().sum(-1, keepdim=True), logits.softmax(-1) @ v[:, :, m:]
        y = outputs[layer].unflatten(2, (2, 4)).transpose(1, 2)
        torch.testing.assert_close(y, (z * y0 + m * c) / (z + m), atol=1e-12, rtol=0)
        assert m == 0 or (y - y0).abs().max() > 1e-3


def test_03_own_keys_and_values_as_prefix_change_nothing() -> None:
    """3: to 1e-10; G and E of one image's own rows."""
    method = with_slots(made(double=True), torch.eye(8)[:1], torch.float64)
    vit, x = method.backbone.vit, embedded(method, 1)
    final: list[Tensor] = []
    vit.norm.register_forward_hook(lambda module, args, out: final.append(out))
    plain = method.backbone.walk(x).all
    inputs = [x, vit.blocks[0](x)]
    own = [b.attn.qkv(b.norm1(h))[0].chunk(3, dim=1) for b, h in zip(vit.blocks, inputs, strict=False)]  # q, k, v
    method.g_[0] = nn.Parameter(torch.stack(own[0][1:]))
    method.e_.blocks[0] = nn.Parameter(torch.stack(own[1][1:])[None, None])
    head_reads(method, x, torch.eye(8)[:1])
    torch.testing.assert_close(final[-1], plain, atol=1e-10, rtol=0)
    method.e_.blocks[0] = nn.Parameter(torch.stack(own[1][1:])[None, None] + 0.1)
    head_reads(method, x, torch.eye(8)[:1])
    assert (final[-1] - plain).abs().max() > 1e-4


def test_03_prefixes_of_length_zero_are_timm_bit_for_bit() -> None:
    """3, m = 0: no config asks for it, so the rows are taken away by hand."""
    method = with_slots(made(double=True), torch.eye(8)[:1], torch.float64)
    final: list[Tensor] = []
    method.backbone.vit.norm.register_forward_hook(lambda module, args, out: final.append(out))
    images = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    method.g_[0], method.e_.blocks[0] = (nn.Parameter(p.data[..., :0, :]) for p in (method.g_[0], method.e_.newest))
    head_reads(method, embed_patches(method.backbone.vit, images), torch.eye(8)[:3])
    assert torch.equal(final[0], method.backbone.vit.forward_features(images))


SAME_SLOT = {1: [(1, 2)], 2: [(1, 1), (2, 2)], 3: [(1, 1), (1, 2), (2, 2)], 4: [(1, 1), (1, 1), (2, 2), (2, 2)]}


def prefixes(seen: list[Any], layer: int, m: int) -> list[tuple[float, float]]:
    """Each image's key and value prefix in one block, where all their entries are alike."""
    _, k, v = seen[layer]
    rows = torch.stack([k[:, :, :m], v[:, :, :m]], dim=1).flatten(2)  # (b, 2, ·)
    assert (rows == rows[:, :, :1]).all()
    return [(key, value) for key, value in rows[:, :, 0].tolist()]


def numbered(method: DualPrompt) -> DualPrompt:
    """Key rows of slot s hold 1 + 10 s, value rows 2 + 10 s; G holds 3 and 4."""
    fill(method, 3.0, 4.0, torch.float32)
    for s, block in enumerate(method.e_.blocks):
        rows = torch.tensor([1.0, 2.0]).view(1, 1, 2, 1, 1) + 10 * s
        method.e_.blocks[s] = nn.Parameter(rows.expand_as(block).clone())
    return method


@pytest.mark.parametrize("b", [1, 2, 3, 4])
@pytest.mark.parametrize("slots", [[0, 0, 0, 0], [2, 0, 1, 2]])
def test_04_every_image_reads_the_keys_and_values_of_its_slot(attention: list[Any], b: int, slots: list[int]) -> None:
    method = numbered(with_slots(made(), torch.eye(8)[:3]))
    head_reads(method, embedded(method, b), torch.eye(8)[slots[:b]])
    assert prefixes(attention, 0, 3) == [(3, 4)] * b
    assert prefixes(attention, 1, 2) == [(1 + 10 * s, 2 + 10 * s) for s in slots[:b]]
    assert attention[2][1].shape[2] == N


@pytest.mark.parametrize("b", [1, 2, 3, 4])
def test_04_the_scrambled_layout_mixes_up_keys_and_values(stream: Stream, attention: list[Any], b: int) -> None:
    """4: B = 4 gives [1,1], [1,1], [2,2], [2,2], in training too; of an odd batch one image is right; G is."""
    method = made(kv_layout=SCRAMBLED)
    loss = loss_of(method, stream[0])
    numbered(method)
    x, queries = embedded(method, b), torch.eye(8)[[0] * b]
    head_reads(method, x, queries)
    assert prefixes(attention, 1, 2) == SAME_SLOT[b]
    assert prefixes(attention, 0, 3) == [(3, 4)] * b
    attention.clear()
    loss(batch_of(x, queries))
    assert prefixes(attention, 1, 2) == SAME_SLOT[b]


def test_04_the_scrambled_layout_gives_images_the_rows_of_others(attention: list[Any]) -> None:
    """4 and pitfall 1: with slots of their own, image 0 of four gets the key rows of images 0 and 1."""
    method = numbered(with_slots(made(kv_layout=SCRAMBLED), torch.eye(8)[:4]))
    head_reads(method, embedded(method, 4), torch.eye(8)[:4])
    assert prefixes(attention, 1, 2) == [(1, 11), (21, 31), (2, 12), (22, 32)]


def test_05_the_slot_is_the_nearest_key_of_the_tasks_seen() -> None:
    """5: untrained keys do not exist here, so with two tasks seen there are two slots."""
    query = (0.9 * torch.eye(8)[2] + 0.1 * torch.eye(8)[0])[None]
    assert with_slots(made(), torch.eye(8)[:4])._test_slots(query).tolist() == [[2]]
    assert with_slots(made(), torch.eye(8)[:2])._test_slots(query).tolist() == [[0]]
    lengths = torch.tensor([9.0, 1.0, 0.1, 1.0])
    assert with_slots(made(), lengths.diag() @ torch.eye(8)[:4])._test_slots(7 * query).tolist() == [[2]]


def tensors(method: DualPrompt) -> dict[str, Tensor]:
    parts = {"g": method.g_, "e": method.e_, "k": method.keys_, "head": method.head_}
    return {f"{name} {key}": v.clone() for name, part in parts.items() for key, v in part.state_dict().items()}


@pytest.mark.parametrize(("optimizer", "weight_decay"), [("adam", 0.0), ("adamw", 0.5)])
def test_06_a_task_changes_its_own_slot_and_rows_and_g_alone(
    stream: Stream, optimizer: str, weight_decay: float
) -> None:
    """6: three Adam steps per task. With weight decay, which moves all that the optimiser holds, old slots stay too."""
    method = made(
        train={
            "lr": 1.0, "epochs": 1, "batch_size": 6, "optimizer": {"name": optimizer, "weight_decay": weight_decay}
        }
    )  # fmt: skip
    before = tensors(method.fit_task(stream[0]))
    for t in (1, 2):
        after = tensors(method.fit_task(stream[t]))
        assert after.keys() - before.keys() == {f"e blocks.{t}", f"k blocks.{t}"}
        assert not torch.equal(after["g 0"], before["g 0"])
        assert not torch.equal(after[f"e blocks.{t}"], before[f"e blocks.{t - 1}"])
        for old in range(t):
            assert torch.equal(after[f"e blocks.{old}"], before[f"e blocks.{old}"])
            assert torch.equal(after[f"k blocks.{old}"], before[f"k blocks.{old}"])
            assert not any(part.blocks[old].requires_grad for part in (method.e_, method.keys_))
        rows = [torch.equal(after[f"head {p}"][: 2 * t], before[f"head {p}"]) for p in ("weight", "bias")]
        assert rows == [weight_decay == 0] * 2
        before = after


def test_06_an_adam_with_old_moments_does_not_move_old_slots(stream: Stream) -> None:
    """6: freezing holds even if an optimiser that knows the old slots went on."""
    method = made()
    x, queries = embedded(method, 4), torch.randn(4, 8)

    def step(adam: torch.optim.Adam, loss: Callable[[Batch], Tensor], columns: list[int]) -> None:
        adam.zero_grad()
        loss(batch_of(x, queries, torch.tensor(columns))).backward()
        adam.step()

    loss = loss_of(method, stream[0])
    old = [method.e_.newest, method.keys_.newest]
    adam = torch.optim.Adam([*old, *method.g_.parameters()], lr=0.1)
    step(adam, loss, [0, 1, 0, 0])
    assert all(adam.state[p]["exp_avg"].abs().max() > 0 for p in old)
    before = [p.detach().clone() for p in old]
    loss = loss_of(method, stream[1])
    adam.add_param_group({"params": [method.e_.newest, method.keys_.newest]})
    start = method.e_.newest.detach().clone()
    for _ in range(3):
        step(adam, loss, [2, 3, 2, 2])
    assert all(torch.equal(p, b) for p, b in zip(old, before, strict=True))
    assert not torch.equal(method.e_.newest, start)


@pytest.mark.parametrize("copy_prev", [True, False])
def test_07_a_slot_starts_where_the_one_before_ended(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, copy_prev: bool
) -> None:
    """7: E slot 1 is the trained E slot 0, its key is not, and the optimiser is new and holds what learns alone."""
    starts: list[tuple[int, list[nn.Parameter], list[Tensor]]] = []

    class Recording(torch.optim.Adam):
        def __init__(self, groups: list[dict[str, Any]], *args: Any, **options: Any) -> None:
            super().__init__(groups, *args, **options)
            params = [p for group in groups for p in group["params"]]
            starts.append((len(self.state), params, [p.detach().clone() for p in params]))

    monkeypatch.setattr(torch.optim, "Adam", Recording)
    method = made(train={"epochs": 1}, copy_prev=copy_prev)
    first, trained = (m.detach().clone() for m in (method.fit_task(stream[0]).e_.newest, method.e_.newest))
    key = method.keys_.newest.detach().clone()
    method.fit_task(stream[1])
    n_state, params, values = starts[1]
    assert n_state == 0
    held = {id(p): v for p, v in zip(params, values, strict=True)}
    learning = [*method.g_, method.e_.blocks[1], method.keys_.blocks[1], *method.head_.parameters()]
    assert held.keys() == {id(p) for p in learning}
    assert torch.equal(held[id(method.e_.blocks[1])], trained) == copy_prev
    assert not torch.equal(held[id(method.keys_.blocks[1])], key)
    assert torch.equal(method.e_.blocks[0], first)
    assert len(starts) == 2


def test_08_the_keys_gradient_has_its_closed_form(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """8: -λ (I - k̂ k̂ᵀ) q̄ / |k|; the matching term reaches nothing else."""
    method = made(keys={"pull": 0.7})
    loss = loss_of(method, stream[0])
    method.keys_.blocks[0] = nn.Parameter(torch.randn(1, 8))
    queries = torch.randn(6, 8) * torch.arange(1, 7)[:, None]
    term = matching_term(loss, batch_of(embedded(method, 6), queries), monkeypatch)
    term.backward()
    k, mean = method.keys_.newest[0].detach(), unit(queries).mean(0)
    expected = -0.7 * (torch.eye(8) - torch.outer(unit(k), unit(k))) @ mean / k.norm()
    torch.testing.assert_close(method.keys_.newest.grad[0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(term.detach(), -0.7 * mean @ unit(k))
    assert all(p.grad is None for p in [*method.g_, method.e_.newest])


def test_08_sgd_converges_to_the_mean_query(stream: Stream) -> None:
    """8: 500 steps on the whole task reach the solution that ``keys=mean`` takes at once."""
    common = {"augment": STILL, "batch_size": 16, "scale_lr": False, "clip_norm": None, "optimizer": "sgd"}
    trained = made(depth=2, train={**common, "lr": 0.05, "epochs": 500}).fit_task(stream[0])
    mean = made(depth=2, train={**common, "lr": 0.05, "epochs": 1}, keys="mean").fit_task(stream[0])
    features = torch.cat(list(mean.store.features(mean.backbone, stream[0].train).batches()))
    by_hand = unit(unit(features.double()).mean(0)).float()
    torch.testing.assert_close(mean.keys_.newest[0], by_hand, atol=1e-6, rtol=0)
    assert F.cosine_similarity(trained.keys_.newest, mean.keys_.newest).item() > 0.9999
    start = made(depth=2, train={**common, "lr": 1e-9, "epochs": 1}).fit_task(stream[0])
    assert F.cosine_similarity(start.keys_.newest, mean.keys_.newest).item() < 0.99


def test_09_a_block_in_both_sets_reads_g_and_e(attention: list[Any]) -> None:
    """9: Lg + Le rows, in whatever order."""
    method = with_slots(made(layers_g=[0, 1], layers_e=[2, 1], double=True), torch.eye(8)[:1], torch.float64)
    x = embedded(method)
    out = head_reads(method, x, torch.eye(8)[[0, 0, 0]])
    assert [k.shape[2] - N for _, k, _ in attention] == [3, 3 + 2, 2]
    e = method.e_.newest[0]  # (blocks in the order of layers_e, 2, Le, D)
    both = (torch.cat([e[1, i], method.g_[1][i].double()])[None] for i in range(2))
    rows = {0: method.g_[0].double()[:, None], 1: tuple(both), 2: e[0][:, None]}
    prompts = {layer: Prompt(prefix=(split_heads(kv[0], 2), split_heads(kv[1], 2))) for layer, kv in rows.items()}
    swapped = method.backbone.pool(method.backbone.walk(x, prompts))
    torch.testing.assert_close(out, swapped, atol=1e-6, rtol=0)
    assert (out - method.backbone.pool(method.backbone.walk(x))).abs().max() > 1e-2


def test_10_alone_an_image_picks_its_slot_whatever_is_beside_it(stream: Stream) -> None:
    """10: and where the batch votes, it does not."""
    method = made(train={"epochs": 1}, copy_prev=False).fit_task(stream[0]).fit_task(stream[1])
    a, b = (next(stream.test(t).batches(method.backbone.preprocess, 1))[1] for t in range(2))
    keys = TaskBlocks()
    for image in (a, b):
        keys.add(method.backbone.features(image))
    voting = made(train={"epochs": 1}, vote={"batch_size": 24}).load_state_dict(method.state_dict())
    method.keys_ = voting.keys_ = keys
    alone = method.scores(torch.cat([a, b]))
    mates = method.scores(torch.cat([b, a, a, a]))[[1, 0]]
    torch.testing.assert_close(mates, alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(voting.scores(b), alone[1:], atol=1e-6, rtol=0)
    swayed = voting.scores(torch.cat([b, a, a, a]))
    torch.testing.assert_close(swayed[1:2], alone[:1], atol=1e-6, rtol=0)
    assert (swayed[0] - alone[1]).abs().max() > 1e-3


@pytest.mark.parametrize(("preset", "count"), [("port", 253_440), ("official_jax_inr", 944_640)])
def test_11_parameter_count(preset: str, count: int) -> None:
    """11: D = 768, H = 12 and ten tasks, after which the grown pool has its published size; the head is not counted."""
    settings = {"layers_g": [0, 1], "layers_e": [2, 3, 4], "length_g": 5}
    length_e = DualPromptConfig(preset=preset).length_e
    train = {"epochs": 1, "drop_last": "never"}
    method = made(depth=5, dim=768, heads=12, preset=preset, **settings, length_e=length_e, train=train)
    stream = small_stream((1,) * 10, train_per_class=1, ids=range(10))
    for task in stream:
        method.fit_task(task)
    assert method.learned_parameters() - 10 * (768 + 1) == count


def test_12_a_task_with_two_slots(stream: Stream, attention: list[Any]) -> None:
    """12: slots 2t and 2t + 1 joined, 2 Le rows; a third task does not fit into a pool of four."""
    method = made(top_k=2, pool=4, train={"epochs": 1, "lr": 1e-9, "batch_size": 16}).fit_task(stream[0])
    attention.clear()
    method.fit_task(stream[1])
    blocks = [call for call in attention if len(call[0]) == 16]  # the prompted pass of the one batch; queries come by 8
    _, k, v = blocks[1]
    assert [k.shape[2] for _, k, _ in blocks] == [N + 3, N + 4, N]
    for prefix, rows in ((k, method.e_()[2:4, 0, 0]), (v, method.e_()[2:4, 0, 1])):
        wanted = split_heads(rows.flatten(0, 1)[None], 2).expand(16, -1, -1, -1)
        torch.testing.assert_close(prefix[:, :, :4], wanted, atol=1e-6, rtol=0)
    attention.clear()
    method.scores(next(stream.test(0).batches(method.backbone.preprocess, 6))[1])
    assert attention[-2][1].shape[2] == N + 4
    assert method._test_slots(torch.randn(50, 8)).sort().values.diff().min() >= 1
    before = tensors(method)
    with pytest.raises(ConfigError, match="pool must be at least 6 for task 2, but got 4"):
        method.fit_task(stream[2])
    assert before.keys() == tensors(method).keys()
    assert all(torch.equal(before[k], v) for k, v in tensors(method).items())
    assert method.tasks_seen_ == 2
