"""The sentence encoder that comes with pip, as a text tower."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from perdure.backbone import minilm as module
from perdure.backbone.contexts import NamedContexts, first_place, vectors_of_words
from perdure.backbone.minilm import minilm_folder
from perdure.errors import BackboneError
from tiny_clip import minilm

TEXTS = ["a photo of a cat.", "cat", "a photo of a Golden_retriever, a type of dog."]


def test_embeddings_are_means_over_the_tokens() -> None:
    place = minilm_folder()
    tokens = AutoTokenizer.from_pretrained(place)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        out = AutoModel.from_pretrained(place).eval()(**tokens).last_hidden_state
    real = tokens["attention_mask"][..., None]
    torch.testing.assert_close(minilm().embeddings(TEXTS), (out * real).sum(1) / real.sum(1), atol=1e-5, rtol=0)


def test_an_embedding_does_not_depend_on_those_beside_it() -> None:
    tower = minilm()
    assert torch.equal(tower.embeddings(TEXTS), torch.cat([tower.embeddings([text]) for text in TEXTS]))
    words = ("dog", "bird", "fish", "horse", "cow", "pig", "hen", "fox", "owl", "cat")
    many = tower.embeddings([f"a photo of a {word}." for word in words])
    assert torch.equal(many[-1:], tower.embeddings(TEXTS[:1]))


def test_what_is_too_long_is_refused_with_its_text() -> None:
    tower = minilm()
    assert tower.tokens(["word " * 254]).shape == (1, 256)
    with pytest.raises(BackboneError, match="of at most 256 tokens, but got 'word word"):
        tower.tokens(["word " * 255])


def test_words_stand_where_their_vectors_are_put() -> None:
    tower = minilm()
    assert first_place(tower) == 1
    words = vectors_of_words(tower, "a photo of a")
    assert words.shape == (4, 384)
    texts = NamedContexts(tower, ["cat", "hot dog"], 4)
    same = tower.tokens(["a photo of a cat.", "a photo of a hot dog."])
    assert torch.equal(texts.filled(words), tower.vectors(same))


def test_without_the_package_it_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(module, "optional", absent)
    with pytest.raises(BackboneError, match=r"MiniLM must be installed, but got 'no transformers'.*perdure\[clip\]"):
        module.MiniLM()
