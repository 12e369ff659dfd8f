"""The block walk: with nothing added it is the stock model, and what is added goes where it is told."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from perdure import Backbone
from perdure.backbone.vit import Prompt, TokenOutput, check_vit, embed_patches, walk
from perdure.errors import BackboneError, ShapeError

FAMILIES: dict[str, dict[str, Any]] = {
    "test_vit": {},
    "test_vit2": {},
    "test_vit3": {},
    "test_vit4": {},
    "vit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 2},
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 2},
    "deit3_small_patch16_224": {"img_size": 64, "depth": 2},
    "vit_small_patch14_dinov2": {"img_size": 56, "depth": 2},
    "vit_small_patch14_reg4_dinov2": {"img_size": 56, "depth": 2},
    "vit_base_patch32_clip_224": {"img_size": 64, "depth": 2},
    "vit_base_patch16_siglip_224": {"img_size": 64, "depth": 2},
}


def family(name: str, **options: Any) -> tuple[VisionTransformer, Tensor]:
    """A small model of random weights, all biases and scales shaken, and three normalised images."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0, **options).eval().requires_grad_(False)
    for p in model.parameters():
        if p.ndim == 1:
            p.add_(0.1 * torch.randn_like(p))
    side = model.patch_embed.img_size[0]
    return check_vit(model, name), torch.randn(3, 3, side, side)


def tiny(**options: Any) -> tuple[VisionTransformer, Tensor]:
    """L = 2, D = 8, H = 2, patches of 4 px in 8 px images, in float64 (as the specifications' golden tests ask)."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 2, "num_heads": 2}
    model = VisionTransformer(num_classes=0, **(sizes | options)).double().eval().requires_grad_(False)
    for p in model.parameters():
        p.add_(0.3 * torch.randn_like(p))
    return model, torch.randn(3, 3, 8, 8, dtype=torch.float64)


def run(model: VisionTransformer, images: Tensor, prompts: dict[int, Prompt] | None = None) -> TokenOutput:
    return walk(model, embed_patches(model, images), prompts)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_added_is_the_stock_model_bit_for_bit(name: str) -> None:
    model, images = family(name, **FAMILIES[name])
    plain = run(model, images)
    assert torch.equal(plain.all, model.forward_features(images))
    assert plain.n_prompts == 0
    assert plain.all.shape[1] == plain.n_prefix + plain.patches.shape[1]
    empty = torch.zeros(1, 0, model.embed_dim)
    assert torch.equal(run(model, images, {0: Prompt(empty), 1: Prompt(empty, stays=True)}).all, plain.all)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_before_the_final_norm_are_what_the_norm_reads(name: str) -> None:
    model, images = family(name, **FAMILIES[name])
    stay = {0: Prompt(torch.randn(1, 3, model.embed_dim), stays=True)}
    for prompts in ({}, stay):
        plain = run(model, images, prompts)
        asked = walk(model, embed_patches(model, images), prompts, before_norm=True)
        assert plain.before_norm is None
        assert asked.before_norm is not None
        assert torch.equal(model.norm(asked.before_norm), plain.all)
        assert torch.equal(asked.all, plain.all)
        assert isinstance(model.norm, nn.Identity) or not torch.equal(asked.before_norm, plain.all)
        assert (asked.n_prefix, asked.n_prompts) == (plain.n_prefix, plain.n_prompts)


def test_a_backbone_gives_them_on_request(backbone: Backbone) -> None:
    images = torch.randn(2, 3, 160, 160)
    for asked in (
        backbone.tokens(images, before_norm=True), backbone.walk(backbone.embed_tokens(images), before_norm=True)
    ):  # fmt: skip
        assert asked.before_norm is not None
        assert torch.equal(backbone.vit.norm(asked.before_norm), backbone.tokens(images).all)
    assert backbone.tokens(images).before_norm is None


@pytest.mark.parametrize("name", FAMILIES)
def test_added_tokens_reach_the_output_and_leave_the_model_as_it_was(name: str) -> None:
    model, images = family(name, **FAMILIES[name])
    before = copy.deepcopy(model.state_dict())
    tokens = torch.randn(1, 3, model.embed_dim)
    plain, stay, drop = (run(model, images, p) for p in ({}, {0: Prompt(tokens, stays=True)}, {0: Prompt(tokens)}))
    assert stay.prompts.shape == (3, 3, model.embed_dim)
    assert stay.without_prompts.shape == drop.all.shape == plain.all.shape
    assert (stay.without_prompts - plain.all).abs().max() > 1e-4
    assert (drop.all - plain.all).abs().max() > 1e-4
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.forward_head(stay.without_prompts, pre_logits=True).shape == (3, model.embed_dim)


@pytest.mark.parametrize(
    "options",
    [{}, {"qk_norm": True}, {"init_values": 0.5}, {"scale_attn_norm": True}, {"gated": True}],
)
@pytest.mark.parametrize("fused", [True, False])
def test_a_prefix_of_length_zero_changes_nothing(options: dict[str, Any], fused: bool) -> None:
    model, images = tiny(**{k: v for k, v in options.items() if k != "gated"})
    for block in model.blocks:
        block.attn.fused_attn = fused
        block.attn.gate = nn.Linear(8, 8).double().requires_grad_(False) if "gated" in options else None
    none = torch.zeros(1, 2, 0, 4, dtype=torch.float64)
    out = run(model, images, {0: Prompt(prefix=(none, none))})
    torch.testing.assert_close(out.all, model.forward_features(images), atol=1e-12, rtol=0)


def test_a_prefix_that_repeats_the_blocks_own_keys_and_values_changes_nothing() -> None:
    model, images = tiny()
    x = embed_patches(model, images)
    attn = model.blocks[0].attn
    _, k, v = attn.qkv(model.blocks[0].norm1(x)).reshape(3, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    out = walk(model, x, {0: Prompt(prefix=(k, v))})
    torch.testing.assert_close(out.all, model.forward_features(images), atol=1e-10, rtol=0)


def test_zero_and_constant_prefixes_have_their_closed_form() -> None:
    """DualPrompt, golden tests 1 and 2: y = (Z y0 + m c) / (Z + m)."""
    model, images = tiny(depth=1)
    block, x, m = model.blocks[0], embed_patches(model, images), 3
    seen: list[Tensor] = []
    block.attn.proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    walk(model, x)
    q, k, _ = block.attn.qkv(block.norm1(x)).reshape(3, -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    z = (q @ k.mT / 2).exp().sum(-1)[..., None].transpose(1, 2)  # (b, n, heads, 1)
    keys = torch.zeros(1, 2, m, 4, dtype=torch.float64)
    for c in (0.0, 1.7):
        walk(model, x, {0: Prompt(prefix=(keys, torch.full_like(keys, c)))})
        y0, y = (t.unflatten(2, (2, 4)) for t in (seen[0], seen.pop()))
        torch.testing.assert_close(y, (z * y0 + m * c) / (z + m), atol=1e-12, rtol=0)


@pytest.mark.parametrize("options", [{}, {"reg_tokens": 2}, {"pre_norm": True}, {"no_embed_class": True}])
def test_copies_of_all_tokens_leave_the_average_as_it_is(options: dict[str, Any]) -> None:
    """VPT 2, L2P 3, DAP 7: duplicated keys do not move any softmax average."""
    model, images = tiny(**options)
    x = embed_patches(model, images)
    plain = walk(model, x)
    stay = walk(model, x, {0: Prompt(x, stays=True)})
    torch.testing.assert_close(stay.without_prompts, plain.all, atol=1e-10, rtol=0)
    each = walk(model, x, {i: Prompt(lambda clean: clean) for i in range(2)})
    torch.testing.assert_close(each.all, plain.all, atol=1e-10, rtol=0)


def test_order_and_place_of_prompts_do_not_matter() -> None:
    """VPT 4."""
    model, images = tiny()
    x = embed_patches(model, images)
    tokens = torch.randn(1, 4, 8, dtype=torch.float64)
    one, other = (walk(model, x, {0: Prompt(t, stays=True)}) for t in (tokens, tokens[:, [2, 0, 3, 1]]))
    torch.testing.assert_close(one.without_prompts, other.without_prompts, atol=1e-12, rtol=0)
    torch.testing.assert_close(one.prompts[:, [2, 0, 3, 1]], other.prompts, atol=1e-12, rtol=0)
    at_end = model.norm(model.blocks(torch.cat([x, tokens.expand(3, -1, -1)], 1)))
    torch.testing.assert_close(at_end[:, :-4], one.without_prompts, atol=1e-12, rtol=0)


def test_a_functions_input_is_clean_and_holds_what_stayed() -> None:
    model, images = tiny()
    lengths: list[int] = []

    def make(x: Tensor) -> Tensor:
        lengths.append(x.shape[1])
        return x[:, :2]

    tokens = torch.randn(1, 3, 8, dtype=torch.float64)
    run(model, images, {0: Prompt(make), 1: Prompt(make)})
    assert lengths == [5, 5]
    lengths.clear()
    out = run(model, images, {0: Prompt(tokens, stays=True), 1: Prompt(make)})
    assert lengths == [8]
    assert out.prompts.shape[1] == 3


def test_staying_prompts_keep_the_order_of_their_insertion() -> None:
    model, images = tiny(depth=2)
    x = embed_patches(model, images)
    first, second = (torch.randn(1, m, 8, dtype=torch.float64) for m in (2, 3))
    out = walk(model, x, {0: Prompt(first, stays=True), 1: Prompt(second, stays=True)})
    assert (out.n_prefix, out.n_prompts, out.patches.shape[1]) == (1, 5, 4)
    x1 = model.blocks[0](torch.cat([x[:, :1], first.expand(3, -1, -1), x[:, 1:]], 1))
    x2 = model.blocks[1](torch.cat([x1[:, :3], second.expand(3, -1, -1), x1[:, 3:]], 1))
    torch.testing.assert_close(out.all, model.norm(x2), atol=1e-12, rtol=0)
    torch.testing.assert_close(out.cls, model.norm(x2)[:, 0])


def test_the_zero_token_is_not_a_no_op() -> None:
    """VPT 3: its value row is W_v b + c_v with b the bias of LayerNorm 1."""
    model, images = tiny(depth=1)
    block = model.blocks[0]
    zero = torch.zeros(1, 1, 8, dtype=torch.float64)
    rows: list[Tensor] = []
    block.attn.qkv.register_forward_hook(lambda module, args, out: rows.append(out[:, 1]))
    run(model, images, {0: Prompt(zero)})
    expected = F.linear(block.norm1.bias, block.attn.qkv.weight, block.attn.qkv.bias)
    torch.testing.assert_close(rows[0], expected.expand(3, -1))


def test_gradient_reaches_prompts_and_nothing_else() -> None:
    model, images = tiny()
    tokens = torch.randn(1, 2, 8, dtype=torch.float64, requires_grad=True)
    prefix = torch.randn(2, 1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    x = embed_patches(model, images)
    assert not x.requires_grad
    walk(model, x, {0: Prompt(tokens), 1: Prompt(prefix=(prefix[0], prefix[1]))}).cls.square().sum().backward()
    assert tokens.grad is not None
    assert (tokens.grad != 0).all()
    assert prefix.grad is not None
    assert (prefix.grad != 0).all()
    assert all(p.grad is None for p in model.parameters())


def test_prefix_under_autocast() -> None:
    model, images = tiny()
    keys = torch.randn(1, 2, 3, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = run(model.float(), images.float(), {0: Prompt(prefix=(keys, keys))})
    assert out.all.isfinite().all()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("test_efficientnet", "EfficientNet"),
        ("beit_base_patch16_224", "Beit"),
        ("eva02_tiny_patch14_224", "Eva"),
        ("swin_tiny_patch4_window7_224", "SwinTransformer"),
    ],
)
def test_other_architectures_are_refused(name: str, told: str) -> None:
    with pytest.raises(BackboneError, match=f"{name} \\({told}") as caught:
        check_vit(timm.create_model(name, pretrained=False, num_classes=0), name)
    assert "default" in str(caught.value)


def test_changed_models_are_refused() -> None:
    class Mine(VisionTransformer):
        def forward_features(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            return super().forward_features(x)

    with pytest.raises(BackboneError, match="Mine's own"):
        check_vit(Mine(img_size=8, patch_size=4, embed_dim=8, depth=1, num_heads=2), "mine")
    model, _ = tiny()
    model.blocks[1] = nn.Sequential(model.blocks[1])
    with pytest.raises(BackboneError, match="Sequential"):
        check_vit(model, "mine")
    with pytest.raises(BackboneError, match="'default'"):
        check_vit(nn.Linear(2, 2), "a linear layer")
    parallel = timm.create_model("vit_base_patch16_xp_224", pretrained=False, img_size=64, depth=1, num_classes=0)
    keys = torch.zeros(1, 12, 1, 64)
    with pytest.raises(BackboneError, match="ParallelScalingBlock"):
        run(parallel.eval(), torch.zeros(1, 3, 64, 64), {0: Prompt(prefix=(keys, keys))})


def test_wrong_shapes_are_refused() -> None:
    model, images = tiny()
    with pytest.raises(ShapeError, match=r"blocks 0 to 1, but got \[2\]"):
        run(model, images, {2: Prompt(torch.zeros(1, 1, 8))})
    for bad in (torch.zeros(1, 1, 7), torch.zeros(2, 1, 8), torch.zeros(1, 8)):
        with pytest.raises(ShapeError, match=f"{tuple(bad.shape)}".replace("(", r"\(").replace(")", r"\)")):
            run(model, images, {0: Prompt(bad)})
    good = torch.zeros(1, 2, 3, 4)
    for keys, values in (
        (torch.zeros(2, 3, 4), good),
        (good, torch.zeros(1, 2, 2, 4)),
        (torch.zeros(2, 2, 3, 4), good),
    ):
        with pytest.raises(ShapeError, match="prefix"):
            run(model, images, {0: Prompt(prefix=(keys, values))})


def test_a_backbone_without_class_token_has_no_cls() -> None:
    model, images = tiny(class_token=False, global_pool="avg")
    with pytest.raises(BackboneError, match="class token"):
        _ = run(model, images).cls


def test_backbone_tokens_are_its_features(backbone: Backbone) -> None:
    images = torch.randint(0, 256, (4, 3, 160, 160), dtype=torch.uint8)
    out = backbone.tokens(images)
    assert backbone.passes.images == 4
    torch.testing.assert_close(backbone.pool(out), backbone.features(images), atol=0, rtol=0)
    prompts = {0: Prompt(torch.randn(1, 5, backbone.dim), stays=True)}
    assert backbone.passes.prompts == 0
    assert backbone.pool(backbone.tokens(images, prompts)).shape == (4, backbone.dim)
    assert backbone.passes.prompts == 1
    cnn = Backbone.load("test_efficientnet", pretrained=False, device="cpu")
    with pytest.raises(BackboneError, match="VisionTransformer"):
        cnn.tokens(images)
