"""SLCA: a slowly learned backbone, and heads aligned on samples from one Gaussian per class.

Source: Zhang, Wang, Kang, Chen & Wei, "SLCA: Slow Learner with Classifier Alignment for Continual Learning on a
    Pre-trained Model", ICCV 2023, arXiv 2303.05118.
Use when: the backbone itself should adapt, there is time to train all of it, and images must not be kept.
Deviations:
- From the released code: the task of a class is remembered, not computed from equal task sizes.
- From the released code: BatchNorm keeps its pretrained statistics.
- From the released code: the final norm keeps its weights; ``reset_final_norm=true``, in presets, forgets them.
- From the released code: crops are cut from the eval view, are bilinear, and keep half of it (``train.augment``).
- From the released code: CUB and Cars get windows of whole images by ``train.augment.resize=300`` (presets) alone.
- From the released code: no brightness jitter, which it has on CIFAR.
- An extension: a class that comes again (a new domain) gets one more Gaussian, and its head goes on learning.
- Left out: SLCA++, and the longer runs on MoCo-v3 weights.
Relations: ``finetune`` without the slow rate and the alignment forgets; MOS aligns heads in the same way on adapters.
Cost: F is a forward pass. Training image: 3 F per epoch + F. Test image: F after each task. State: a backbone, two
    heads, and 8 min(n_c, d) d bytes per class of n_c images.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from perdure.config import published
from perdure.data import Task
from perdure.methods.base import Tags, methods
from perdure.methods.base_slow import SlowMethod
from perdure.train.slow_learner import SlowLearning, add_gaussians, align_heads, learn_slowly


class SLCAConfig(SlowLearning):
    """Settings of SLCA."""

    presets: ClassVar = published("slca")


@methods.register("slca")
class SLCA(SlowMethod[SLCAConfig]):
    """argmax over the aligned heads' scores of features that moved slowly."""

    Config = SLCAConfig
    tags: ClassVar = Tags(
        trains_backbone=True,
        small={
            "train": {"epochs": 2, "schedule": {"name": "milestone", "milestone": 1}, "batch_size": 8},
            "align": {"epochs": 1, "samples": 8, "batch_size": 8},
        },
        learns={
            "train": {
                "epochs": 6, "schedule": {"name": "milestone", "milestone": 5}, "lr": 0.1,
                "augment": {"min_scale": 1.0, "flip": False},
            },
            "align": {"lr": 0.1, "epochs": 40, "samples": 64, "batch_size": 64}, "slow": 0.001,
        },
    )  # fmt: skip

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        learn_slowly(self, task, rng)
        add_gaussians(self, task)
        align_heads(self, rng)
