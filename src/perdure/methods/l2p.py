"""L2P: a pool of prompts, of which every image picks those whose keys match its frozen feature best.

Source: Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022, arXiv 2112.08654. The settings are those of
    the PyTorch port that reproduced the paper's CIFAR-100 figure; the authors' JAX code and other ports are presets.
Use when: a ViT is given and only a few small tensors may be learned and stored. Tasks of two or three classes are
    confused unless their images pick different prompts: raise ``pool``, or set ``train_prompts=task_slot``.
Deviations:
- From the released code: in training an image picks its prompts alone; there a batch votes (``train_prompts.vote``).
- From the released code: so it does in a test, where the vote of a batch tells it the task (``vote``).
- From the JAX code: gradients are clipped by the norm of what learns (``train.clip_norm``), not of the backbone too.
- From all code: random crops keep half of the image or more; published is ``train.augment.min_scale=0.05`` or 0.08.
- From all code: crops are cut from the eval view, not from a larger image.
- From the paper: pixels are normalised as the weights want; [0, 1] is the backbone's ``preset=lamda``.
- Unseen classes are never predicted: the head grows with the classes.
- Left out: prompts and keys shared by blocks; CORe50, which trains the whole backbone; "L2P++", another method.
Relations: DualPrompt gives each task prompts of its own, CODA-Prompt mixes all of them with learned weights.
Cost: F is a frozen forward pass. Training image: F (query, unless stored) + 2.3 F. Test image: F once + 1.1 F per task.
    State: M (Lp + 1) D numbers for M prompts of Lp tokens of width D, and the head.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from perdure.backbone import Prompt
from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.errors import ConfigError
from perdure.learned import Sizes, learned_module
from perdure.methods.base import PromptMethod, Tags, methods
from perdure.modules.heads import GrowingLinear, HeadInit, linear_scores
from perdure.modules.losses import masked_cross_entropy
from perdure.modules.prompts import INIT, Init, Match, PromptPool, TaskSlot, cosine_match, picked
from perdure.train import prompting
from perdure.train.batches import Batch, Queries
from perdure.train.settings import ImageTraining


class L2PConfig(MethodConfig):
    """Settings of L2P."""

    presets: ClassVar = published("l2p")

    train: ImageTraining = Field(prompting.TRAIN.but(lr=0.03, scale_lr=True), description="of prompts, keys and head")
    pool: int = Field(10, ge=1, description="prompts in the pool (M)")
    length: int = Field(5, ge=1, description="tokens per prompt (Lp)")
    top_k: int = Field(5, ge=1, description="prompts an image picks (N)")
    pull: float = Field(0.1, ge=0, description="weight of the keys' own loss (lambda)")
    init: Init = Field("uniform_pm1", description=f"prompts and keys {INIT}")
    prompt_pos: Literal["none", "cls"] = Field("none", description="cls adds the class token's position to prompts")
    head_input: Literal["prompt_mean", "cls", "cls+prompt"] = Field(
        "prompt_mean", description="what the head reads: the mean prompt token, the pooled feature, or their mean"
    )
    head_init: HeadInit = Field("normal_0.02", description="initial weights of new classes")
    logits: prompting.Logits = prompting.LOGITS
    query_view: Queries = prompting.QUERY_VIEW
    train_prompts: Match | TaskSlot = Field(Match(), discriminator="name", description="which prompts an image learns")
    vote: prompting.Vote | None = prompting.VOTE


@methods.register("l2p")
class L2P(PromptMethod[L2PConfig]):
    """Picks prompts by the frozen feature and reads the class off their outputs.

    Raises:
        ConfigError: if more prompts are to be picked than there are.
    """

    Config = L2PConfig
    tags: ClassVar = Tags(
        backbone="vit",
        prompted=True,
        small={"pool": 4, "length": 2, "top_k": 2, "train": {"epochs": 1, "batch_size": 8}},
        # two-class tasks teach no more than the difference of their classes: so many prompts that classes share few
        learns={
            "pool": 32,
            "train": {"epochs": 10, "batch_size": 4, "lr": 0.05, "augment": {"min_scale": 1.0, "flip": False}},
        },
    )

    pool_: PromptPool = learned_module(PromptPool.STATE, "prompts and their keys")

    def sizes(self) -> Sizes:
        """M: prompts; Lp: tokens of each."""
        return {"M": self.config.pool, "Lp": self.config.length}

    def setup(self) -> None:
        """The head, and the pool at its initial values."""
        c, backbone, vit = self.config, self.backbone, self.backbone.vit
        if c.top_k > c.pool:
            raise ConfigError("L2P", "top_k", f"at most pool = {c.pool}", c.top_k, "Raise method.pool")
        if c.prompt_pos == "cls" and (vit.pos_embed is None or vit.cls_token is None or vit.no_embed_class):
            must_be = "one whose class token has a position embedding, for prompt_pos=cls"
            raise ConfigError("L2P", "backbone", must_be, backbone.name, "Set method.prompt_pos=none")
        self.head_ = GrowingLinear(backbone.dim)
        self.pool_ = PromptPool(c.pool, c.length, backbone.dim, c.init, self._initial())
        self.tests = prompting.PromptTests(backbone, self.store, self._test_logits, vote=c.vote, seed=self.seed)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, how, columns = self.config, self.config.train_prompts, self.columns(task.train.labels)
        self.head_.grow(len(self.classes_), rng, c.head_init)
        own, vote = (self._own_slots(task, how), None) if isinstance(how, TaskSlot) else (None, how.vote)
        compared = prompting.columns_in_loss(columns, c.logits)

        def loss(batch: Batch) -> Tensor:
            embedded = batch.embedded(self.backbone)
            match = cosine_match(batch.queries(self.backbone, embedded), self.pool_.keys)  # (b, M)
            slots = picked(match, c.top_k, vote) if own is None else own.expand(len(match), -1)
            logits = self.head_(self._prompted(embedded, slots).float())
            pull = match.gather(1, slots).sum(1).mean()
            return masked_cross_entropy(logits, batch.columns, compared) - c.pull * pull

        self._train(task, c.train, rng, loss, [self.head_, self.pool_], c.query_view)

    def _own_slots(self, task: Task, how: TaskSlot) -> Int[Tensor, " k"]:
        c, first = self.config, self.tasks_seen_ * self.config.top_k
        own = torch.arange(first, first + c.top_k, device=self.backbone.device)
        prompting.require_room("L2P", c.pool, first + c.top_k, task)
        if how.copy_prev and first:
            self.pool_.copy(own - c.top_k, own)
        return own

    def _test_slots(self, queries: Float[Tensor, "b d"]) -> Int[Tensor, "b k"]:
        return picked(cosine_match(queries, self.pool_.keys), self.config.top_k, "batch" if self.config.vote else None)

    def _prompted(self, embedded: Float[Tensor, "b n d"], slots: Int[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        """What the head reads."""
        vit, tokens = self.backbone.vit, self.pool_.prompts[slots].flatten(1, 2)  # (b, k Lp, D)
        position = vit.pos_embed
        if self.config.prompt_pos == "cls" and position is not None:
            tokens = tokens + position[:, :1]
        out = self.backbone.walk(embedded, {0: Prompt(tokens, stays=True)})
        if self.config.head_input == "cls":
            return self.backbone.pool(out)
        mean = vit.fc_norm(out.prompts.float().mean(1))  # the identity, but where the model norms what it pools
        return mean if self.config.head_input == "prompt_mean" else (mean + self.backbone.pool(out)) / 2

    def _test_logits(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        return linear_scores(self._prompted(embedded, self._test_slots(queries)), self.head_)

    def _selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"]:
        return self.tests.shares(data, self.config.pool, self._test_slots)
