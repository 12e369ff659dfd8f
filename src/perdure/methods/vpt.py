"""VPT: learned prompt tokens beside the image's own tokens, the same for every image, and a head on a frozen ViT.

Source: Jia et al., "Visual Prompt Tuning", ECCV 2022, arXiv 2203.12119. ``mode=first_task`` is APER with VPT (Zhou et
    al., IJCV 2024, arXiv 2303.07338), and the settings of its code and of LAMDA-PILOT are presets.
Use when: a baseline is wanted between a linear probe and the prompt pools; ``mode=first_task`` where nothing may be
    forgotten and the first task is large.
Deviations:
- From the paper: one prompt set learns all tasks in turn, with settings that compare with CODA-Prompt's.
- From the released code: new head rows are small, biases 0; its weights are ``head_init=kaiming_fan_out``.
- From APER's code: prompts start at random; its zeros (``init=zeros``, in the presets) stay equal for ever.
- From APER's code: class means add up, so a class that comes again gets the mean of all its images.
Relations: L2P and CODA-Prompt choose prompts by image. SimpleCIL is ``mode=first_task`` without the prompted half.
Cost: F is a frozen forward pass. Training image: 2.1 F per epoch. Test image: F per task; ``first_task``: F once more,
    and 2 F once for a later task's images. State: p D numbers, L p D if deep, and the head, or 2 D + 1 per class.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Prompt
from perdure.config import MethodConfig, published
from perdure.data import Task
from perdure.errors import ConfigError
from perdure.learned import Sizes, learned, learned_module
from perdure.methods.base import PromptMethod, Tags, methods
from perdure.modules.cosine_head import EITHER, CosineHead, head_scores, new_head
from perdure.modules.gaussians import add_class_counts
from perdure.modules.heads import GrowingLinear, HeadInit, cosine_scores
from perdure.modules.losses import masked_cross_entropy
from perdure.modules.prompts import vpt_prompts
from perdure.modules.prototypes import add_class_chunks
from perdure.train import prompting
from perdure.train.batches import Batch
from perdure.train.settings import ImageTraining

Mode = Literal["sequential", "sequential_seen", "first_task"]
TRAIN = prompting.TRAIN.but(epochs=20, batch_size=128, schedule="cosine", clip_norm=None)


class VPTConfig(MethodConfig):
    """Settings of VPT."""

    presets: ClassVar = published("vpt")

    train: ImageTraining = Field(TRAIN, description="of prompts and head; published rates are for SGD, not for Adam")
    mode: Mode = Field("sequential", description="learn every task (of all classes seen), or one and add class means")
    variant: Literal["deep", "shallow"] = Field("deep", description="prompts in every block, or in the first to stay")
    length: int = Field(10, ge=1, description="prompt tokens (p), per block if deep")
    init: Literal["uniform", "zeros"] = Field("uniform", description="as VPT's; zeros: p equal tokens for ever")
    head: Literal["linear", "cosine"] = Field("linear", description="W f + b, or sigma cos(w, f) with a learned sigma")
    head_init: HeadInit = Field("normal_0.02", description="initial weights of new classes")
    pool: Literal["backbone", "cls", "prompt", "patch+prompt"] = Field("backbone", description="tokens it pools for f")


@methods.register("vpt")
class VPT(PromptMethod[VPTConfig]):
    """Tunes prompt tokens that every image gets.

    Raises:
        ConfigError: for ``pool=cls`` on a backbone without a class token.
    """

    Config = VPTConfig
    tags: ClassVar = Tags(
        backbone="vit",
        prompted=True,
        small={"length": 2, "train": {"epochs": 1, "batch_size": 8}},
        learns={"train": {"epochs": 12, "lr": 0.01, "augment": {"min_scale": 1.0, "flip": False}}},
        expected_failures={"check_remembers_every_task": "every task moves the same prompts, and nothing holds them"},
    )

    prompts_: nn.ParameterList = learned_module({"<blocks>": learned("p, d", torch.float32)}, "P_l, by block")
    head_: CosineHead | GrowingLinear = learned_module(EITHER, "W, and b or sigma; empty for first_task")
    counts_: Tensor = learned("means classes", torch.long, "n_c: images of each class", merges="added")
    sums_: Tensor = learned("means classes, 2 d", torch.float64, "s_c: of both", merges="added", under="prompts_")

    def sizes(self) -> Sizes:
        """blocks: that get prompts; p: tokens of each; heads: 1, or 0 for first_task, for which means is 1."""
        c, means = self.config, int(self.by_means)
        n_blocks = len(self.backbone.vit.blocks) if c.variant == "deep" else 1
        return {"blocks": n_blocks, "p": c.length, "heads": 1 - means, "means": means}

    def setup(self) -> None:
        """Prompts at their initial values, an empty head, and no class mean."""
        c, vit, backbone = self.config, self.backbone.vit, self.backbone
        if c.pool == "cls" and vit.cls_token is None:
            raise ConfigError("VPT", "backbone", "one with a class token", backbone.name, "Use method.pool=backbone")
        patch = vit.patch_embed.feat_ratio(as_scalar=False) if c.init == "uniform" else ()  # of a hybrid stem too
        self.prompts_ = vpt_prompts(self.sizes()["blocks"], c.length, backbone.dim, patch, self._initial())
        self.head_ = new_head(c.head, backbone.dim)
        self.tests = prompting.PromptTests(backbone, self.store, self._test_logits, queries=self.by_means)

    @property
    def by_means(self) -> bool:
        """Whether class means decide."""
        return self.config.mode == "first_task"

    @property
    def prototypes(self) -> Float[Tensor, "classes two_d"]:
        """P_c = s_c / n_c: each class's mean of [frozen; prompted] features, float64; of ``first_task``."""
        return self.sums_ / self.counts_[:, None]

    def learned_parameters(self) -> int:
        """Prompts and head; or prompts and the prototypes' values."""
        return super().learned_parameters() + self.sums_.numel()

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        if not (self.by_means and self.tasks_seen_):
            self._tune(task, rng)
        if self.by_means:  # the features of the task's eval views are added: class means take the head's place
            self.head_ = new_head(self.config.head, self.backbone.dim).to(self.backbone.device)
            columns, width = self.columns(task.train.labels), len(self.classes_)
            features = prompting.PromptTests(self.backbone, self.store, self._both).scores_of(task.train)
            self.sums_ = add_class_chunks(self.sums_, columns, features, width)
            self.counts_ = add_class_counts(self.counts_, columns, width)

    def _tune(self, task: Task, rng: torch.Generator) -> None:
        c, columns = self.config, self.columns(task.train.labels)
        self.head_.grow(len(self.classes_), rng, c.head_init)
        compared = prompting.columns_in_loss(columns, "current" if c.mode == "sequential" else "seen")

        def loss(batch: Batch) -> Tensor:
            logits = self.head_(self._prompted(batch.embedded(self.backbone)).float())
            return masked_cross_entropy(logits, batch.columns, compared)

        self._train(task, c.train, rng, loss, [self.head_, self.prompts_])

    def _prompted(self, embedded: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """The feature f of the prompted pass; prompts stay behind the last block that gets new ones, to be read."""
        pool, last = self.config.pool, len(self.prompts_) - 1
        prompts = {i: Prompt(p[None], stays=i == last) for i, p in enumerate(self.prompts_)}
        out = self.backbone.walk(embedded, prompts)
        if pool == "backbone":
            return self.backbone.pool(out)
        means = out.prompts if pool == "prompt" else out.all[:, out.n_prefix :]
        return self.backbone.vit.fc_norm(out.cls.float() if pool == "cls" else means.float().mean(1))

    def _both(self, embedded: Float[Tensor, "b n d"], frozen: Float[Tensor, "b d"]) -> Float[Tensor, "b two_d"]:
        return torch.cat([frozen, self._prompted(embedded)], dim=1)

    def _test_logits(self, embedded: Float[Tensor, "b n d"], frozen: Tensor) -> Float[Tensor, "b classes"]:
        if self.by_means:
            return cosine_scores(self._both(embedded, frozen).cpu(), self.prototypes)
        return head_scores(self._prompted(embedded), self.head_)
