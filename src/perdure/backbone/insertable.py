"""What makes modules insertable into a backbone: views that share its weights, and the list of insertions."""

from __future__ import annotations

import abc
import copy
from collections.abc import Iterable, Sequence
from typing import Any, Self

from timm.layers import HybridEmbed
from torch import nn

from perdure.backbone.seats import Insertion, attach, detach, fold, make_module
from perdure.backbone.sites import Make, sites
from perdure.errors import BackboneError


class Insertable(nn.Module):
    """A stock model and what is inserted into it."""

    model: Any  # a stock timm model
    name: str

    def __init__(self) -> None:
        super().__init__()
        self.insertions = nn.ModuleList().eval()
        self._viewed_shelf = ""  # of the backbone this is a view of

    @property
    @abc.abstractmethod
    def shelf(self) -> str:
        """Of all that features depend on, to the last bit."""

    @property
    def stem_shelf(self) -> str:
        """Of all that the patch embedding depends on: views share it, unless an insertion changes that very layer."""
        return self._viewed_shelf if self.shares_stem else self.shelf

    @property
    def has_stem(self) -> bool:
        """Whether it is a Vision Transformer whose patch embedding is a network itself, its output worth keeping."""
        return isinstance(getattr(self.model, "patch_embed", None), HybridEmbed)

    @property
    def shares_stem(self) -> bool:
        """Whether it has a stem, and that of the backbone it is a view of, while the rest is not the same."""
        patched = any(name.startswith("patch_embed") for i in self._inserted() for name in i.names)
        return self.has_stem and bool(self._viewed_shelf) and len(self.insertions) > 0 and not patched

    @property
    def is_thawed(self) -> bool:
        """Whether anything in it may still be trained."""
        return any(p.requires_grad for p in self.parameters())

    def holds(self, parameters: Iterable[nn.Parameter], *, stem: bool = False) -> bool:
        """Whether any of ``parameters`` is one of its own, or of what is inserted; or, with ``stem``, of its stem.

        Args:
            parameters: of anything.
            stem: ask for the patch embedding alone, and for what is inserted there.
        """
        parts: list[nn.Module] = [self]
        if stem:
            patched = [i for i in self._inserted() if any(name.startswith("patch_embed") for name in i.names)]
            parts = [*([self.model.patch_embed] if self.has_stem else []), *patched]
        own = {id(p) for part in parts for p in part.parameters()}
        return any(id(p) in own for p in parameters)

    def view(self) -> Self:
        """A backbone with the same weights, not copied: modules inserted there do not change this one.

        Passes are counted together.

        Raises:
            BackboneError: if something in this one may still be trained.
        """
        self._require_frozen("Backbone.view")
        shelf = self.stem_shelf
        shared = {id(t): t for t in (*self.parameters(), *self.buffers())}
        other = copy.deepcopy(self, shared)
        other._viewed_shelf = shelf
        return other

    def insert(self, seat: str, make: Make, *, blocks: Sequence[int] | None = None, stay: bool = False) -> Insertion:
        """Inserts a module at every site of a seat; see :mod:`perdure.backbone.seats`.

        Args:
            seat: ``attention``, ``mlp``, ``block``, ``qkv``, ``prefix``, ``tokens``, ``outputs`` or ``convolutions``.
            make: makes one site's module. Its parameters may be trained; freeze them to have features kept. It is put
                into eval mode, like the model.
            blocks: which blocks, counted from 0 through all stages, as ``range(5)``; all by default.
            stay: whether the tokens of seat ``tokens`` travel on to the last block.

        Raises:
            BackboneError: for a seat or block the model does not have, or a module that does not belong there.
            ShapeError: for prompt tokens of another width; other modules are checked at their first pass.
        """
        found = sites(self.model, self.name, seat, blocks)
        if stay and seat != "tokens":
            raise BackboneError("insert", "stay", f"False at seat {seat}", stay, "Only prompt tokens can stay")
        insertion = Insertion(seat, found, [make_module(seat, site, make) for site in found], stay=stay)
        insertion.eval().to(next(self.model.parameters()).device)
        attach(found, insertion, self.model.blocks[-1] if stay else None)
        self.insertions.append(insertion)
        return insertion

    def remove(self, insertion: Insertion) -> None:
        """Takes an insertion out again: the backbone is what it was without it, bit for bit.

        Args:
            insertion: from :meth:`insert`.

        Raises:
            BackboneError: if it is not there.
        """
        if all(other is not insertion for other in self.insertions):
            got, hint = f"one at seat {insertion.seat}", "Remove it once, from the backbone it was inserted into"
            raise BackboneError("Backbone.remove", "insertion", "one of this backbone's", got, hint)
        detach(self.model, insertion)
        self.insertions = nn.ModuleList(other for other in self.insertions if other is not insertion).eval()

    def folded(self) -> Self:
        """A backbone without insertions whose weights do what this one does with them.

        Raises:
            BackboneError: if an insertion is no linear map.
        """
        other = copy.deepcopy(self)
        other._viewed_shelf = ""
        for insertion in other._inserted():
            other.remove(insertion)
            fold(other.model, insertion)
        return other

    def _require_frozen(self, where: str) -> None:
        if self.is_thawed:
            hint = "Freeze what was trained, or use the backbone it was copied from"
            raise BackboneError(where, "backbone", "frozen", "one with trainable parameters", hint)

    def _require_prefixes_fit(self, blocks: Iterable[int]) -> None:
        """A block with a prefix is not called as a whole, so that what is inserted there might not get in."""
        with_prefix = sorted(blocks)
        if with_prefix and any(insertion.seat in ("tokens", "prefix") for insertion in self._inserted()):
            hint = "Give them as prompt tokens, or remove the insertion"
            raise BackboneError("walk", "blocks with a prefix", "none beside inserted tokens", with_prefix, hint)

    def _inserted(self) -> list[Insertion]:
        return [i for i in self.insertions if isinstance(i, Insertion)]
