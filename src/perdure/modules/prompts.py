"""What prompt methods share: rows that grow with the tasks, matching of queries and keys, voting.

Source: Wang et al., "Learning to Prompt for Continual Learning" (CVPR 2022), section 4; the growing pools are ours: the
papers fix the number of tasks beforehand.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.config import Config
from perdure.learned import Entry, learned

Init = Literal["uniform_pm1", "uniform_0_001", "uniform_0_1"]
INIT = "from U(-1, 1), U(0, 0.01) or U(0, 1)"
RANGES: dict[Init, tuple[float, float]] = {
    "uniform_pm1": (-1.0, 1.0), "uniform_0_001": (0.0, 0.01), "uniform_0_1": (0.0, 1.0)
}  # fmt: skip


def uniform(init: Init, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Initial values of prompts and keys.

    Args:
        init: the range.
        shape: of the result.
        rng: a CPU generator.
    """
    return torch.empty(shape).uniform_(*RANGES[init], generator=rng)


class Match(Config):
    """An image learns the prompts whose keys match it."""

    name: Literal["match"] = "match"
    vote: Annotated[int, Field(ge=1)] | Literal["batch"] | None = Field(
        None, description="images that pick together: so many, or the whole batch; none: each picks alone"
    )


class TaskSlot(Config):
    """Task t learns the N slots from t N on; tests match as ever."""

    name: Literal["task_slot"] = "task_slot"
    copy_prev: bool = Field(False, description="start a task's prompts from the previous task's")


class PromptPool(nn.Module):
    """L2P's prompts (M, Lp, D) and their keys (M, D).

    Args:
        pool: M.
        length: tokens per prompt (Lp).
        dim: the model's width (D).
        init: of both.
        rng: a CPU generator.
    """

    STATE: ClassVar = {"prompts": learned("M, Lp, d", torch.float32), "keys": learned("M, d", torch.float32)}

    def __init__(self, pool: int, length: int, dim: int, init: Init, rng: torch.Generator) -> None:
        super().__init__()
        self.prompts = nn.Parameter(uniform(init, (pool, length, dim), rng))
        self.keys = nn.Parameter(uniform(init, (pool, dim), rng))

    def copy(self, rows: Int[Tensor, " k"], to: Int[Tensor, " k"]) -> None:
        """Gives some prompts the values of others; keys stay.

        Args:
            rows: which to copy.
            to: where to.
        """
        values = self.prompts.detach().clone()
        values[to] = values[rows]
        self.prompts = nn.Parameter(values)


def vpt_prompts(n_blocks: int, length: int, dim: int, patch: Sequence[int], rng: torch.Generator) -> nn.ParameterList:
    """VPT's initial prompts, (length, D) for each block: U(-v, v) with v² = 6 / (3 s² + D).

    Args:
        n_blocks: that get prompts.
        length: tokens of each.
        dim: the model's width (D).
        patch: height and width of a patch, s pixels; none: prompts of zeros, which is told: they stay equal for ever.
        rng: a CPU generator.
    """
    if not patch and length > 1:
        what = f"VPT: init=zeros keeps the {length} tokens of a block equal for ever, so that they act as one"
        warnings.warn(f"{what}. Use init=uniform, unless published numbers are to be repeated.", stacklevel=4)
    v = (6 / (3 * math.prod(patch) + dim)) ** 0.5 if patch else 0.0
    tokens = torch.zeros(n_blocks, length, dim).uniform_(-v, v, generator=rng)
    return nn.ParameterList(p.clone() for p in tokens)


class TaskBlocks(nn.Module):
    """Rows that tasks add, one block each. Only the newest block learns: older ones are out of the optimiser's reach.

    Loading a state makes as many blocks as it holds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ParameterList()
        self.place: Tensor
        self.register_buffer("place", torch.empty(0), persistent=False)  # loaded blocks go there, the first one too

    def __len__(self) -> int:
        return len(self.blocks)

    def add(self, rows: Float[Tensor, "m ..."], *, learns: bool = True) -> None:
        """Freezes what is there and adds a block of initial values.

        Args:
            rows: the new block; copied.
            learns: whether training may change it.
        """
        self.freeze()
        self.blocks.append(nn.Parameter(rows.detach().clone(), requires_grad=learns))

    def freeze(self) -> None:
        """No block learns any more, until the next is added."""
        for block in self.blocks:
            block.requires_grad_(False)
            block.grad = None  # or it would be kept as long as the block

    @staticmethod
    def state(shape: str) -> dict[str, Entry]:
        """What a state of such blocks holds, to be declared.

        Args:
            shape: of a task's block.
        """
        return {"blocks.<tasks>": learned(shape, torch.float32)}

    @property
    def newest(self) -> nn.Parameter:
        """The block of the last task."""
        return self.blocks[len(self.blocks) - 1]

    def forward(self) -> Float[Tensor, "rows ..."]:
        """All rows, oldest first; gradient reaches the newest block alone."""
        return torch.cat(list(self.blocks))

    def _load_from_state_dict(self, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        names = [k for k in state if k.startswith(prefix + "blocks.")]
        values = [state[f"{prefix}blocks.{i}"] for i in range(len(names))]
        self.blocks = nn.ParameterList(nn.Parameter(torch.empty_like(v, device=self.place.device)) for v in values)
        self.freeze()
        super()._load_from_state_dict(state, prefix, *rest)


def cosine_match(queries: Float[Tensor, "b d"], keys: Float[Tensor, "m d"]) -> Float[Tensor, "b m"]:
    """Cosine of every query with every key, in float32 whatever the autocast: near ties must not flip.

    Args:
        queries: of any scale; carry no gradient.
        keys: of any scale.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return unit(queries.float()) @ unit(keys.float()).T


def unit(rows: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
    """Rows of length 1; shorter than 1e-6 they are divided by that (L2P's rsqrt of at least 1e-12)."""
    return F.normalize(rows, dim=-1, eps=1e-6)


def best_slots(match: Float[Tensor, "b m"], k: int) -> Int[Tensor, "b k"]:
    """Each row's ``k`` best slots, best first; of equals the one with the smaller index."""
    return torch.sort(match, dim=1, descending=True, stable=True).indices[:, :k]


def vote(picks: Int[Tensor, "b k"], n_slots: int) -> Int[Tensor, "b k"]:
    """The ``k`` slots picked most often in the batch, the same for every row; of equals the smaller index.

    Batch voting of L2P's reference code: every row's slots depend on the other rows.

    Args:
        picks: each row's own slots.
        n_slots: how many slots there are.
    """
    counts = torch.bincount(picks.flatten(), minlength=n_slots)
    winners = torch.sort(counts, descending=True, stable=True).indices[: picks.shape[1]]
    return winners.expand(len(picks), -1)


def vote_in_groups(picks: Int[Tensor, "b k"], n_slots: int, group: int) -> Int[Tensor, "b k"]:
    """:func:`vote` within consecutive groups of rows, as devices that share a batch do.

    Args:
        picks: each row's own slots.
        n_slots: how many slots there are.
        group: rows per vote.
    """
    return torch.cat([vote(part, n_slots) for part in picks.split(group)])


def picked(match: Float[Tensor, "b m"], k: int, vote: int | Literal["batch"] | None = None) -> Int[Tensor, "b k"]:
    """Each row's ``k`` best slots, or those that rows vote for together.

    Args:
        match: of every row with every slot.
        k: how many slots.
        vote: consecutive rows that vote together, or the whole batch; None: each row alone.
    """
    slots, group = best_slots(match, k), len(match) if vote == "batch" else vote
    return vote_in_groups(slots, match.shape[1], group) if group else slots


def selection_entropy(shares: Float[Tensor, " m"]) -> float:
    """Entropy of slot shares in units of its maximum: 1 if all are used alike, 0 if one serves all (prompt collapse).

    Args:
        shares: non-negative; their sum is taken as 1.
    """
    if len(shares) < 2 or float(shares.sum()) <= 0:
        return 0.0
    p = shares.double() / shares.double().sum()
    return float(torch.special.entr(p).sum() / torch.tensor(len(p), dtype=torch.float64).log())
