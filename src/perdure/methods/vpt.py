"""VPT: learned prompt tokens beside the image's own tokens, the same for every image, and a head on a frozen ViT.

Source: Jia et al., "Visual Prompt Tuning", ECCV 2022 (arXiv 2203.12119): *shallow* prompts enter before the first
    block and travel on, *deep* ones are new in every block. ``mode=first_task`` is APER with VPT (Zhou et al.,
    "Revisiting Class-Incremental Learning with Pre-Trained Models", IJCV 2024); its code's settings and LAMDA-PILOT's
    are presets (both agree on shallow prompts). ``mode=sequential``, one prompt set for all tasks, is the plain
    baseline; no recipe of it is published, and its settings are those that compare with CODA-Prompt.
Deviations: VPT's own settings were searched per data set, with warm-up, so there is no preset of them. The head starts
    small and with biases 0: the official N(0, 2/C) weights (``head_init=kaiming_fan_out``) are noise that Adam's small
    steps do not get rid of, and the bias of -log 99 acts on unseen classes only. Presets keep the published zero
    prompts, though their rows stay equal for ever; the published [0, 1] images are the backbone's preset ``lamda``.
    Published shallow settings for ImageNet-R contradict themselves and are left out, as are projected prompts and
    prompt dropout (off by default) and ``per_task`` prompts, which need the task at test time. Class means add up, so
    a class that comes again gets the mean of all its images.
Use when: a baseline is wanted between a linear probe and the prompt pools; ``first_task`` where nothing may be
    forgotten and the first task is large.
Relations: L2P and CODA-Prompt choose prompts by image. SimpleCIL is ``first_task`` without the prompted half.
Cost: per training image and epoch about 2.1 F, forward and backward. ``sequential``: one prompted pass per test image
    and task. ``first_task``: an image of a later task costs one frozen and one prompted pass; a test image one frozen
    pass ever and one prompted pass per evaluation (it is not kept, though it is the same each time). State: p D
    numbers, L p D if deep, and the head, or 2 D + 1 numbers per class.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone, Prompt
from perdure.data import Task
from perdure.errors import ConfigError
from perdure.memory import FeatureStore
from perdure.methods.base import Tags, methods
from perdure.methods.base_prompt import PromptBatch, PromptMethod
from perdure.methods.base_prompt_config import PromptConfig
from perdure.modules.cosine_head import CosineHead
from perdure.modules.gaussians import add_class_counts, add_class_sums
from perdure.modules.heads import GrowingLinear, cosine_scores
from perdure.train.loop import ScheduleName
from perdure.types import Event

PROMPTS = 2**32 - 1  # the generator of the prompts' initial values; tasks use their index
APER: dict[str, Any] = {
    "mode": "first_task", "length": 5, "init": "zeros", "head": "cosine", "head_init": "torch_linear",
    "optimizer": "sgd", "weight_decay": 5e-4, "schedule": "epoch_cosine", "min_scale": 0.05,
}  # fmt: skip


class VPTConfig(PromptConfig):
    """Settings of VPT."""

    presets: ClassVar = {
        "pilot_deep": {**APER, "lr": 0.01, "batch_size": 48},
        "pilot_shallow": {**APER, "lr": 0.01, "batch_size": 48, "variant": "shallow"},
        "pilot_deep_imagenet_r": {**APER, "lr": 0.05, "batch_size": 24, "length": 30},
        "revisitingcil_deep": {**APER, "lr": 0.05, "batch_size": 16, "epochs": 5},
    }

    lr: float = Field(1e-3, gt=0, description="learning rate; published ones are for SGD and too high for Adam")
    epochs: int = Field(20, ge=1, description="passes over each task that is trained on")
    batch_size: int = Field(128, ge=1, description="images per step")
    schedule: ScheduleName = Field("cosine", description="of the learning rate")
    clip_norm: float | None = Field(None, gt=0, description="largest norm of all gradients together; null: no clipping")
    variant: Literal["deep", "shallow"] = Field(
        "deep", description="new prompts in every block, or prompts before the first that travel on"
    )
    length: int = Field(10, ge=1, description="prompt tokens (p), per block if deep")
    init: Literal["uniform", "zeros"] = Field(
        "uniform", description="U(-v, v), v² = 6 / (3 s² + D) for patches of s pixels; zeros: p equal tokens for ever"
    )
    mode: Literal["sequential", "first_task"] = Field(
        "sequential", description="train on every task; or on the first, then only add class means"
    )
    head: Literal["linear", "cosine"] = Field(
        "linear", description="logits W f + b, or sigma cos(w, f) with a learned sigma"
    )
    pool: Literal["backbone", "cls", "prompt", "patch+prompt"] = Field(
        "backbone", description="the feature: the model's own, its class token, or the mean of these tokens"
    )


@methods.register("vpt")
class VPT(PromptMethod[VPTConfig]):
    """Tunes prompt tokens that every image gets.

    Raises:
        ConfigError: for ``pool=cls`` on a backbone without a class token.
    """

    Config = VPTConfig
    tags: ClassVar = Tags(
        prompted=True,
        small={"length": 2, "epochs": 1, "batch_size": 8},
        learns={"epochs": 12, "lr": 0.01, "min_scale": 1.0, "flip": False},
        expected_failures={"check_remembers_every_task": "every task moves the same prompts, and nothing holds them"},
    )

    def __init__(
        self,
        backbone: Backbone,
        config: VPTConfig | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        c, vit, device = self.config, backbone.vit, backbone.device
        if c.pool == "cls" and vit.cls_token is None:
            got = f"{backbone.name}, which has none"
            raise ConfigError("VPT", "backbone", "one with a class token for pool=cls", got, "Use pool=backbone")
        if c.init == "zeros" and c.length > 1:
            what = f"VPT: init=zeros keeps the {c.length} tokens of a block equal for ever, so that they act as one"
            warnings.warn(f"{what}. Use init=uniform, unless published numbers are to be repeated.", stacklevel=2)
        pixels = math.prod(vit.patch_embed.feat_ratio(as_scalar=False))  # s²; a hybrid stem's reduction included
        v = (6 / (3 * pixels + backbone.dim)) ** 0.5 if c.init == "uniform" else 0.0
        tokens = torch.zeros(self.n_blocks if c.variant == "deep" else 1, c.length, backbone.dim)
        tokens.uniform_(-v, v, generator=self._generator(PROMPTS))
        self.prompts_ = nn.ParameterList(p.clone().to(device) for p in tokens)  # P_l: (p, D) each
        self._new_head()
        self.counts_ = torch.zeros(0, dtype=torch.long)  # n_c, (classes,); of first_task, as are the sums
        self.sums_ = torch.zeros(0, 2 * backbone.dim, dtype=torch.float64)  # of [frozen; prompted] features

    @property
    def uses_queries(self) -> bool:  # type: ignore[override]
        """Whether frozen features are needed: they are half of what ``first_task`` decides by."""
        return self.config.mode == "first_task"

    @property
    def prototypes(self) -> Float[Tensor, "classes two_d"]:
        """P_c = s_c / n_c: each class's mean of [frozen; prompted] features, float64; of ``first_task``."""
        return self.sums_ / self.counts_[:, None]

    def learned_parameters(self) -> int:
        """Prompts and head; or prompts and the prototypes' values."""
        return super().learned_parameters() + self.sums_.numel()

    def _takes_train_queries(self) -> bool:
        return False

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        if self.config.mode == "sequential" or not self.tasks_seen_:
            super()._learn(task, rng)
        if self.config.mode == "first_task":
            self.prompts_.requires_grad_(False)
            self._new_head()  # class means take its place
            self._add_means(task)

    def _begin_task(self, task: Task, rng: torch.Generator) -> None:
        self.prompts_.requires_grad_(True)  # a first task that failed may have frozen them

    def _train_features(self, batch: PromptBatch) -> tuple[Float[Tensor, "b d"], Float[Tensor, ""]]:
        return self._prompted(batch.embedded), torch.zeros((), device=batch.embedded.device)

    def _test_features(self, embedded: Float[Tensor, "b n d"], queries: Tensor) -> Float[Tensor, "b d_or_two_d"]:
        prompted = self._prompted(embedded)
        return torch.cat([queries, prompted], dim=1) if self.uses_queries else prompted

    def _test_logits(self, embedded: Tensor, queries: Tensor) -> Float[Tensor, "b classes"]:
        if self.uses_queries:
            return cosine_scores(self._test_features(embedded, queries).cpu(), self.prototypes)
        if isinstance(self.head_, CosineHead):
            return self.head_.sigma * cosine_scores(self._test_features(embedded, queries), self.head_.weight)
        return super()._test_logits(embedded, queries)

    def _prompted(self, embedded: Float[Tensor, "b n d"]) -> Float[Tensor, "b d"]:
        """The feature f of the prompted pass."""
        out, pool = self.backbone.walk(embedded, self._prompts()), self.config.pool
        if pool == "backbone":
            return self.backbone.pool(out)
        means = out.prompts if pool == "prompt" else out.all[:, out.n_prefix :]
        return self.backbone.vit.fc_norm(out.cls.float() if pool == "cls" else means.float().mean(1))

    def _prompts(self) -> dict[int, Prompt]:
        """What each block gets; the last block's prompts stay, for their outputs may be read."""
        last = len(self.prompts_) - 1  # of a shallow prompt, the first block is the last
        return {i: Prompt(p[None], stays=i == last) for i, p in enumerate(self.prompts_)}

    def _add_means(self, task: Task) -> None:
        """Adds the features of the task's eval views to their classes: one prompted pass per image."""
        frozen = self.store.features(self.backbone, task.train, label="train features")
        columns, width = self.columns(task.train.labels), len(self.classes_)
        for rows, embedded in self._embedded(task.train, self.backbone.batch_size):
            with torch.no_grad():
                known = frozen[rows].to(embedded.device)
                features = self.backbone.in_batches(self._test_features, embedded, known).cpu()
            self.sums_ = add_class_sums(self.sums_, columns[rows], features, width)
            self.counts_ = add_class_counts(self.counts_, columns[rows], width)
            self.store.progress(Event("class means", int(rows[-1]) + 1, len(task.train)))

    def _new_head(self) -> None:
        head: Any = CosineHead if self.config.head == "cosine" else GrowingLinear
        self.head_ = head(self.backbone.dim).to(self.backbone.device)
