"""Two towers as one backbone: counted, kept, copied and told apart."""

from __future__ import annotations

import pytest
import torch

from perdure import Backbone, FeatureStore
from perdure.backbone import TwoTowers, normalised, require_kind
from perdure.backbone.clip import tiny_clip
from perdure.data.synthetic import synthetic_dataset
from perdure.errors import BackboneError
from perdure.modules.adapter import Adapter
from tiny_clip import clip

TEXTS = ["a photo of a cat.", "a dog", "a photo of a very small dog"]


def images(n: int = 5) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 64, 64), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)


def test_an_embedding_does_not_depend_on_those_beside_it() -> None:
    backbone = clip()
    each = torch.cat([backbone.image_embeddings(x[None]) for x in images()])
    assert torch.equal(backbone.image_embeddings(images()), each)
    assert torch.equal(backbone.text_embeddings(TEXTS), torch.cat([backbone.text_embeddings([t]) for t in TEXTS]))
    assert backbone.text_embeddings([]).shape == (0, 48)


def test_logits_are_scaled_cosines() -> None:
    backbone = clip()
    x, w = torch.tensor([[3.0, 4.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.5]])
    torch.testing.assert_close(backbone.logits(x, w), backbone.logit_scale * torch.tensor([[0.6, 0.8]]))


def test_passes_are_counted_by_tower() -> None:
    backbone = tiny_clip()
    backbone.image_embeddings(images(3))
    backbone.text_embeddings(TEXTS)
    backbone.text_embeddings(TEXTS[:1])
    assert (backbone.passes.images, backbone.passes.texts) == (3, 4)


def test_the_store_encodes_a_text_once_ever(store: FeatureStore) -> None:
    backbone = tiny_clip()
    rows = store.texts(backbone, TEXTS)
    assert torch.equal(rows, backbone.text_embeddings(TEXTS))
    before = backbone.passes.texts
    assert torch.equal(FeatureStore(store.directory).texts(tiny_clip(), TEXTS[::-1]), rows.flip(0))
    assert torch.equal(store.texts(backbone, [*TEXTS, "new"])[:3], rows)
    assert backbone.passes.texts == before + 1
    assert store.texts(backbone, []).shape == (0, 48)


def test_a_text_that_is_too_long_is_refused_before_any_is_encoded(store: FeatureStore) -> None:
    backbone = tiny_clip()
    assert backbone.text.tokens(["word " * 75]).shape == (1, 77)
    with pytest.raises(BackboneError, match=r"text must be of at most 77 tokens, but got 'word word .*stream\.aliases"):
        store.texts(backbone, ["a cat", "word " * 76])
    assert backbone.passes.texts == 0


def test_each_tower_has_a_shelf_of_its_own(store: FeatureStore) -> None:
    backbone, data = tiny_clip(), synthetic_dataset(range(2)).train
    store.features(backbone, data)
    store.texts(backbone, TEXTS)
    with torch.no_grad():
        backbone.text.model.ln_final.bias += 1
    other = store.texts(backbone, TEXTS)
    assert not torch.equal(other, clip().text_embeddings(TEXTS))
    before = backbone.passes.images
    store.features(backbone, data)
    assert backbone.passes.images == before, "the image tower is the same"


@pytest.mark.parametrize("change", ["image tower", "projection", "text tower", "scale"])
def test_it_is_told_apart_by_both_towers_and_the_scale(change: str) -> None:
    one, other = clip(), tiny_clip()
    assert (one.fingerprint, one.identity) == (other.fingerprint, other.identity)
    if change == "scale":
        other.logit_scale += 1
    else:
        model, text = other.model, other.text.model
        weights = {"image tower": model.norm, "projection": model.head, "text tower": text.ln_final}[change].weight
        with torch.no_grad():
            weights.mul_(1.5)
    assert one.fingerprint != other.fingerprint
    assert one.identity != other.identity


def test_a_view_shares_both_towers_and_may_be_changed() -> None:
    backbone = clip()
    view = backbone.view()
    view.insert("mlp", lambda site: Adapter(site.n_in, 4, torch.Generator().manual_seed(0)))
    with torch.no_grad():
        for p in view.insertions.parameters():
            p.fill_(0.1)
    assert view.text is backbone.text
    assert view.dim == 48
    assert not torch.equal(view.image_embeddings(images()), backbone.image_embeddings(images()))
    assert view.model.head.weight is backbone.model.head.weight


def test_a_thawed_copy_trains_without_the_original() -> None:
    backbone = tiny_clip()
    before = backbone.fingerprint
    copy = backbone.thawed_copy()
    assert all(p.requires_grad for p in copy.model.parameters())
    copy.embed(images()).sum().backward()
    assert copy.model.head.weight.grad is not None
    with pytest.raises(BackboneError, match="one with a text tower, but got 'a copy of the image tower'"):
        copy.text_embeddings(TEXTS)
    both = backbone.thawed_copy(text=True)
    both.text.encode(both.text.vectors(ids := both.text.tokens(TEXTS)), ids).sum().backward()
    with torch.no_grad():
        for p in both.parameters():
            p.add_(1)
    assert both.text.model.token_embedding.weight.grad is not None
    assert both.passes is backbone.passes
    with pytest.raises(BackboneError, match="text tower must be frozen"):
        both.text.identity  # noqa: B018
    assert backbone.fingerprint == before


def test_gradient_reaches_vectors_and_no_weight() -> None:
    backbone = clip()
    ids = backbone.text.tokens(TEXTS)
    vectors = backbone.text.vectors(ids).requires_grad_()
    found = backbone.text_embeddings_of(vectors, ids)
    assert torch.equal(found, backbone.text_embeddings(TEXTS))
    found.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad.abs().sum() > 0
    assert all(p.grad is None for p in backbone.parameters())


def test_the_image_tower_alone_ends_before_the_projection() -> None:
    backbone = clip()
    tower = backbone.image_tower()
    assert not isinstance(tower, TwoTowers)
    assert (tower.dim, backbone.dim, backbone.width) == (64, 48, 64)
    projected = tower.features(images()) @ backbone.model.head.weight.T
    torch.testing.assert_close(projected, backbone.features(images()))
    assert tower.passes is backbone.passes
    assert tower.identity != backbone.identity
    assert require_kind(backbone, "vit", "mine").identity == tower.identity
    assert require_kind(backbone, "any", "mine") is backbone


def test_who_needs_names_refuses_a_backbone_without_them() -> None:
    plain = Backbone.load("test_vit", pretrained=False, device="cpu")
    with pytest.raises(BackboneError, match=r"but got 'test_vit, which reads no texts'\. Use clip_default"):
        require_kind(plain, "towers", "mine")


def test_text_embeddings_are_normalised_apart() -> None:
    raw = clip().text_embeddings(TEXTS)
    assert (raw.norm(dim=1) - 1).abs().max() > 0.01
    torch.testing.assert_close(normalised(raw).norm(dim=1), torch.ones(3))
