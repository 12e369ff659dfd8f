"""DAP: in every block a small generator makes prompts from the image's own tokens, coloured by a task embedding.

Source: Jung, Han, Bang, Song, "Generating Instance-level Prompts for Rehearsal-free Continual Learning", ICCV 2023.
    Settings of the official code (naver-ai/dap-cl), its weights are timm's vit_base_patch16_224.orig_in21k.
Deviations: an image finds its task alone. The published test lets a batch of one task's images vote, and for ImageNet-R
    then hides all other tasks' classes: wherever the vote is right this is task-incremental evaluation. The presets
    ``official`` and ``official_inr`` do so; call their results TIL-like.
    The key's own loss is the batch's mean. The released code pairs every query with every key chosen in the batch: the
    sum over the batch, 128 times as much (``pull_over=sum``, in the presets), which clipping hands on to all the rest.
    ``mixer_init=zeros`` is the published one and collapses: the rows of a mixer start equal, get equal gradients and
    stay equal, so N prompts are N copies of one. ``normal_1e-2`` makes N count, but is not the published method.
    The optimiser is new at every task and earlier rows are frozen; the official one is kept, and its momentum goes on
    moving them (no ``keep_optimizer``). Keys, embeddings and head grow: unseen classes are never predicted. New head
    columns are N(0, 0.02²), bias 0; published are N(0, 2 / all classes), which a growing head cannot know, and bias
    -4.595. The presets have N(0, 2 / new classes): larger, and far worse on a few classes of held-out training images.
    Inputs are normalised as the weights want (official: ImageNet's values on weights that want 0.5); accuracy is per
    image, not a mean of batches. ``official_inr`` trains in the stored order; class by class it is refused.
Use when: a ViT is given and prompts should follow the image. The input size is fixed in the mixers.
Relations: other than "Dynamically Anchored Prompting" (IJCAI 2024), also called DAP. DualPrompt finds the task by the
    same key, but its prompts do not see the image. Norms, FiLM and head are shared by all tasks, so they forget.
Cost: per training image 2.14 F and epoch (N = 10), and 1 F once for its query: without augmentation queries are cached
    exactly; per test image and task 1.05 F, queries once in all. State: L (N (n + 1) + 2 D (e + 2)) + T (D + e) and
    the head; 363,376 numbers for ViT-B/16 and 10 tasks.
"""

from __future__ import annotations

import functools
import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from perdure.backbone import Backbone, Prompt
from perdure.data import LabelledImages, Task
from perdure.errors import ConfigError
from perdure.memory import FeatureStore
from perdure.methods.base import Tags, methods
from perdure.methods.base_prompt import PromptBatch, PromptMethod
from perdure.methods.base_prompt_config import SelectionConfig
from perdure.modules.prompt_generator import MixerInit, PromptGenerator
from perdure.modules.prompts import TaskBlocks, best_slots, cosine_match, unit, vote

GENERATORS = 2**32 - 1  # the random stream of the generators' initial values; tasks use their index
HIDDEN = -1e11  # the score of a class outside the chosen task, as published; finite
RELEASED = {"pull_over": "sum", "head_init": "kaiming_fan_out"}
VOTING = {**RELEASED, "select_eval": "batch_vote", "eval_batch": 128}


class DAPConfig(SelectionConfig):
    """Settings of DAP."""

    presets: ClassVar = {
        "official": VOTING,
        "official_inr": {
            **VOTING, "mask_by_task": True, "optimizer": "sgd", "lr": 0.25, "epochs": 20, "shuffle": False,
            "n_prompts": 30, "embedding_dim": 64, "pull": 2.0, "last_block_prompts": False,
        },
        "mammoth": RELEASED,  # only one of its data sets votes
    }  # fmt: skip

    lr: float = Field(0.01, gt=0, description="learning rate")
    batch_size: int = Field(128, ge=1, description="images per step")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's decay of the first moment")
    beta2: float = Field(0.9, ge=0, lt=1, description="Adam's decay of the second moment")
    amsgrad: bool = Field(True, description="Adam's variant that never forgets its largest second moment")
    min_scale: float = Field(1.0, gt=0, le=1, description="smallest area a random crop keeps; 1: no crop")
    flip: bool = Field(False, description="mirror half of the training images")
    n_prompts: int = Field(10, ge=0, description="prompt tokens per block (N)")
    embedding_dim: int = Field(16, ge=1, description="width of a task embedding (e)")
    pull: float = Field(0.1, ge=0, description="weight of the key's own loss (lambda_sim)")
    pull_over: Literal["mean", "sum"] = Field("mean", description="of the batch; the released sum is b times as much")
    mixer_init: MixerInit = Field(
        "zeros", description="zeros is published, but its N prompts stay equal; normal_1e-2 lets them differ"
    )
    last_block_prompts: bool = Field(True, description="whether the last block gets prompts too")
    key_update: Literal["sgd", "mean"] = Field(
        "sgd", description="mean: the key is at once what sgd strives for, the mean of the normalised queries"
    )
    mask_by_task: bool = Field(
        False, description="in a test, hide all classes outside the chosen task's: its results are TIL-like"
    )

    @field_validator("shuffle")
    @classmethod
    def _only_one_preset_keeps_the_order(cls, shuffle: bool, info: ValidationInfo) -> bool:
        if not shuffle and info.data.get("preset") != "official_inr":
            raise ValueError("true, but in preset official_inr")
        return shuffle


@methods.register("dap", "domain_adaptive_prompt")
class DAP(PromptMethod[DAPConfig]):
    """Generates every image's prompts in every block, with the embedding of the task whose key fits the image best.

    With ``mask_by_task``, or where test images vote, results rest on task identity: they are TIL-like.
    """

    Config = DAPConfig
    tags: ClassVar = Tags(
        prompted=True,
        small={"n_prompts": 2, "embedding_dim": 4, "epochs": 1, "batch_size": 8},
        # per image, from its own key: on random features, scores of heads learned apart do not compare without
        learns={"epochs": 10, "mask_by_task": True},
    )

    def __init__(
        self,
        backbone: Backbone,
        config: DAPConfig | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        c, n_tokens, rng = self.config, backbone.tokens_shape[0], self._generator(GENERATORS)
        self.generators_ = nn.ModuleList(
            PromptGenerator(n_tokens, c.n_prompts, backbone.dim, c.embedding_dim, c.mixer_init, rng)
            for _ in range(self.n_blocks if c.last_block_prompts else self.n_blocks - 1)
        ).to(backbone.device)
        self.embeddings_ = TaskBlocks().to(backbone.device)  # E, (T, e)
        self.keys_ = TaskBlocks().to(backbone.device)  # k, (T, D)
        self.task_columns_: list[list[int]] = []  # the score columns of each task's classes

    def optimizer_options(self) -> dict[str, Any]:
        """Adam with a short memory, as published; SGD makes no use of it."""
        return {"betas": (self.config.beta1, self.config.beta2), "amsgrad": self.config.amsgrad}

    def _begin_task(self, task: Task, rng: torch.Generator) -> None:
        c, labels = self.config, task.train.labels
        class_by_class = 1 < len(task.classes) == 1 + np.count_nonzero(np.diff(labels))
        if class_by_class and not c.shuffle and len(labels) > c.batch_size:
            must_be = "true where images are stored class by class"
            raise ConfigError("DAP", "shuffle", must_be, c.shuffle, "Set method.shuffle=true")
        for generator in self._blocks():
            generator.set_learning(mixer=not self.tasks_seen_)
        self.embeddings_.add(torch.randn(1, c.embedding_dim, generator=rng).to(self.backbone.device))
        bound = math.sqrt(6 / (3 * math.prod(self.backbone.vit.patch_embed.patch_size) + self.backbone.dim))
        key = bound * (2 * torch.rand(1, self.backbone.dim, generator=rng) - 1)
        if c.key_update == "mean":
            queries = self.store.features(self.backbone, task.train, label="train queries")
            key = torch.cat([unit(q.double()) for q in queries.batches()]).mean(0, keepdim=True).float()
        self.keys_.add(key.to(self.backbone.device))
        if c.key_update == "mean":
            self.keys_.freeze()
        self.task_columns_ = [*self.task_columns_, self.columns(np.unique(labels)).tolist()]

    def _takes_train_queries(self) -> bool:
        return self.config.key_update == "sgd"

    def _train_features(self, batch: PromptBatch) -> tuple[Float[Tensor, "b d"], Float[Tensor, ""]]:
        out = self.backbone.walk(batch.embedded, self._prompts(self.embeddings_.newest))
        features = self.backbone.pool(out)
        if self.config.key_update == "mean":
            return features, features.new_zeros(())
        match = cosine_match(batch.queries, self.keys_.newest)  # (b, 1)
        return features, -self.config.pull * (match.sum() if self.config.pull_over == "sum" else match.mean())

    def _test_features(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        prompts = self._prompts(self.embeddings_(), self._test_slots(queries))
        return self.backbone.pool(self.backbone.walk(embedded, prompts))

    def _test_logits(self, embedded: Tensor, queries: Tensor) -> Float[Tensor, "b classes"]:
        logits = super()._test_logits(embedded, queries)
        if not self.config.mask_by_task:
            return logits
        inside = torch.zeros(len(self.keys_), logits.shape[1], dtype=torch.bool, device=logits.device)
        for slot, columns in enumerate(self.task_columns_):
            inside[slot, columns] = True
        return logits.masked_fill(~inside[self._test_slots(queries).to(logits.device)], HIDDEN)

    def _test_slots(self, queries: Float[Tensor, "b d"]) -> Int[Tensor, " b"]:
        slots = best_slots(cosine_match(queries, self.keys_()), 1)
        return (vote(slots, len(self.keys_)) if self.depends_on_test_batch else slots)[:, 0]

    def _prompts(self, embeddings: Float[Tensor, "s e"], slots: Int[Tensor, " b"] | None = None) -> dict[int, Prompt]:
        """Every block's prompts; the modulation is computed once per embedding, then handed to the images.

        Args:
            embeddings: of the tasks in question; one serves all images.
            slots: each image's row of ``embeddings``.
        """
        prompts = {}
        for index, generator in enumerate(self._blocks()):
            scale, shift = generator.modulation(embeddings)
            if slots is not None:
                scale, shift = scale[slots], shift[slots]
            prompts[index] = Prompt(functools.partial(generator, scale=scale, shift=shift))
        return prompts

    def _blocks(self) -> list[PromptGenerator]:
        return [g for g in self.generators_ if isinstance(g, PromptGenerator)]

    def selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"]:
        """The share of images for which each task's embedding is chosen."""
        return self._shares(data, len(self.keys_), self._test_slots)
