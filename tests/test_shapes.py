"""The checks of shapes do check: see shapes.py and conftest.py."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import Float, TypeCheckError
from torch import Tensor

from perdure.modules.gaussians import add_class_counts, add_class_sums, tukey
from shapes import checked, hold


def test_the_package_is_held_to_its_shapes() -> None:
    columns = torch.zeros(3, dtype=torch.long)
    with pytest.raises(TypeCheckError, match="features"):
        add_class_sums(torch.zeros(1, 2), columns, torch.zeros(4, 2), 1)
    with pytest.raises(TypeCheckError, match="columns"):
        add_class_counts(torch.zeros(1, dtype=torch.long), torch.zeros(3), 1)
    with pytest.raises(TypeCheckError, match="features"):
        tukey(torch.ones(3), 0.5)


@pytest.mark.usefixtures("any_shape")
def test_unless_a_test_says_otherwise() -> None:
    assert len(tukey(torch.ones(3), 0.5)) == 3


def test_shapes_inside_of_other_types() -> None:
    @checked
    def paired(pair: tuple[Float[Tensor, " n"], int], more: list[Float[Tensor, " n"]] | None) -> Float[Tensor, " n"]:
        return pair[0][: 1 if more else None]

    x, y = torch.zeros(2), torch.zeros(3)
    assert torch.equal(paired((x, 1), None), x)
    for pair, more in (((x, 1), [x, y]), ((x, 1), [x]), ((x, 1, 2), None)):  # an argument, the result, a pair
        with pytest.raises(TypeCheckError):
            paired(pair, more)  # type: ignore[arg-type]


def test_methods_and_properties_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "held_package.py").write_text(
        "from __future__ import annotations\n"
        "import torch\n"
        "from jaxtyping import Float\n"
        "from torch import Tensor\n"
        "class Thing:\n"
        "    def method(self, x: Float[Tensor, ' n'], n: int) -> Float[Tensor, ' {n}']: return x\n"
        "    @classmethod\n"
        "    def of_class(cls, x: Float[Tensor, ' n']) -> None: ...\n"
        "    @staticmethod\n"
        "    def static(x: Float[Tensor, ' n']) -> None: ...\n"
        "    @property\n"
        "    def wrong(self) -> Float[Tensor, ' n']: return torch.zeros(2, 2)\n"
        "    def plain(self, x: int) -> int: return x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    hold("held_package")
    thing = importlib.import_module("held_package").Thing()
    assert len(thing.method(torch.zeros(2), 2)) == 2
    matrix = torch.zeros(2, 2)
    for call in (
        lambda: thing.method(matrix, 2),
        lambda: thing.method(torch.zeros(2), 3),  # the result is not as long as n says
        lambda: thing.of_class(matrix),
        lambda: thing.static(matrix),
        lambda: thing.wrong,
    ):
        with pytest.raises(TypeCheckError):
            call()
    assert not hasattr(type(thing).plain, "__wrapped__")
