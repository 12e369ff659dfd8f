"""What every text tower is: texts to tokens, tokens to vectors, vectors to embeddings in the space of the images'."""

from __future__ import annotations

import abc
import copy
from collections.abc import Sequence
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from perdure.backbone.passes import CPU_BATCH, Passes
from perdure.backbone.settings import digest_of
from perdure.errors import BackboneError


class TextTower(nn.Module, abc.ABC):
    """A frozen stock text encoder, in eval mode.

    Args:
        name: whose weights they are.
        dim: of an embedding.
        width: of a token's vector.
        context: tokens at most, those at the ends included.
        kind: what it computes beside its weights, in a word.
        made_by: the libraries that compute, with their versions.
    """

    def __init__(self, *, name: str, dim: int, width: int, context: int, kind: str, made_by: str) -> None:
        super().__init__()
        self.name, self.dim, self.width, self.context, self.kind, self.made_by = (
            name,
            dim,
            width,
            context,
            kind,
            made_by,
        )
        self.passes = Passes()
        self._weights: tuple[object, str] | None = None

    def tokens(self, texts: Sequence[str]) -> Int[Tensor, "n l"]:
        """The texts' tokens, padded to one length, on the tower's device.

        Args:
            texts: any.

        Raises:
            BackboneError: for a text of more than ``context`` tokens, which would lose its end.
        """
        ids, fits = self._tokens(texts)
        for text, whole in zip(texts, fits, strict=True):
            if not whole:
                hint = (
                    "Shorten the class's name (stream.aliases gives it another), the template, or the learned contexts"
                )
                raise BackboneError(self.name, "text", f"of at most {self.context} tokens", text, hint)
        return ids.to(next(self.parameters()).device)

    def fits(self, texts: Sequence[str]) -> list[bool]:
        """Whether each text is of at most ``context`` tokens.

        Args:
            texts: any.
        """
        return self._tokens(texts)[1]

    def embeddings(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Raw embeddings without gradient, float32. Texts of one length pass together, so that none is padded.

        Args:
            texts: any.

        Raises:
            BackboneError: as for :meth:`tokens`.
        """
        ids = self.tokens(texts)
        found = torch.zeros(len(texts), self.dim, device=ids.device)
        lengths = self._lengths(ids)
        with torch.no_grad():
            for length in lengths.unique().tolist():
                at = lengths == length
                found[at] = self._in_batches(ids[at, :length])
        return found

    def _in_batches(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """A text's embedding does not depend on the texts beside it: on a CPU exactly eight pass at a time."""
        if ids.device.type != "cpu":
            return self.encode(self.vectors(ids), ids)
        found = []
        for part in ids.split(CPU_BATCH):
            full = torch.cat([part, part[:1].expand(CPU_BATCH - len(part), -1)])
            found.append(self.encode(self.vectors(full), full)[: len(part)])
            self.passes.add(texts=len(part) - CPU_BATCH)
        return torch.cat(found)

    def encode(self, vectors: Float[Tensor, "n l w"], ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """Raw embeddings of token vectors, with gradient to them. Counts as one pass per text.

        Args:
            vectors: as from :meth:`vectors`, some of them learned perhaps.
            ids: what they stand for: says where a text ends.
        """
        self.passes.add(texts=len(ids))
        return self._encode(vectors, ids).float()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copies and views of a backbone share its frozen text tower."""
        return self

    def thawed_copy(self) -> Self:
        """A copy whose weights may be trained; passes are counted together with the original's."""
        other = type(self).__new__(type(self))
        vars(other).update(copy.deepcopy(vars(self), {id(self): other}))
        return other.requires_grad_(True)

    @property
    def identity(self) -> str:
        """What it computes, whoever does: its kind and weights, in one hash.

        Raises:
            BackboneError: if something of it may still be trained.
        """
        if any(p.requires_grad for p in self.parameters()):
            hint = "Freeze what was trained, or use the backbone it was copied from"
            raise BackboneError("TextTower.identity", "text tower", "frozen", "one with trainable parameters", hint)
        tensors = dict(self.named_parameters())
        versions = tuple((k, v.data_ptr(), v._version) for k, v in tensors.items())
        if self._weights is None or self._weights[0] != versions:
            self._weights = (versions, digest_of((self.kind, self.context), tensors))
        return self._weights[1]

    @property
    def shelf(self) -> str:
        """What embeddings must have in common to stand side by side, to the last bit: :attr:`identity`, who computes.

        Raises:
            BackboneError: as for :attr:`identity`.
        """
        device = next(self.parameters()).device.type
        return digest_of((self.identity, repr(self), torch.__version__, self.made_by, device), {})

    @abc.abstractmethod
    def vectors(self, ids: Int[Tensor, "n l"]) -> Float[Tensor, "n l w"]:
        """The tokens' own vectors, before positions are added.

        Args:
            ids: from :meth:`tokens`.
        """

    @abc.abstractmethod
    def _tokens(self, texts: Sequence[str]) -> tuple[Int[Tensor, "n l"], list[bool]]:
        """Tokens padded to one length, and whether each text fits."""

    @abc.abstractmethod
    def _lengths(self, ids: Int[Tensor, "n l"]) -> Int[Tensor, " n"]:
        """How many tokens of each text have to pass."""

    @abc.abstractmethod
    def _encode(self, vectors: Float[Tensor, "n l w"], ids: Int[Tensor, "n l"]) -> Float[Tensor, "n d"]:
        """Raw embeddings of token vectors."""
