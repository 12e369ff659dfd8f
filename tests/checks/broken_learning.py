"""Faults of learning, planted in the sound method of ``broken`` and in real methods; a common check must catch each.

Source: none. Deviations: all. Use when: never. Relations: the methods they are planted in. Cost: trust.
"""

from __future__ import annotations

import copy
import types
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from broken import Means
from torch import Tensor, nn

from perdure.methods import Method, Tags, methods
from perdure.modules.heads import GrowingLinear, linear_scores

DAP, EASE, FeCAM, MOS, RanPAC, SimpleCIL, VPT = map(
    methods.get, ("dap", "ease", "fecam", "mos", "ranpac", "simplecil", "vpt")
)


class ShufflesLaterLabels(Means):
    """Learns the first task well, and later ones with labels in any order."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        order = torch.randperm(len(columns), generator=rng) if self.tasks_seen_ else slice(None)
        super()._learn_features(features, columns[order], rng)


class MixesUpTheNewest(Means):
    """Answers the newest task's classes in the other order, from the third task on."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        scores = super()._scores_from_features(features)
        return torch.cat([scores[:, :-2], scores[:, -2:].flip(1)], dim=1) if self.tasks_seen_ > 2 else scores


class NeverAnswersTheNewest(Means):
    """Hides the classes of the newest task behind all others, once there are others."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        scores = super()._scores_from_features(features)
        return torch.cat([scores[:, :-2], scores[:, -2:] - 2], dim=1) if self.tasks_seen_ > 1 else scores


class LearnsEverySecondImage(Means):
    """Reads half of a task's images."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features[:][::2], columns[::2], rng)


class LooksAtNoLabel(Means):
    """Gives the images to the task's classes by turns."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns.unique().repeat(len(columns))[: len(columns)], rng)


class WithHead(Means):
    """Sound: adds the scores of a linear head, which is set in one step from the class means."""

    tags: ClassVar = Tags()

    def setup(self) -> None:
        super().setup()
        self.head_ = GrowingLinear(self.backbone.dim)

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.head_ = GrowingLinear(self.backbone.dim)
        self.head_.grow(len(self.sums_), rng)
        self._train()
        self.head_.requires_grad_(False)

    def _train(self) -> None:
        self.head_.weight = nn.Parameter(self.head_.weight.data + F.normalize(self.sums_, dim=1).float())
        self.head_.bias = nn.Parameter(self.sums_.abs().mean(1).float() / self.sums_.abs().sum().float())

    def _scores_from_features(self, features: Tensor) -> Tensor:
        return super()._scores_from_features(features) + linear_scores(features, self.head_)


class HeadNeverTrained(WithHead):
    """Keeps the head as it was drawn."""

    def _train(self) -> None:
        pass


class SecondHeadNeverTrained(WithHead):
    """Trains its head on the first task alone, and draws it anew for the second."""

    def _train(self) -> None:
        if not self.tasks_seen_:
            super()._train()


class HeadNeverAsked(WithHead):
    """Trains a head and answers without it."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        return Means._scores_from_features(self, features)


class ReturningClassOverwrites(Means):
    """Forgets what it knew of a class that comes again."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        again = columns.unique()
        self.sums_ = self.sums_.index_fill(0, again[again < len(self.sums_)], 0.0)
        super()._learn_features(features, columns, rng)


class PortionsWeighAlike(Means):
    """Adds up the means of portions, however many images they have."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        shares = 1 / F.one_hot(columns).sum(0).clamp(min=1).double()
        super()._learn_features(features[:].double() * shares[columns, None], columns, rng)


class KeepsAnOldAnswer(Means):
    """Derives its means once for every number of classes, so that a class that comes again changes nothing."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        kept = self.__dict__.setdefault("kept", {})
        unit = kept.setdefault(len(self.sums_), F.normalize(self.sums_, dim=1))
        return (F.normalize(features.double(), dim=1) @ unit.T).float()


class KeepsTheFirstAnswer(Means):
    """Derives its means when first asked, and only adds those of new classes later."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.sums_ = self.sums_ * (1 + self.tasks_seen_ * torch.rand(self.sums_.shape, generator=rng))

    def _scores_from_features(self, features: Tensor) -> Tensor:
        kept = self.__dict__.get("kept", self.sums_[:0])
        self.kept = torch.cat([kept, self.sums_[len(kept) :]])
        return (F.normalize(features.double(), dim=1) @ F.normalize(self.kept, dim=1).T).float()


class StuckAfterAFailure(Means):
    """Refuses every task once one has failed."""

    busy = False

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        if self.busy:
            raise RuntimeError("a task is being learned")
        self.busy = True
        super()._learn(task, rng)
        self.busy = False


class OldestKey(DAP):  # type: ignore[misc, valid-type]
    """Finds the first task whatever the image."""

    def _test_slots(self, queries: Tensor) -> Tensor:
        return torch.zeros(len(queries), dtype=torch.long)


class MeanOfTheNewestImages(SimpleCIL):  # type: ignore[misc, valid-type]
    """Overwrites the mean of a class that comes again."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        again = columns.unique()
        again = again[again < len(self.sums_)]
        self.sums_, self.counts_ = self.sums_.index_fill(0, again, 0.0), self.counts_.index_fill(0, again, 0)
        super()._learn_features(features, columns, rng)


class TwoImagesPerClass(FeCAM):  # type: ignore[misc, valid-type]
    """Takes moments of two images."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        two = torch.cat([(columns == c).nonzero()[:2, 0] for c in columns.unique()])
        super()._learn_features(features[:][two], columns[two], rng)


class HeadNotPutBack(MOS):  # type: ignore[misc, valid-type]
    """Trains rows of its head and loses them."""

    def _train_adapter(self, task: Any, own: Any, head: Any, rng: Any) -> None:
        super()._train_adapter(task, own, copy.deepcopy(head), rng)


class FixedRidge(RanPAC):  # type: ignore[misc, valid-type]
    """Sound: with a fixed ridge the split does not matter."""

    tags: ClassVar = Tags(split_invariant=True, small={"projection_dim": 64, "ridge": "fixed"})


class GramOfTheNewestTask(FixedRidge):
    """Forgets the second moments of earlier tasks."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        self.gram_, self.factor_ = torch.zeros_like(self.gram_), torch.zeros_like(self.factor_)
        super()._learn_features(features, columns, rng)


class AdaptersNeverAsked(EASE):  # type: ignore[misc, valid-type]
    """Trains adapters and takes features without them."""

    @property
    def _embedders(self) -> list[Any]:
        return [self.backbone] * self.tasks_seen_

    def _with(self, sums: Tensor, view: Any, *rest: Any) -> Tensor:
        return super()._with(sums, self.backbone, *rest)


class PromptsNeverTrained(VPT):  # type: ignore[misc, valid-type]
    """Trains its head alone."""

    def _train(self, task: Any, config: Any, rng: Any, loss: Any, learns: Any, queries: Any = None) -> None:
        super()._train(task, config, rng, loss, [self.head_], queries)


class LosesTheLastImage(VPT):  # type: ignore[misc, valid-type]
    """Learns all images of a task but one."""

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        kept = task.train.subset(np.arange(len(task.train) - 1))
        super()._learn(types.SimpleNamespace(index=task.index, train=kept, classes=task.classes), rng)


FAULTS: dict[type[Method[Any]], str] = {
    ShufflesLaterLabels: "check_learns_an_easy_task",
    MixesUpTheNewest: "check_tells_the_classes_of_every_task_apart",
    NeverAnswersTheNewest: "check_remembers_every_task",
    LearnsEverySecondImage: "check_every_image_and_label_matters",
    LooksAtNoLabel: "check_every_image_and_label_matters",
    HeadNeverTrained: "check_what_is_learned_depends_on_the_images",
    SecondHeadNeverTrained: "check_what_is_learned_depends_on_the_images",
    HeadNeverAsked: "check_everything_learned_is_used",
    ReturningClassOverwrites: "check_split_does_not_matter",
    PortionsWeighAlike: "check_split_does_not_matter",
    KeepsAnOldAnswer: "check_classes_may_come_again",
    KeepsTheFirstAnswer: "check_resumed_equals_straight",
    StuckAfterAFailure: "check_failed_task_changes_nothing",
    OldestKey: "check_remembers_every_task",
    MeanOfTheNewestImages: "check_split_does_not_matter",
    TwoImagesPerClass: "check_every_image_and_label_matters",
    HeadNotPutBack: "check_what_is_learned_depends_on_the_images",
    GramOfTheNewestTask: "check_split_does_not_matter",
    AdaptersNeverAsked: "check_everything_learned_is_used",
    PromptsNeverTrained: "check_what_is_learned_depends_on_the_images",
    LosesTheLastImage: "check_every_image_and_label_matters",
}
