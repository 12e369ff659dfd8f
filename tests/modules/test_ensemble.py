"""Ensembles by hand: probabilities, sums, votes on energies, and where each member's scores go."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from perdure.errors import RecipeError, ShapeError
from perdure.modules.ensemble import EnergyVote, Fixed, Maximum, NewestRecall, WeightedSum, combined, negative_energies
from rows import drawn


def rows(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_maximum_of_probabilities_decides_where_a_mean_is_undecided() -> None:
    """LAE's golden test 6: the mean has two equal classes."""
    online, offline = rows([0.6, 0.4, 1e-300]).log(), rows([0.1, 0.2, 0.7]).log()
    every = [range(3), range(3)]
    best = combined([online, offline], every, Maximum())
    torch.testing.assert_close(best.exp(), torch.tensor([[0.6, 0.4, 0.7]]))
    torch.testing.assert_close(best.softmax(1), torch.tensor([[0.6, 0.4, 0.7]]) / 1.7)
    assert best.argmax(1).tolist() == [2]
    mean = combined([online, offline], every, WeightedSum([0.5, 0.5]))
    torch.testing.assert_close(mean, torch.tensor([[0.35, 0.3, 0.35]]))


def test_a_members_scores_go_to_its_own_columns() -> None:
    """Sizes 3 and 2, in any order of columns, one class in both: no member's place follows from its size."""
    a, b = rows([1.0, 2.0, 3.0]), rows([0.0, math.log(9)])
    p = a.softmax(1)[0].tolist()
    found = combined([a, b], [[3, 0, 1], [1, 2]], Maximum())
    torch.testing.assert_close(found.exp(), torch.tensor([[p[1], max(p[2], 0.1), 0.9, p[0]]]))
    found = combined([a, b], [[3, 0, 1], [1, 2]], WeightedSum([2.0, 1.0]))
    torch.testing.assert_close(found, torch.tensor([[2 * p[1], 2 * p[2] + 0.1, 0.9, 2 * p[0]]]))
    assert found.dtype == torch.float32


def test_the_surer_of_two_sure_members_decides() -> None:
    """Both probabilities are 1 in float32, and the others are 0."""
    found = combined([rows([20.0, 0, -900]), rows([0, 25.0, -900])], [range(3)] * 2, Maximum())
    assert found.argmax(1).tolist() == [1]
    assert found.isfinite().all()


def test_minus_the_energy_is_the_best_logit_at_a_small_temperature() -> None:
    z = [rows([0.0, 2.0])]
    assert negative_energies(z, 0.1).item() == pytest.approx(0.1 * 20.0000000021, abs=1e-11)
    assert negative_energies([z[0].float()], 0.001).item() == pytest.approx(2.0, abs=1e-12)
    assert negative_energies(z, 1.0).item() == pytest.approx(2.126928, abs=1e-6)


def answers(logits: list[Tensor], temperatures: list[float]) -> Tensor:
    n = [z.shape[1] for z in logits]
    columns = [range(sum(n[:j]), sum(n[: j + 1])) for j in range(len(n))]
    return combined(logits, columns, EnergyVote(temperatures))


def test_temperatures_decide_and_vote_once_each() -> None:
    """At 0.1 the first member leads, at 1 and 2 the second; a temperature that comes often does not weigh more."""
    a, b = rows([5.0, -50.0]), rows([4.6, 4.6])
    assert answers([a, b], [1.0]).argmax(1).item() == 2
    assert answers([a, b], [0.1]).argmax(1).item() == 0
    assert answers([a, b], [0.1, 1.0, 2.0]).argmax(1).item() == 2
    assert answers([a, b], [0.1, 0.1, 0.1, 1.0, 2.0]).argmax(1).item() == 2
    assert answers([a, b], [0.1, 1.0]).argmax(1).item() == 0, "of as many votes the first"
    assert answers([b, a], [0.1, 1.0]).argmax(1).item() == 0


def test_behind_the_answer_come_votes_then_energies_then_logits() -> None:
    """Members 1 and 2 have a vote each, so 1 answers though 2's mean is larger; 0 and 3 have none, and 3 is nearer."""
    z = [rows([0.0, 1.0]), rows([5.0, -50.0, -7.0]), rows([4.6, 4.6]), rows([2.0, 3.0])]
    means = torch.stack([negative_energies(z, t) for t in (0.1, 2.0)]).mean(0)[0]
    assert means.argsort(descending=True).tolist() == [2, 1, 3, 0]
    found = answers(z, [0.1, 2.0])[0]
    expected = [2, 4, 3, 5, 6, 8, 7, 1, 0]  # ties in column order
    assert found.argsort(descending=True, stable=True).tolist() == expected
    assert found.tolist() == pytest.approx([-60.0, -59.0, 0.0, -55.0, -12.0, -56.0, -56.0, -58.0, -57.0])


def test_the_answers_margin_survives_the_rounding() -> None:
    """Logits that differ by their last bit still have an order, whatever stands below."""
    low, top = torch.tensor([[-900.0, 800.0]]), torch.tensor([[900.0, 900.0]])
    top[0, 1] = torch.nextafter(top[0, 1], torch.tensor(torch.inf))
    found = answers([low, top], [0.001, 1.0])
    assert found.argmax(1).item() == 3
    assert found[0, 2] < 0
    assert found.isfinite().all()


def test_an_image_is_scored_on_its_own() -> None:
    z = [drawn(9, n, seed=n).float() * 5 for n in (3, 2, 7)]
    columns = [[0, 1, 2], [3, 0], [1, 4, 5, 6, 7, 8, 9]]
    for how in (Maximum(), WeightedSum([1.0, 0.5, 0.2]), EnergyVote([0.001, 0.5, 1.0, 0.5])):
        whole = combined(z, columns, how)
        alone = [combined([m[[i]] for m in z], columns, how) for i in range(9)]
        assert torch.equal(torch.cat(alone), whole)
        assert combined([m[:0] for m in z], columns, how).shape == (0, 10)


@pytest.mark.usefixtures("any_shape")
def test_a_member_has_a_column_for_every_logit() -> None:
    with pytest.raises(ShapeError, match=r"combined: logits per member must be \[2, 3\], .*but got \[2, 2\]"):
        combined([rows([1.0, 2.0]), rows([1.0, 2.0])], [[0, 1], [2, 3, 4]], Maximum())


def test_a_fixed_temperature_reads_nothing() -> None:
    def unread() -> Iterator[list[Tensor]]:
        raise AssertionError
        yield

    assert Fixed(value=0.3).choose(unread()) == 0.3
    with pytest.raises(RecipeError, match=r"candidates\.1 must be greater than 0, but got 0\.0"):
        NewestRecall(candidates=[0.1, 0.0])
