"""CODA-Prompt's components: prompts, keys and attention vectors, to which every task adds a block.

Source: Smith et al., "CODA-Prompt" (CVPR 2023, arXiv 2211.13218), section 4; new rows are orthogonal to old ones, as in
its released code.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from perdure.config import Config
from perdure.errors import ConfigError
from perdure.learned import learned
from perdure.modules.prefix import Orthogonalisation, component_weights, orthogonality_penalty, orthonormal_block
from perdure.modules.prompts import TaskBlocks

ORTHO: Any = Field("qr", description="new rows orthogonal to old ones; reference: the released, inexact Gram-Schmidt")


class PerTask(Config):
    """A task adds so many components in every layer."""

    name: Literal["per_task"] = "per_task"
    each: int = Field(10, ge=1, description="components of a task")
    ortho: Orthogonalisation = ORTHO

    @property
    def orthogonal(self) -> int:
        """How many rows are to be orthogonal at once."""
        return self.each


class SharedPool(Config):
    """Published: T tasks get floor(M / T) of M components."""

    name: Literal["pool"] = "pool"
    pool: int = Field(100, ge=1, description="components in all (M)")
    tasks: int = Field(10, ge=1, description="tasks of the stream (T)")
    ortho: Orthogonalisation | Literal["whole"] = Field(
        "qr", description="as of per_task; whole: all M are orthogonal at the start, whatever the tasks learn"
    )

    @field_validator("tasks")
    @classmethod
    def _each_gets_one(cls, tasks: int, info: ValidationInfo) -> int:
        if tasks > info.data.get("pool", tasks):
            raise ValueError(f"at most pool = {info.data['pool']}")
        return tasks

    @property
    def each(self) -> int:
        """Components of a task."""
        return self.pool // self.tasks

    @property
    def orthogonal(self) -> int:
        """How many rows are to be orthogonal at once."""
        return self.pool if self.ortho == "whole" else self.each


class Components(nn.Module):
    """One layer's components: prompts P (M, Lp, D), keys K (M, D) and attention vectors A (M, D); tasks add blocks.

    Args:
        n: components per block.
        length: rows of a component (Lp), key and value rows together.
        dim: the model's width (D).
    """

    def __init__(self, n: int, length: int, dim: int) -> None:
        super().__init__()
        self.shapes = {"prompts": (n, length, dim), "keys": (n, dim), "attention": (n, dim)}
        self.prompts, self.keys, self.attention = TaskBlocks(), TaskBlocks(), TaskBlocks()

    def add(self, how: PerTask | SharedPool, rng: torch.Generator, whole: torch.Generator) -> None:
        """Adds a task's block.

        Args:
            how: its settings.
            rng: a CPU generator.
            whole: for a pool that is orthogonal as a whole: in the same state at every task.
        """
        if how.ortho == "whole":
            self.grow_from_pool(how.orthogonal, whole)
        else:
            self.grow(rng, how.ortho)

    def grow(self, rng: torch.Generator, how: Orthogonalisation = "qr") -> None:
        """Freezes what is there and adds a block, orthogonal to it.

        Args:
            rng: a CPU generator.
            how: see :func:`orthonormal_block`.
        """
        for kind, rows in self._kinds():
            n, *shape = self.shapes[kind]
            old = rows().flatten(1) if len(rows) else rows.place.new_empty(0, math.prod(shape))
            rows.add(orthonormal_block(old, n, rng, how).unflatten(1, shape))

    def grow_from_pool(self, pool: int, rng: torch.Generator) -> None:
        """Adds the next block of a pool that is orthogonal as a whole; what the older blocks learned plays no part.

        Args:
            pool: rows of the whole pool.
            rng: a CPU generator, in the same state for every block of a pool.
        """
        for kind, rows in self._kinds():
            n, *shape = self.shapes[kind]
            whole = orthonormal_block(rows.place.new_empty(0, math.prod(shape)), pool, rng)
            rows.add(whole[n * len(rows) :][:n].unflatten(1, shape))

    def weights(self, queries: Float[Tensor, "b d"]) -> Float[Tensor, "b m"]:
        """The weight α of every component in each image's prompt.

        Args:
            queries: see :func:`component_weights`.
        """
        return component_weights(queries, self.attention(), self.keys())

    def forward(self, queries: Float[Tensor, "b d"]) -> Float[Tensor, "b lp d"]:
        prompts = self.prompts()
        return (self.weights(queries) @ prompts.flatten(1)).unflatten(1, prompts.shape[1:])

    def penalty(self) -> Float[Tensor, ""]:
        """R(K) + R(A) + R(P); gradient reaches the newest block, through its products with the older ones too."""
        return torch.stack([orthogonality_penalty(rows()) for _, rows in self._kinds()]).sum()

    def _kinds(self) -> list[tuple[str, TaskBlocks]]:
        return [("prompts", self.prompts), ("keys", self.keys), ("attention", self.attention)]


class ComponentLayers(nn.ModuleList):
    """The components of several layers.

    Args:
        how: how many there are, and how they are made.
        n_layers: those that read a prefix.
        length: rows of a component (Lp).
        dim: the model's width (D).

    Raises:
        ConfigError: for more components than can be orthogonal in that width.
    """

    STATE: ClassVar = {
        "<layers>.prompts.blocks.<tasks>": learned("m, Lp, d", torch.float32),
        "<layers>.keys.blocks.<tasks>": learned("m, d", torch.float32),
        "<layers>.attention.blocks.<tasks>": learned("m, d", torch.float32),
    }

    def __init__(self, how: PerTask | SharedPool, n_layers: int, length: int, dim: int) -> None:
        if how.orthogonal > dim:
            must_be = f"at most the backbone's width {dim}, to be orthogonal"
            raise ConfigError("CODAPrompt", "components", must_be, how.orthogonal, "Use fewer, or a wider backbone")
        super().__init__(Components(how.each, length, dim) for _ in range(n_layers))
        self.how = how

    @property
    def each(self) -> list[Components]:
        """Layer by layer."""
        return [layer for layer in self if isinstance(layer, Components)]

    def add(self, task: int, rng: torch.Generator, whole: torch.Generator) -> None:
        """Adds a task's block in every layer.

        Args:
            task: its index.
            rng: a CPU generator.
            whole: see :meth:`Components.add`.

        Raises:
            ConfigError: for more tasks than share the pool.
        """
        if isinstance(self.how, SharedPool) and task >= self.how.tasks:
            hint = "Set method.components.tasks to the stream's number of tasks"
            raise ConfigError("CODAPrompt", "components.tasks", f"at least {task + 1}", self.how.tasks, hint)
        for layer in self.each:
            layer.add(self.how, rng, whole)

    def prefixes(self, queries: Float[Tensor, "b d"]) -> list[tuple[Float[Tensor, "b m d"], Float[Tensor, "b m d"]]]:
        """Each layer's keys and values, mixed for every image.

        Args:
            queries: see :func:`component_weights`.
        """
        keys_and_values = (layer(queries).chunk(2, dim=1) for layer in self.each)
        return [(keys, values) for keys, values in keys_and_values]

    def penalty(self) -> Float[Tensor, ""]:
        """The sum of all layers' :meth:`Components.penalty`."""
        return torch.stack([layer.penalty() for layer in self.each]).sum()

    @torch.no_grad()
    def shares(self, queries: Iterable[Float[Tensor, "_b d"]]) -> Float[Tensor, " m"]:
        """The share of weight that each component gets: mean |α|, averaged over layers.

        Every image uses every component, so that equal shares are the rule and say nothing against the method.

        Args:
            queries: in batches, on the components' device.
        """
        totals = torch.zeros(len(self), len(self.each[0].keys()))
        for batch in queries:
            weights = torch.stack([layer.weights(batch) for layer in self.each])  # (layers, b, m)
            totals = totals + weights.abs().sum(1).cpu()
        return (totals / totals.sum(1, keepdim=True).clamp(min=1e-12)).mean(0)
