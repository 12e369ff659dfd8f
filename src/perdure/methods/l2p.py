"""L2P: a pool of prompts, of which every image picks those whose keys match its frozen feature best.

Source: Wang et al., "Learning to Prompt for Continual Learning", CVPR 2022 (arXiv 2112.08654). Settings of the official
    JAX code (google-research/l2p) and of its PyTorch ports as presets.
Deviations: an image picks its prompts alone, in training and in a test; the published code lets the batch vote, which
    in a test tells it the task (``select_train``, ``select_eval``). Unseen classes are never predicted: the head grows.
    Gradients are clipped by the norm of what learns, not of the frozen backbone's too. Settings are the PyTorch
    port's, which reproduced the paper's CIFAR-100 figure, but crops keep half of the image, and are cut from the eval
    view, not from a larger one (no JPEG in between, as the JAX code has it). Pixels are normed as the weights want it;
    published [0, 1] inputs are the backbone's preset ``lamda``. Left out: "L2P++" (CODA-Prompt's repository), another
    method, of prefixes, whose loss pulls every image to keys that others chose; prompts and keys shared by blocks; and
    the CORe50 setting, which trains the whole backbone.
Use when: a ViT is given and only a few small tensors may be learned and stored. The head compares the classes of one
    task alone: with two or three classes a task, tasks are confused unless their images pick different prompts, so
    raise ``pool``. Watch the shares in ``selection_of``: if one set serves all, ``train_prompt=task_slot`` is a remedy.
Relations: DualPrompt gives each task prompts of its own, CODA-Prompt mixes all of them with learned weights.
Cost: per training image 1 F for the query and about 2.3 F for the prompted pass, forward and backward; per test image
    and task one prompted pass of about 1.1 F, queries once in all. State: M (Lp + 1) D numbers and the head.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone, Prompt
from perdure.data import LabelledImages, Task
from perdure.errors import ConfigError
from perdure.memory import FeatureStore
from perdure.methods.base import Tags, methods
from perdure.methods.base_prompt import PromptBatch, PromptMethod
from perdure.methods.base_prompt_config import SelectionConfig
from perdure.modules.prompts import best_slots, cosine_match, vote_in_groups

VOTES = {"select_train": "batch_vote", "select_eval": "batch_vote"}
PROMPTS = 2**32 - 1  # the generator of the pool's initial values; tasks use their index
PORT = {"lr": 0.03, "scale_lr": True, "epochs": 5, "min_scale": 0.05}


class L2PConfig(SelectionConfig):
    """Settings of L2P."""

    presets: ClassVar = {
        "paper": {**VOTES, **PORT, "scale_lr": False, "batch_size": 128, "pull": 0.5, "eval_batch": 128},
        "official_jax": {
            **VOTES, **PORT, "batch_size": 128, "train_vote_group": 16, "length": 10, "top_k": 4, "pull": 1.0,
            "init": "uniform_0_001", "head_init": "zeros", "drop_last": "always",
        },
        "pilot": {
            **VOTES, **PORT, "lr": 0.001875, "scale_lr": False, "clip_norm": None, "prompt_pos": "cls",
            "eval_order": "class_sorted",
        },
        "mammoth": {**VOTES, **PORT, "batch_size": 128, "min_scale": 0.08, "pull": 0.5, "prompt_pos": "cls",
                    "eval_batch": 128},
    }  # fmt: skip

    lr: float = Field(0.03, gt=0, description="learning rate for 256 images per step")
    scale_lr: bool = Field(True, description="multiply lr by batch_size / 256, the linear scaling rule")
    pool: int = Field(10, ge=1, description="prompts in the pool (M)")
    length: int = Field(5, ge=1, description="tokens per prompt (Lp)")
    top_k: int = Field(5, ge=1, description="prompts an image picks (N)")
    pull: float = Field(0.1, ge=0, description="weight of the keys' own loss (lambda)")
    init: Literal["uniform_pm1", "uniform_0_001", "uniform_0_1"] = Field(
        "uniform_pm1", description="prompts and keys from U(-1, 1), U(0, 0.01) or U(0, 1)"
    )
    prompt_pos: Literal["none", "cls"] = Field(
        "none", description="cls adds the class token's position embedding to every prompt token"
    )
    head_input: Literal["prompt_mean", "cls", "cls+prompt"] = Field(
        "prompt_mean", description="what the head reads: the mean prompt token, the pooled feature, or their mean"
    )
    select_train: Literal["instance", "batch_vote"] = Field(
        "instance", description="batch_vote: the training batch picks together"
    )
    train_vote_group: int | None = Field(None, ge=1, description="images that vote together in training; null: a batch")
    train_prompt: Literal["match", "task_slot"] = Field(
        "match", description="task_slot: task t learns the N slots from t N on; tests match as ever"
    )
    copy_prev: bool = Field(False, description="with task_slot, start a task's prompts from the previous task's")


class PromptPool(nn.Module):
    """Prompts (M, Lp, D) and their keys (M, D)."""

    def __init__(self, pool: int, length: int, dim: int, init: str, rng: torch.Generator) -> None:
        super().__init__()
        low, high = {"uniform_pm1": (-1.0, 1.0), "uniform_0_001": (0.0, 0.01), "uniform_0_1": (0.0, 1.0)}[init]
        self.prompts = nn.Parameter(torch.empty(pool, length, dim).uniform_(low, high, generator=rng))
        self.keys = nn.Parameter(torch.empty(pool, dim).uniform_(low, high, generator=rng))


@methods.register("l2p")
class L2P(PromptMethod[L2PConfig]):
    """Picks prompts by the frozen feature and reads the class off their outputs.

    Raises:
        ConfigError: if more prompts are to be picked than there are.
    """

    Config = L2PConfig
    tags: ClassVar = Tags(
        prompted=True,
        small={"pool": 4, "length": 2, "top_k": 2, "epochs": 1, "batch_size": 8},
        # two-class tasks teach no more than the difference of their classes: so many prompts that classes share few
        learns={"pool": 32, "epochs": 10, "batch_size": 4, "lr": 0.05, "min_scale": 1.0, "flip": False},
    )

    def __init__(
        self,
        backbone: Backbone,
        config: L2PConfig | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        c = self.config
        if c.top_k > c.pool:
            raise ConfigError("L2P", "top_k", f"at most pool = {c.pool}", c.top_k, "Raise method.pool")
        vit = backbone.vit
        if c.prompt_pos == "cls" and (vit.pos_embed is None or vit.cls_token is None or vit.no_embed_class):
            must_be = "one whose class token has a position embedding, for prompt_pos=cls"
            raise ConfigError("L2P", "backbone", must_be, backbone.name, "Set method.prompt_pos=none")
        rng = self._generator(PROMPTS)
        self.pool_ = PromptPool(c.pool, c.length, backbone.dim, c.init, rng).to(backbone.device)

    def _begin_task(self, task: Task, rng: torch.Generator) -> None:
        c, first = self.config, self.tasks_seen_ * self.config.top_k
        self.task_slots = torch.arange(first, first + c.top_k, device=self.backbone.device)
        if c.train_prompt == "match":
            return
        if first + c.top_k > c.pool:
            hint = f"Set method.pool={first + c.top_k} or more"
            raise ConfigError("L2P", "pool", f"at least {first + c.top_k} for task {task.index}", c.pool, hint)
        if c.copy_prev and first:
            values = self.pool_.prompts.detach().clone()
            values[first : first + c.top_k] = values[first - c.top_k : first]
            self.pool_.prompts = nn.Parameter(values)

    def _train_features(self, batch: PromptBatch) -> tuple[Float[Tensor, "b d"], Float[Tensor, ""]]:
        c, match = self.config, cosine_match(batch.queries, self.pool_.keys)  # (b, M)
        if c.train_prompt == "task_slot":
            slots = self.task_slots.expand(len(match), -1)
        else:
            slots = best_slots(match, c.top_k)
            if c.select_train == "batch_vote":
                slots = vote_in_groups(slots, c.pool, c.train_vote_group or len(slots))
        pull = match.gather(1, slots).sum(1).mean()
        return self._prompted(batch.embedded, slots), -c.pull * pull

    def _test_features(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        return self._prompted(embedded, self._test_slots(queries))

    def _test_slots(self, queries: Float[Tensor, "b d"]) -> Int[Tensor, "b k"]:
        slots = best_slots(cosine_match(queries, self.pool_.keys), self.config.top_k)
        return vote_in_groups(slots, self.config.pool, len(slots)) if self.depends_on_test_batch else slots

    def _prompted(self, embedded: Float[Tensor, "b n d"], slots: Int[Tensor, "b k"]) -> Float[Tensor, "b d"]:
        vit, tokens = self.backbone.vit, self.pool_.prompts[slots].flatten(1, 2)  # (b, k Lp, D)
        position = vit.pos_embed
        if self.config.prompt_pos == "cls" and position is not None:
            tokens = tokens + position[:, :1]
        out = self.backbone.walk(embedded, {0: Prompt(tokens, stays=True)})
        if self.config.head_input == "cls":
            return self.backbone.pool(out)
        mean = vit.fc_norm(out.prompts.float().mean(1))  # the identity, but where the model norms what it pools
        return mean if self.config.head_input == "prompt_mean" else (mean + self.backbone.pool(out)) / 2

    def selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"]:
        """The share of picks that each of the M prompts gets; images that vote together in a test do so here."""
        return self._shares(data, self.config.pool, self._test_slots)
