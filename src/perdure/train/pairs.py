"""The same images for two frozen Vision Transformers that get prompts: training batches, and tests."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone, Prompt, TwoTowers, normalised
from perdure.backbone.second import as_second_sees
from perdure.data import LabelledImages
from perdure.memory import FeatureStore
from perdure.train.batches import planned
from perdure.train.settings import Training
from perdure.types import Event

Embedded = tuple[Float[Tensor, "b _n _w"], Float[Tensor, "b _m _e"]]  # inputs of both first blocks
Tokens = Callable[[np.ndarray], Tensor]  # images' positions -> inputs of a first block


class WholeBatches(Training):
    """How something is trained whose loss looks at all of a batch."""

    accumulate: Literal[1] = Field(1, description="a batch passes at once: the loss looks at all of it")


class PairedPrompts(nn.Module):
    """Prompts in a CLIP's image tower and in a second backbone, off whose outputs the images are read.

    Args:
        clip: with a Vision Transformer as image tower.
        second: a Vision Transformer; see :mod:`perdure.backbone.second`.
        n_first: tokens in the CLIP's, drawn from N(0, 1).
        n_second: tokens in the second's, drawn from U(-1, 1).
        rng: a CPU generator.
    """

    def __init__(self, clip: TwoTowers, second: Backbone, n_first: int, n_second: int, rng: torch.Generator) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(n_first, clip.width, generator=rng))
        self.second = nn.Parameter(2 * torch.rand(n_second, second.width, generator=rng) - 1)
        self.towers = (clip, second)  # in a tuple: no part of the state

    def forward(self, pair: Embedded) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b e"]]:
        """The CLIP's embeddings, of length 1, and the second backbone's features, with gradient to the prompts."""
        return normalised(self.embeddings(pair[0])), self.features(pair[1])

    def embeddings(self, embedded: Float[Tensor, "b _n _w"]) -> Float[Tensor, "b d"]:
        """The CLIP's raw embeddings: the mean of its prompts behind the last block, normed and projected.

        Args:
            embedded: inputs of its block 0.
        """
        clip, vit = self.towers[0], self.towers[0].vit
        out = clip.walk(embedded, {0: Prompt(self.first[None], stays=True)}, before_norm=True)
        tokens: Tensor = out.before_norm[:, out.n_prefix : out.n_prefix + out.n_prompts]  # type: ignore[index]
        return clip.projected(vit.fc_norm(vit.norm(tokens.float().mean(1))))

    def features(self, embedded: Float[Tensor, "b _m _e"]) -> Float[Tensor, "b e"]:
        """The second backbone's features: the mean of its prompts' normed outputs.

        Prompts stand at the position of the class token, where it has one.

        Args:
            embedded: inputs of its block 0.
        """
        vit = self.towers[1].vit
        placed = vit.pos_embed is not None and vit.cls_token is not None and not vit.no_embed_class
        tokens = self.second + vit.pos_embed[0, 0] if placed else self.second  # type: ignore[index]
        out = self.towers[1].walk(embedded, {0: Prompt(tokens[None], stays=True)})
        features: Tensor = vit.fc_norm(out.prompts.float().mean(1))
        return features

    def tested(
        self, pair: Embedded, asks: Callable[[Tensor], Tensor]
    ) -> tuple[Float[Tensor, "b d"], Bool[Tensor, " b"], Float[Tensor, "asked e"]]:
        """Raw embeddings, which images the second backbone is asked for, and its features of these alone.

        Images pass by batches in which none depends on the others.

        Args:
            pair: from :meth:`embedded` or :meth:`batches`.
            asks: tells from embeddings for which images the second backbone is asked.
        """
        clip, second = self.towers
        embeddings = clip.in_batches(self.embeddings, pair[0])
        asked: Tensor = asks(embeddings)
        features = torch.zeros(0, second.dim, device=embeddings.device)
        if asked.any():
            features = second.in_batches(self.features, pair[1][asked])
        return embeddings, asked.cpu(), features

    def embedded(self, images: Num[Tensor, "b 3 h w"]) -> Embedded:
        """What :meth:`tested` takes, of some images.

        Args:
            images: pixels of the CLIP's eval view, or floating point normalised for it.
        """
        clip, second = self.towers
        with torch.no_grad():
            return clip.embed_tokens(images), second.embed_tokens(as_second_sees(second, clip, images))

    def batches(self, store: FeatureStore, data: LabelledImages) -> Iterator[Embedded]:
        """What :meth:`tested` takes, of a whole data set in its order.

        Args:
            store: of features, and of progress.
            data: the images.
        """
        n, size = len(data), self.towers[0].batch_size
        images, sees = EitherInput(self.towers, data, store), self.towers[0].preprocess
        for start in range(0, n, size) if images.all_stored else ():
            store.progress(Event("testing", min(start + size, n), n))
            yield images.at(np.arange(start, min(start + size, n)), None)
        for at, pixels in () if images.all_stored else data.batches(sees, size):
            store.progress(Event("testing", int(at[-1]) + 1, n))
            yield images.at(at, pixels)


class EitherInput:
    """Images as inputs of two first blocks: from the store where a stem is a network itself, else from pixels.

    Args:
        towers: both backbones.
        data: the images.
        store: of features.
    """

    def __init__(self, towers: Sequence[Backbone], data: LabelledImages, store: FeatureStore) -> None:
        self.towers, self._stored = towers, [store.tokens(tower, data) for tower in towers]

    @property
    def all_stored(self) -> bool:
        """Whether no pixels are needed."""
        return all(self._stored)

    def at(self, positions: np.ndarray, pixels: Tensor | None) -> Embedded:
        """Some images.

        Args:
            positions: of the images.
            pixels: theirs, of the first tower's eval view; not looked at where all is stored.
        """
        with torch.no_grad():
            first, second = (
                tokens(positions) if tokens else tower.embed_tokens(pixels)  # type: ignore[arg-type]
                for tower, tokens in zip(self.towers, self._stored, strict=True)
            )
        return first, second


class PairedImages:
    """Batches of eval views, for a session: inputs of both first blocks, and the images' score columns.

    Args:
        towers: the first, whose eval view the images get, and the second.
        data: the images.
        columns: of their classes.
        config: batch size and order.
        store: of features.
    """

    def __init__(
        self,
        towers: Sequence[Backbone],
        data: LabelledImages,
        columns: Int[Tensor, " n"],
        config: Training,
        store: FeatureStore,
    ) -> None:
        self.towers, self.data, self.columns, self.config = towers, data, columns, config
        self._input, self._pixels = EitherInput(towers, data, store), torch.empty(0, 3, 1, 1, dtype=torch.uint8)

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """The images are decoded while it is entered, if they are needed.

        Raises:
            StorageError: if the temporary directory cannot hold the decoded images.
            DataError: naming the image, if one cannot be read.
        """
        if self._input.all_stored:
            yield
            return
        with self.data.decoded(self.towers[0].preprocess) as self._pixels:
            yield
        self._pixels = self._pixels[:0]

    def plan(self, rng: torch.Generator) -> list[Tensor]:
        """Each batch's positions."""
        return planned(len(self.data), self.config, rng)

    def batch(self, plan: Int[Tensor, " b"], rng: torch.Generator) -> tuple[Embedded, Int[Tensor, " b"]]:
        """One batch."""
        pixels = None if self._input.all_stored else self._pixels[plan]
        return self._input.at(plan.numpy(), pixels), self.columns[plan].to(self.towers[0].device)
