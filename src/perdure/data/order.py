"""The order in which classes and domains arrive: ascending, shuffled by a seed, or as asked by id or name."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence

import numpy as np

from perdure.errors import SplitError, did_you_mean
from perdure.types import ClassId


def order_classes(
    class_names: Mapping[ClassId, str], *, seed: int | None = None, given: Sequence[int | str] | None = None
) -> list[ClassId]:
    """The order in which classes arrive.

    Args:
        class_names: every class id's name.
        seed: permutes the ascending ids with NumPy's legacy generator; 1993 is the field's order.
        given: the order itself: text is a name, a whole number an id; wins over ``seed``. Neither: ascending ids.

    Raises:
        SplitError: if ``given`` is not a permutation of all classes, or a number in it is also another class's name.
    """
    ids = sorted(class_names)
    if given is None:
        if seed is None:
            return ids
        return [ids[i] for i in np.random.RandomState(seed).permutation(len(ids))]
    by_name = {name: i for i, name in class_names.items()}
    order = [_class_meant(item, class_names, by_name) for item in given]
    if sorted(order) != ids:
        missing = [class_names[i] for i in ids if i not in order]
        twice = sorted({class_names[i] for i in order if order.count(i) > 1})
        got = {"missing": missing, "twice": twice}
        raise SplitError("stream", "class_order", f"a permutation of all {len(ids)} classes", got, "Correct the list")
    return order


def order_domains(names: Sequence[str], given: Sequence[str] | None = None) -> list[str]:
    """The order in which domains arrive.

    Args:
        names: every domain's name.
        given: the order itself; that of ``names`` if None.

    Raises:
        SplitError: if ``given`` is not a permutation of all domains.
    """
    order = list(names) if given is None else [unicodedata.normalize("NFC", name) for name in given]
    if sorted(order) != sorted(names):
        hint = f"Name each once: {', '.join(names)}"
        raise SplitError("stream", "domain_order", f"the names of all {len(names)} domains", order, hint)
    return order


def _class_meant(item: int | str, class_names: Mapping[ClassId, str], by_name: Mapping[str, ClassId]) -> ClassId:
    if isinstance(item, str):
        if (name := unicodedata.normalize("NFC", item)) in by_name:
            return by_name[name]
        of_id = {str(i): i for i in class_names}
        hint = did_you_mean(item, [*by_name, *of_id])
        if item in of_id:
            hint = f"Leave out the quotes to mean the class of id {item}, {class_names[of_id[item]]!r}"
        raise SplitError("stream", "class_order", "class ids, or names in quotes", item, hint)
    text = str(item)
    if item not in class_names:
        known = did_you_mean(text, [*by_name, *map(str, class_names)])
        hint = f"Write '{text}' in quotes: a number is an id, text is a name" if text in by_name else known
        raise SplitError("stream", "class_order", "class ids, or names in quotes", item, hint)
    if by_name.get(text, item) != item:
        must_be = "clear: this is one class's id and another's name"
        hint = (
            f"Write '{text}' in quotes for the class of this name; for id {text} write its name, {class_names[item]!r}"
        )
        raise SplitError("stream", "class_order", must_be, item, hint)
    return int(item)
