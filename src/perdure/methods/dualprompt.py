"""DualPrompt: prefixes that all tasks share, and one set per task, picked by matching an image's frozen feature.

Source: Wang et al., "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning", ECCV 2022 (arXiv
    2204.04799). Settings of the official JAX code (google-research/l2p) and of its PyTorch ports as presets.
Deviations: an image picks its E-prompt alone, among the slots of tasks seen; the published code also searches slots
    not yet trained, and lets a test batch vote, which tells it the task (``select_eval``). E's keys and values are what
    they are called; every PyTorch port shuffles them over the batch (``kv_layout=scrambled``). A block in both sets
    reads [G; E], as in JAX; the ports drop E. Pools grow, unseen classes are never predicted, the norm that clips is of
    what learns alone, and crops keep half of an image (presets: 0.05, 0.08). No tensor is key and value at once; keys
    serve all E blocks, unlike the CODA repository's variant. ``key_update=mean`` takes queries of the eval view.
    Presets differ in more than the test protocol (``pilot_inr`` trains far less than the paper): do not compare them.
Use when: a ViT is given, tasks have boundaries, and only a few small tensors may be learned and stored. With domains
    for tasks, slots are per domain: set train_logits=seen. A test needs no task id.
Relations: L2P has one pool for all tasks and prompt tokens; CODA-Prompt mixes all prefixes with learned weights.
Cost: per training image 1 F for the query (none with key_update=mean: one pass per image and task) and about 2 F for
    the prompted pass, forward and backward; per test image and task one prompted pass of 1 F, queries once in all.
    State: 2 D (g Lg + e M Le) + M D numbers for g and e blocks and M = tasks x top_k slots, and the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone, Prompt
from perdure.data import LabelledImages, Task
from perdure.errors import CheckpointError, ConfigError
from perdure.memory import FeatureStore
from perdure.methods.base import Tags, methods
from perdure.methods.base_prompt import PromptBatch, PromptMethod
from perdure.methods.base_prompt_config import SelectionConfig
from perdure.modules.prefix import split_heads
from perdure.modules.prompts import TaskBlocks, best_slots, cosine_match, unit, vote

Init = Literal["uniform_pm1", "uniform_0_001", "uniform_0_1"]
GENERAL = 2**32 - 1  # the generator of G's initial values; tasks use their index
MEANING = {"layers_g", "layers_e", "length_g", "length_e", "top_k", "kv_layout"}  # of the learned tensors
RANGES = {"uniform_pm1": (-1.0, 1.0), "uniform_0_001": (0.0, 0.01), "uniform_0_1": (0.0, 1.0)}
JAX = {"batch_size": 192, "min_scale": 0.05, "init": "uniform_0_001", "head_init": "zeros", "drop_last": "always"}
PORT = {"select_eval": "batch_vote", "kv_layout": "scrambled", "min_scale": 0.05}
PILOT = {**PORT, "lr": 0.001, "scale_lr": False, "clip_norm": None, "pull": 0.1, "eval_order": "class_sorted"}


class DualPromptConfig(SelectionConfig):
    """Settings of DualPrompt."""

    presets: ClassVar = {
        "official_jax": {**JAX, "select_eval": "batch_vote"},
        "official_jax_inr": {**JAX, "lr": 0.005, "epochs": 50, "length_e": 20},
        "port": PORT,
        "pilot": PILOT,
        "pilot_inr": {**PILOT, "epochs": 10},
        "mammoth": {**PORT, "batch_size": 128, "min_scale": 0.08, "eval_batch": 128},
    }

    lr: float = Field(0.03, gt=0, description="learning rate for 256 images per step")
    scale_lr: bool = Field(True, description="multiply lr by batch_size / 256, the linear scaling rule")
    batch_size: int = Field(24, ge=1, description="images per step")
    layers_g: list[int] = Field([0, 1], description="blocks that read G, counted from 0; may be none")
    layers_e: list[int] = Field([2, 3, 4], min_length=1, description="blocks that read E, counted from 0")
    length_g: int = Field(5, ge=1, description="key rows, and as many value rows, of G per block (Lg)")
    length_e: int = Field(5, ge=1, description="key rows, and as many value rows, of an E slot per block (Le)")
    top_k: int = Field(1, ge=1, description="slots of a task, and slots an image picks in a test")
    pool: int | None = Field(None, ge=1, description="most slots there may be (M); null: top_k more with every task")
    pull: float = Field(1.0, ge=0, description="weight of the keys' own loss (lambda)")
    init: Init = Field("uniform_pm1", description="prefixes and keys from U(-1, 1), U(0, 0.01) or U(0, 1)")
    copy_prev: bool = Field(True, description="a task's E slots start as the previous task's ended; keys start anew")
    key_update: Literal["sgd", "mean"] = Field("sgd", description="mean: a key is its task's mean query, its optimum")
    kv_layout: Literal["correct", "scrambled"] = Field("correct", description="scrambled: K, V mixed over the batch")
    eval_batch: int = Field(24, ge=1, description="images per test batch, where a vote or kv_layout make it matter")


@methods.register("dualprompt")
class DualPrompt(PromptMethod[DualPromptConfig]):
    """Reads the class off a frozen ViT whose attention has learned keys and values besides its own.

    Raises:
        ConfigError: for a block that the backbone does not have, or one named twice.
    """

    Config = DualPromptConfig
    tags: ClassVar = Tags(
        prompted=True,
        small={"layers_g": [0], "layers_e": [1, 2], "length_g": 2, "length_e": 2, "epochs": 1, "batch_size": 8},
        learns={"epochs": 5, "lr": 0.3, "min_scale": 1.0, "flip": False},
        expected_failures={
            "check_remembers_every_task": "its loss never compares classes of two tasks; within a task it remembers"
        },
    )

    def __init__(
        self,
        backbone: Backbone,
        config: DualPromptConfig | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        c = self.config
        for name, blocks in (("layers_g", c.layers_g), ("layers_e", c.layers_e)):
            if len(set(blocks)) < len(blocks) or not set(blocks) <= set(range(self.n_blocks)):
                must_be = f"distinct and from 0 to {self.n_blocks - 1} ({backbone.name} has {self.n_blocks} blocks)"
                raise ConfigError("DualPrompt", name, must_be, blocks, f"Set method.{name}")
        rng = self._generator(GENERAL)
        # of every G block (2, Lg, D); of every task (k, E blocks, 2, Le, D) and (k, D); index 0 of the 2 is for keys
        self.g_ = nn.ParameterList(self._uniform((2, c.length_g, backbone.dim), rng) for _ in c.layers_g)
        self.e_, self.keys_ = TaskBlocks().to(backbone.device), TaskBlocks().to(backbone.device)
        self.meaning_ = c.model_dump(include=MEANING)

    @property
    def depends_on_test_batch(self) -> bool:
        """Whether test images vote together, or their prefixes are shuffled among them."""
        return super().depends_on_test_batch or self.config.kv_layout == "scrambled"

    def _make_room(self, state: Mapping[str, Any]) -> None:
        """Refuses what was learned with other blocks or another ``kv_layout``: prefixes mean something else there."""
        if state["meaning_"] != self.meaning_:
            hint = "Use the settings it was learned with"
            raise CheckpointError("load_state_dict", "settings", str(self.meaning_), state["meaning_"], hint)

    def _begin_task(self, task: Task, rng: torch.Generator) -> None:
        c, dim = self.config, self.backbone.dim
        needed = (self.tasks_seen_ + 1) * c.top_k
        if c.pool is not None and needed > c.pool:
            hint = f"Set method.pool={needed} or more, or null"
            raise ConfigError("DualPrompt", "pool", f"at least {needed} for task {task.index}", c.pool, hint)
        drawn = self._uniform((c.top_k, len(c.layers_e), 2, c.length_e, dim), rng)
        self.e_.add(self.e_.newest if c.copy_prev and len(self.e_) else drawn)
        if c.key_update == "sgd":
            self.keys_.add(self._uniform((c.top_k, dim), rng))

    def _uniform(self, shape: tuple[int, ...], rng: torch.Generator) -> Tensor:
        return torch.empty(shape).uniform_(*RANGES[self.config.init], generator=rng).to(self.backbone.device)

    def _takes_train_queries(self) -> bool:
        return self.config.key_update == "sgd"

    def _train_features(self, batch: PromptBatch) -> tuple[Float[Tensor, "b d"], Float[Tensor, ""]]:
        features = self._prompted(batch.embedded, self.e_.newest[None])
        if self.config.key_update == "mean":
            return features, features.new_zeros(())
        return features, -self.config.pull * cosine_match(batch.queries, self.keys_.newest).sum(1).mean()

    def _end_task(self, task: Task) -> None:
        if self.config.key_update == "mean":
            queries = self.store.features(self.backbone, task.train, label="train queries")
            total = torch.stack([unit(rows.double()).sum(0) for rows in queries.batches()]).sum(0)
            self.keys_.add(unit(total).float().expand(self.config.top_k, -1).to(self.backbone.device))
            self.keys_.freeze()

    def _test_features(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return self._prompted(embedded, self.e_()[self._test_slots(queries)])

    def _test_slots(self, queries: Float[Tensor, "b d"]) -> Int[Tensor, "b k"]:
        match = cosine_match(queries, self.keys_())  # (b, M)
        slots = best_slots(match, self.config.top_k)
        return vote(slots, match.shape[1]) if self.config.select_eval == "batch_vote" else slots

    def _prompted(
        self, embedded: Float[Tensor, "b n d"], slots: Float[Tensor, "_b k layers 2 m d"]
    ) -> Float[Tensor, "b d"]:
        """The pooled feature with G and the rows of ``slots``, of every image or the same for all."""
        b, c, vit, prompts = len(embedded), self.config, self.backbone.vit, {}
        e = slots.expand(b, -1, -1, -1, -1, -1).permute(2, 3, 0, 1, 4, 5).flatten(3, 4)  # (layers, 2, b, k Le, D)
        # the ports reshape where the axes of key/value and image should change places
        e = e.reshape(len(e), b, 2, *e.shape[3:]) if c.kv_layout == "scrambled" else e.transpose(1, 2)
        rows = {layer: [g.expand(b, -1, -1, -1)] for layer, g in zip(c.layers_g, self.g_, strict=True)}
        for layer, own in zip(c.layers_e, e, strict=True):
            rows.setdefault(layer, []).append(own)
        for layer, parts in rows.items():
            keys, values = torch.cat(parts, dim=2).unbind(1)
            heads = getattr(getattr(vit.blocks[layer], "attn", None), "num_heads", 1)  # the walk refuses strange blocks
            prompts[layer] = Prompt(prefix=(split_heads(keys, heads), split_heads(values, heads)))
        return self.backbone.pool(self.backbone.walk(embedded, prompts))

    def selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"]:
        """The share of picks that each slot gets in a test; a task's slots stand together, in the order of tasks.

        Raises:
            NotFittedError: before the first task.
        """
        self._require_fitted("selection_of")
        return self._shares(data, len(self.keys_()), self._test_slots)
