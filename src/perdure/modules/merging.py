"""Merging of weights: every way is a step from the old ones towards the new, by one share or one per weight.

linear        old + w (new - old)
fisher        the same with w F_new / ((1 - w) F_old + w F_new) in the place of w, weight by weight
running_mean  linear with w = 1 / (n + 1) after n states
ema           linear with w = 1 - decay, step by step: where both are equal nothing moves, not even by rounding
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from perdure.config import Config
from perdure.errors import CheckpointError, ConfigError, ShapeError

TINY = 1e-30  # Fisher information of a well-trained model goes down to 1e-27
SAME_FORM = "Merge states of one method and backbone"


class Merge(Config):
    """How two states of one model become one."""

    how: Literal["linear", "fisher", "running_mean", "ema"] = Field("linear", description="the way")
    weight: float = Field(
        0.5, ge=0, le=1, description="of the new state; ema: 1 - decay, per step; running_mean does not use it"
    )

    def share(self, states: int = 1) -> float:
        """The weight of the new state.

        Args:
            states: how many the old one is the mean of.
        """
        return 1 / (states + 1) if self.how == "running_mean" else self.weight

    def of(
        self,
        old: Mapping[str, Tensor],
        new: Mapping[str, Tensor],
        *,
        states: int = 1,
        fisher_old: Mapping[str, Tensor] | None = None,
        fisher_new: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The merged state; see :func:`merged`.

        Args:
            old: the state so far.
            new: the state that joins it.
            states: how many ``old`` is the mean of.
            fisher_old: the diagonal Fisher information of ``old``, for the way that needs it.
            fisher_new: that of ``new``.
        """
        how: Literal["linear", "fisher"] = "fisher" if self.how == "fisher" else "linear"
        return merged(old, new, how=how, weight=self.share(states), fisher_old=fisher_old, fisher_new=fisher_new)


@torch.no_grad()
def merged(
    old: Mapping[str, Tensor],
    new: Mapping[str, Tensor],
    *,
    how: Literal["linear", "fisher"],
    weight: float,
    fisher_old: Mapping[str, Tensor] | None = None,
    fisher_new: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Two state dicts as one, under canonical names; computed in float32 (float64 stays float64).

    Whole numbers and truth values, and entries of ``new`` alone, are taken from it as they are. A weight that Fisher
    information says nothing of in either state (no entry, or a sum below 1e-30) is merged linearly.

    Args:
        old: tensors by name.
        new: tensors of the same names and shapes, and others if need be.
        how: with one share for all weights, or one for each by its Fisher information.
        weight: of ``new``, 0 to 1.
        fisher_old: by the names of ``old``, the shapes of its weights, at least 0.
        fisher_new: the same of ``new``.

    Returns:
        New tensors, of the dtypes and devices of ``new``.

    Raises:
        CheckpointError: if ``new`` lacks entries of ``old``, or a Fisher entry belongs to no weight.
        ShapeError: if shapes differ.
        ConfigError: for a weight that is none, or a missing Fisher information.
    """
    if not 0 <= weight <= 1:
        raise ConfigError("merged", "weight", "from 0 to 1", weight, "It is the new state's share")
    a, b = canonical(old), canonical(new)
    if missing := [name for name in a if name not in b]:
        raise CheckpointError("merged", "new", "a state with all entries of the old one", missing, SAME_FORM)
    _require_shapes("new", a, b)
    names = [name for name in a if b[name].is_floating_point()]
    shares = [torch.tensor(weight, dtype=torch.float64)] * len(names)
    if how == "fisher":
        shares = _fisher_shares(a, names, weight, fisher_old, fisher_new)
    starts = [a[name].to(b[name].device, _wide(b[name])) for name in names]
    ends = [b[name].to(_wide(b[name])) for name in names]
    shares = [share.to(end).expand_as(end) for share, end in zip(shares, ends, strict=True)]
    values = torch._foreach_lerp(starts, ends, shares) if names else []
    joined = {name: value.to(b[name].dtype) for name, value in zip(names, values, strict=True)}
    return {name: joined[name] if name in joined else value.clone() for name, value in b.items()}


def canonical(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state under the names of the bare model: without what ``DataParallel`` and ``torch.compile`` put into them.

    Args:
        state: tensors by name.
    """
    bare = {name.replace("_orig_mod.", ""): value for name, value in state.items()}
    wrapped = bool(bare) and all(name.startswith("module.") for name in bare)  # all of them, or it is a part's name
    return {name.removeprefix("module."): value for name, value in bare.items()} if wrapped else bare


def rescaled(decay: float, batch_size: float, to: float) -> float:
    """The decay per step for which an average forgets as fast per image when batches are of another size.

    Args:
        decay: per step of ``batch_size`` images.
        batch_size: for which the decay was chosen.
        to: the images of a step.
    """
    return float(decay ** (to / batch_size))


def _fisher_shares(
    weights: Mapping[str, Tensor],
    names: Sequence[str],
    weight: float,
    fisher_old: Mapping[str, Tensor] | None,
    fisher_new: Mapping[str, Tensor] | None,
) -> list[Tensor]:
    """w F_new / ((1 - w) F_old + w F_new) for each of ``names``; ``weight`` where nothing is known."""
    known = []
    for name, fisher in (("fisher_old", fisher_old), ("fisher_new", fisher_new)):
        if fisher is None:
            raise ConfigError("merged", name, "given for how='fisher'", None, "Take how='linear', or compute it")
        bare = canonical(fisher)
        if strange := [key for key in bare if key not in weights]:
            raise CheckpointError("merged", name, "of weights of the state", strange, SAME_FORM)
        _require_shapes(name, bare, weights)
        for key, value in bare.items():
            if not bool((value >= 0).all() & value.isfinite().all()):
                raise ShapeError("merged", f"{name} of {key}", "finite and at least 0", float(value.min()), SAME_FORM)
        known.append(bare)
    f_old, f_new = known
    shares = []
    for name in names:
        if name not in f_old or name not in f_new:
            shares.append(torch.tensor(weight, dtype=torch.float64))
            continue
        wide, device = _wide(weights[name]), f_new[name].device
        new = weight * f_new[name].to(wide)
        total = (1 - weight) * f_old[name].to(device, wide) + new
        shares.append(torch.where(total >= TINY, new / total, weight))
    return shares


def _wide(value: Tensor) -> torch.dtype:
    """In which numbers an entry is computed with."""
    return torch.promote_types(value.dtype, torch.float32)


def _require_shapes(name: str, one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    differ = [
        f"{key}: {tuple(value.shape)} and {tuple(other[key].shape)}"
        for key, value in one.items()
        if value.shape != other[key].shape
    ]
    if differ:
        raise ShapeError("merged", name, "of the old state's shapes", differ[:20], SAME_FORM)


def mean_of(parts: Iterable[nn.Module]) -> list[Tensor]:
    """The mean of every parameter over modules of one form, taken in float64; nothing if there is no module.

    Args:
        parts: the modules.
    """
    values = ([p.data.double() for p in part.parameters()] for part in parts)
    return [torch.stack(same).mean(0).float() for same in zip(*values, strict=True)]


def split_like(vector: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Some parameters' values, from the vector that ``torch.nn.utils.parameters_to_vector`` would make of them.

    Args:
        vector: (n,), as many numbers as ``parameters`` have.
        parameters: of the shapes wanted.
    """
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


@torch.no_grad()
def pull_(parameters: Sequence[Tensor], means: Sequence[Tensor], share: float) -> None:
    """``W <- (1 - m) W + m mean``, in place.

    Args:
        parameters: W.
        means: of the same shapes.
        share: m.
    """
    torch._foreach_lerp_(list(parameters), list(means), share)


def pull_on_use(parts: Sequence[nn.Module], means: Callable[[], Sequence[Tensor]], share: float) -> None:
    """Whenever one of ``parts`` is used, in training or not, all of them are pulled once: twelve times per pass of a
    model of twelve blocks, the part of block k for the k-th time when it is used.

    Source: what the released code of Sun et al., "MOS", AAAI 2025, does. Values are replaced behind autograd's back, as
    there: a backward pass raises no error and may go through later values than the forward pass saw.

    Args:
        parts: the adapters of all blocks.
        means: of their parameters, asked for at every use.
        share: how far they are pulled.
    """

    def pull(module: nn.Module, inputs: object) -> None:
        with torch.no_grad():
            own = [p for part in parts for p in part.parameters()]
            for p, mean in zip(own, means(), strict=True):
                p.data = torch.lerp(p.data, mean, share)

    for part in parts:
        part.register_forward_pre_hook(pull)
