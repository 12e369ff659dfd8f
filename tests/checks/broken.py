"""Methods with one planted fault each; the common checks must catch every one. Not registered anywhere.

Source: none. Deviations: all. Use when: never. Relations: SimpleCIL, done wrong. Cost: trust.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from perdure.config import Config, MethodConfig
from perdure.learned import learned, learned_module
from perdure.memory import Exemplars
from perdure.methods import FeatureMethod, Method, Tags
from perdure.modules.heads import GrowingLinear


class MeansConfig(MethodConfig):
    """Nothing to set."""


class Means(FeatureMethod[MeansConfig]):
    """A sound nearest-mean method: the faulty ones below each change one thing."""

    Config = MeansConfig
    tags: ClassVar = Tags(split_invariant=True)

    def setup(self) -> None:
        self.sums_ = torch.zeros(0, self.backbone.dim, dtype=torch.float64)

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        self.sums_ = F.pad(self.sums_, (0, 0, 0, len(self.classes_) - len(self.sums_)))
        self.sums_ = self.sums_.index_add(0, columns, features[:].double())

    def _scores_from_features(self, features: Tensor) -> Tensor:
        return (F.normalize(features.double(), dim=1) @ F.normalize(self.sums_, dim=1).T).float()


class DeclaredMeans(Means):
    """Sound too: it says what it learns."""

    sums_: Tensor = learned("classes, d", torch.float64, "sums of features")


class UndeclaredAttribute(DeclaredMeans):
    """Says it of its sums, and not of what it counts."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.n_tasks_ = self.tasks_seen_ + 1


class NeverMade(DeclaredMeans):
    """Declares a head that it does not have."""

    head_: GrowingLinear = learned_module(GrowingLinear.STATE, "a head")


class OtherShapeThanDeclared(DeclaredMeans):
    """Declares a count by class, and keeps one by task."""

    counts_: Tensor = learned("classes", torch.long, "images")

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.counts_ = torch.cat([self.counts_, torch.tensor([len(columns)])])


class HeadHalfDeclared(DeclaredMeans):
    """Forgets the bytes of its head's biases."""

    head_: GrowingLinear = learned_module({"weight": GrowingLinear.STATE["weight"]}, "a head")

    def setup(self) -> None:
        self.head_ = GrowingLinear(self.backbone.dim)
        self.head_.bias = torch.nn.Parameter(torch.zeros(3))

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.head_.weight = torch.nn.Parameter(self.sums_.float())


class AnyNumberOfRows(DeclaredMeans):
    """Declares rows that need not be those of its classes."""

    sums_: Tensor = learned("rows, d", torch.float64, "sums of features")


class BlindToNaN(DeclaredMeans):
    """Looks at its sums through a filter."""

    def sizes_in(self, state: Any) -> Any:
        seen = {k: v.nan_to_num() if isinstance(v, Tensor) else v for k, v in state.items()}
        return super().sizes_in(seen)


class UnsavedAttribute(Means):
    """Keeps its sums under a name that is no part of the state."""

    def setup(self) -> None:
        super().setup()
        self.hidden = self.sums_

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.hidden, self.sums_ = self.sums_, self.sums_ * 0 + 1

    def _scores_from_features(self, features: Tensor) -> Tensor:
        return (F.normalize(features.double(), dim=1) @ F.normalize(self.hidden, dim=1).T).float()


class GlobalTorchRng(Means):
    """Adds noise from torch's global generator."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.sums_ = self.sums_ + 1e-3 * torch.randn(self.sums_.shape)


class GlobalNumpyRng(Means):
    """Draws from NumPy's global generator without using it: still a side effect on the user's program."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        np.random.rand()
        super()._learn_features(features, columns, rng)


class SeedsGlobally(Means):
    """Reproducible, at the price of everybody else's randomness."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        torch.manual_seed(self.seed)
        super()._learn_features(features, columns, rng)


class UnseededProjection(Means):
    """A random projection that the seed does not decide."""

    def setup(self) -> None:
        super().setup()
        self.projection_ = torch.randn(self.backbone.dim, self.backbone.dim, dtype=torch.float64)

    def _scores_from_features(self, features: Tensor) -> Tensor:
        return super()._scores_from_features(features.double() @ self.projection_ @ torch.linalg.inv(self.projection_))


class MutatingPredict(Means):
    """Adapts its means to what it is tested on."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        self.sums_ = self.sums_ + 1e-3 * features.double().mean(0)
        return super()._scores_from_features(features)


class BatchDependent(Means):
    """Centres the test batch."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        return super()._scores_from_features(features - features.mean(0))


class BatchVote(Means):
    """Every image of a batch gets a bonus for the batch's favourite class."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        scores = super()._scores_from_features(features)
        favourite = scores.argmax(1).mode().values
        return scores + 0.01 * F.one_hot(favourite, scores.shape[1])


class TouchedBackbone(Means):
    """Nudges the backbone it was given."""

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        super()._learn(task, rng)
        next(self.backbone.parameters()).add_(1e-6)


class ThawedBackbone(Means):
    """Leaves the backbone trainable."""

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        super()._learn(task, rng)
        self.backbone.requires_grad_(True)


class ColumnsForIds(Means):
    """Predicts column numbers instead of class ids."""

    def predict(self, images: Any) -> Tensor:
        ids = super().predict(images)
        return torch.tensor([self.classes_.index(int(i)) for i in ids])


class IdsForColumns(Means):
    """Sizes its head by the largest class id, modulo something that happens to fit."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns % 2, rng)


class InPlace(Means):
    """Changes its sums in place, so a failed task leaves them half changed."""

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        self.sums_ = F.pad(self.sums_, (0, 0, 0, len(self.classes_) - len(self.sums_)))
        for positions, images in task.train.batches(self.backbone.preprocess, 1):
            columns = self.columns(task.train.labels[positions])
            self.sums_[: len(self.sums_)].index_add_(0, columns, self.backbone.features(images).double())


class InPlaceOldRows(InPlace):
    """Decays the old means in place before it reads the new images."""

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        self.sums_.mul_(0.9)
        super()._learn(task, rng)


class ForgetsEverything(Means):
    """Overwrites the old classes' means."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        self.sums_ = torch.zeros(len(self.classes_), self.backbone.dim, dtype=torch.float64)
        super()._learn_features(features, columns, rng)


class GrowsTwice(Means):
    """Adds columns for classes it already has."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        self.sums_ = F.pad(self.sums_, (0, 0, 0, len(columns.unique())))
        self.sums_ = self.sums_.index_add(0, columns, features[:].double())


class DividesByZero(Means):
    """Standardises with the deviation of each class, which one image does not have."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        for c in columns.unique():
            rows = features[:][columns == c].double()
            variance = (rows - rows.mean(0)).square().sum() / torch.tensor(len(rows) - 1)
            self.sums_ = self.sums_ / variance


class NoGradientHere(Method[MeansConfig]):
    """Embeds every image again whenever it is asked."""

    Config = MeansConfig

    def setup(self) -> None:
        self.sums_ = torch.zeros(0, self.backbone.dim, dtype=torch.float64)

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        sums = F.pad(self.sums_, (0, 0, 0, len(self.classes_) - len(self.sums_)))
        for positions, images in task.train.batches(self.backbone.preprocess, 16):
            sums = sums.index_add(
                0, self.columns(task.train.labels[positions]), self.backbone.features(images).double()
            )
        self.sums_ = sums

    def _scores(self, images: Tensor) -> Tensor:
        features = self.backbone.features(images).double()
        return (F.normalize(features, dim=1) @ F.normalize(self.sums_, dim=1).T).float()


class EmbedsTwice(Means):
    """Embeds a task's images once more than it keeps."""

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        super()._learn(task, rng)
        for _, images in task.train.batches(self.backbone.preprocess, 16):
            self.backbone.features(images)


class ChangesImages(Means):
    """Darkens its task's images in place."""

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        super()._learn(task, rng)
        task.train.source._pixels //= 2


class UnboundedConfig(MethodConfig):
    """A learning rate that may be anything."""

    lr: float = 0.1


class LaxConfig(Means):
    """Accepts a negative learning rate."""

    Config = UnboundedConfig


class UnboundedSection(Config):
    """A number that may be anything, in one of two kinds."""

    name: Literal["lax"] = "lax"
    share: float = 0.1


class BoundedSection(Config):
    """The other kind."""

    name: Literal["strict"] = "strict"
    share: float = Field(0.1, ge=0)


class InnerConfig(MethodConfig):
    """A section of two kinds."""

    inner: BoundedSection | UnboundedSection | None = Field(None, discriminator="name")


class LaxSection(Means):
    """Accepts a negative share in a section that is not there by default."""

    Config = InnerConfig


class OptionalConfig(MethodConfig):
    """A bound that may be left out, and may be anything."""

    clip_norm: float | None = None


class LaxOption(Means):
    """Accepts a negative bound."""

    Config = OptionalConfig


class BelowZeroConfig(MethodConfig):
    """A number from -2 on."""

    offset: float = Field(0.0, ge=-2)


class BelowZero(Means):
    """Sound: its number may be below zero, and says how far."""

    Config = BelowZeroConfig


class LearnsInInit(Means):
    """Knows a class before it saw a task."""

    def setup(self) -> None:
        super().setup()
        self.classes_ = [0]


class CountsATaskTooMany(Means):
    """Has seen a task before it saw one."""

    def setup(self) -> None:
        super().setup()
        self.tasks_seen_ = 1


class SwallowsErrors(Means):
    """Says nothing of an image that cannot be read."""

    def fit_task(self, task: Any) -> Any:
        with contextlib.suppress(OSError):
            super().fit_task(task)
        return self


class ReturnsNothing(Means):
    """Forgets to return itself."""

    def fit_task(self, task: Any) -> Any:
        super().fit_task(task)


class ChangesLabels(Means):
    """Re-numbers the labels of its task in place."""

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        super()._learn(task, rng)
        task.train.labels[:] = 0


class AnswersUnfitted(Means):
    """Answers before it learned anything."""

    def scores(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), max(len(self.classes_), 1)) if not self.tasks_seen_ else super().scores(images)

    def predict(self, images: Any) -> Tensor:
        return super().predict(images) if self.tasks_seen_ else torch.zeros(len(images))


class SkipsTasks(Means):
    """Takes any task at any time."""

    def fit_task(self, task: Any) -> Any:
        self.tasks_seen_ = task.index
        return super().fit_task(task)


class CachesWrongly(Means):
    """Answers for whole data sets with rounded features."""

    def scores_of(self, data: Any) -> Any:
        for batch in self.store.features(self.backbone, data).batches():
            yield self._scores_from_features(batch.round(decimals=1))


class NeedsSixtyFour(Means):
    """Has a feature size written into it."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        return super()._scores_from_features(features[:, :64].reshape(-1, 64))


class KeepsItsPass(Means):
    """Puts what it scores into itself for a moment, where another thread's pass finds it."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        self.under_way = features
        time.sleep(0.01)  # on a busy machine too, several threads are here at once
        return super()._scores_from_features(self.under_way)


class ForgetsBeforeItLoads(Means):
    """Makes room for a state before it looks at it."""

    def load_state_dict(self, state: Any) -> Any:
        self.sums_ = torch.zeros(0, self.backbone.dim, dtype=torch.float64)
        return super().load_state_dict(state)


class LosesMoreThanItsState(Means):
    """Keeps a second copy outside the state, and drops it before a state is looked at."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.sums = self.sums_

    def _scores_from_features(self, features: Tensor) -> Tensor:
        return (F.normalize(features.double(), dim=1) @ F.normalize(self.sums, dim=1).T).float()

    def load_state_dict(self, state: Any) -> Any:
        self.sums = 1 - self.sums
        return super().load_state_dict(state)


class TakesAnything(Means):
    """Believes every state."""

    def load_state_dict(self, state: Any) -> Any:
        return self


class KeepsExemplars(Means):
    """Sound: its means are those of the images it keeps."""

    tags: ClassVar = Tags(keeps_data=True)

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.exemplars_ = Exemplars("herding", n_per_class=4)

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        self.exemplars_.add(task.train, rng, lambda data: self.store.features(self.backbone, data))
        kept = self.exemplars_.images()
        self.sums_ = torch.zeros(0, self.backbone.dim, dtype=torch.float64)
        self._learn_features(self.store.features(self.backbone, kept), self.columns(kept.labels), rng)


class KeepsExemplarsUntold(KeepsExemplars):
    """Does not say so."""

    tags: ClassVar = Tags()


class KeepsFeaturesUntold(Means):
    """Keeps the features of every image, and does not say so."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.rows_ = torch.cat([getattr(self, "rows_", self.sums_[:0]), features[:].double()])


class KeepsLabelsUntold(Means):
    """Keeps the labels of every image in a list, and does not say so."""

    def _learn_features(self, features: Any, columns: Tensor, rng: torch.Generator) -> None:
        super()._learn_features(features, columns, rng)
        self.columns_ = {"all": [*getattr(self, "columns_", {"all": []})["all"], *columns.tolist()]}


class SaysItKeeps(Means):
    """Says that it keeps data, and keeps sums."""

    tags: ClassVar = Tags(split_invariant=True, keeps_data=True)


class ReadsNamesAhead(Means):
    """Knows the names of classes to come from the folders beside its task's own."""

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        source = task.train.source
        names = {Path(source.name(row)).parent.name for row in range(len(source.keys))}
        self.vocabulary_ = sorted(names)
        super()._learn(task, rng)


FAULTS: dict[type[Method[Any]], str] = {
    ReadsNamesAhead: "check_names_come_with_their_task",
    KeepsExemplarsUntold: "check_data_are_kept_if_the_tag_says_so",
    KeepsFeaturesUntold: "check_data_are_kept_if_the_tag_says_so",
    KeepsLabelsUntold: "check_data_are_kept_if_the_tag_says_so",
    SaysItKeeps: "check_data_are_kept_if_the_tag_says_so",
    KeepsItsPass: "check_threads_do_not_matter",
    ForgetsBeforeItLoads: "check_refused_state_changes_nothing",
    LosesMoreThanItsState: "check_refused_state_changes_nothing",
    TakesAnything: "check_refused_state_changes_nothing",
    AnyNumberOfRows: "check_refused_state_changes_nothing",
    BlindToNaN: "check_refused_state_changes_nothing",
    UndeclaredAttribute: "check_state_is_declared",
    NeverMade: "check_state_is_declared",
    OtherShapeThanDeclared: "check_state_is_declared",
    HeadHalfDeclared: "check_state_is_declared",
    UnsavedAttribute: "check_state_round_trip",
    GlobalTorchRng: "check_same_seed_same_bits",
    GlobalNumpyRng: "check_global_generators_untouched",
    SeedsGlobally: "check_global_generators_untouched",
    UnseededProjection: "check_same_seed_same_bits",
    MutatingPredict: "check_predicting_changes_nothing",
    BatchDependent: "check_batch_does_not_matter",
    BatchVote: "check_batch_does_not_matter",
    TouchedBackbone: "check_backbone_untouched",
    ThawedBackbone: "check_backbone_untouched",
    ColumnsForIds: "check_scores_cover_the_seen_classes",
    IdsForColumns: "check_learns_an_easy_task",
    InPlaceOldRows: "check_failed_task_changes_nothing",
    ForgetsEverything: "check_remembers_every_task",
    GrowsTwice: "check_classes_may_come_again",
    DividesByZero: "check_odd_tasks_work",
    NoGradientHere: "check_frozen_features_cost_one_pass",
    EmbedsTwice: "check_frozen_features_cost_one_pass",
    LaxConfig: "check_config_rejects_bad_numbers",
    LaxSection: "check_config_rejects_bad_numbers",
    LaxOption: "check_config_rejects_bad_numbers",
    LearnsInInit: "check_constructor_learns_nothing",
    CountsATaskTooMany: "check_constructor_learns_nothing",
    SwallowsErrors: "check_failed_task_changes_nothing",
    ReturnsNothing: "check_fit_returns_self_and_leaves_the_task_alone",
    ChangesImages: "check_fit_returns_self_and_leaves_the_task_alone",
    ChangesLabels: "check_fit_returns_self_and_leaves_the_task_alone",
    AnswersUnfitted: "check_predicting_before_fitting_raises",
    SkipsTasks: "check_tasks_out_of_order_raise",
    CachesWrongly: "check_whole_data_equals_batches",
    NeedsSixtyFour: "check_works_on_another_backbone",
}
