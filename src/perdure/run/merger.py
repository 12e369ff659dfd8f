"""Two methods of one kind, taught the same classes from different images, as one.

What becomes of a learned attribute stands at its declaration (:func:`perdure.learned.learned`): weights are merged as
weights, sums and counts are added, and what has no rule must be equal in both. Parts that know how to join, as class
Gaussians and exemplars do, say ``merges_itself`` and have a method ``merge(other)``. All that stands in the way is told
at once, before anything is computed.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import torch
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.data import LabelledImages
from perdure.data.datasets import load_dataset
from perdure.errors import ConfigError, DataError
from perdure.learned import declarations
from perdure.learned.declaration import flat
from perdure.methods import Method
from perdure.modules.merging import merged, split_like
from perdure.run.saved import load, require_place, save
from perdure.train.fisher import FisherPass, fisher_of_images
from perdure.train.settings import Augment, ImageTraining

How = Literal["linear", "fisher"]
Fishers = Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]  # attribute -> those of its entries, twice
M = TypeVar("M", bound=Method[Any])

WHERE: Final = "merge"
PASS: Final = ImageTraining(lr=1.0, epochs=1, batch_size=16, augment=Augment(min_scale=1.0, flip=False))
LINEAR: Final = "Take how='linear' (--mode linear)"
DATA: Final = "Name images of the classes: data=FOLDER in Python, --data FOLDER on the command line"


class TaughtTwiceWarning(UserWarning):
    """Images that both methods learned: sums and means count them twice."""


def merge(first: M, second: M, *, how: How = "linear", weight: float = 0.5, data: str | Path | None = None) -> M:
    """A method that knows what two of its kind learned; neither of them is changed.

    Their classes, settings and backbone must be the same, and they should have learned different images: an image that
    both learned counts twice in sums. Scores of methods that only add up statistics are, but for rounding, those of
    one that learned all the images.

    Args:
        first: a taught method.
        second: another.
        how: how weights are merged: all alike, or each by its Fisher information.
        weight: the share of ``second``, 0 to 1, in weights; it does not act on statistics, which are added.
        data: for ``fisher``, where the methods do not hold their Fisher information: a folder of images or a data set's
            name; it is computed on the training images.

    Warns:
        TaughtTwiceWarning: if both learned some of the images.

    Raises:
        NotFittedError: if one was taught nothing.
        ConfigError: naming everything in which the methods differ that must be equal, or a wrong argument.
        DataError: if ``data`` has classes that the methods do not know.
        UnknownNameError, DataNotFoundError: if there are no such data.
    """
    if how not in ("linear", "fisher"):
        raise ConfigError(WHERE, "how", "'linear' or 'fisher'", how, "Take linear")
    if not 0 <= weight <= 1:
        raise ConfigError(WHERE, "weight", "from 0 to 1", weight, "It is the share of the second method")
    if found := list(_differences(first, second)):
        raise ConfigError(
            WHERE, "the two methods", "alike", found, "Merge what one recipe learned from different images"
        )
    fishers = _fishers(first, second, how, data)
    made = type(first)(first.backbone, first.config, seed=first.seed, store=first.store)
    made.load_state_dict(first.state_dict())
    state, pooled = made.state_dict(), made._pooled(second)
    for name, value in state.items():
        if (rule := _rule(first, name)) in ("", "first"):
            continue
        if isinstance(part := getattr(made, name), nn.Module):
            state[name] = _merged_module(part, getattr(second, name), weight, fishers.get(name))
        elif rule == "pooled":
            state[name] = pooled[name]
        else:
            state[name] = _joined(value, getattr(second, name), None if rule == "added" else weight)
    made.load_state_dict(state)
    if twice := first.n_taught_ + second.n_taught_ - made.n_taught_:
        message = (
            f"merge: both learned the same {twice} of {made.n_taught_} images; these count twice in sums and means"
        )
        warnings.warn(TaughtTwiceWarning(message), stacklevel=2)
    return made


def merge_saved(
    first: str | Path, second: str | Path, out: str | Path, *, how: How = "linear", weight: float = 0.5,
    data: str | Path | None = None,
) -> Method[Any]:  # fmt: skip
    """:func:`merge` of two finished runs or saved methods, saved in a folder.

    Args:
        first: a run's folder, or one that :func:`perdure.save` wrote.
        second: another.
        out: the folder to write, as for :func:`perdure.save`.
        how: see :func:`merge`.
        weight: see :func:`merge`.
        data: see :func:`merge`.

    Raises:
        PerdureError: as :func:`perdure.load`, :func:`merge` and :func:`perdure.save` do.
    """
    require_place(Path(out).expanduser())
    both = merge(load(first), load(second), how=how, weight=weight, data=data)
    save(both, out)
    return both


def _differences(first: Method[Any], second: Method[Any]) -> Iterator[str]:
    """All that keeps two methods from being merged."""
    if type(first) is not type(second):
        yield f"methods differ: {type(first).__name__} and {type(second).__name__}"
        return
    for each in (first, second):
        each._require_fitted(WHERE)
    mine, theirs = (flat(method.config.model_dump(mode="json")) for method in (first, second))
    for key in dict.fromkeys([*mine, *theirs]):
        if mine.get(key) != theirs.get(key):
            yield f"settings differ: {key} {mine.get(key)} and {theirs.get(key)}"
    if first.backbone.identity != second.backbone.identity:
        yield "backbones differ: " + " and ".join(f"{m.backbone.name} ({m.backbone.identity})" for m in (first, second))
    if list(first.class_names.items()) != list(second.class_names.items()):
        only = [sorted(set(a.names_) - set(b.names_)) for a, b in ((first, second), (second, first))]
        got = " and ".join(map(str, only)) if any(only) else "they came in another order, or under other ids"
        yield f"classes differ: {got}"
        return  # nothing else is of one form
    for name, declared in declarations(type(first)).items():
        yield from _differences_in(name, declared.meaning, declared.under, first, second)
    for name in first.state_dict().keys() - declarations(type(first)).keys():
        yield from _differences_in(name, "not declared", "", first, second)


def _differences_in(name: str, meaning: str, under: str, first: Method[Any], second: Method[Any]) -> Iterator[str]:
    if name == "origin_":  # the backbone's identity
        return
    mine, theirs = (_state(method, name) for method in (first, second))
    if not _rule(first, name) and not _same(mine, theirs):
        shown = f": {mine} and {theirs}" if isinstance(mine, int | float | str) else ""
        yield f"{name} ({meaning}) differ{shown}, and have no rule by which they are merged"
    needed = under and _rule(first, name) != "fisher" and _has_numbers(mine)
    if needed and not _same(*(_state(method, under) for method in (first, second))):
        yield f"{under} differ, and {name} ({meaning}) are of features that it makes"


def _rule(method: Method[Any], name: str) -> str:
    declared = declarations(type(method)).get(name)
    if declared is None:
        return "weights" if isinstance(getattr(method, name), nn.Module) else ""
    return declared.merges


def _state(method: Method[Any], name: str) -> Any:
    value = getattr(method, name)
    return value.state_dict() if isinstance(value, nn.Module) else value


def _same(one: Any, other: Any) -> bool:
    """Whether two learned values are equal, wherever their tensors are."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one.cpu(), other.cpu())
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)


def _has_numbers(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_has_numbers, value.values()))
    if isinstance(value, list | tuple):
        return any(map(_has_numbers, value))
    return not isinstance(value, Tensor) or value.numel() > 0


def _joined(mine: Any, theirs: Any, weight: float | None) -> Any:
    """Numbers, or lists or mappings of them, merged with a weight; without one they are added."""
    if isinstance(mine, Mapping):
        return {key: _joined(value, theirs[key], weight) for key, value in mine.items()}
    if isinstance(mine, list | tuple):
        return [_joined(*both, weight) for both in zip(mine, theirs, strict=True)]
    if weight is None:
        return mine + (theirs.to(mine.device) if isinstance(mine, Tensor) else theirs)
    if isinstance(mine, Tensor):
        return merged({"": mine}, {"": theirs.to(mine.device)}, how="linear", weight=weight)[""]
    return mine + weight * (theirs - mine)


def _merged_module(
    part: nn.Module, other: nn.Module, weight: float, fishers: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None
) -> dict[str, Any]:
    """The state of two modules as one; ``part`` is the first, a copy that may be changed."""
    own = [path for path, each in part.named_modules() if getattr(each, "merges_itself", False)]
    for path in own:
        part.get_submodule(path).merge(other.get_submodule(path))  # type: ignore[operator]
    state, theirs = part.state_dict(), other.state_dict()
    weights = {
        key: value for key, value in state.items() if not any(f"{key}.".startswith(f"{p}." * bool(p)) for p in own)
    }
    how: How = "fisher" if fishers else "linear"
    fisher_old, fisher_new = fishers or (None, None)
    found = merged(
        weights, {key: theirs[key] for key in weights}, how=how, weight=weight, fisher_old=fisher_old,
        fisher_new=fisher_new,
    )  # fmt: skip
    return {**state, **dict(zip(weights, found.values(), strict=True))}


def _fishers(first: Method[Any], second: Method[Any], how: How, data: str | Path | None) -> Fishers:
    """The Fisher information of what was fine-tuned, from the states, or else from images."""
    if how == "linear":
        if data is not None:
            raise ConfigError(
                WHERE, "data", "left out for how='linear'", str(data), "Take how='fisher' (--mode fisher), or no data"
            )
        return {}
    rules = {d.under: name for name, d in declarations(type(first)).items() if d.merges == "fisher"}
    if held := {under: name for under, name in rules.items() if _has_numbers(getattr(first, name))}:
        if data is not None:
            must_be = "left out, since the methods hold their Fisher information"
            raise ConfigError(WHERE, "data", must_be, str(data), "Take no data")
        return {under: (_held(first, name, under), _held(second, name, under)) for under, name in held.items()}
    networks = list(_networks(first))
    if len(networks) != 1 or not isinstance(vars(first).get("head_"), nn.Module):
        must_be = f"'linear' for {type(first).__name__}, which has no fine-tuned network with a head"
        raise ConfigError(WHERE, "how", must_be, how, LINEAR)
    if data is None:
        must_be = f"given for how='fisher', since {type(first).__name__} holds no Fisher information"
        raise ConfigError(WHERE, "data", must_be, data, DATA)
    images, columns = _images(first, data)
    found = [_fisher_on(method, networks[0], images, columns) for method in (first, second)]
    return {networks[0]: (found[0], found[1])}


def _held(method: Method[Any], name: str, under: str) -> dict[str, Tensor]:
    """The Fisher information that a method holds of a module's weights, by the names in the module's state."""
    names, parameters = zip(*getattr(method, under).named_parameters(), strict=True)
    return dict(zip(names, split_like(getattr(method, name), parameters), strict=True))


def _networks(method: Method[Any]) -> dict[str, Backbone]:
    """The fine-tuned ones, by the learned attribute that is one or all weights of one."""
    known = [part for part in vars(method).values() if isinstance(part, Backbone)]
    learned = [(name, part) for name, part in vars(method).items() if name.endswith("_")]
    return {name: one for name, part in learned for one in known if part is one or part is one.model}


def _fisher_on(method: Method[Any], name: str, images: LabelledImages, columns: Tensor) -> dict[str, Tensor]:
    """That of a network's weights on images, by the names in its state."""
    network = _networks(method)[name]
    args = images, columns, FisherPass(clip=None), PASS, method._generator(0), method.store
    found = fisher_of_images(network, vars(method)["head_"], *args)
    return {f"model.{key}" if getattr(method, name) is network else key: value for key, value in found.items()}


def _images(method: Method[Any], data: str | Path) -> tuple[LabelledImages, Tensor]:
    """The training images of some data, with the columns of their classes, which are known by their names."""
    dataset = load_dataset(data, value_range=method.reading.value_range)
    if strange := sorted(set(dataset.class_names.values()) - set(method.names_)):
        raise DataError(WHERE, "classes of data", "known to the methods", strange, "Leave these classes out")
    of = {c: method.names_.index(name) for c, name in dataset.class_names.items()}
    return dataset.train, torch.tensor([of[c] for c in dataset.train.labels.tolist()])
