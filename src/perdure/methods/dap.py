"""DAP: in every block a small generator makes prompts from the image's own tokens, coloured by a task embedding.

Source: Jung, Han, Bang, Song, "Generating Instance-level Prompts for Rehearsal-free Continual Learning", ICCV 2023.
    Settings of the official code (naver-ai/dap-cl), whose weights are timm's vit_base_patch16_224.orig_in21k.
Use when: a ViT is given and prompts should follow the image. The input size is fixed in the mixers. Norms, modulation
    and head are shared by all tasks, so they do forget.
Deviations:
- From the released code: an image finds its task alone; there a test batch of one task votes (``vote``).
- From the released code: a test hides no classes; ``mask_by_task`` hides other tasks', as if the task were told.
- From the released code: the key's own loss is the batch's mean; ``keys.pull_over=sum``, b times as much.
- As published, a mixer starts at zero and its N prompts stay equal; ``mixer_init=normal_1e-2`` lets them differ.
- From the released code: the optimiser is new at every task, and earlier keys, embeddings and mixers do not move.
- From the released code: new head rows are N(0, 0.02²), biases 0, not -4.595; larger is ``head_init=kaiming_fan_out``.
- From the released code: pixels are normalised as the weights want, not by ImageNet's values.
- Unseen classes are never predicted: keys, embeddings and head grow.
- ``preset=official_inr`` trains in the stored order, as released; images stored class by class are refused.
Relations: not "Dynamically Anchored Prompting" (IJCAI 2024). DualPrompt has such keys, but prompts blind to the image.
Cost: F is a frozen forward pass. Training image: F once + 2.14 F per epoch. Test image: F once + 1.05 F per task.
    State: L (N (n + 1) + 2 D (e + 2)) + T (D + e) numbers for n tokens, N prompts, embeddings of width e; the head.
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.backbone import Prompt
from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.learned import Sizes, learned, learned_module
from perdure.methods.base import PromptMethod, Tags, methods
from perdure.modules.heads import GrowingLinear, HeadInit, linear_scores
from perdure.modules.losses import masked_cross_entropy
from perdure.modules.prompt_generator import MixerInit, PromptGenerators
from perdure.modules.prompts import TaskBlocks, cosine_match, picked
from perdure.train import prompting
from perdure.train.batches import Batch
from perdure.train.settings import ImageTraining

KEYS = prompting.TrainedKeys(pull=0.1)
KEYS = prompting.TrainedKeys(pull=0.1)
HIDDEN = -1e11  # the score of a class outside the chosen task, as published; finite
ADAM = {"beta1": 0.9, "beta2": 0.9, "amsgrad": True}
TRAIN = prompting.TRAIN.but(lr=0.01, batch_size=128, optimizer=ADAM, augment={"min_scale": 1.0, "flip": False})


class DAPConfig(MethodConfig):
    """Settings of DAP."""

    presets: ClassVar = published("dap")

    train: ImageTraining = Field(TRAIN, description="of generators, embedding, key and head")
    n_prompts: int = Field(10, ge=0, description="prompt tokens per block (N)")
    embedding_dim: int = Field(16, ge=1, description="width of a task embedding (e)")
    keys: prompting.Keys = Field(KEYS, discriminator="name", description="how keys are found")
    mixer_init: MixerInit = Field(
        "zeros", description="as published, so that prompts stay equal; or so that they differ"
    )
    last_block_prompts: bool = Field(True, description="whether the last block gets prompts too")
    head_init: HeadInit = Field("normal_0.02", description="initial weights of new classes")
    logits: prompting.Logits = prompting.LOGITS
    vote: prompting.Vote | None = prompting.VOTE
    mask_by_task: bool = Field(False, description="tests hide all classes but the chosen task's: results are TIL-like")


@methods.register("dap", "domain_adaptive_prompt")
class DAP(PromptMethod[DAPConfig]):
    """Generates every image's prompts in every block, with the embedding of the task whose key fits the image best."""

    Config = DAPConfig
    tags: ClassVar = Tags(
        backbone="vit",
        prompted=True,
        small={"n_prompts": 2, "embedding_dim": 4, "train": {"epochs": 1, "batch_size": 8}},
        learns={"train": {"epochs": 10}, "mask_by_task": True},  # heads learned apart on random features do not compare
    )

    generators_: PromptGenerators = learned_module({}, "of each block", rest="generators")
    embeddings_: TaskBlocks = learned_module(TaskBlocks.state("1, e"), "E, of each task")
    keys_: TaskBlocks = learned_module(TaskBlocks.state("1, d"), "k, of each task")
    task_columns_: list[list[int]] = learned("<=classes", int, "columns of each task", each="tasks", below="classes")

    def sizes(self) -> Sizes:
        """e: width of an embedding."""
        return {"e": self.config.embedding_dim}

    def setup(self) -> None:
        """Generators at their initial values, no task's embedding and key yet."""
        c, backbone, rng = self.config, self.backbone, self._initial()
        n_blocks = len(backbone.vit.blocks) if c.last_block_prompts else len(backbone.vit.blocks) - 1
        self.head_, self.embeddings_, self.keys_ = GrowingLinear(backbone.dim), TaskBlocks(), TaskBlocks()
        shape = (backbone.tokens_shape[0], c.n_prompts, backbone.dim, c.embedding_dim)
        self.generators_ = PromptGenerators(n_blocks, *shape, c.mixer_init, rng)
        self.tests = prompting.PromptTests(backbone, self.store, self._test_logits, vote=c.vote, seed=self.seed)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, columns = self.config, self.columns(task.train.labels)
        self.head_.grow(len(self.classes_), rng, c.head_init)
        self._add_task(task, rng)
        compared = prompting.columns_in_loss(columns, c.logits)

        def loss(batch: Batch) -> Tensor:
            embedded = batch.embedded(self.backbone)
            logits = self.head_(self._prompted(embedded, self.embeddings_.newest).float())
            pull = c.keys.loss(batch, embedded, self.backbone, self.keys_.newest)
            return masked_cross_entropy(logits, batch.columns, compared) + pull

        learns = [self.head_, *prompting.learning(self.generators_, self.embeddings_, self.keys_)]
        self._train(task, c.train, rng, loss, learns, c.keys.query_view)

    def _add_task(self, task: Task, rng: torch.Generator) -> None:
        """A new embedding and key; mixers learn in the first task alone."""
        dim, device = self.backbone.dim, self.backbone.device
        self.generators_.set_learning(mixer=not self.tasks_seen_)
        self.embeddings_.add(torch.randn(1, self.config.embedding_dim, generator=rng).to(device))
        bound = math.sqrt(6 / (3 * math.prod(self.backbone.vit.patch_embed.patch_size) + dim))
        key = bound * (2 * torch.rand(1, dim, generator=rng) - 1)
        mean = functools.partial(self.tests.mean_query, task.train)
        self.keys_.add(self.config.keys.first(lambda: key, mean, 1).to(device), learns=self.config.keys.learns)
        self.task_columns_ = [*self.task_columns_, self.columns(np.unique(task.train.labels)).tolist()]

    def _prompted(
        self, embedded: Float[Tensor, "b n d"], embeddings: Float[Tensor, "s e"], slots: Int[Tensor, " b"] | None = None
    ) -> Float[Tensor, "b d"]:
        """The pooled feature with every block's prompts, by each image's row of ``embeddings``, or one for all."""
        prompts = {i: Prompt(tokens) for i, tokens in enumerate(self.generators_.of(embeddings, slots))}
        return self.backbone.pool(self.backbone.walk(embedded, prompts))

    def _test_slots(self, queries: Float[Tensor, "b d"]) -> Int[Tensor, " b"]:
        return picked(cosine_match(queries, self.keys_()), 1, "batch" if self.config.vote else None)[:, 0]

    def _test_logits(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        slots = self._test_slots(queries)
        logits = linear_scores(self._prompted(embedded, self.embeddings_(), slots), self.head_)
        if not self.config.mask_by_task:
            return logits
        groups = torch.zeros(len(self.keys_), logits.shape[1], dtype=torch.bool)
        for slot, columns in enumerate(self.task_columns_):
            groups[slot, columns] = True
        return logits.masked_fill(~groups[slots.cpu()].to(logits.device), HIDDEN)

    def _selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"]:
        return self.tests.shares(data, len(self.keys_), self._test_slots)
