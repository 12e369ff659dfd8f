"""Merging of states: golden values of the CoFiMA and LAE specifications, names, dtypes and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perdure.errors import CheckpointError, ConfigError, RecipeError, ShapeError
from perdure.modules.merging import Merge, canonical, merged, pull_, rescaled


def state(*values: float, name: str = "w", dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.tensor(values, dtype=dtype)}


def drawn(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    return {"w": torch.randn(50, generator=torch.Generator().manual_seed(seed)) * scale}


def fisher(f_old: float, f_new: float, weight: float, old: float = 0, new: float = 4) -> float:
    both = {"fisher_old": state(f_old), "fisher_new": state(f_new)}
    return merged(state(old), state(new), how="fisher", weight=weight, **both)["w"].item()


# --- CoFiMA's golden values


@pytest.mark.parametrize("c", [1e-29, 1e-12, 1.0, 1e30])
def test_equal_fisher_is_linear_and_the_ends_are_the_states_themselves(c: float) -> None:
    old, new, f = drawn(1), drawn(2), {"w": torch.full((50,), c)}
    for weight in (0.0, 0.3, 0.5, 1.0):
        plain = merged(old, new, how="linear", weight=weight)["w"]
        weighted = merged(old, new, how="fisher", weight=weight, fisher_old=f, fisher_new=f)["w"]
        torch.testing.assert_close(weighted, plain, rtol=1e-6, atol=1e-7)
        if weight in (0.0, 1.0):
            assert torch.equal(plain, (new if weight else old)["w"])
            assert torch.equal(weighted, plain)


def test_numbers_by_hand() -> None:
    assert fisher(3, 1, 0.5) == 1.0
    assert fisher(3, 1, 0.25) == pytest.approx(0.4, rel=1e-6)
    assert fisher(3e-20, 1e-20, 0.5) == pytest.approx(1.0, rel=1e-6), "a ratio has no scale"


def test_where_nothing_is_known_the_merge_is_linear() -> None:
    assert fisher(0, 0, 0.25) == 1.0
    assert fisher(1e-31, 1e-31, 0.25, old=8, new=4) == 7.0
    assert fisher(2, 0, 0.5, old=3) == 3.0
    assert fisher(0, 2, 0.5, old=3) == 4.0
    old, new = {**state(0), **state(0, name="b")}, {**state(4), **state(4, name="b")}
    for one, other in ((state(3), {**state(1), **state(1, name="b")}), ({**state(3), **state(9, name="b")}, state(1))):
        found = merged(old, new, how="fisher", weight=0.5, fisher_old=one, fisher_new=other)
        assert {k: v.item() for k, v in found.items()} == {"w": 1.0, "b": 2.0}, "a weight that lacks an entry"


def test_clipping_fisher_makes_it_linear() -> None:
    assert fisher(min(1, 1e-4), min(1e-2, 1e-4), 0.5, old=1, new=3) == 2.0
    assert fisher(1, 1e-2, 0.5, old=1, new=3) == pytest.approx((1 + 0.01 * 3) / 1.01, rel=1e-6)


def test_entries_of_the_new_state_alone_and_whole_numbers_are_taken_as_they_are() -> None:
    head, steps, on = torch.tensor([0.1, -0.0, 1e-40]), torch.tensor(7), torch.tensor([True, False])
    old = {**state(0), "steps": torch.tensor(2), "on": torch.tensor([False, False])}
    new = {**state(4), "steps": steps, "on": on, "head": head}
    found = merged(old, new, how="linear", weight=0.5)
    assert list(found) == list(new)
    assert found["head"].view(torch.int32).equal(head.view(torch.int32))
    assert (found["steps"].item(), found["on"].tolist(), found["w"].item()) == (7, [True, False], 2.0)
    assert found["steps"].dtype == torch.int64
    found["head"].zero_()
    assert head[0] > 0, "not the same storage"
    assert (old["w"].item(), new["w"].item()) == (0, 4)


def test_swapping_the_states_is_swapping_the_weight() -> None:
    one, other = drawn(1), drawn(2)
    f, g = {"w": drawn(3)["w"].square()}, {"w": drawn(4)["w"].square()}
    for weight in (0.2, 0.5, 0.9):
        here = merged(one, other, how="fisher", weight=weight, fisher_old=f, fisher_new=g)["w"]
        there = merged(other, one, how="fisher", weight=1 - weight, fisher_old=g, fisher_new=f)["w"]
        torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-6)


def test_merges_one_after_the_other() -> None:
    now, found = state(0), []
    for t in (1.0, 2.0, 3.0):
        now = Merge(weight=0.5).of(now, state(t))
        found.append(now["w"].item())
    assert found == [0.5, 1.25, 2.125]
    now = state(0)
    for t in (1.0, 2.0, 3.0):
        now = Merge(how="running_mean").of(now, state(t), states=int(t))
    assert now["w"].item() == pytest.approx(1.5)
    assert (Merge(how="ema", weight=0.1).share(5), Merge(how="running_mean").share(3)) == (0.1, 0.25)


def test_a_setting_is_the_operation() -> None:
    both: dict[str, Any] = {"fisher_old": state(3), "fisher_new": state(1)}
    assert Merge(how="fisher").of(state(0), state(4), **both)["w"].item() == 1.0
    with pytest.raises(RecipeError, match=r"1\.5"):
        Merge(weight=1.5)


# --- LAE's golden values


def averaged(weight: float, *values: float, start: float = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """By the moving average in place, which must be the merge of states too."""
    here = [torch.tensor([start], dtype=dtype)]
    there = {"w": here[0].clone()}
    for value in values:
        pull_(here, [torch.tensor([value], dtype=dtype)], weight)
        there = Merge(how="ema", weight=weight).of(there, state(value, dtype=dtype))
    assert torch.equal(here[0], there["w"])
    return here[0]


def test_a_moving_average_by_hand() -> None:
    assert averaged(0.5, 1.0).item() == 0.5
    assert averaged(0.5, 1.0, 2.0).item() == 1.25
    assert averaged(0.5, 1.0, 2.0, 3.0).item() == 2.125
    assert averaged(0.1, 1.0, 1.0, 1.0).item() == pytest.approx(0.271, abs=1e-6)


def test_a_moving_average_of_equal_weights_moves_nothing() -> None:
    online, n = drawn(1, 0.05)["w"], 208
    offline, products = [online.clone()], online.clone()
    for _ in range(n):
        pull_(offline, [online], 1 - 0.9999)
        products = 0.9999 * products + (1 - 0.9999) * online
    assert torch.equal(offline[0], online)
    assert not torch.equal(products, online), "the sum of two products drifts"
    for _ in range(n):
        pull_(offline, [online + 1], 1 - 0.9999)
    torch.testing.assert_close(offline[0], online + 1 - 0.9999**n, rtol=0, atol=5e-5)


def test_a_thousand_small_steps_arrive_in_float32_alone() -> None:
    steps = [2.0] * 1000
    assert averaged(1 - 0.9999, *steps, start=1).item() == pytest.approx(1.095167, abs=5e-5)
    for half in (torch.bfloat16, torch.float16):
        kept = [torch.ones(1, dtype=half)]
        for _ in steps:
            pull_(kept, [torch.full((1,), 2.0, dtype=half)], 1 - 0.9999)
        assert kept[0].item() == 1.0, "storage of few bits loses every step"


def test_the_decay_for_another_batch_size() -> None:
    assert rescaled(0.9999, 24, to=128) == pytest.approx(0.999467, abs=5e-7)
    assert rescaled(0.9999, 24, to=24) == 0.9999


# --- numbers and names


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    old, new = state(1.0, dtype=dtype), state(1.0 + 2**-7, dtype=dtype)
    f = state(1e-12, dtype=torch.float32)
    found = merged(old, new, how="fisher", weight=0.9, fisher_old=f, fisher_new=f)["w"]
    assert (found.dtype, found.item()) == (dtype, new["w"].item() if dtype == torch.bfloat16 else 1.0068359375)


def test_float64_stays_float64() -> None:
    third, thirds = (state(1 / 3, dtype=torch.float64), state(2 / 3, dtype=torch.float64))
    found = merged(third, thirds, how="linear", weight=0.5)["w"]
    assert (found.dtype, found.item()) == (torch.float64, pytest.approx(0.5, abs=1e-16))
    assert merged(state(0, dtype=torch.float64), state(1, dtype=torch.float64), how="linear", weight=0.3)["w"] == 0.3
    f = state(1 / 3, dtype=torch.float64)
    found = merged(third, thirds, how="fisher", weight=0.5, fisher_old=f, fisher_new=f)["w"]
    assert (found.dtype, found.item()) == (torch.float64, pytest.approx(0.5, abs=1e-16))


def test_no_gradient_is_kept() -> None:
    layer = nn.Linear(2, 2)
    found = merged(dict(layer.named_parameters()), dict(layer.named_parameters()), how="linear", weight=0.5)
    assert not found["weight"].requires_grad
    assert merged({}, {}, how="linear", weight=0.5) == {}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: nn.DataParallel(model),
        lambda model: torch.compile(model),
        lambda model: nn.DataParallel(torch.compile(model)),
        lambda model: torch.compile(nn.DataParallel(model)),
        lambda model: nn.Sequential(torch.compile(model[0])),
    ],
)
def test_wrappers_do_not_change_names(wrap: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    names = list(model.state_dict())
    wrapped = wrap(model).state_dict()
    assert list(wrapped) != names
    assert list(canonical(wrapped)) == names
    plain = model.state_dict()
    assert list(merged(plain, wrapped, how="linear", weight=0.5)) == names
    assert list(merged(wrapped, plain, how="fisher", weight=0.5, fisher_old=wrapped_squares(wrapped),
                       fisher_new=wrapped_squares(plain))) == names  # fmt: skip


def wrapped_squares(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.square() for name, value in values.items()}


def test_a_part_called_module_keeps_its_name() -> None:
    assert list(canonical({**state(1, name="module.w"), **state(2, name="head")})) == ["module.w", "head"]
    assert canonical({}) == {}


# --- refused


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"(?s)all entries of the old one.*'b'"):
        merged({**state(1), **state(2, name="b")}, state(1), how="linear", weight=0.5)
    with pytest.raises(ShapeError, match=r"w: \(1,\) and \(2,\)"):
        merged(state(1), state(1, 2), how="linear", weight=0.5)
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match=str(weight)):
            merged(state(1), state(1), how="linear", weight=weight)


def test_fisher_information_that_does_not_fit_is_named() -> None:
    def found(one: dict[str, Tensor] | None, other: dict[str, Tensor] | None) -> dict[str, Tensor]:
        return merged(state(1), state(2), how="fisher", weight=0.5, fisher_old=one, fisher_new=other)

    for one, other, name in ((None, state(1), "fisher_old"), (state(1), None, "fisher_new")):
        with pytest.raises(ConfigError, match=f"{name} must be given.*None"):
            found(one, other)
    with pytest.raises(CheckpointError, match=r"fisher_new must be of weights.*'x'"):
        found(state(1), state(1, name="x"))
    with pytest.raises(ShapeError, match=r"fisher_old must .*w: \(2,\) and \(1,\)"):
        found(state(1, 2), state(1))
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ShapeError, match=f"fisher_new of w must be finite.*{bad}"):
            found(state(1), state(bad))


def test_the_mean_of_all_estimates_so_far() -> None:
    values, mean = [torch.tensor([3.0]), torch.tensor([6.0]), torch.tensor([0.0])], {"w": torch.zeros(1)}
    means = []
    for n, value in enumerate(values):
        mean = Merge(how="running_mean").of(mean, {"w": value}, states=n)
        means.append(float(mean["w"]))
    assert means == pytest.approx([3.0, 4.5, 3.0])
