"""CoMA: after every task the mean of the old and the new weights.

Source: Marouf, Roy, Tartaglione & Lathuilière, "Weighted Ensemble Models Are Strong Continual Learners", ECCV 2024,
    arXiv 2312.08977. The step was read from the released code.
Use when: as SLCA, and what earlier tasks did to the backbone should fade slowly.
Deviations:
- From the released code: heads are not merged.
- From the released code: of earlier tasks one backbone is kept, not two copies each.
- From the released code: the task of a class is remembered; BatchNorm keeps its pretrained statistics.
- From the released code: the final norm keeps its weights; ``reset_final_norm=true``, in presets, forgets them.
- From the released code: crops are cut from the eval view, are bilinear, without jitter; see SLCA's list.
- The weight is the logs' 0.5, not the settings files' 0.4, which the released command line overwrites.
- Left out: covariances of fewer numbers, and the longer runs on MoCo-v3 weights.
Relations: SLCA plus a merge; ``cofima`` weighs each weight by its Fisher information.
Cost: F is a forward pass. Training image: 3 F per epoch + F. Test image: F after each task. State: a backbone, two
    heads, and 8 min(n_c, d) d bytes per class of n_c images.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from perdure.config import published
from perdure.data import Task
from perdure.methods.base import Tags, methods
from perdure.methods.base_slow import LEARNS, SMALL, SlowMethod
from perdure.train.slow_learner import (
    SlowLearning,
    add_gaussians,
    align_heads,
    learn_slowly,
    merge_backbone,
    weights_of,
)


class CoMAConfig(SlowLearning):
    """Settings of CoMA."""

    presets: ClassVar = published("cofima")  # the same files, whose merge has no Fisher information

    weight: float = Field(0.5, ge=0, le=1, description="of the new weights in the merge; the old ones have the rest")


@methods.register("coma")
class CoMA(SlowMethod[CoMAConfig]):
    """argmax over the aligned heads' scores of features under merged weights."""

    Config = CoMAConfig
    tags: ClassVar = Tags(trains_backbone=True, small=SMALL, learns=LEARNS)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        before = weights_of(self.backbone_)
        learn_slowly(self, task, rng)
        if self.tasks_seen_:
            merge_backbone(self, before, self.config.weight)
        add_gaussians(self, task)  # of features under the merged weights
        align_heads(self, rng)
