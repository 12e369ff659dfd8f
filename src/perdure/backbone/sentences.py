"""Sentences that a text tower is to read whole."""

from __future__ import annotations

from perdure.backbone.text_tower import TextTower
from perdure.data.reference import Reference
from perdure.errors import BackboneError


def readable_sentences(tower: TextTower, reference: Reference) -> list[str]:
    """The sentences of reference data; one that is too long and may be cut loses its last words.

    Args:
        tower: that reads them.
        reference: whose they are.

    Raises:
        BackboneError: for a sentence of too many tokens that may not be cut, with its line.
    """
    found = list(reference.sentences)
    long = [i for i, fits in enumerate(tower.fits(found)) if not fits]
    if long and not reference.may_be_cut:
        where, must_be = f"reference sentence in line {reference.lines[long[0]]}", f"of at most {tower.context} tokens"
        hint = "Shorten it, or leave it out"
        raise BackboneError(tower.name, where, must_be, found[long[0]], hint)
    while long:
        for i in long:
            found[i] = found[i].rsplit(maxsplit=1)[0]
        long = [i for i, fits in zip(long, tower.fits([found[i] for i in long]), strict=True) if not fits]
    return found
