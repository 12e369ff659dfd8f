"""Every CLIP of open_clip, by its architecture and weights: ``open_clip/ViT-B-16/laion400m_e32``.

The image tower is a stock timm Vision Transformer with the same weights wherever timm has one, so that prompts and
inserted modules work as in every other backbone; any other image tower gives features alone. The text tower is
open_clip's own, called as it is.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Self

import torch
from jaxtyping import Float, Int
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from perdure.backbone.registered import Stock, backbones
from perdure.backbone.text_tower import TextTower
from perdure.backbone.two_towers import TwoTowers
from perdure.backbone.weights import fetching
from perdure.data.preprocess import Preprocess
from perdure.errors import BackboneError, UnknownNameError, did_you_mean, told
from perdure.lazy import optional

Tokenizer = Callable[..., Tensor]
SHAPES: Final = {"shortest": "center", "squash": "squash", "longest": "border"}
TINY: Final[dict[str, Any]] = {
    "embed_dim": 48,
    "vision_cfg": {"image_size": 64, "patch_size": 16, "width": 64, "layers": 2, "head_width": 16},
    "text_cfg": {"width": 32, "heads": 2, "layers": 2},
    "quick_gelu": True,
}


@backbones.register("open_clip/")
def load_open_clip(name: str, *, weights: Path | None = None, pretrained: bool = True, init_seed: int = 0) -> Stock:
    """Any CLIP of open_clip, as ``open_clip/ARCHITECTURE/WEIGHTS``: ``open_clip.list_pretrained()`` has them all.

    Args:
        name: ``ARCHITECTURE/WEIGHTS``; the architecture alone with weights of a file, or random ones.
        weights: a checkpoint of that architecture that open_clip reads.
        pretrained: whether to take the weights that are named.
        init_seed: of random weights.

    Raises:
        BackboneError: if open_clip is not installed, the weights cannot be had, or want another activation.
        UnknownNameError: with close matches, for an unknown architecture or weights.
    """
    library = _library()
    architecture, _, tag = name.partition("/")
    own = pretrained and weights is None
    given = str(weights) if weights is not None else tag if own else None
    if weights is not None and not weights.is_file():
        raise BackboneError("Backbone.load", "weights", "an existing checkpoint", str(weights), "Check the path")
    with _no_logging():
        _require_known(library, architecture, tag, own)
        if own:
            _require_its_activation(library, architecture, tag)
    with fetching(f"open_clip/{name}", own, init_seed, weights), _no_logging():
        model = library.create_model(architecture, pretrained=given, precision="fp32", load_weights=given is not None)
        tokenizer = library.get_tokenizer(architecture)
    return from_open_clip(model, tokenizer, architecture)


def from_open_clip(model: Any, tokenizer: Tokenizer, architecture: str) -> Stock:
    """What a backbone is made of, from a model of open_clip's, whose parts it takes over.

    Args:
        model: any whose ``encode_image`` and ``encode_text`` give one row each.
        tokenizer: that of its texts.
        architecture: its name, by which its tokenizer is known.
    """
    tower = image_tower(model.visual)
    view = {"size": model.visual.image_size, **(getattr(model.visual, "preprocess_cfg", None) or {})}
    side = view["size"] if isinstance(view["size"], int) else view["size"][0]
    preprocess = Preprocess(
        side, view.get("interpolation", "bicubic"), 1.0, SHAPES[view.get("resize_mode", "shortest")],
        tuple(view.get("mean", _library().OPENAI_DATASET_MEAN)), tuple(view.get("std", _library().OPENAI_DATASET_STD)),
    )  # fmt: skip
    scale = float(model.logit_scale.detach().exp())
    text = OpenClipText(model, tokenizer, architecture)
    return Stock(tower.float(), preprocess, TwoTowers, {"text": text, "logit_scale": scale})


def tiny_clip(device: str = "cpu") -> TwoTowers:
    """A CLIP of random weights for images of 64 px: for tests.

    Args:
        device: as for :class:`perdure.Backbone`.
    """
    library = _library()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stock = from_open_clip(library.CLIP(**TINY), library.get_tokenizer("ViT-B-32"), "tiny")
    made: TwoTowers = TwoTowers(
        stock.model, name="a tiny CLIP", preprocess=stock.preprocess, device=device, **stock.parts
    )
    return made


class OpenClipText(TextTower):
    """The text side of a model of open_clip's, called as it is.

    Args:
        model: the model; its image side is left out.
        tokenizer: its own.
        name: its architecture.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, name: str) -> None:
        model.visual = nn.Identity()
        embed = _token_embedding(model)
        context = int(model.context_length)
        ids = tokenizer([""], context_length=context)
        with torch.no_grad():
            dim = model.encode_text(ids).shape[1]
        super().__init__(
            name=name, dim=dim, width=embed.embedding_dim, context=context, kind=f"open_clip {_activation(model)}",
            made_by=f"open_clip {_library().__version__}",
        )  # fmt: skip
        self.model = model.float()
        self._tokenizer, self._pad = tokenizer, int(tokenizer([""], context_length=context + 1)[0, -1])

    def thawed_copy(self) -> Self:
        """As every text tower; the scale of cosines, which no text passes through, is no part of it."""
        other = super().thawed_copy()
        other.model.logit_scale = other.model.logit_bias = None
        return other

    def vectors(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n l w"]:
        """As every text tower."""
        found: Tensor = _token_embedding(self.model)(ids)
        return found

    def _tokens(self, texts: Sequence[str]) -> tuple[Int[Tensor, "n l"], list[bool]]:
        # open_clip cuts what is too long, and says nothing: one token more shows what would have been cut
        ids = (
            self._tokenizer(list(texts), context_length=self.context + 1) if texts else torch.zeros(0, self.context + 1)
        )
        return ids[:, :-1].long(), (ids[:, -1] == self._pad).tolist()

    def _lengths(self, ids: Int[Tensor, "n l"]) -> Int[Tensor, " n"]:
        return ids.new_full((len(ids),), ids.shape[1])

    def _encode(self, vectors: Float[Tensor, "n l w"], ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        handle = _token_embedding(self.model).register_forward_hook(lambda *_: vectors)
        try:
            embeddings: Tensor = self.model.encode_text(ids)
        finally:
            handle.remove()
        return embeddings


class OwnTower(nn.Module):
    """An image tower of open_clip's that timm has not, as it is: features alone.

    Args:
        visual: maps images to raw embeddings.
        dim: of an embedding.
    """

    def __init__(self, visual: nn.Module, dim: int) -> None:
        super().__init__()
        self.visual, self.head_hidden_size = visual, dim

    def forward_features(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """The embeddings."""
        embeddings: Tensor = self.visual(images)
        return embeddings

    def forward_head(self, embeddings: Float[Tensor, "b d"], pre_logits: bool = False) -> Float[Tensor, "b d"]:
        """Nothing is left to do."""
        return embeddings

    def get_classifier(self) -> nn.Module:
        """The projection is done already."""
        return nn.Identity()


def image_tower(visual: Any) -> nn.Module:
    """A model of timm's kind with the weights of an image tower of open_clip's; its classifier is the projection.

    Args:
        visual: the tower.
    """
    trunk: Any = getattr(visual, "trunk", None)
    if isinstance(trunk, VisionTransformer):
        trunk.head = nn.Sequential(trunk.head, visual.head)  # type: ignore[assignment]
        return trunk
    if _is_plain(visual):
        return _timm_vit(visual)
    with torch.no_grad():
        side = visual.image_size if isinstance(visual.image_size, int) else visual.image_size[0]
        dim = visual.eval()(torch.zeros(1, 3, side, side)).shape[1]
    return OwnTower(visual, dim)


def _is_plain(visual: Any) -> bool:
    """Whether it is the Vision Transformer of the CLIP paper, which timm has too."""
    block = getattr(getattr(visual, "transformer", None), "resblocks", [None])[0]
    return (
        getattr(visual, "class_embedding", None) is not None
        and visual.attn_pool is None
        and visual.pool_type == "tok"
        and not visual.final_ln_after_pool
        and isinstance(visual.ln_pre, nn.LayerNorm)
        and type(block).__name__ == "ResidualAttentionBlock"
        and isinstance(block.ls_1, nn.Identity)
    )


def _timm_vit(visual: Any) -> VisionTransformer:
    blocks = visual.transformer.resblocks
    gelu = blocks[0].mlp.gelu
    quick = type(gelu).__name__ == "QuickGELU"
    width, hidden = visual.ln_post.normalized_shape[0], blocks[0].mlp.c_fc.out_features
    vit = VisionTransformer(
        img_size=visual.image_size, patch_size=visual.patch_size, embed_dim=width, depth=len(blocks),
        num_heads=blocks[0].attn.num_heads, mlp_ratio=hidden / width, pre_norm=True, num_classes=visual.proj.shape[1],
        norm_layer=functools.partial(nn.LayerNorm, eps=visual.ln_post.eps),
        act_layer="quick_gelu" if quick else functools.partial(nn.GELU, approximate=gelu.approximate),
    )  # fmt: skip
    tensors = checkpoint_filter_fn({f"visual.{k}": v for k, v in visual.state_dict().items()}, vit)
    vit.load_state_dict(tensors)
    projection = nn.Linear(width, visual.proj.shape[1], bias=False)
    projection.weight = nn.Parameter(visual.proj.detach().T.contiguous())
    vit.head = projection
    return vit


def _activation(model: Any) -> str:
    blocks = getattr(getattr(getattr(model, "text", model), "transformer", None), "resblocks", None)
    return type(blocks[0].mlp.gelu).__name__ if blocks else ""


def _token_embedding(model: Any) -> Any:
    side = getattr(model, "text", model)
    return side.token_embedding if hasattr(side, "token_embedding") else side.transformer.get_input_embeddings()


def _library() -> Any:
    try:
        return optional("open_clip")
    except ImportError as error:
        hint = f"Install it: pip install 'perdure[clip]' ({told(error)})"
        raise BackboneError("Backbone.load", "open_clip", "installed", "no such package", hint) from error


def _require_known(library: Any, architecture: str, tag: str, own: bool) -> None:
    if architecture not in library.list_models():
        hint = did_you_mean(architecture, library.list_models())
        raise UnknownNameError("Backbone.load", "architecture", "one of open_clip's", architecture, hint)
    known = library.list_pretrained_tags_by_model(architecture)
    if own and tag not in known:
        hint = f"Write open_clip/{architecture}/WEIGHTS with one of {', '.join(known)}"
        raise UnknownNameError("Backbone.load", "weights", f"open_clip's for {architecture}", tag, hint)


def _require_its_activation(library: Any, architecture: str, tag: str) -> None:
    """Weights trained with QuickGELU compute something else with GELU, and open_clip only warns."""
    wants = bool(library.get_pretrained_cfg(architecture, tag).get("quick_gelu", False))
    has = bool((library.get_model_config(architecture) or {}).get("quick_gelu", False))
    if wants != has:
        other = architecture.removesuffix("-quickgelu") if has else f"{architecture}-quickgelu"
        kinds = {True: "QuickGELU", False: "GELU"}
        must_be, hint = f"{kinds[wants]}, with which {tag} was trained", f"Take open_clip/{other}/{tag}"
        raise BackboneError("Backbone.load", f"activation of {architecture}", must_be, kinds[has], hint)


@contextlib.contextmanager
def _no_logging() -> Iterator[None]:
    """open_clip logs by the root logger's functions, which give it a handler that stays."""
    root = logging.getLogger()
    handlers, silent = list(root.handlers), logging.NullHandler()
    root.addHandler(silent)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        root.handlers[:] = handlers
