"""Views of a backbone that differ in any one thing never share a fingerprint; equal ones do.

The seats are those of ``SEATS``, the parts those of ``Adaptation``, the modules all that may be inserted: a new one is
covered by itself, or fails here until it is told how to be made.
"""

from __future__ import annotations

import inspect
import itertools
import typing
from collections.abc import Callable, Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perdure import Backbone
from perdure.backbone import SEATS, PromptTokens
from perdure.backbone.sites import has_seat, sites
from perdure.backbone.tiny import TINY
from perdure.config import Config
from perdure.modules.adapter import Adapter
from perdure.modules.lora import LoRA
from perdure.modules.ssf import ScaleShift
from perdure.train.adapting import Adaptation, AllWeights, adaptable
from tiny_vit import tiny

PARTS = [part for part in get_args(Adaptation) if part is not AllWeights]  # its copy differs in weights alone
OTHER: dict[type, Callable[[Any], Any]] = {bool: lambda v: not v, int: lambda v: v + 1, float: lambda v: v + 0.25}
OTHER |= {type(F.relu): lambda v: F.gelu}
HELD = {"variant", "train"}  # the kind of the part, and how it learns: by their values alone


def zeros() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def all_differ(views: dict[str, Callable[[], Backbone]]) -> None:
    """Every view's fingerprint is its own, and the same when it is made again."""
    told = {name: make().fingerprint for name, make in views.items()}
    for one, other in itertools.combinations(told, 2):
        assert told[one] != told[other], f"{one} and {other} share a fingerprint"
    assert told == {name: make().fingerprint for name, make in views.items()}


def others(annotation: Any, value: Any) -> list[Any]:
    """Other values of a setting or an argument."""
    if get_origin(annotation) is Literal:
        return [each for each in get_args(annotation) if each != value]
    return [OTHER[type(value)](value)]


def ways(part: type[Config]) -> Iterator[Config]:
    """A part's settings by default, and with any one of them another."""
    usual = part()
    yield usual
    for name, field in part.model_fields.items():
        if name not in HELD:
            yield from (part(**{name: value}) for value in others(field.annotation, getattr(usual, name)))


def test_parts_that_differ_in_any_setting() -> None:
    stock = tiny(depth=3)

    def adapted(how: Any) -> Backbone:
        return adaptable(stock, how, zeros())[0]

    views = {repr(how): lambda how=how: adapted(how) for part in PARTS for how in ways(part)}
    assert len(views) >= len(PARTS) + 5
    all_differ({"stock": lambda: stock, **views})


class Same(nn.Module):
    """The same at every place: what tells views apart is where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


def placements(stock: Backbone) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every seat of a backbone, in all blocks, in every one of them and in the first ones."""
    for seat in SEATS:
        if not has_seat(stock.model, seat):
            continue
        n = len({site.block for site in sites(stock.model, stock.name, seat, None)} - {None})
        chosen = [None, *([i] for i in range(n)), *(range(i) for i in range(2, n))]
        for blocks, stay in itertools.product(chosen, (False, True) if seat == "tokens" else (False,)):
            yield f"{seat} in {blocks}, stay={stay}", {"seat": seat, "blocks": blocks, "stay": stay}


MAKERS = {**TINY, "vit": lambda: tiny(depth=3)}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_places_that_differ(make: Callable[[], Backbone]) -> None:
    stock = make()

    def placed(where: dict[str, Any]) -> Backbone:
        view = stock.view()
        tokens = where["seat"] == "tokens"
        view.insert(make=lambda s: PromptTokens(torch.zeros(1, s.n_in)) if tokens else Same(), **where)
        view.insertions.requires_grad_(False)
        return view

    all_differ({"stock": lambda: stock, **{name: lambda w=w: placed(w) for name, w in placements(stock)}})


def test_every_seat_is_on_a_backbone_here() -> None:
    there = [make().model for make in MAKERS.values()]
    assert [seat for seat in SEATS if not any(has_seat(model, seat) for model in there)] == []


MADE = {  # by its class: what a place gives it, and what it is otherwise
    Adapter: (lambda site: {"dim": site.n_in}, {"rank": 2}),
    LoRA: (lambda site: {"layer": site.layer}, {"rank": 2, "parts": 3}),
    ScaleShift: (lambda site: {"channels": site.n_out}, {}),
}
AT = {Adapter: "mlp", LoRA: "qkv", ScaleShift: "outputs"}


@pytest.mark.parametrize("kind", MADE)
def test_modules_that_differ_in_any_argument(kind: type[nn.Module]) -> None:
    stock, (given, usual) = tiny(depth=2), MADE[kind]
    hints = typing.get_type_hints(kind.__init__)
    usual = {n: p.default for n, p in inspect.signature(kind).parameters.items() if p.default is not p.empty} | usual
    changed = [(name, value) for name, was in usual.items() for value in values(hints[name], was)]
    assert {name for name, _ in changed} == set(usual)

    def made(**arguments: Any) -> Backbone:
        view = stock.view()
        view.insert(AT[kind], lambda site: kind(**given(site), rng=zeros(), **usual | arguments))
        view.insertions.requires_grad_(False)
        return view

    views = {f"{name}={value}": lambda n=name, v=value: made(**{n: v}) for name, value in changed}
    all_differ({"stock": lambda: stock, "usual": made, **views})


def values(annotation: Any, was: Any) -> list[Any]:
    """Other values of an argument; LoRA's parts are such as divide its layer."""
    if isinstance(was, tuple):
        return [(*was, max(was) + 1), tuple(i + 1 for i in was)]
    return others(annotation, was)


def test_two_insertions_in_another_order() -> None:
    stock = tiny(depth=2)

    def one_after_the_other(*ranks: int) -> Backbone:
        view = stock.view()
        for rank in ranks:
            view.insert("mlp", lambda site, rank=rank: Adapter(site.n_in, rank, zeros()))
        view.insertions.requires_grad_(False)
        return view

    orders = [(1,), (2,), (1, 2), (2, 1), (1, 1)]
    all_differ({str(ranks): lambda ranks=ranks: one_after_the_other(*ranks) for ranks in orders})
