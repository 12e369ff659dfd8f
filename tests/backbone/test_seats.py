"""Modules at seats: identity at zero, exact removal, folding, and nothing of the stock model touched."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from perdure import Backbone, FeatureStore, load_stream
from perdure.backbone import SEATS, Insertion, Prompt, PromptTokens, Site
from perdure.data import Preprocess
from perdure.errors import BackboneError, ConfigError
from perdure.modules.adapter import Adapter
from perdure.modules.lora import LoRA
from perdure.modules.ssf import ScaleShift
from tiny_vit import tiny

VITS = ["test_vit", "test_vit2", "deit_tiny_distilled_patch16_224", "vit_small_patch14_reg4_dinov2"]
CNNS = ["test_efficientnet", "test_resnet"]


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def adapter(site: Site) -> nn.Module:
    return Adapter(site.n_in, 4, rng())


def lora(site: Site) -> nn.Module:
    qkv = site.name.endswith("qkv")
    return LoRA(site.layer, 2, rng(), parts=3 if qkv else 1, updated=(0, 2) if qkv else (0,))  # type: ignore[arg-type]


def scale_shift(site: Site) -> nn.Module:
    return ScaleShift(site.n_out, rng(), std=0)


class Gain(nn.Module):
    """What the attention gave, by channel as many times as its gains and one say."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gains = nn.Parameter(torch.zeros(dim))

    def forward(self, attended: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        b, heads, n, width = queries.shape
        assert queries.shape == keys.shape
        assert attended.shape == (b, n, heads * width)
        return (attended * (1 + self.gains)).to(attended.dtype)


def gain(site: Site) -> nn.Module:
    return Gain(site.n_in)


def no_tokens(site: Site) -> nn.Module:
    return PromptTokens(torch.zeros(0, site.n_in))


MAKE: dict[str, Callable[[Site], nn.Module]] = {
    "attention": adapter, "mlp": adapter, "block": adapter, "qkv": lora, "prefix": gain, "tokens": no_tokens,
    "outputs": scale_shift, "convolutions": lora,
}  # fmt: skip
VIT_SEATS = ["attention", "mlp", "qkv", "prefix", "tokens", "outputs"]
CNN_SEATS = ["outputs", "convolutions"]


@pytest.fixture(scope="module")
def loaded() -> Callable[[str], Backbone]:
    known: dict[str, Backbone] = {}

    def load(name: str) -> Backbone:
        if name not in known and name.endswith("dinov2"):  # at 518 px it would take most of these tests' time
            model = timm.create_model(name, pretrained=False, num_classes=0, img_size=56, depth=3)
            known[name] = Backbone(model, name=name, preprocess=Preprocess(image_size=56), device="cpu")
        elif name not in known:
            known[name] = Backbone.load(name, pretrained=name == "default", device="cpu")
        return known[name]

    return load


def images(backbone: Backbone, n: int = 2) -> Tensor:
    side = backbone.preprocess.image_size
    return torch.randint(0, 256, (n, 3, side, side), generator=rng(), dtype=torch.uint8)


def shake(insertion: Insertion) -> None:
    with torch.no_grad():
        for p in insertion.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=rng(1)))
    insertion.requires_grad_(False)


CASES = [(name, seat) for name in VITS for seat in VIT_SEATS] + [(name, seat) for name in CNNS for seat in CNN_SEATS]
CASES += [("default", "mlp"), ("default", "outputs")]


@pytest.mark.parametrize(("name", "seat"), CASES)
def test_identity_at_first_then_a_change_then_the_stock_model_again(
    name: str, seat: str, loaded: Callable[[str], Backbone]
) -> None:
    stock = loaded(name)
    x, before = images(stock), stock.fingerprint
    weights = {k: v.clone() for k, v in stock.model.state_dict().items()}
    expected = stock.features(x)
    view = stock.view()
    insertion = view.insert(seat, MAKE[seat])
    assert torch.equal(view.features(x), expected)
    if seat == "tokens":
        for module in insertion.inserted:
            module.values = nn.Parameter(torch.randn(2, stock.dim, generator=rng()))
    shake(insertion)
    assert not torch.equal(view.features(x), expected)
    assert torch.equal(stock.features(x), expected)  # the view shares weights, not hooks
    assert view.fingerprint != before == stock.fingerprint
    view.remove(insertion)
    assert torch.equal(view.features(x), expected)
    assert view.fingerprint == before
    assert all(torch.equal(v, weights[k]) for k, v in stock.model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in view.model.modules())


@pytest.mark.parametrize("name", [*VITS, "default"])
def test_the_block_walk_goes_through_what_is_inserted(name: str, loaded: Callable[[str], Backbone]) -> None:
    view = loaded(name).view()
    shake(view.insert("mlp", adapter))
    shake(view.insert("attention", adapter))
    shake(view.insert("qkv", lora))
    x = images(view)
    with torch.no_grad():
        assert torch.equal(view.pool(view.walk(view.embed_tokens(x))), view.features(x))


def test_the_walk_with_prefixes_reads_the_same_modules() -> None:
    stock = tiny()
    x, none = images(stock), {0: Prompt(prefix=(torch.zeros(1, 2, 0, 4), torch.zeros(1, 2, 0, 4)))}
    for seat in ("attention", "mlp", "qkv", "outputs"):
        view = stock.view()
        shake(view.insert(seat, MAKE[seat]))
        with torch.no_grad():
            assert torch.allclose(view.tokens(x, none).all, view.tokens(x).all, atol=1e-6)
            assert not torch.allclose(view.tokens(x).all, stock.tokens(x).all, atol=1e-3)


def test_the_adapter_reads_the_stream_behind_the_attention() -> None:
    stock = tiny(depth=1)
    view, x, block = stock.view(), images(stock), stock.vit.blocks[0]
    insertion = view.insert("mlp", lambda site: Adapter(site.n_in, site.n_in, rng()))
    module = insertion.inserted[0]
    with torch.no_grad():
        module.down.weight.copy_(torch.eye(8))
        module.up.weight.copy_(torch.eye(8))
        module.up.bias.fill_(1.0)
        h = stock.embed_tokens(x)
        u = h + block.attn(block.norm1(h))
        expected = u + block.mlp(block.norm2(u)) + 0.1 * (torch.relu(u) + 1)  # the scale multiplies b_up too
        assert torch.allclose(view.vit.blocks[0](h), expected, atol=1e-6)


def test_trainable_counts_on_the_papers_vit() -> None:
    model = Backbone.load("vit_base_patch16_224.augreg_in21k", pretrained=False, device="cpu")

    def count(seat: str, make: Callable[[Site], nn.Module], **options: Any) -> int:
        view = model.view()
        view.insert(seat, make, **options)
        return sum(p.numel() for p in view.parameters() if p.requires_grad)

    assert count("mlp", lambda s: Adapter(s.n_in, 64, rng())) == 1_189_632
    assert count("mlp", lambda s: Adapter(s.n_in, 16, rng())) == 304_320
    assert count("outputs", scale_shift) == 205_824
    assert count("tokens", lambda s: PromptTokens(torch.zeros(5, s.n_in)), blocks=[0], stay=True) == 3_840
    assert count("tokens", lambda s: PromptTokens(torch.zeros(5, s.n_in))) == 46_080


@pytest.mark.parametrize("name", ["test_vit", "vit_small_patch14_reg4_dinov2", *CNNS])
def test_scales_shifts_and_lora_fold_away(name: str, loaded: Callable[[str], Backbone]) -> None:
    stock = loaded(name)
    view, x = stock.view(), images(stock)
    parallel = "qkv" if name in VITS else "convolutions"
    for seat in ("outputs", parallel):
        shake(view.insert(seat, MAKE[seat]))
    expected, shapes = view.features(x), {k: v.shape for k, v in stock.model.state_dict().items()}
    folded = view.folded()
    assert not torch.allclose(expected, stock.features(x), atol=1e-3)
    assert torch.allclose(folded.features(x), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max() + 1))
    assert not len(folded.insertions)
    assert not any(m._forward_hooks for m in folded.model.modules())
    keys = {k: v.shape for k, v in folded.model.state_dict().items()}
    assert shapes.items() <= keys.items()
    assert keys.keys() - shapes.keys() <= {k.replace("weight", "bias") for k in shapes}  # a convolution may get a bias
    assert torch.equal(view.features(x), expected)  # the unfolded one is as it was


def test_folding_is_exact_in_float64() -> None:
    view = tiny().view()
    for seat in ("outputs", "qkv"):
        shake(view.insert(seat, MAKE[seat]))
    view.double()
    folded, x = view.folded(), torch.randn(2, 3, 8, 8, generator=rng(), dtype=torch.float64)
    expected = view.model(x)
    assert torch.allclose(folded.model(x), expected, rtol=0, atol=1e-10)


def test_only_what_is_inserted_gets_gradient_and_batchnorm_stands_still(loaded: Callable[[str], Backbone]) -> None:
    pairs = [("test_vit", "mlp"), ("test_vit", "attention"), ("test_convnext", "block")]
    for name, seat in [*pairs, ("test_efficientnet", "convolutions")]:
        stock = loaded(name)
        view = stock.view()
        insertion = view.insert(seat, MAKE[seat])
        state = copy.deepcopy(stock.model.state_dict())
        view.train()
        view.embed(images(stock)).square().sum().backward()
        assert any(p.grad is not None and bool(p.grad.any()) for p in insertion.parameters())
        assert all(p.grad is None for p in view.model.parameters())
        assert all(torch.equal(v, state[k]) for k, v in stock.model.state_dict().items())


def test_what_may_still_be_trained_has_no_fingerprint(backbone: Backbone) -> None:
    view = backbone.view()
    insertion = view.insert("mlp", adapter)
    with pytest.raises(BackboneError, match="trainable"):
        _ = view.fingerprint
    insertion.requires_grad_(False)
    known = view.fingerprint
    with torch.no_grad():
        insertion.inserted[0].up.bias.add_(1)
    assert view.fingerprint != known


def test_one_module_at_another_strength_is_another_fingerprint(backbone: Backbone) -> None:
    found = set()
    for scale in (0.1, 0.2):
        view = backbone.view()
        view.insert("mlp", lambda s, scale=scale: Adapter(s.n_in, 4, rng(), scale=scale)).requires_grad_(False)
        found.add(view.fingerprint)
    assert len(found) == 2


@pytest.mark.parametrize(("name", "has"), [("test_vit", VIT_SEATS), ("test_efficientnet", CNN_SEATS)])
def test_bfloat16_starts_as_the_identity_too(name: str, has: list[str]) -> None:
    stock = Backbone.load(name, pretrained=False, device="cpu", precision="bfloat16")
    expected = stock.features(images(stock))
    for seat in has:
        view = stock.view()
        insertion = view.insert(seat, MAKE[seat])
        assert torch.equal(view.features(images(stock)), expected)
        shake(insertion)
        assert view.features(images(stock)).dtype == torch.float32


def test_dropout_is_there_while_it_has_a_generator() -> None:
    module, u = Adapter(8, 64, rng(), dropout=0.5), torch.randn(4, 5, 8, generator=rng())
    with torch.no_grad():
        module.up.weight.fill_(1.0)
        plain = module(u)
        assert torch.equal(plain, module(u))
        module.dropout_rng = rng(3)
        dropped = [module(u) for _ in range(400)]
        assert not torch.equal(dropped[0], dropped[1])
        assert torch.allclose(torch.stack(dropped).mean(0), plain, atol=0.15)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_what_the_model_does_not_have_is_refused(name: str, loaded: Callable[[str], Backbone]) -> None:
    view = loaded(name).view()
    has = VIT_SEATS if name == "test_vit" else CNN_SEATS
    for seat in {*SEATS, "attentions"} - set(has):
        with pytest.raises(BackboneError, match=seat) as error:
            view.insert(seat, MAKE.get(seat, adapter))
        assert all(s in str(error.value) for s in has)
    with pytest.raises(BackboneError, match=r"\[99\]"):
        view.insert(has[0], MAKE[has[0]], blocks=[99])
    with pytest.raises(BackboneError, match="insertion"):
        view.remove(Insertion("mlp", [], []))
    if name == "test_vit":
        insertion = view.insert("mlp", adapter)
        with pytest.raises(BackboneError, match="Adapter"):
            view.folded()
        view.remove(insertion)
        with pytest.raises(BackboneError, match="insertion"):
            view.remove(insertion)


def test_a_view_on_a_stem_goes_on_from_stored_patches(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = Backbone.load("default", device="cpu")
    data = load_stream("synthetic", tasks=1).test(0)
    view = stock.view()
    shake(view.insert("mlp", adapter))
    found = store.features(view, data)
    assert stock.passes.images == len(data)
    through_stem: list[int] = []
    embed = type(stock.model.patch_embed)
    stock_forward = embed.forward
    monkeypatch.setattr(embed, "forward", lambda self, x: (through_stem.append(len(x)), stock_forward(self, x))[1])
    other = stock.view()
    shake(other.insert("qkv", lora))
    store.features(other, data)
    assert sum(through_stem) <= 2 < len(data)  # the first view's patches serve it; two find the shape of tokens
    with torch.no_grad():
        again = torch.cat([view.features(x) for _, x in data.batches(view.preprocess, view.batch_size)])
    assert torch.equal(found[torch.arange(len(data)).numpy()], again)
    scaled = stock.view()
    shake(scaled.insert("outputs", scale_shift))
    assert scaled.stem_shelf == scaled.shelf  # its patch projection is another


def test_passes_of_several_threads_keep_their_streams_apart(loaded: Callable[[str], Backbone]) -> None:
    view = loaded("test_vit").view()
    shake(view.insert("mlp", adapter))
    x = torch.cat([images(view), images(view).flip(0)])
    batches = [x, x[:2], x[1:], x[:1]] * 8
    alone, often = [view.features(batch) for batch in batches[:4]] * 8, sys.getswitchinterval()
    before = view.passes.images
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            together = list(threads.map(view.features, batches))
    finally:
        sys.setswitchinterval(often)
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=0)
    assert view.passes.images - before == sum(map(len, batches))


def test_a_pass_that_failed_half_way_leaves_nothing_to_the_next(loaded: Callable[[str], Backbone]) -> None:
    view = loaded("test_vit").view()
    insertion = view.insert("mlp", adapter)
    shake(insertion)
    x = images(view)
    expected = view.features(x)
    broken = view.model.blocks[2].mlp.fc1.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        view.features(x.flip(0))
    broken.remove()
    assert torch.equal(view.features(x), expected)


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(ConfigError, match="device"):
        Backbone.load("test_vit", pretrained=False, device="abacus")
