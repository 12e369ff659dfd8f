"""Names that look like two spellings of one."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import combinations

import numpy as np

SIMILAR = 0.9
"""``difflib`` ratio from which two class names count as spellings of one."""

PLURALS = (("s", ""), ("es", ""), ("ies", "y"))
"""Endings of English plurals and of their singulars."""


def similar_pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of names that look like two spellings of one: singular and plural, other signs, a letter apart.

    Args:
        names: in any script.
    """
    words = [re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip() for name in names]
    letters = [w.replace(" ", "") for w in words]
    # numbers and single letters tell classes apart on purpose ("type_a", "type_b"; "class_10", "class_11")
    marks = [[m.lstrip("0") for m in re.findall(r"\d+|\b[^\W\d]\b", w)] for w in words]
    pairs: set[tuple[int, int]] = set()
    for forms in (letters, *([_without(w, *ending) for w in words] for ending in PLURALS)):
        same: dict[str, list[int]] = defaultdict(list)
        for i, form in enumerate(forms):
            same[form].append(i)
        pairs.update(pair for group in same.values() for pair in combinations(group, 2))
    pairs.update((i, j) for i, j in _alike(letters) if marks[i] == marks[j])
    return [(names[i], names[j]) for i, j in sorted(pairs)]


def _alike(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """The pairs whose ``difflib`` ratio reaches :data:`SIMILAR`."""
    # Shared letters bound the ratio from above: counting them first spares nearly all of the n² comparisons.
    counts = np.zeros((len(texts), 64), dtype=np.int16)
    for i, text in enumerate(texts):
        for letter in text:
            counts[i, ord(letter) % 64] += 1
    lengths = counts.sum(1)
    for i, text in enumerate(texts):
        shared = np.minimum(counts[i], counts[i + 1 :]).sum(1)
        for j in (i + 1 + np.flatnonzero(2 * shared >= SIMILAR * (lengths[i] + lengths[i + 1 :]))).tolist():
            if difflib.SequenceMatcher(None, text, texts[j], autojunk=False).ratio() >= SIMILAR:
                yield i, j


def _without(words: str, plural: str, singular: str) -> str:
    """``words`` with a plural ending replaced; short words are left alone ("bus")."""
    ends = words.endswith(plural) and len(words) > len(plural) + 2
    return words.removesuffix(plural) + singular if ends else words
