"""Reference sentences that a text tower reads whole."""

from __future__ import annotations

import pytest

from perdure.backbone.sentences import readable_sentences
from perdure.data import Reference
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError
from tiny_clip import clip

SENTENCES = ["a dog", "word " * 90 + "end", "a cat"]


def reference(*, may_be_cut: bool) -> Reference:
    return Reference(synthetic_dataset(range(1)).train, SENTENCES, lines=[2, 5, 6], may_be_cut=may_be_cut)


def test_what_may_be_cut_loses_its_last_words() -> None:
    found = readable_sentences(clip().text, reference(may_be_cut=True))
    assert found == ["a dog", " ".join(["word"] * 75), "a cat"]  # a start and an end beside 75 words
    assert clip().text.fits(SENTENCES) == [True, False, True]


def test_a_long_sentence_of_a_file_is_told_by_its_line() -> None:
    with pytest.raises(BackboneError, match=r"sentence in line 5 must be of at most 77 tokens, but got 'word word"):
        readable_sentences(clip().text, reference(may_be_cut=False))
