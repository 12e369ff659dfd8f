"""What a method learns, declared beside the attribute: its shape, its kind, its bounds and what it means.

    sums_: Tensor = learned("classes, d", torch.float64, "sums of features")
    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "the head")

One declaration serves as the empty value before ``setup``, as the check of a state before anything of it is taken over,
and as the table and the formula of growth that ``perdure show`` prints.

The dimensions of a shape stand between commas. Each is a number, the name of a size, or a product with spaces between
(``2 d``); ``<=d`` is at most d. The sizes are ``classes``, ``tasks``, ``d`` (features) and what the method's ``sizes``
adds. Any other name is free: the first attribute that has it says what it is, and all later ones must agree.
"""

from perdure.learned.declaration import declarations, learned, learned_constant, learned_module
from perdure.learned.derived import Derived
from perdure.learned.entry import Declaration, Entry, Sizes
from perdure.learned.growth import growth_formula, is_bound, state_bytes, state_rows
from perdure.learned.state import Stateful

__all__ = [
    "Declaration",
    "Derived",
    "Entry",
    "Sizes",
    "Stateful",
    "declarations",
    "growth_formula",
    "is_bound",
    "learned",
    "learned_constant",
    "learned_module",
    "state_bytes",
    "state_rows",
]
