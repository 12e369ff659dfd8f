"""All tokens behind a frozen Vision Transformer's last block, a prompt's among them, for classifiers that read them.

Where views do not change and the prompt has learned what it will learn, an image passes once ever: its tokens come from
the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from perdure.backbone import Backbone, Prompt, PromptTokens
from perdure.data import LabelledImages
from perdure.memory import Features, FeatureStore
from perdure.train.batches import Rows
from perdure.train.prompting import embedded_batches
from perdure.train.session import Session, on_images
from perdure.train.settings import ImageTraining, Learns
from perdure.types import Event


class Outputs:
    """Gives X, (b, m, d): prefix tokens, those of the prompt, patches; before the final norm.

    Args:
        backbone: a frozen Vision Transformer.
        prompt: joins the tokens of every image before the first block.
        store: of tokens.
        keep: whether tokens are kept, 4 m d bytes per image: not if the prompt changes again and again.
    """

    def __init__(self, backbone: Backbone, prompt: PromptTokens, store: FeatureStore, *, keep: bool) -> None:
        self.backbone, self.prompt, self.store, self.keep = backbone, prompt, store, keep

    def of_embedded(self, embedded: Float[Tensor, "b n d"]) -> Float[Tensor, "b m d"]:
        """The tokens, with gradient where the prompt learns.

        Args:
            embedded: inputs of block 0.
        """
        prompts = {0: Prompt(self.prompt.values[None], stays=True)}
        tokens = self.backbone.walk(embedded, prompts, before_norm=True).before_norm
        return tokens.float()  # type: ignore[union-attr]  # asked for

    def of(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b m d"]:
        """The tokens of images that are in no store, without gradient.

        Args:
            images: as for :meth:`perdure.backbone.Backbone.features`.
        """
        with torch.no_grad():
            return self.backbone.in_batches(self.of_embedded, self.backbone.embed_tokens(images))

    def batches(self, data: LabelledImages) -> Iterator[Float[Tensor, "b m d"]]:
        """The tokens of a data set's eval views, in order, without gradient.

        Args:
            data: images.
        """
        size = self.backbone.batch_size
        if self.keep:
            yield from map(self._square, self._stored(data).batches(size))
            return
        for at, embedded in embedded_batches(self.backbone, self.store, data, size):
            self.store.progress(Event("testing", int(at[-1]) + 1, len(data)))
            with torch.no_grad():
                yield self.backbone.in_batches(self.of_embedded, embedded)

    def train(
        self,
        data: LabelledImages,
        columns: Int[Tensor, " n"],
        config: ImageTraining,
        rng: torch.Generator,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        learns: Learns,
        with_prompt: bool,
    ) -> None:
        """Trains what reads the tokens.

        Args:
            data: a task's images.
            columns: of their classes.
            config: of the training.
            rng: a CPU generator.
            loss: of (b, m, d) tokens and (b,) columns.
            learns: what reads them.
            with_prompt: whether the prompt learns too.
        """
        fast, store = [*learns, *[self.prompt] * with_prompt], self.store
        if self.keep and not with_prompt and not config.augment.changes_views:
            rows, columns = self._stored(data), columns.to(self.backbone.device)
            session = Session(Rows(len(rows), config), config, rng, fast=fast, progress=store.progress)
            session.run(lambda at: loss(self._square(rows[at.numpy()]), columns[at]))
            return
        passing = on_images(self.backbone, data, columns, config, rng, store, fast=fast, prompted=True)
        passing.run(lambda batch: loss(self.of_embedded(batch.embedded(self.backbone)), batch.columns))

    def _stored(self, data: LabelledImages) -> Features:
        return self.store.outputs(self.backbone, self.prompt.values, data)

    def _square(self, rows: Float[Tensor, "b md"]) -> Float[Tensor, "b m d"]:
        return rows.unflatten(1, (-1, self.backbone.dim)).to(self.backbone.device)
