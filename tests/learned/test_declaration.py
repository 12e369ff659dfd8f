"""What stands in a class body is what a state is held to."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from perdure.errors import CheckpointError
from perdure.learned import declarations, learned, learned_constant, learned_module
from perdure.memory import Exemplars
from perdure.modules.components import Components
from perdure.modules.cosine_head import CosineHead
from perdure.modules.gaussians import Gaussians
from perdure.modules.heads import GrowingLinear
from perdure.modules.prompts import TaskBlocks

HEAD = learned_module(GrowingLinear.STATE, "the head")
RNG = torch.Generator().manual_seed(0)


def refusal(declared: Any, value: Any, mine: Any = None, **sizes: int) -> str:
    """What is said of a value; empty if it is taken."""
    try:
        declared.check("x_", value, mine, {"classes": 2, "tasks": 3, "d": 4, **sizes})
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("shape", "value", "told"),
    [
        ("classes, 2 d", torch.zeros(2, 8), ""),
        (
            "classes, 2 d",
            torch.zeros(8, 2),
            "float32 of shape (classes, 2 d) = (2, 8), but got 'float32 of shape (8, 2)'",
        ),
        ("classes, 2 d", torch.zeros(2), "(classes, 2 d) = (2, 8), but got 'float32 of shape (2,)'"),
        ("<=d, d", torch.zeros(3, 4), ""),
        ("<=d, d", torch.zeros(5, 4), "(<=d, d) = (4, 4), but got 'float32 of shape (5, 4)'"),
        ("rows, d", torch.zeros(9, 4), ""),
        ("rows, d", torch.zeros(9, 5), "(rows, d) = (any, 4), but got 'float32 of shape (9, 5)'"),
        ("3", torch.zeros(2), "float32 of shape (3), but got"),
        ("d", torch.tensor([0, 0, torch.inf, 0]), "x_ must be finite, but got inf"),
        ("d", torch.zeros(4, dtype=torch.float64), "but got 'float64 of shape (4,)'"),
    ],
)
def test_shapes_are_those_of_sizes(shape: str, value: Tensor, told: str) -> None:
    found = refusal(learned(shape, torch.float32), value)
    assert told in found
    assert bool(told) == bool(found)


@pytest.mark.parametrize(
    ("declared", "good", "bad", "told"),
    [
        (learned("classes", int, below="tasks"), [0, 2], [0, 3], "below tasks = 3, but got 3"),
        (learned("classes", int), [0, 5], [-1, 5], "at least 0, but got -1"),
        (learned("classes", int, least=-1), [-1, 5], [-2, 5], "at least -1, but got -2"),
        (learned("classes", int, least=None), [-7, 2**70], [1], "(classes) = (2), but got 'a list of 1 (int)'"),
        (learned("classes", int), [1, 2], [1, 2.0], "ints, (classes) = (2), but got 'a list of 2 (float, int)'"),
        (learned("tasks", float), [1.0, -2.0, 3.0], [1.0, float("nan"), 3.0], "finite, but got nan"),
        (learned("tasks", float, finite=False), [1.0, float("nan"), 3.0], [], "but got 'a list of 0 (nothing)'"),
        (learned("", float), -0.5, 1, "one float, but got 1"),
        (learned("", int), 7, -7, "at least 0, but got -7"),
        (learned("<=classes", int, each="tasks"), [[1], [], [1, 2]], [[1], []], "a list of tasks = 3 parts, but got"),
        (learned("<=classes", int, each="tasks"), [[1], [], [1, 2]], [[1], [], [1, 2, 3]], "x_.2 must be a list of"),
        (learned("d", torch.long, each="tasks"), [torch.ones(4).long()] * 3, torch.ones(3), "a list of tasks = 3"),
        (learned("k", torch.long, each="tasks"), [torch.ones(7).long()] * 3,
         [torch.ones(n).long() for n in (7, 7, 6)], "x_.2 must be int64 of shape (k) = (7), but got"),
        (learned_constant("settings"), {"a": 1}, {"a": 2}, "as here: {'a': 1}, but got {'a': 2}"),
    ],
)  # fmt: skip
def test_numbers_keep_their_bounds(declared: Any, good: Any, bad: Any, told: str) -> None:
    assert refusal(declared, good, {"a": 1}) == ""
    assert told in refusal(declared, bad, {"a": 1})


def test_what_is_empty_has_no_bound() -> None:
    assert refusal(learned("rows", torch.long), torch.zeros(0, dtype=torch.long)) == ""


def test_a_free_name_is_what_the_first_attribute_says() -> None:
    sizes: dict[str, int] = {}
    learned("slots", int).check("a_", [1, 2, 3], None, sizes)
    learned("2 slots", torch.float32).check("b_", torch.zeros(6), None, sizes)
    with pytest.raises(CheckpointError, match=r"c_ must be int64 of shape \(slots\) = \(3\), but got .*\(2,\)"):
        learned("slots", torch.long).check("c_", torch.zeros(2, dtype=torch.long), None, sizes)
    learned("", int, tells="tasks").check("n_", 5, None, sizes)
    assert sizes == {"slots": 3, "tasks": 5}


def test_empty_values() -> None:
    sizes = {"d": 3, "M": 2}
    empty = {
        shape: learned(shape, torch.float64).initial(sizes)
        for shape in ("classes, d", "M, 2 d", "<=d, d", "slots, 2 slots", "")
    }
    assert {shape: tuple(x.shape) for shape, x in empty.items()} == {
        "classes, d": (0, 3), "M, 2 d": (2, 6), "<=d, d": (0, 3), "slots, 2 slots": (0, 0), "": ()
    }  # fmt: skip
    assert all(x.dtype == torch.float64 and not x.any() for x in empty.values())
    others = [learned("classes", int), learned("", int), learned("", float), learned("M", float), HEAD]
    assert [x.initial(sizes) for x in others] == [[], 0, 0.0, [0.0, 0.0], None]
    assert learned("d", torch.float32, each="tasks").initial(sizes) == []


def test_subclasses_inherit_and_replace() -> None:
    class One:
        a_: Tensor = learned("classes", torch.long)
        b_: Tensor = learned("classes", torch.long)

    class Two(One):
        b_: Tensor = learned("d", torch.float32)
        c_: nn.Module = HEAD

    assert list(declarations(Two)) == ["a_", "b_", "c_"]
    assert declarations(Two)["b_"] is vars(Two)["b_"]


def grown(module: Any, *args: Any) -> Any:
    module.grow(*args)
    return module


class Stack(nn.Module):
    """Two parts of three numbers each."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(2, 1) for _ in range(n))

    def one(self) -> dict[str, Tensor]:
        return nn.Linear(2, 1).state_dict()


def blocks(n: int) -> TaskBlocks:
    made = TaskBlocks()
    for _ in range(n):
        made.add(torch.ones(5, 4))
    return made


def gaussians() -> Gaussians:
    made = grown(Gaussians(4), 2)
    made.add(0, torch.randn(7, 4, generator=RNG))
    return made


def components(n: int) -> nn.ModuleList:
    layers = nn.ModuleList(Components(1, 2, 4) for _ in range(2))
    for _ in range(n):
        for layer in layers:
            layer.grow(RNG)
    return layers


MODULES = {
    "head": (HEAD, GrowingLinear(4), grown(GrowingLinear(4), 2, RNG)),
    "cosine head": (learned_module(CosineHead.STATE, ""), CosineHead(4), grown(CosineHead(4), 2, RNG)),
    "either head": (
        learned_module({"weight": learned("classes, d", torch.float32), "bias?": learned("classes", torch.float32),
                        "sigma?": learned("", torch.float32)}, ""),
        CosineHead(4), grown(CosineHead(4), 2, RNG),
    ),
    "Gaussians": (learned_module(Gaussians.state("slots"), ""), Gaussians(4), gaussians()),
    "blocks": (learned_module({"blocks.<tasks>": learned("5, d", torch.float32)}, ""), blocks(1), blocks(3)),
    "layers of blocks": (
        learned_module({
            "<layers>.prompts.blocks.<tasks>": learned("1, 2, d", torch.float32),
            "<layers>.keys.blocks.<tasks>": learned("1, d", torch.float32),
            "<layers>.attention.blocks.<tasks>": learned("1, d", torch.float32),
        }, ""),
        components(0), components(3),
    ),
    "fixed": (learned_module({}, "", rest="layer"), nn.BatchNorm1d(3), nn.BatchNorm1d(3)),
    "stack": (learned_module({}, "", rest="part", each="tasks"), Stack(1), Stack(3)),
    "exemplars": (
        learned_module(Exemplars.STATE, ""), Exemplars("random", n_images=3), Exemplars("random", n_images=9)
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_every_module_that_grows_can_be_declared(name: str) -> None:
    declared, mine, other = MODULES[name]
    state = other.state_dict()
    assert refusal(declared, state, mine, layers=2) == ""
    leaves = [key for key, _ in declared.leaves("x_", mine, {"tasks": 3, "slots": 2, "layers": 2})]
    assert len(leaves) == len(set(leaves)) > 0
    for key in leaves:
        path = key.removeprefix("x_.")
        holder = state["_extra_state"] if path.startswith("_extra_state.") else state
        path = path.removeprefix("_extra_state.")
        right = holder[path]
        wrong = {"shape": torch.zeros(9, 9, 9, dtype=right.dtype), "dtype": right.to(torch.int16)}
        if right.is_floating_point() and right.numel():
            wrong["values"] = right * torch.nan
        for value in wrong.values():
            holder[path] = value
            assert f"{key} must be " in refusal(declared, state, mine, layers=2)
        holder[path] = right
    for changed in ({**state, "more": torch.zeros(1)}, dict(list(state.items())[1:]), [1]):
        assert "x_" in refusal(declared, changed, mine, layers=2)


def test_other_entries_of_a_module_are_named() -> None:
    told = refusal(HEAD, {**grown(GrowingLinear(4), 2, RNG).state_dict(), "more": torch.zeros(1)}, GrowingLinear(4))
    assert told.startswith("load_state_dict: x_ must be without other entries, but got ['x_.more']. Load what")
    assert "x_ must be the entries of a module, but got 'a list of 1 (int)'" in refusal(HEAD, [1], GrowingLinear(4))
