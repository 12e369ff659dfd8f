"""Dropout of the fusion, its initial values, and what its rows cost; what it computes are golden tests of PROOF."""

from __future__ import annotations

import pytest
import torch

from perdure.modules.cross_modal import CrossModal, CrossModalFusion, FusedRows, Projections
from rows import drawn, generator


def test_new_parts_start_from_the_generator_and_stand_still() -> None:
    before, side = torch.get_rng_state(), Projections(400)
    side.add(generator(1))
    side.add(generator(2))
    layer = CrossModalFusion(400, 0.1, generator())
    assert torch.equal(torch.get_rng_state(), before)
    one, other = side.parts
    assert not torch.equal(one.weight, other.weight)
    for values in (one.weight, one.bias, layer.fc.bias):
        assert 0.045 < values.abs().max() <= 0.05
    for part in (layer.query, layer.key, layer.value, layer.fc):
        assert 0.049 < part.weight.std() < 0.051
    assert not any(p.requires_grad for p in side.parameters())


def test_a_state_makes_as_many_projections_as_it_holds() -> None:
    network, other = (CrossModal(4, 0.0, generator(seed)) for seed in (1, 2))
    for seed in range(3):
        for side in (network.image, network.text):
            side.add(generator(seed))
    for n_before in (0, 5):
        while len(other.image) < n_before:
            other.image.add(generator())
            other.text.add(generator())
        other.load_state_dict(network.state_dict())
        assert (len(other.image), len(other.text)) == (3, 3)
        x = drawn(2, 4)
        assert torch.equal(network.images(x), other.images(x))


def fused(dropout: float, seed: int | None, c: int = 3) -> tuple[torch.Tensor, ...]:
    layer = CrossModalFusion(32, dropout, generator()).double()
    rows = [drawn(c, 32, seed=1), drawn(c, 32, seed=2), drawn(1, 2, 32, seed=3)]
    rng = None if seed is None else generator(seed)
    return FusedRows(layer, *rows, rows[0][:0], rng=rng).similarities(drawn(4, 32, seed=4))


def test_dropout_follows_its_generator_alone() -> None:
    before = torch.get_rng_state()
    one, same, other = (torch.cat(fused(0.3, seed), 1) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert torch.equal(torch.cat(fused(0.3, None), 1), torch.cat(fused(0.0, 1), 1))


def test_dropout_keeps_what_a_row_reads_on_average() -> None:
    layer, rows, rng = CrossModalFusion(8, 0.4, generator()), drawn(5, 8).float(), generator(3)
    kept = layer._dropped(torch.ones(400, 50), rng)
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.6])
    assert abs(float(kept.mean()) - 1) < 0.02
    read = layer.read(rows, layer.shared(rows), itself=True)
    many = torch.stack([read.found(layer._dropped(read.weights, rng)) for _ in range(4000)])
    torch.testing.assert_close(many.mean(0), read.found(read.weights), atol=0.05, rtol=0.05)
    assert many.std(0).min() > 0.01


def test_every_image_draws_its_own_dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of attention alone, and of images that have no value: only the weights of what all share are left to differ."""
    layer, rows = CrossModalFusion(8, 0.4, generator()), drawn(5, 8).float()
    read, images = layer.read(rows, layer.shared(rows)), torch.zeros(6, 8)
    assert torch.equal(*layer.beside(read, images[:2]))
    monkeypatch.setattr(layer, "_behind", lambda found, rows, rng: found)
    fused = layer.beside(read, images, generator(3))
    assert fused.shape == (6, 5, 8)
    assert all(not torch.allclose(fused[0], other) for other in fused[1:])


def test_scores_add_three_similarities_and_count_the_second_twice_without_a_prototype() -> None:
    layer, x = CrossModalFusion(8, 0.0, generator()), drawn(4, 8)
    texts, names = drawn(3, 8, seed=1), drawn(2, 8, seed=5)
    rows = FusedRows(layer, texts, drawn(3, 8, seed=2), drawn(1, 2, 8, seed=3), names)
    by_text, by_prototype, by_name = rows.similarities(x)
    expected = torch.cat([0.5 * x @ texts.T + by_text + by_prototype, 0.5 * x @ names.T + 2 * by_name], 1)
    torch.testing.assert_close(rows.scores(x, 0.5), expected)
