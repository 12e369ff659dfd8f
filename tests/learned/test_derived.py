"""What is made from a learned tensor is made once, and anew when the tensor is replaced."""

from __future__ import annotations

import torch

from perdure.learned import Derived


def test_a_value_is_made_once_per_source() -> None:
    made: list[int] = []
    derived: Derived[int] = Derived()

    def make() -> int:
        made.append(len(made))
        return len(made)

    source = torch.zeros(2)
    assert derived.of(source, make) == derived.of(source, make) == 1
    assert derived.of(source.clone(), make) == 2, "an equal tensor is another one"
    assert derived.of(source, make) == 3, "only the last is kept"
    assert made == [0, 1, 2]


def test_nothing_may_be_a_value_too() -> None:
    made: list[None] = []
    derived: Derived[None] = Derived()
    assert derived.of(made, lambda: made.append(None)) is None
    assert derived.of(made, lambda: made.append(None)) is None
    assert len(made) == 1


def test_every_key_has_a_value_of_its_own() -> None:
    source, derived = object(), Derived[str]()
    assert [derived.of(source, lambda k=k: k, k) for k in "abab"] == ["a", "b", "a", "b"]
    assert derived.of(source, lambda: "new", "a") == "a"
    assert derived.of(object(), lambda: "new", "a") == "new"
    assert derived.of(source, lambda: "other", "b") == "b"
