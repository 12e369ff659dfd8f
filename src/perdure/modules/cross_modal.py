"""Cross-modal fusion: an image, class texts, class prototypes and learned prompts read each other in one attention.

Source: Zhou, Zhang, Wang, Ning, Ye, Zhan & Liu, "Learning without Forgetting for Vision-Language Models" (PROOF), IEEE
    TPAMI 2025, in the form of its released code: one head, then LayerNorm(dropout(fc(attention)) + input).

For one image the sequence is [image; rows]. The rows are the same for all images, so what they read of each other is
computed once, and the image joins by the softmax of two blocks: with a row's logit a for the image and the total
``m = logsumexp`` of its logits for the rows, the image's weight is ``g = sigmoid(a - m)``; all others shrink by 1 - g.
That is exact. As fc is linear, it is applied to values before they are mixed: no product of size d² is left for each
image and row. A batch of tests costs (b, n, d) numbers, and no attention of every image's own sequence, (b, n, n).

Dropout follows the softmax, so g and m are those of undropped weights. Every image draws its own, for all weights, so
there are (b, n, n) of them in training alone. A draw shared by a batch would be cheaper, but its noise does not average
out over the batch.
"""

from __future__ import annotations

import dataclasses as dc
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from perdure.learned import learned
from perdure.modules.stack import GrowingStack


class Projections(GrowingStack):
    """The sum over tasks of ``A_k x + a_k``, in the precision and on the device of x.

    Args:
        dim: d, of inputs and outputs.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
        weights, biases = zip(*((part.weight.to(x), part.bias.to(x)) for part in self.parts), strict=True)
        return F.linear(x, sum(weights[1:], weights[0]), sum(biases[1:], biases[0]))

    def _new(self, rng: torch.Generator) -> nn.Linear:
        layer = nn.utils.skip_init(nn.Linear, self.dim, self.dim)  # its own values would come from the global generator
        with torch.no_grad():
            for values in (layer.weight, layer.bias):
                values.copy_(self.dim**-0.5 * (2 * torch.rand(values.shape, generator=rng) - 1))
        return layer


@dc.dataclass(frozen=True, slots=True, eq=False)
class Read:
    """How rows attend to all that does not belong to an image."""

    rows: Float[Tensor, "n d"]
    queries: Float[Tensor, "n d"]
    total: Float[Tensor, " n"]  # m, the logarithm of the sum of exponentials
    weights: Float[Tensor, "n m"]  # of the softmax; the last is the row's own, if it has a key of its own
    values: Float[Tensor, "k d"]  # behind fc, of what all share
    own: Float[Tensor, "n d"] | None  # of the row itself

    def found(self, weights: Float[Tensor, "*b n m"]) -> Float[Tensor, "*b n d"]:
        """The mean of values by the rows' weights, of which some may have been dropped.

        Args:
            weights: in place of the read's.
        """
        k = len(self.values)
        found = weights[..., :k] @ self.values
        return found if self.own is None else found + weights[..., k:] * self.own


class CrossModalFusion(nn.Module):
    """One attention layer of one head, in the precision and on the device of its input.

    Args:
        dim: d.
        dropout: share of attention weights and of fc's outputs that is dropped where a generator is given.
        rng: of initial values: N(0, 1/d), fc's bias U(±1/√d).
    """

    def __init__(self, dim: int, dropout: float, rng: torch.Generator) -> None:
        super().__init__()
        self.dim, self.dropout = dim, dropout
        parts = [nn.utils.skip_init(nn.Linear, dim, dim, bias=last) for last in (False, False, False, True)]
        with torch.no_grad():
            for part in parts:
                part.weight.copy_(dim**-0.5 * torch.randn(dim, dim, generator=rng))
            parts[-1].bias.copy_(dim**-0.5 * (2 * torch.rand(dim, generator=rng) - 1))
        self.query, self.key, self.value, self.fc = parts
        self.norm = nn.LayerNorm(dim)

    def shared(self, rows: Float[Tensor, "k d"]) -> tuple[Float[Tensor, "k d"], Float[Tensor, "k d"]]:
        """Keys, and values behind fc, of what every image's sequence has besides the image.

        Args:
            rows: texts, prototypes and prompts.
        """
        return self._key(rows), self._value(rows)

    def read(
        self,
        rows: Float[Tensor, "n d"],
        shared: tuple[Float[Tensor, "k d"], Float[Tensor, "k d"]],
        *,
        itself: bool = False,
    ) -> Read:
        """How rows attend to it.

        Args:
            rows: which ask.
            shared: from :meth:`shared`.
            itself: whether each row has a key of its own besides: it is not among the shared.
        """
        (keys, values), queries = shared, F.linear(rows, self.query.weight.to(rows)) * self.dim**-0.5
        logits = queries @ keys.T
        if itself:
            logits = torch.cat([logits, (queries * self._key(rows)).sum(1, keepdim=True)], 1)
        own = self._value(rows) if itself else None
        return Read(rows, queries, logits.logsumexp(1), logits.softmax(1), values, own)

    def alone(self, read: Read, rng: torch.Generator | None = None) -> Float[Tensor, "n d"]:
        """Rows behind the layer, of images for example.

        Args:
            read: from :meth:`read`.
            rng: a CPU generator of dropout; none: nothing is dropped.
        """
        found = read.found(self._dropped(read.weights, rng))
        return self._behind(found + self.fc.bias.to(found), read.rows, rng)

    def beside(
        self, read: Read, images: Float[Tensor, "b d"], rng: torch.Generator | None = None
    ) -> Float[Tensor, "b n d"]:
        """Rows behind the layer, which read each image too.

        Args:
            read: from :meth:`read`.
            images: one in every sequence.
            rng: as for :meth:`alone`.
        """
        g, weights = torch.sigmoid(self._key(images) @ read.queries.T - read.total), read.weights
        if not self._drops_nothing(rng):
            weights = self._dropped(weights.expand(len(images), -1, -1), rng)
        # fused operations: every pass over (b, n, d) numbers costs as much as all products of size d²
        found = torch.addcmul(self.fc.bias.to(images), (1 - g)[..., None], read.found(weights))
        found = torch.addcmul(found, self._dropped(g, rng)[..., None], self._value(images)[:, None])
        return self._behind(found, read.rows, rng)

    def _key(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return F.linear(rows, self.key.weight.to(rows))

    def _value(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        return F.linear(F.linear(rows, self.value.weight.to(rows)), self.fc.weight.to(rows))

    def _behind(self, found: Tensor, rows: Float[Tensor, "n d"], rng: torch.Generator | None) -> Tensor:
        out = found + rows if self._drops_nothing(rng) else torch.addcmul(rows, found, self._kept(found, rng))
        return F.layer_norm(out, (self.dim,), self.norm.weight.to(rows), self.norm.bias.to(rows), self.norm.eps)

    def _dropped(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        return x if self._drops_nothing(rng) else x * self._kept(x, rng)

    def _drops_nothing(self, rng: torch.Generator | None) -> bool:
        return rng is None or not self.dropout

    def _kept(self, x: Tensor, rng: torch.Generator | None) -> Tensor:
        """Zeros where x is dropped, and elsewhere what keeps its mean."""
        kept = torch.empty(x.shape).bernoulli_(1 - self.dropout, generator=rng).div_(1 - self.dropout)
        return kept.to(x)


class FusedRows:
    """Class texts and prototypes that are fused with images, and what they then say of them.

    Args:
        fusion: the layer.
        texts: of classes, of length 1.
        prototypes: of the same classes, of length 1.
        prompts: of every task; they are read, and read nothing.
        names: texts of other classes, which read all this and themselves; nothing reads them.
        mean: of every row over the images of a batch; else each image has rows of its own.
        rng: as for :meth:`CrossModalFusion.alone`.
    """

    def __init__(
        self,
        fusion: CrossModalFusion,
        texts: Float[Tensor, "c d"],
        prototypes: Float[Tensor, "c d"],
        prompts: Float[Tensor, "tasks p d"],
        names: Float[Tensor, "n d"],
        *,
        mean: bool = False,
        rng: torch.Generator | None = None,
    ) -> None:
        self.fusion, self.mean, self.rng, rows = fusion, mean, rng, torch.cat([texts, prototypes])
        self.texts, self.shared = torch.cat([texts, names]), fusion.shared(torch.cat([rows, prompts.flatten(0, 1)]))
        self.taught = fusion.read(rows, self.shared)
        self.named = fusion.read(names, self.shared, itself=True)

    def similarities(
        self, images: Float[Tensor, "b d"], *, cosine: bool = False
    ) -> tuple[Float[Tensor, "b c"], Float[Tensor, "b c"], Float[Tensor, "b n"]]:
        """Of each fused image with its fused texts, prototypes and other names: inner products.

        Args:
            images: projected.
            cosine: as if all were of length 1.
        """
        z = self.fusion.alone(self.fusion.read(images, self.shared, itself=True), self.rng)
        found = []
        for read in (self.taught, self.named):
            rows = self.fusion.beside(read, images, self.rng)
            rows = rows.mean(0, keepdim=True).expand_as(rows) if self.mean else rows
            found.append(torch.einsum("bd,bnd->bn", *((_unit(x) for x in (z, rows)) if cosine else (z, rows))))
        by_text, by_prototype = found[0].chunk(2, 1)
        return by_text, by_prototype, found[1]

    def scores(self, images: Float[Tensor, "b d"], projected: float, *, cosine: bool = False) -> Float[Tensor, "b all"]:
        """Three similarities added: before the fusion, to the fused texts, and to the fused prototypes.

        Of a class without a prototype, the second counts twice.

        Args:
            images: projected.
            projected: weight of the first.
            cosine: as if all were of length 1.
        """
        by_text, by_prototype, by_name = self.similarities(images, cosine=cosine)
        first = (_unit(images) if cosine else images) @ self.texts.T
        return projected * first + torch.cat([by_text + by_prototype, 2 * by_name], 1)


class CrossModal(nn.Module):
    """A stack of projections on each side of a CLIP, and the fusion.

    Args:
        dim: d.
        dropout: as for :class:`CrossModalFusion`.
        rng: of the fusion's initial values.
    """

    STATE: ClassVar = {
        f"{side}.parts.<tasks>.{name}": learned(shape, torch.float32, meaning if name == "weight" else "")
        for side, meaning in (("image", "A_k, of each task"), ("text", "B_k, of each task"))
        for name, shape in (("weight", "d, d"), ("bias", "d"))
    }

    def __init__(self, dim: int, dropout: float, rng: torch.Generator) -> None:
        super().__init__()
        self.image, self.text = Projections(dim), Projections(dim)
        self.fusion = CrossModalFusion(dim, dropout, rng)

    def images(self, embeddings: Float[Tensor, "b d"], *, unit: bool = True) -> Float[Tensor, "b d"]:
        """Projected images, or prototypes.

        Args:
            embeddings: raw.
            unit: of length 1.
        """
        projected = self.image(embeddings)
        return _unit(projected) if unit else projected

    def texts(self, sentences: Float[Tensor, "c t d"]) -> Float[Tensor, "c d"]:
        """Each class's sentences projected, of length 1 each, then their mean of length 1.

        Args:
            sentences: raw text embeddings; rows of zeros are none.
        """
        there: Bool[Tensor, "c t 1"] = sentences.ne(0).any(-1, keepdim=True)
        return _unit((_unit(self.text(sentences)) * there).sum(1))

    def rows(
        self,
        sentences: Float[Tensor, "c t d"],
        prototypes: Float[Tensor, "c d"],
        prompts: Float[Tensor, "tasks p d"],
        strange: Float[Tensor, "n t d"] | None = None,
        **how: Any,
    ) -> FusedRows:
        """What images are fused with.

        Args:
            sentences: of classes.
            prototypes: of the same classes, raw.
            prompts: of every task.
            strange: sentences of classes that were never taught.
            how: as for :class:`FusedRows`.
        """
        names = self.texts(sentences[:0] if strange is None else strange)
        return FusedRows(self.fusion, self.texts(sentences), self.images(prototypes), prompts, names, **how)


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows, dim=-1)
