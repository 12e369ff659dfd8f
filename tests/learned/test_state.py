"""Whatever has learned attributes can be written, checked, taken over, and put back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from perdure.errors import CheckpointError
from perdure.learned import Stateful, learned, learned_constant


class Small(Stateful):
    """A declared list and constant, and a module that is not declared."""

    seen_: list[int] = learned("seen", int)
    meaning_: str = learned_constant("of the list")
    table_: str = learned_constant("a hash of a table", of="table")

    def __init__(self, width: int = 2) -> None:
        self._empty()
        self.meaning_, self.table_ = "numbers", "0123"
        self.layer_ = nn.Linear(width, 1)


def test_a_state_is_taken_over() -> None:
    one, other = Small(), Small()
    one.seen_ = [3, 1]
    assert other.load_state_dict(one.state_dict()).seen_ == [3, 1]
    assert torch.equal(one.layer_.weight, other.layer_.weight)
    assert one.sizes_in(one.state_dict()) == {"seen": 2}


def test_hashes_among_the_constants_are_fingerprints() -> None:
    assert Small().fingerprints == {"table": "0123"}


def test_a_module_that_is_not_declared_refuses_by_itself_and_nothing_is_changed() -> None:
    one, other = Small(3), Small()
    one.seen_ = [3, 1]
    before = other.layer_.weight.clone()
    with pytest.raises(CheckpointError, match=r"layer_ must be of this backbone, but got .*Load it with the backbone"):
        other.load_state_dict(one.state_dict())
    assert other.seen_ == []
    assert torch.equal(other.layer_.weight, before)


def test_declarations_without_numbers_have_no_entries() -> None:
    declared = vars(Small)
    assert list(declared["meaning_"].leaves("meaning_", "numbers", {})) == []
    assert [name for name, _ in declared["seen_"].leaves("seen_", [], {})] == ["seen_"]
