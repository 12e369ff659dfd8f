"""The block walk: a stock timm Vision Transformer, run block by block with prompts and prefixes between its own parts.

Source: the shared injection contract of the prompt methods. *Prompt tokens* (VPT, L2P, DAP) join the token sequence
behind the prefix tokens (CLS, registers); *prefixes* (DualPrompt, CODA-Prompt) join the keys and values inside a
block's attention. The model itself stays untouched: its ``patch_embed``, ``blocks`` and ``norm`` are called as they
are, and only a block that has a prefix has its attention computed here, from its own layers.
"""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Callable, Mapping
from typing import Final

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers import Attention
from timm.models.vision_transformer import (
    Block,
    ParallelScalingBlock,
    ParallelThingsBlock,
    ResPostBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from perdure.errors import BackboneError, ShapeError
from perdure.modules.prefix import split_heads

# blocks in which all tokens are alike: no position enters, so that a token may be added anywhere
KNOWN_BLOCKS: Final = (Block, ResPostBlock, ParallelScalingBlock, ParallelThingsBlock)

Tokens = Float[Tensor, "b m d"]
MakeTokens = Callable[[Tensor], Tensor]


@dc.dataclass(frozen=True, slots=True, eq=False)
class Prompt:
    """What one block gets in addition.

    Args:
        tokens: (b or 1, m, d) prompt tokens, or a function of the block's clean input (b, n, d), which holds the
            tokens that stay and none that were for an earlier block only.
        stays: whether the tokens travel on through the later blocks; otherwise they are dropped behind this block.
        prefix: keys and values, each (b or 1, heads, m, head_dim), put before the block's own, behind any q/k norm.
    """

    tokens: Tensor | MakeTokens | None = None
    stays: bool = False
    prefix: tuple[Tensor, Tensor] | None = None


Prompts = Mapping[int, Prompt] | None  # block index to what that block gets in addition


def prefix(vit: VisionTransformer, block: int, keys: Float[Tensor, "b m d"], values: Float[Tensor, "b m d"]) -> Prompt:
    """Keys and values that a block's attention reads besides its own.

    Args:
        vit: the model.
        block: counted from 0.
        keys: rows of the model's width; head h reads the h-th part of the width.
        values: as many.
    """
    attention = getattr(vit.blocks[block], "attn", None)
    heads = getattr(attention, "num_heads", 1)  # the walk refuses a strange block
    return Prompt(prefix=(split_heads(keys, heads), split_heads(values, heads)))


@dc.dataclass(frozen=True, slots=True, eq=False)
class TokenOutput:
    """The tokens of a pass and where each kind stands.

    Args:
        all: behind the final norm, (b, n_prefix + n_prompts + n_patches, d).
        n_prefix: tokens of the model's own at the front: CLS, registers.
        n_prompts: prompt tokens that stayed, behind them.
        before_norm: the same tokens before the final norm; None unless asked for.
    """

    all: Tensor
    n_prefix: int
    n_prompts: int
    before_norm: Tensor | None = None

    @property
    def cls(self) -> Float[Tensor, "b d"]:
        """The class token.

        Raises:
            BackboneError: if the backbone has none.
        """
        if not self.n_prefix:
            hint = "Use the pooled feature"
            raise BackboneError("TokenOutput.cls", "backbone", "one with a class token", "a backbone without", hint)
        return self.all[:, 0]

    @property
    def prompts(self) -> Float[Tensor, "b p d"]:
        """The prompt tokens that stayed, in the order of their insertion."""
        return self.all[:, self.n_prefix : self.n_prefix + self.n_prompts]

    @property
    def patches(self) -> Float[Tensor, "b n d"]:
        """The image's patch tokens."""
        return self.all[:, self.n_prefix + self.n_prompts :]

    @property
    def without_prompts(self) -> Float[Tensor, "b n d"]:
        """The tokens the stock model has: prefix tokens, then patches."""
        if not self.n_prompts:
            return self.all
        return torch.cat([self.all[:, : self.n_prefix], self.patches], dim=1)


def check_vit(model: nn.Module, name: str) -> VisionTransformer:
    """``model`` as a Vision Transformer that the block walk knows.

    Args:
        model: any model.
        name: its name, for the message.

    Raises:
        BackboneError: for another architecture, a changed ``forward_features``, or blocks that treat tokens by their
            position (rotary or relative position embedding, windows).
    """
    hint = "Use a plain timm ViT, DeiT, DINOv2 or CLIP image tower, or the built-in 'default'"
    where, what = "prompts", "a timm VisionTransformer"
    if not isinstance(model, VisionTransformer):
        raise BackboneError(where, "backbone", what, f"{name} ({type(model).__name__})", hint)
    if type(model).forward_features is not VisionTransformer.forward_features:
        raise BackboneError(where, "forward_features", "the stock one", f"{type(model).__name__}'s own", hint)
    strange = sorted({type(b).__name__ for b in model.blocks if type(b) not in KNOWN_BLOCKS})
    if strange:
        raise BackboneError(where, f"blocks of {name}", f"among {[b.__name__ for b in KNOWN_BLOCKS]}", strange, hint)
    return model


def embed_patches(vit: VisionTransformer, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
    """The input of block 0: prefix and patch tokens with their position embedding.

    Args:
        vit: a stock model.
        images: normalised.
    """
    tokens: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    return tokens


def walk(
    vit: VisionTransformer, x: Float[Tensor, "b n d"], prompts: Prompts = None, *, before_norm: bool = False
) -> TokenOutput:
    """The blocks and the final norm, with ``prompts`` added; without any, ``forward_features`` bit for bit.

    Args:
        vit: a model that :func:`check_vit` let pass.
        x: from :func:`embed_patches`.
        prompts: block index to what that block gets.
        before_norm: whether to give the tokens before the final norm too.

    Raises:
        ShapeError: for a block that does not exist, or tokens or prefixes of the wrong shape.
        BackboneError: for a prefix on an attention that is not timm's standard one.
    """
    prompts = prompts or {}
    outside = sorted(set(prompts) - set(range(len(vit.blocks))))
    if outside:
        hint = "Count blocks from 0"
        raise ShapeError("walk", "prompts", f"for blocks 0 to {len(vit.blocks) - 1}", outside, hint)
    n_prefix: int = vit.num_prefix_tokens
    n_stay = 0
    for index, block in enumerate(vit.blocks):
        prompt = prompts.get(index, Prompt())
        added = _tokens(prompt, x)
        behind = n_prefix + n_stay
        m = added.shape[1]
        if m:
            x = torch.cat([x[:, :behind], added, x[:, behind:]], dim=1)
        x = block(x) if prompt.prefix is None else _block_with_prefix(block, x, *prompt.prefix)
        if prompt.stays:
            n_stay += m
        elif m:
            x = torch.cat([x[:, :behind], x[:, behind + m :]], dim=1)
    return TokenOutput(vit.norm(x), n_prefix, n_stay, x if before_norm else None)


def _tokens(prompt: Prompt, x: Tensor) -> Tensor:
    """(b, m, d) tokens to add to ``x``."""
    made = prompt.tokens(x) if callable(prompt.tokens) else prompt.tokens
    if made is None:
        return x[:, :0]
    if made.ndim != 3 or made.shape[0] not in (1, len(x)) or made.shape[2] != x.shape[2]:
        wanted = f"({len(x)} or 1, m, {x.shape[2]})"
        raise ShapeError("walk", "prompt tokens", f"of shape {wanted}", tuple(made.shape), "Check the prompt's width")
    return made.to(x.dtype).expand(len(x), -1, -1)


def _block_with_prefix(block: nn.Module, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """timm's ``Block.forward`` with ``keys`` and ``values`` in front of the attention's own."""
    if type(block) is not Block or type(block.attn) is not Attention:
        got = f"{type(block).__name__} with {type(getattr(block, 'attn', None)).__name__}"
        raise BackboneError("walk", "block with a prefix", "timm's Block with Attention", got, "Use prompt tokens")
    attended = _attend(block.attn, block.norm1(x), keys, values)
    x = x + block.drop_path1(block.ls1(attended))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _attend(attn: Attention, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    b, n, _ = x.shape
    q, k, v = attn.qkv(x).reshape(b, n, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attn.q_norm(q), attn.k_norm(k)
    wanted = (attn.num_heads, keys.shape[-2] if keys.ndim == 4 else "m", attn.head_dim)
    for name, given in (("keys", keys), ("values", values)):
        if given.ndim != 4 or given.shape[0] not in (1, b) or tuple(given.shape[1:]) != wanted:
            shape = f"({b} or 1, {', '.join(map(str, wanted))})"
            raise ShapeError("walk", f"prefix {name}", f"of shape {shape}", tuple(given.shape), "Check heads and width")
    k = torch.cat([keys.to(k.dtype).expand(b, -1, -1, -1), k], dim=2)
    v = torch.cat([values.to(v.dtype).expand(b, -1, -1, -1), v], dim=2)
    y = attn.norm(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    gate = getattr(attn, "gate", None)  # timm >= 1.0.25
    out: Tensor = attn.proj(y if gate is None else y * gate(x).sigmoid())  # no dropout: the backbone is in eval mode
    return out
