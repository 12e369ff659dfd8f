"""CoFiMA: after every task a weighted mean of the old and the new weights, each weight by its Fisher information.

Source: Marouf, Roy, Tartaglione & Lathuilière, "Weighted Ensemble Models Are Strong Continual Learners", ECCV 2024,
    arXiv 2312.08977. Its formula was read from the released code.
Use when: as SLCA, and what earlier tasks did to the backbone should fade slowly.
Deviations:
- From the released code: heads are not merged; there, left-over gradients count, and a new head all but vanishes.
- From the released code: where no information says anything, both weights are averaged; there, 0/0 is not a number.
- From the released code: of earlier tasks one backbone and one Fisher information are kept, not three copies each.
- From the released code: the task of a class is remembered; BatchNorm keeps its pretrained statistics.
- From the released code: the final norm keeps its weights; ``reset_final_norm=true``, in presets, forgets them.
- From the released code: crops are cut from the eval view, are bilinear, without jitter; see SLCA's list.
- The weight is the logs' 0.5, not the settings files' 0.4, which the released command line overwrites.
- Left out: heads merged as there, covariances of fewer numbers, and the longer runs on MoCo-v3 weights.
Relations: SLCA plus a merge; ``coma`` is it with one weight for all.
Cost: F is a forward pass. Training image: 3 F per epoch + 4 F, 3 of them for the information. Test image: F after each
    task. State: two backbones, two heads, and 8 min(n_c, d) d bytes per class of n_c images.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.config import published
from perdure.data import Task
from perdure.learned import Sizes, learned
from perdure.methods.base import Tags, methods
from perdure.methods.base_slow import LEARNS, SMALL, SlowMethod
from perdure.modules.merging import Merge
from perdure.train.fisher import FisherPass, by_name, fisher_of_images, in_a_row
from perdure.train.slow_learner import (
    SlowLearning,
    add_gaussians,
    align_heads,
    learn_slowly,
    merge_backbone,
    weights_of,
)


class CoFiMAConfig(SlowLearning):
    """Settings of CoFiMA."""

    presets: ClassVar = published("cofima")

    weight: float = Field(0.5, ge=0, le=1, description="of the new weights in the merge; the old ones have the rest")
    fisher: FisherPass = Field(FisherPass(), description="how the Fisher information of a task's weights is estimated")
    fisher_old: Literal["last", "running_mean"] = Field(
        "last", description="the old weights' information: the last task's, or the mean over all earlier tasks"
    )


@methods.register("cofima")
class CoFiMA(SlowMethod[CoFiMAConfig]):
    """argmax over the aligned heads' scores of features under merged weights."""

    Config = CoFiMAConfig
    tags: ClassVar = Tags(trains_backbone=True, small=SMALL, learns=LEARNS)

    fisher_: Tensor = learned(
        "weights", torch.float32, "information of each of the backbone's weights", merges="fisher", under="backbone_"
    )

    def sizes(self) -> Sizes:
        """weights: of the backbone."""
        return {"weights": sum(p.numel() for p in self.backbone.model.parameters())}

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        before = weights_of(self.backbone_)
        learn_slowly(self, task, rng)
        self._merge(task, before, rng)
        add_gaussians(self, task)  # of features under the merged weights
        align_heads(self, rng)

    def _merge(self, task: Task, before: dict[str, Tensor], rng: torch.Generator) -> None:
        """The information is that of the task's own weights, before they are merged; the first task's stay theirs."""
        c, columns = self.config, self.columns(task.train.labels)
        new = fisher_of_images(
            self.backbone_, self.raw_head_, task.train, columns, c.fisher, c.train, rng, self.store
        )  # fmt: skip
        old = by_name(self.fisher_, self.backbone_)
        if self.tasks_seen_:
            merge_backbone(self, before, c.weight, fisher_old=old, fisher_new=new)
        if c.fisher_old == "running_mean":
            new = Merge(how="running_mean").of(old, new, states=self.tasks_seen_)
        self.fisher_ = in_a_row(new)
