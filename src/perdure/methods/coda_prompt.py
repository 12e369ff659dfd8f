"""CODA-Prompt: prefixes mixed from components of all tasks, by learned weights; a task adds and trains its own block.

Source: Smith et al., "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual
    Learning", CVPR 2023 (arXiv 2211.13218). Defaults of the authors' code since June 2023: new components by
    Gram-Schmidt, no orthogonality penalty. The paper's and the first release's ways are presets.
Deviations: components grow by a fixed number per task, so that the number of tasks need not be known; published pools
    (M, T) are presets. New rows come from a QR decomposition: the code's own orthogonalisation is not orthogonal once
    old rows are trained (``ortho=reference``). The learning rate is the printed formula's; the code's falls one epoch
    later (``schedule=quarter_cosine_released``, in the presets). A task of few batches keeps its last (``drop_last``).
    Queries are made in eval mode; the backbone gets no gradients, old blocks neither weight decay nor momentum. The
    penalty counts once per step, not per GPU; no micro-batches. Unseen classes are never predicted: the head grows.
Use when: a ViT is given and instance-wise prompts shall be learned end to end by the classification loss alone. Domains
    instead of classes, untested by the authors: ``train_logits=seen``.
Relations: L2P and DualPrompt choose prompts by a match that the classification loss does not train; "L2P++" and
    "DualPrompt" in the authors' code are variants of their own. PILOT gives this method more epochs, larger batches and
    another class order than those two: its table does not compare them. The authors' accuracies are means over tasks,
    PILOT's over images; both use augreg_in21k_ft_in1k weights on inputs in [0, 1].
Cost: per training image 1 F for the query (none where stored) and about 2 F for the prompted pass, forward and
    backward; per test image and task 1 F, queries once in all. State: M (Lp + 2) D numbers per layer (3.84 M in all at
    M = 100, of which a task trains its own block) and the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor, nn

from perdure.backbone import Backbone, Prompt
from perdure.data import LabelledImages, Task
from perdure.errors import CheckpointError, ConfigError
from perdure.memory import FeatureStore
from perdure.methods.base import Tags, methods
from perdure.methods.base_prompt import PromptBatch, PromptMethod
from perdure.methods.base_prompt_config import PromptConfig
from perdure.modules.heads import HeadInit
from perdure.modules.prefix import Components, Orthogonalisation, split_heads
from perdure.train.loop import ScheduleName

POOL = 2**32 - 1  # the generator of a whole pool's initial values; tasks use their index
CODE = {"pool": 100, "tasks": 10, "ortho": "reference", "drop_last": "always", "schedule": "quarter_cosine_released"}


class CODAPromptConfig(PromptConfig):
    """Settings of CODA-Prompt."""

    presets: ClassVar = {
        "official": CODE,  # published with epochs=20 on CIFAR-100, 50 on ImageNet-R, 5 on DomainNet
        "paper_v1": {**CODE, "init": "pool", "mu": 0.1},
        "released_beta": {**CODE, "init": "pool", "mu": 1e-7},  # 0.1, which the code multiplied by 1e-6
        "pilot": CODE,  # differs in the stream: natural class order, which its other methods do not get
        "mammoth": {**CODE, "drop_last": "never"},  # mu is its product of two weights, both zero
    }

    layers: list[Annotated[int, Field(ge=0)]] = Field(
        [0, 1, 2, 3, 4], min_length=1, description="blocks that read a prefix, counted from 0"
    )
    length: int = Field(8, ge=2, multiple_of=2, description="rows of a component (Lp): half of them keys, half values")
    components_per_task: int = Field(10, ge=1, description="components that a task adds in every layer")
    pool: int | None = Field(None, ge=1, description="published: components in all (M); a task gets floor(M/T)")
    tasks: int | None = Field(None, ge=1, description="published: tasks of the stream (T), to be known with pool")
    mu: float = Field(0.0, ge=0, description="weight of the orthogonality penalty")
    ortho: Orthogonalisation = Field("qr", description="reference: the released code's inexact Gram-Schmidt")
    init: Literal["gram_schmidt", "pool"] = Field(
        "gram_schmidt", description="pool: the whole pool orthogonal at the start, whatever the tasks learn"
    )
    epochs: int = Field(20, ge=1, description="passes over each task")
    batch_size: int = Field(128, ge=1, description="images per step")
    schedule: ScheduleName = Field("quarter_cosine", description="of the learning rate; released: an epoch later")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of all gradients together; null: no clipping")
    min_scale: float = Field(0.08, gt=0, le=1, description="smallest area a random crop keeps; 1: no crop")
    drop_last: Literal["never", "from_4_batches", "always"] = Field(
        "from_4_batches", description="leave out an epoch's last, smaller batch"
    )
    head_init: HeadInit = Field("torch_linear", description="initial weights of new classes")

    @field_validator("layers")
    @classmethod
    def _layers_are_distinct(cls, layers: list[int]) -> list[int]:
        if len(set(layers)) < len(layers):
            raise ValueError("a list of distinct blocks")
        return layers


@methods.register("coda_prompt")
class CODAPrompt(PromptMethod[CODAPromptConfig]):
    """Mixes each image's prefixes from all components seen so far.

    Raises:
        ConfigError: for layers the backbone lacks, or components that a pool or the backbone's width cannot hold.
    """

    Config = CODAPromptConfig
    tags: ClassVar = Tags(
        prompted=True,
        small={"layers": [0, 2], "length": 4, "components_per_task": 2, "epochs": 1, "batch_size": 8},
        learns={"epochs": 5, "lr": 0.01, "min_scale": 1.0, "flip": False},
        expected_failures={
            "check_remembers_every_task": "its loss never compares classes of two tasks; within a task it remembers"
        },
    )

    def __init__(
        self,
        backbone: Backbone,
        config: CODAPromptConfig | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        c, layers = self.config, self.config.layers
        if max(layers) >= self.n_blocks:
            must_be = f"blocks 0 to {self.n_blocks - 1} ({backbone.name} has {self.n_blocks} blocks)"
            raise ConfigError("CODAPrompt", "layers", must_be, layers, "Set method.layers")
        self.n_components = _components_per_task(c, backbone.dim)
        parts = [Components(self.n_components, c.length, backbone.dim) for _ in layers]
        self.components_ = nn.ModuleList(parts).to(backbone.device)

    @property
    def _layers(self) -> list[Components]:
        return list(self.components_)  # type: ignore[arg-type]

    def _begin_task(self, task: Task, rng: torch.Generator) -> None:
        c, pool_rng = self.config, self._generator(POOL)  # the same draw at every task
        if c.tasks is not None and task.index >= c.tasks:
            hint = "Set method.tasks to the stream's number of tasks"
            raise ConfigError("CODAPrompt", "tasks", f"at least {task.index + 1}", c.tasks, hint)
        for layer in self._layers:
            if c.init == "pool" and c.pool is not None:
                layer.grow_from_pool(c.pool, pool_rng)
            else:
                layer.grow(rng, c.ortho)

    def _train_features(self, batch: PromptBatch) -> tuple[Float[Tensor, "b d"], Float[Tensor, ""]]:
        penalty = torch.zeros((), device=self.backbone.device)
        if self.config.mu:
            penalty = self.config.mu * torch.stack([layer.penalty() for layer in self._layers]).sum()
        return self._test_features(batch.embedded, batch.queries), penalty

    def _test_features(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        prompts = {}
        for index, layer in zip(self.config.layers, self._layers, strict=True):
            # a block without heads is refused by the walk
            n_heads = getattr(getattr(self.backbone.vit.blocks[index], "attn", None), "num_heads", 1)
            keys, values = (split_heads(half, n_heads) for half in layer(queries).chunk(2, dim=1))
            prompts[index] = Prompt(prefix=(keys, values))
        return self.backbone.pool(self.backbone.walk(embedded, prompts))

    def selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"]:
        """The share of weight that each component gets: mean |α|, averaged over layers.

        Soft: every image uses every component, so equal shares are the rule and say nothing against the method.

        Raises:
            NotFittedError: before the first task.
        """
        self._require_fitted("selection_of")
        totals = torch.zeros(len(self._layers), self.n_components * self.tasks_seen_)  # |α| by layer
        for queries in self.store.features(self.backbone, data, label="test queries").batches():
            with torch.no_grad():
                weights = torch.stack([layer.weights(queries.to(self.backbone.device)) for layer in self._layers])
            totals += weights.abs().sum(1).cpu()
        return (totals / totals.sum(1, keepdim=True).clamp(min=1e-12)).mean(0)

    def _make_room(self, state: Mapping[str, Any]) -> None:
        """Refuses layers whose blocks are not those of the tasks seen."""
        parts, tasks = enumerate(self._layers), int(state["tasks_seen_"])
        wanted = {f"{i}.{key}": shape for i, layer in parts for key, shape in layer.state_shapes(tasks).items()}
        got = {key: tuple(block.shape) for key, block in state["components_"].items()}
        if got != wanted:
            must_be = f"{tasks} blocks of {self.n_components} rows for each layer's prompts, keys and attention"
            odd, hint = sorted(got.items() ^ wanted.items())[:6], "Load it with its own settings and backbone"
            raise CheckpointError("CODAPrompt.load_state_dict", "components_", must_be, odd, hint)


def _components_per_task(c: CODAPromptConfig, dim: int) -> int:
    where, n, most = "CODAPrompt", c.components_per_task, c.components_per_task
    if (c.pool is None) != (c.tasks is None) or (c.init == "pool" and c.pool is None):
        got, hint = {"pool": c.pool, "tasks": c.tasks}, "Set both, or none of them and init=gram_schmidt"
        raise ConfigError(where, "pool and tasks", "given together, and for init=pool", got, hint)
    if c.pool is not None and c.tasks is not None:
        n = c.pool // c.tasks
        most = c.pool if c.init == "pool" else n
    if not n:
        raise ConfigError(where, "pool", f"at least tasks = {c.tasks}", c.pool, "Raise method.pool")
    if most > dim:
        hint = "Use fewer components, or a wider backbone"
        raise ConfigError(where, "components", f"at most the backbone's width {dim}, to be orthogonal", most, hint)
    return n
