"""What prompt methods share: rows that grow with the tasks, matching of queries and keys, voting.

Source: Wang et al., "Learning to Prompt for Continual Learning" (CVPR 2022), section 4; the growing pools are ours: the
papers fix the number of tasks beforehand.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


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

    def add(self, rows: Float[Tensor, "m ..."]) -> None:
        """Freezes what is there and adds a block of initial values that learns.

        Args:
            rows: the new block; copied.
        """
        self.freeze()
        self.blocks.append(nn.Parameter(rows.detach().clone()))

    def freeze(self) -> None:
        """No block learns any more, until the next is added."""
        for block in self.blocks:
            block.requires_grad_(False)
            block.grad = None  # or it would be kept as long as the block

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


def selection_entropy(shares: Float[Tensor, " m"]) -> float:
    """Entropy of slot shares in units of its maximum: 1 if all are used alike, 0 if one serves all (prompt collapse).

    Args:
        shares: non-negative; their sum is taken as 1.
    """
    if len(shares) < 2 or float(shares.sum()) <= 0:
        return 0.0
    p = shares.double() / shares.double().sum()
    return float(torch.special.entr(p).sum() / torch.tensor(len(p), dtype=torch.float64).log())
