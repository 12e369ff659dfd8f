"""DualPrompt: prefixes that all tasks share, and one set per task, picked by matching an image's frozen feature.

Source: Wang et al., "DualPrompt: Complementary Prompting for Rehearsal-free Continual Learning", ECCV 2022,
    arXiv 2204.04799. The authors' JAX code and its PyTorch ports are presets; they differ too much to be compared.
Use when: a ViT is given, tasks have boundaries, and only a few small tensors may be learned and stored. A test needs no
    task id. With domains for tasks, slots are per domain: set ``logits=seen``.
Deviations:
- From the released code: an image picks its E-prompt alone; the vote of a test batch tells it the task (``vote``).
- From the released code: it picks among the slots of tasks seen, not among untrained ones too.
- From the ports: E's keys serve as keys, its values as values; ``kv_layout=scrambled`` mixes them over the batch.
- From the ports: a block in ``layers_g`` and ``layers_e`` reads both prefixes, as in JAX; the ports drop E.
- From the JAX code: gradients are clipped by the norm of what learns (``train.clip_norm``), not of the backbone too.
- From all code: random crops keep half of the image or more; ``train.augment.min_scale`` is 0.05 or 0.08 in presets.
- Unseen classes are never predicted: pool and head grow. ``pool`` sets a limit, as published.
- An extension: ``keys=mean`` sets a key to where its loss would take it, from queries of the eval view.
Relations: L2P has one pool for all tasks and prompt tokens; CODA-Prompt mixes all prefixes with learned weights.
Cost: F is a frozen forward pass. Training image: F (query; once with ``keys=mean``) + 2 F. Test image: F once +
    F per task. State: 2 D (g Lg + e M Le) + M D numbers for g and e blocks and M slots, and the head.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import prefix
from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.learned import Sizes, learned, learned_constant, learned_module
from perdure.methods.base import PromptMethod, Tags, methods
from perdure.modules.heads import GrowingLinear, HeadInit, linear_scores
from perdure.modules.losses import masked_cross_entropy
from perdure.modules.prefix import by_layer
from perdure.modules.prompts import INIT, Init, TaskBlocks, cosine_match, picked, uniform
from perdure.train import prompting
from perdure.train.batches import Batch
from perdure.train.settings import ImageTraining

TRAIN = prompting.TRAIN.but(lr=0.03, scale_lr=True, batch_size=24)
MEANING = {"layers_g", "layers_e", "length_g", "length_e", "top_k", "kv_layout"}  # of the learned tensors
MIXED = prompting.Vote(batch_size=24)  # tested together where keys and values are mixed over the batch, without a vote


class DualPromptConfig(MethodConfig):
    """Settings of DualPrompt."""

    presets: ClassVar = published("dualprompt")

    train: ImageTraining = Field(TRAIN, description="of G, the task's slots and the head")
    layers_g: list[int] = Field([0, 1], description="blocks that read G, counted from 0; may be none")
    layers_e: list[int] = Field([2, 3, 4], min_length=1, description="blocks that read E, counted from 0")
    length_g: int = Field(5, ge=1, description="key rows, and as many value rows, of G per block (Lg)")
    length_e: int = Field(5, ge=1, description="key rows, and as many value rows, of an E slot per block (Le)")
    top_k: int = Field(1, ge=1, description="slots of a task, and slots an image picks in a test")
    pool: int | None = Field(None, ge=1, description="most slots there may be (M); null: top_k more with every task")
    init: Init = Field("uniform_pm1", description=f"prefixes and keys {INIT}")
    copy_prev: bool = Field(True, description="a task's E slots start as the previous task's ended; keys start anew")
    head_init: HeadInit = Field("normal_0.02", description="initial weights of new classes")
    logits: prompting.Logits = prompting.LOGITS
    keys: prompting.Keys = Field(prompting.TrainedKeys(), discriminator="name", description="how keys are found")
    vote: prompting.Vote | None = prompting.VOTE
    kv_layout: Literal["correct", "scrambled"] = Field("correct", description="scrambled: K, V mixed over the batch")


@methods.register("dualprompt")
class DualPrompt(PromptMethod[DualPromptConfig]):
    """Reads the class off a frozen ViT whose attention has learned keys and values besides its own.

    Raises:
        ConfigError: for a block that the backbone does not have, or one named twice.
    """

    Config = DualPromptConfig
    tags: ClassVar = Tags(
        backbone="vit",
        prompted=True,
        small={
            "layers_g": [0], "layers_e": [1, 2], "length_g": 2, "length_e": 2, "train": {"epochs": 1, "batch_size": 8},
        },
        learns={"train": {"epochs": 5, "lr": 0.3, "augment": {"min_scale": 1.0, "flip": False}}},
        expected_failures=prompting.HEADS_APART,
    )  # fmt: skip

    g_: nn.ParameterList = learned_module({"<g>": learned("2, Lg, d", torch.float32)}, "by block: keys, values")
    e_: TaskBlocks = learned_module(TaskBlocks.state("k, e, 2, Le, d"), "slots of every task")
    keys_: TaskBlocks = learned_module(TaskBlocks.state("k, d"), "one for each slot")
    meaning_: dict[str, Any] = learned_constant("the settings that say what prefixes mean")

    def sizes(self) -> Sizes:
        """g, e: blocks that read G and E; Lg, Le: rows of their prefixes; k: slots of a task."""
        c = self.config
        return {"g": len(c.layers_g), "e": len(c.layers_e), "Lg": c.length_g, "Le": c.length_e, "k": c.top_k}

    def setup(self) -> None:
        """G at its initial values, and no slot yet."""
        c, backbone, rng = self.config, self.backbone, self._initial()
        prompting.require_blocks("DualPrompt", backbone, layers_g=c.layers_g, layers_e=c.layers_e)
        self.head_, self.e_, self.keys_ = GrowingLinear(backbone.dim), TaskBlocks(), TaskBlocks()
        self.g_ = nn.ParameterList(uniform(c.init, (2, c.length_g, backbone.dim), rng) for _ in c.layers_g)
        self.meaning_ = c.model_dump(include=MEANING)
        together = c.vote or (MIXED if c.kv_layout == "scrambled" else None)
        self.tests = prompting.PromptTests(backbone, self.store, self._test_logits, vote=together, seed=self.seed)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, columns = self.config, self.columns(task.train.labels)
        self.head_.grow(len(self.classes_), rng, c.head_init)
        self._add_slots(task, rng)
        compared = prompting.columns_in_loss(columns, c.logits)

        def loss(batch: Batch) -> Tensor:
            embedded = batch.embedded(self.backbone)
            logits = self.head_(self._prompted(embedded, self.e_.newest[None]).float())
            pull = c.keys.loss(batch, embedded, self.backbone, self.keys_.newest)
            return masked_cross_entropy(logits, batch.columns, compared) + pull

        learns = [self.head_, self.g_, *prompting.learning(self.e_, self.keys_)]
        self._train(task, c.train, rng, loss, learns, c.keys.query_view)

    def _add_slots(self, task: Task, rng: torch.Generator) -> None:
        c, dim, device = self.config, self.backbone.dim, self.backbone.device
        prompting.require_room("DualPrompt", c.pool, (self.tasks_seen_ + 1) * c.top_k, task)
        drawn = uniform(c.init, (c.top_k, len(c.layers_e), 2, c.length_e, dim), rng).to(device)
        self.e_.add(self.e_.newest if c.copy_prev and len(self.e_) else drawn)
        key = functools.partial(uniform, c.init, (c.top_k, dim), rng)
        mean = functools.partial(self.tests.mean_query, task.train, normed=True)
        self.keys_.add(c.keys.first(key, mean, c.top_k).to(device), learns=c.keys.learns)

    def _test_slots(self, queries: Float[Tensor, "b d"]) -> Int[Tensor, "b k"]:
        return picked(cosine_match(queries, self.keys_()), self.config.top_k, "batch" if self.config.vote else None)

    def _test_logits(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        return linear_scores(self._prompted(embedded, self.e_()[self._test_slots(queries)]), self.head_)

    def _prompted(self, embedded: Float[Tensor, "b n d"], slots: Float[Tensor, "_b k e 2 m d"]) -> Float[Tensor, "b d"]:
        """The pooled feature with G and the rows of ``slots``, of every image or the same for all."""
        b, c = len(embedded), self.config
        e = by_layer(slots.expand(b, -1, -1, -1, -1, -1), scrambled=c.kv_layout == "scrambled")
        rows = {layer: [g.expand(b, -1, -1, -1)] for layer, g in zip(c.layers_g, self.g_, strict=True)}
        for layer, own in zip(c.layers_e, e, strict=True):
            rows.setdefault(layer, []).append(own)
        prompts = {i: prefix(self.backbone.vit, i, *torch.cat(parts, dim=2).unbind(1)) for i, parts in rows.items()}
        return self.backbone.pool(self.backbone.walk(embedded, prompts))

    def _selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"]:
        return self.tests.shares(data, len(self.keys_()), self._test_slots)
