"""What SLCA, CoMA and CoFiMA start from: a network that learns slowly, two heads, and a Gaussian per class."""

from __future__ import annotations

from typing import Any, Final, TypeVar

from jaxtyping import Float, Num
from torch import Tensor

from perdure.backbone import Backbone
from perdure.learned import learned, learned_module
from perdure.methods.base_method import Method
from perdure.modules.gaussians import Gaussians
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.train.slow_learner import SlowLearning, start

C = TypeVar("C", bound=SlowLearning)
SMALL: Final[dict[str, Any]] = {
    "train": {"epochs": 1, "schedule": {"name": "constant"}, "batch_size": 8},
    "align": {"epochs": 1, "samples": 8, "batch_size": 8},
}
"""``tags.small`` of the methods that merge."""
LEARNS: Final[dict[str, Any]] = {
    "train": {"epochs": 4, "lr": 0.1, "augment": {"min_scale": 1.0, "flip": False}},
    "align": {"lr": 0.1, "epochs": 40, "samples": 64, "batch_size": 64},
    "slow": 0.001,
}
"""Their ``tags.learns``."""


class SlowMethod(Method[C]):
    """A fine-tuned network under aligned heads; its two stages are in :mod:`perdure.train.slow_learner`."""

    backbone_: Backbone = learned_module({}, "a copy that learns", rest="backbone")
    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "aligned: what tests use")
    raw_head_: GrowingLinear = learned_module(GrowingLinear.STATE, "what the next task and alignment start from")
    slot_columns_: list[int] = learned("slots", int, "column of each Gaussian", below="classes")
    slot_tasks_: list[int] = learned("slots", int, "task of each Gaussian", below="tasks")
    gaussians_: Gaussians = learned_module(Gaussians.state("slots"), "one per class and task")
    task_of_: list[int] = learned("classes", int, "task in which each class came first", below="tasks")

    def setup(self) -> None:
        """A copy of the backbone, and no class yet."""
        start(self)

    def learned_parameters(self) -> int:
        """The network and the aligned heads."""
        return sum(p.numel() for m in (self.backbone_, self.head_) for p in m.parameters())

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return linear_scores(self.backbone_.features(images), self.head_).cpu()
