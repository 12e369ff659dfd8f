"""What perdure show tells of a method's state is what the state is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from perdure.learned import growth_formula, is_bound, learned, learned_constant, learned_module, state_bytes, state_rows


class Example:
    """One of everything."""

    classes_: list[int] = learned("classes", int, "ids")
    gram_: Tensor = learned("M(M+1)/2", torch.float64, "G")
    sums_: Tensor = learned("M, classes", torch.float64, "Q")
    means_: list[Tensor] = learned("classes, 2 d", torch.float32, "by task", each="tasks")
    rate_: float = learned("", float, "a number")
    scale_: Tensor = learned("", torch.float32, "another")
    ids_: Tensor = learned("classes, M", torch.long, "added to Q's bytes")
    head_: nn.Module = learned_module({"weight.<tasks>": learned("3, d", torch.float32, "a row")}, "head", rest="scale")
    parts_: nn.Module = learned_module({}, "adapters", rest="adapter", each="tasks")
    meaning_: dict[str, int] = learned_constant("settings")


class Bound:
    """Where the formula is an upper bound."""

    rows_: Tensor = learned("<=d, d", torch.float64)


class Perhaps:
    """Where an entry may be missing."""

    head_: nn.Module = learned_module({"bias?": learned("classes", torch.float32)}, "")


def test_the_formula_adds_up_all_tensors() -> None:
    assert growth_formula(Example) == (
        "4 + 8 M(M+1)/2 + scale + 16 M classes + 12 d tasks + adapter tasks + 8 classes d tasks"
    )
    sizes = {"M": 3, "M(M+1)/2": 6, "classes": 2, "d": 5, "tasks": 7, "scale": 11, "adapter": 13}
    assert state_bytes(Example, sizes) == 4 + 48 + 11 + 96 + 12 * 35 + 13 * 7 + 8 * 70


def test_upper_bounds_are_told() -> None:
    assert growth_formula(Bound) == "at most 8 d d"
    assert growth_formula(Perhaps) == "at most 4 classes"
    assert [is_bound(kind) for kind in (Example, Bound, Perhaps)] == [False, True, True]
    assert growth_formula(object) == "0"


def test_rows_tell_shape_type_and_meaning() -> None:
    assert state_rows(Example) == [
        ("classes_", "(classes)", "list of ints", "ids"),
        ("gram_", "(M(M+1)/2)", "float64", "G"),
        ("sums_", "(M, classes)", "float64", "Q"),
        ("means_", "tasks times (classes, 2 d)", "float32", "by task"),
        ("rate_", "", "float", "a number"),
        ("scale_", "()", "float32", "another"),
        ("ids_", "(classes, M)", "int64", "added to Q's bytes"),
        ("head_.weight.<tasks>", "tasks times (3, d)", "float32", "a row"),
        ("head_", "scale", "as built", ""),
        ("parts_", "tasks times adapter", "as built", "adapters"),
        ("meaning_", "", "constant", "settings"),
    ]
