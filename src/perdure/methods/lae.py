"""LAE: one small module that learns task after task, a slower copy that gathers what it learns, and both decide.

Source: Gao, Zhao, Sun, Xi, Zhang, Ghanem & Zhang, "A Unified Continual Learning Framework with General
    Parameter-Efficient Tuning", ICCV 2023, arXiv 2303.10070. The presets are its code's settings and LAMDA-PILOT's.
Use when: no image may be kept and memory must not grow; the adapter works on Swin and ConvNeXt too.
Deviations:
- From the paper: a task replaces ``turnover`` of the offline expert, in however few steps; ``turnover=null`` has alpha.
- From the released code: alpha (``decay``) is for 24 images per step; for B images it is raised to B / 24.
- From the released code: the last, smaller batch is learned from too; ``train.drop_last=always``, in its presets.
- From the released code: pixels are normalised as the weights want it; ``backbone.preset=lae`` leaves them in [0, 1].
- From the released code: Swin averages all tokens, without stochastic depth; ConvNeXt keeps its final norm.
- From LAMDA-PILOT's code: adapter and LoRA work; its EMA from the initial values on is ``pilot_start``.
Relations: SLCA slows the whole backbone down instead; EASE keeps one adapter per task. ``finetune`` has no slow copy.
Cost: F is a frozen forward pass. Training image: F per held epoch (F once where views stay), else 2 F. Test image: 2 F
    after every task, F after the first. State: two modules (of ViT-B 42,270 numbers each) and d + 1 numbers per class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor, nn

from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.learned import learned_module
from perdure.methods.base import Method, Tags, methods
from perdure.modules.ensemble import Maximum, combined
from perdure.modules.heads import GrowingLinear, HeadInit, linear_scores
from perdure.modules.merging import pull_, rescaled
from perdure.train.adapting import adaptable
from perdure.train.batches import Batch
from perdure.train.calibrated import Calibrated, CalibratedAdapter
from perdure.train.session import on_images
from perdure.train.settings import Adam, Augment, Constant, ImageTraining

TRAIN = ImageTraining(
    lr=0.03, epochs=5, batch_size=24, scale_lr=True, optimizer=Adam(), schedule=Constant(),
    augment=Augment(min_scale=0.08),
)  # fmt: skip
MEANT_FOR = 24  # images per step


class LAEConfig(MethodConfig):
    """Settings of LAE."""

    presets: ClassVar = published("lae")

    module: Calibrated = Field(CalibratedAdapter(), discriminator="variant", description="what learns in the backbone")
    train: ImageTraining = Field(TRAIN, description="of the online module and the task's rows of the head")
    held: float = Field(0.6, ge=0, lt=1, description="share of the epochs, from the second task on, for the head alone")
    turnover: float | None = Field(
        0.4, gt=0, lt=1, description="share of the offline module that a task replaces; 0.39 is alpha in 5000 steps"
    )
    decay: float = Field(0.9999, gt=0, lt=1, description="alpha, per step of 24 images; used where turnover is null")
    head_init: HeadInit = Field("normal_0.001", description="initial weights of new classes")
    pilot_start: bool = Field(False, description="held and turnover (or decay) act on the first task, too")


@methods.register("lae")
class LAE(Method[LAEConfig]):
    """The larger of two experts' probabilities, class by class: one learns, the other follows it slowly.

    Raises:
        BackboneError: if the backbone has no seat for the module's variant, naming the variants that it has.
    """

    Config = LAEConfig
    tags: ClassVar = Tags(
        adapts=True,
        small={"module": {"rank": 2, "blocks": 2}, "train": {"epochs": 2, "batch_size": 8}},
        learns={"train": {"epochs": 10, "lr": 0.1, "augment": {"min_scale": 1.0, "flip": False}}, "held": 0.5},
        expected_failures={"check_remembers_every_task": "no loss compares classes of two tasks with each other"},
    )

    online_: nn.Module = learned_module({}, "theta_on: learns the present task", rest="module")
    offline_: nn.Module = learned_module({}, "theta_off: follows it from the second task on", rest="module")
    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "of both")

    def setup(self) -> None:
        """Two views of the backbone, with equal modules; an empty head."""
        module, first = self.config.module, self._initial
        self.learner, self.online_ = adaptable(self.backbone, module, first())
        self.follower, self.offline_ = adaptable(self.backbone, module, first())
        self.head_ = GrowingLinear(self.backbone.dim)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, view, columns = self.config, self.learner, self.columns(task.train.labels)
        follows = bool(self.tasks_seen_) or c.pilot_start
        n_held = int(c.held * c.train.epochs) if follows else 0
        known = None  # features of the epochs in which nothing in the backbone learns, where views stay
        if n_held and not c.train.augment.changes_views:
            known = self.store.features(view, task.train, label="train features")
        self.head_.grow(len(self.classes_), rng, c.head_init)
        with self.head_.apart(columns) as (head, own):
            session = on_images(view, task.train, own, c.train, rng, self.store, fast=[self.online_, head])

            def loss(batch: Batch) -> Tensor:
                if known is not None and session.epoch < n_held:
                    return F.cross_entropy(head(known[batch.positions.numpy()].to(view.device)), batch.columns)
                return F.cross_entropy(head(batch.features(view)), batch.columns)

            def hold() -> None:
                self.online_.requires_grad_(session.epoch >= n_held)

            def follow() -> None:
                if follows:
                    pull_([*self.offline_.parameters()], [*self.online_.parameters()], self.share(session.n_steps))

            session.run(loss, before_epoch=hold, after_step=follow)
        if not follows:
            self.offline_.load_state_dict(self.online_.state_dict())

    def share(self, n_steps: int) -> float:
        """1 - alpha: how much of the offline module a step replaces.

        Args:
            n_steps: of the whole task.
        """
        c = self.config
        if c.turnover is not None:
            return float(1 - (1 - c.turnover) ** (1 / n_steps))
        return 1 - rescaled(c.decay, MEANT_FOR, c.train.batch_size)

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        for both in self.store.side_by_side([self.learner, self.follower], data, label="test features"):
            yield self._ensemble(both)

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._ensemble([view.features(images).cpu() for view in (self.learner, self.follower)])

    def _ensemble(self, features: Sequence[Float[Tensor, "b d"]]) -> Float[Tensor, "b classes"]:
        """Logarithms of the larger probability: their softmax is that of p / sum(p)."""
        logits = [linear_scores(f.to(self.head_.weight.device), self.head_) for f in features]
        return combined(logits, [range(len(self.classes_))] * len(logits), Maximum())

    def _members_of(self, data: LabelledImages) -> dict[str, Iterator[Float[Tensor, "b classes"]]]:
        """Online and offline expert alone; no image passes for it that has not passed for the scores."""
        views = {"online": self.learner, "offline": self.follower}
        rows = {name: self.store.features(view, data, label="test features") for name, view in views.items()}
        return {name: (self._ensemble([f]) for f in features.batches()) for name, features in rows.items()}
