"""Methods that lie about what they do or need; the common checks must catch every one.

Source: none. Deviations: all. Use when: never. Relations: the sound methods they are made from. Cost: trust.
"""

from __future__ import annotations

import copy
import dataclasses as dc
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from broken import DeclaredMeans, Means
from torch import Tensor

from perdure.backbone import Backbone
from perdure.data import Candidate, LabelledImages
from perdure.errors import BackboneError, ConfigError
from perdure.methods import Method, Tags, methods

APER, EASE, Finetune, SLCA, VPT = map(methods.get, ("aper", "ease", "finetune", "slca", "vpt"))


def but(kind: type[Method[Any]], **lies: Any) -> Tags:
    """Tags of a method with some changed."""
    return dc.replace(kind.tags, **lies)


class SaysItTrains(Means):
    """Trains nothing."""

    tags: ClassVar = Tags(split_invariant=True, trains_backbone=True)


class SaysItAdapts(Means):
    """Adapts nothing."""

    tags: ClassVar = Tags(split_invariant=True, adapts=True)


class SaysItPrompts(Means):
    """Has no prompt."""

    tags: ClassVar = Tags(split_invariant=True, prompted=True)


class SaysItDependsOnTheBatch(Means):
    """Scores every image alone."""

    tags: ClassVar = Tags(split_invariant=True, depends_on_test_batch=True)


class Nudged(Means):
    """Sound: reads features from a copy of the backbone that it changed a little, once, and keeps them."""

    tags: ClassVar = Tags(split_invariant=True, adapts=True)

    @property
    def embedder(self) -> Backbone:
        if "copy" not in vars(self):
            self.copy = self.backbone.thawed_copy().requires_grad_(False)
            for p in self.copy.model.parameters():
                p.mul_(1.01)
        return self.copy


class NudgedUntold(Nudged):
    """Does not say so."""

    tags: ClassVar = Tags(split_invariant=True)


class NudgedSaysItTrains(Nudged):
    """Says that its features cannot be kept, and keeps them."""

    tags: ClassVar = Tags(split_invariant=True, trains_backbone=True)


class TrainsAModelUntold(Means):
    """Asks a copy of the model itself, past all that counts, and does not say so."""

    def _scores_from_features(self, features: Tensor) -> Tensor:
        if "model" not in vars(self):
            self.model = copy.deepcopy(self.backbone.model)
            next(self.model.blocks.parameters()).mul_(1.01)
        size = self.backbone.preprocess.image_size
        self.model.forward_features(torch.zeros(1, 3, size, size))
        return super()._scores_from_features(features)


class FinetuneUntold(Finetune):  # type: ignore[misc, valid-type]
    """Trains the backbone and does not say so."""

    tags: ClassVar = but(Finetune, trains_backbone=False)


class FinetuneSaysItAdapts(Finetune):  # type: ignore[misc, valid-type]
    """Says that its features are kept."""

    tags: ClassVar = but(Finetune, trains_backbone=False, adapts=True)


class AdaptsUntold(APER):  # type: ignore[misc, valid-type]
    """Inserts adapters and does not say so."""

    tags: ClassVar = but(APER, adapts=False)


class AdaptsSaysItTrains(APER):  # type: ignore[misc, valid-type]
    """Inserts adapters and says that it trains the whole."""

    tags: ClassVar = but(APER, adapts=False, trains_backbone=True)


class PromptsUntold(VPT):  # type: ignore[misc, valid-type]
    """Walks with prompts and does not say so."""

    tags: ClassVar = but(VPT, prompted=False)


class NeedsAVitUntold(VPT):  # type: ignore[misc, valid-type]
    """Says that every backbone will do."""

    tags: ClassVar = but(VPT, backbone="any")


class NeedsLessThanAVit(EASE):  # type: ignore[misc, valid-type]
    """Refuses Swin, on which it works."""

    tags: ClassVar = but(EASE, backbone="vit")


class SaysItNeedsATransformer(Means):
    """Works on every backbone."""

    tags: ClassVar = Tags(split_invariant=True, backbone="transformer")


class RefusesInRiddles(VPT):  # type: ignore[misc, valid-type]
    """Works on a Vision Transformer alone, and does not say which backbone it wants."""

    def setup(self) -> None:
        if self.backbone.dim != 64:
            raise ConfigError("mine", "it", "another", self.backbone.dim, "Guess")
        super().setup()


class RefusesEveryOther(Means):
    """Has no seat for its part, wherever it is."""

    def setup(self) -> None:
        if self.backbone.dim != 64:
            raise BackboneError("mine", "seat", "on the backbone", self.backbone.dim, "Choose a seat")
        super().setup()


class ByName(DeclaredMeans):
    """Sound: a class that it was not taught is the likelier the shorter its name is."""

    tags: ClassVar = Tags(split_invariant=True, class_names=True, open_vocabulary=True)

    def _scores_among(self, data: LabelledImages, candidates: Sequence[Candidate]) -> Iterator[Tensor]:
        for scores in self._scores_of(data):
            columns = {name: scores[:, column] for column, name in enumerate(self.names_)}
            unknown = {c.name: torch.full((len(scores),), 1 / len(c.name)) for c in candidates}
            yield torch.stack([{**unknown, **columns}[c.name] for c in candidates], dim=1)


class ByPlace(ByName):
    """Takes the first candidate for the first class."""

    def _scores_among(self, data: LabelledImages, candidates: Sequence[Candidate]) -> Iterator[Tensor]:
        names = [*self.names_, *(c.name for c in candidates if c.name not in self.names_)]
        return super()._scores_among(data, [Candidate(name, name) for name in names])


class ByPlaceTaught(DeclaredMeans):
    """Scores classes that it was taught alone, whatever their order."""

    def _scores_among(self, data: LabelledImages, candidates: Sequence[Candidate]) -> Iterator[Tensor]:
        return self._scores_of(data)


class LeavesUntaughtOut(ByName):
    """Has columns for classes that it was taught alone."""

    def _scores_among(self, data: LabelledImages, candidates: Sequence[Candidate]) -> Iterator[Tensor]:
        return super()._scores_among(data, [c for c in candidates if c.name in self.names_])


class KeepsWhatItIsAsked(ByName):
    """Learns with a task the names that it was asked about before."""

    asked: tuple[str, ...] = ()

    def _learn(self, task: Any, rng: torch.Generator) -> None:
        self.vocabulary_ = [*self.asked]
        super()._learn(task, rng)

    def _scores_among(self, data: LabelledImages, candidates: Sequence[Candidate]) -> Iterator[Tensor]:
        self.asked = tuple(c.name for c in candidates)
        return super()._scores_among(data, candidates)


class AnswersUntold(DeclaredMeans):
    """Scores any name with nothing, and does not say so."""

    def scores_among(self, data: LabelledImages, candidates: Sequence[Candidate]) -> Iterator[Tensor]:
        yield torch.zeros(len(data), len(candidates))


WHENCE, WHERE = "check_features_come_from_where_the_tags_say", "check_works_on_another_backbone"
NAMES = "check_candidates_are_known_by_their_names"
FAULTS: dict[type[Method[Any]], str] = {
    **dict.fromkeys((SaysItTrains, SaysItAdapts, SaysItPrompts, NudgedUntold, NudgedSaysItTrains), WHENCE),
    **dict.fromkeys((TrainsAModelUntold, FinetuneUntold, FinetuneSaysItAdapts), WHENCE),
    **dict.fromkeys((AdaptsUntold, AdaptsSaysItTrains, PromptsUntold), WHENCE),
    **dict.fromkeys((NeedsAVitUntold, NeedsLessThanAVit, SaysItNeedsATransformer), WHERE),
    **dict.fromkeys((RefusesInRiddles, RefusesEveryOther), WHERE),
    **dict.fromkeys((ByPlace, ByPlaceTaught, LeavesUntaughtOut, KeepsWhatItIsAsked, AnswersUntold), NAMES),
    SaysItDependsOnTheBatch: "check_batch_does_not_matter",
}
