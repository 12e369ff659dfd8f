"""A CLIP: an image tower and a text tower whose embeddings lie in one space.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021. The image
    tower is a backbone like any other, whose classifier is the projection into the common space: its features are raw
    image embeddings, and every method that takes features runs on it unchanged.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Self

import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from perdure.backbone.backbone import Backbone
from perdure.backbone.passes import CPU_BATCH
from perdure.backbone.settings import digest_of
from perdure.backbone.text_tower import TextTower
from perdure.backbone.vit import TokenOutput
from perdure.data.preprocess import Preprocess
from perdure.errors import BackboneError


class TwoTowers(Backbone):
    """An image tower and a text tower, frozen and in eval mode.

    Args:
        model: a timm model whose classifier maps pooled features to raw embeddings.
        name: as for :class:`Backbone`.
        preprocess: as for :class:`Backbone`.
        text: the text tower.
        logit_scale: what the cosine of two embeddings is multiplied with before a softmax.
        device: as for :class:`Backbone`.
        precision: as for :class:`Backbone`; of both towers.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        preprocess: Preprocess,
        text: TextTower,
        logit_scale: float,
        device: str = "auto",
        precision: str = "float32",
    ) -> None:
        super().__init__(model, name=name, preprocess=preprocess, device=device, precision=precision)
        self._text: TextTower | None = text.eval().requires_grad_(False).to(self.device)
        text.passes = self.passes
        self.dim, self.logit_scale = text.dim, logit_scale

    @property
    def text(self) -> TextTower:
        """The text tower.

        Raises:
            BackboneError: for a thawed copy that was made without it.
        """
        if self._text is None:
            hint = "Ask for thawed_copy(text=True), or use the text tower of the backbone it was copied from"
            raise BackboneError(
                "TwoTowers.text", "backbone", "one with a text tower", "a copy of the image tower", hint
            )
        return self._text

    def image_embeddings(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Raw embeddings without gradient: :meth:`features` by its name in the papers.

        Args:
            images: as for :meth:`features`.
        """
        return self.features(images)

    def text_embeddings(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Raw embeddings without gradient, float32; see ``FeatureStore.texts``, which keeps them.

        Args:
            texts: any.

        Raises:
            BackboneError: for a text of too many tokens, with the text.
        """
        return self.text.embeddings(texts)

    def text_embeddings_of(self, vectors: Float[Tensor, "n l w"], ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """Raw embeddings of token vectors, with gradient to them.

        Args:
            vectors: as from ``text.vectors(ids)``, in which learned contexts may stand.
            ids: as from ``text.tokens(texts)``.
        """
        with self.autocast():
            return self.text.encode(vectors, ids)

    def logits(self, images: Float[Tensor, "b d"], texts: Float[Tensor, "c d"]) -> Float[Tensor, "b c"]:
        """The scaled cosines of raw embeddings, with gradient.

        Args:
            images: rows of image embeddings.
            texts: rows of text embeddings.
        """
        return self.logit_scale * normalised(images) @ normalised(texts).T

    def embed(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """As every backbone: raw embeddings."""
        return self.projected(super().embed(images))

    def pool(self, tokens: TokenOutput) -> Float[Tensor, "b d"]:
        """As every backbone: raw embeddings."""
        return self.projected(super().pool(tokens))

    def projected(self, pooled: Float[Tensor, "b w"]) -> Float[Tensor, "b d"]:
        """Raw embeddings of what was pooled from the image tower's tokens, behind its norms.

        Args:
            pooled: of the tower's width.
        """
        n = len(pooled)
        if self.device.type == "cpu":  # a product of two rows rounds otherwise than one of eight
            pooled = F.pad(pooled, (0, 0, 0, max(CPU_BATCH - n, 0)))
        with self.autocast():
            embedding: Tensor = self.model.get_classifier()(pooled)
        return embedding[:n].float()

    def image_tower(self) -> Backbone:
        """The image tower alone, with the same weights, not copied: its features come before the projection.

        Passes are counted together.
        """
        self._require_frozen("TwoTowers.image_tower")
        model = copy.deepcopy(self.model, {id(t): t for t in (*self.model.parameters(), *self.model.buffers())})
        model.reset_classifier(0)
        tower = Backbone(
            model, name=self.name, preprocess=self.preprocess, device=str(self.device), precision=self.precision
        )
        tower.passes, tower.source = self.passes, self.source
        return tower

    @property
    def identity(self) -> str:
        """As every backbone: of both towers."""
        return digest_of(("two towers", super().identity, self.text.identity, self.logit_scale), {})

    @property
    def fingerprint(self) -> str:
        """As every backbone: of both towers."""
        return digest_of(("two towers", super().fingerprint, self.text.identity, self.logit_scale), {})

    def thawed_copy(self, *, text: bool = False) -> Self:
        """As every backbone.

        Args:
            text: thaw the text tower too; otherwise the copy has none.
        """
        other = super().thawed_copy()
        other._text = self.text.thawed_copy() if text else None
        return other


def normalised(embeddings: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """Rows of length 1.

    Args:
        embeddings: raw.
    """
    return F.normalize(embeddings, dim=-1)
