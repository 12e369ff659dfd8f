"""What the methods on a CLIP share: every class's name becomes an embedding when its task comes, and never before."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from perdure.backbone import TwoTowers, normalised
from perdure.config import MethodConfig
from perdure.data import LabelledImages, Task
from perdure.data.stream import Candidate
from perdure.data.templates import Templates, filled, templates_of
from perdure.errors import PerdureError, StreamError
from perdure.learned import learned
from perdure.methods.base import C, FeatureMethod
from perdure.modules.heads import cosine_scores, float64


class NamedMethod(FeatureMethod[C]):
    """A method on a CLIP that decides from cached image embeddings and one text embedding per class."""

    backbone: TwoTowers

    texts_: Tensor = learned("classes, d", torch.float32, "w_c: each class's text embedding, of length 1")

    def new_names(self) -> list[str]:
        """What the classes are called that have no embedding yet, in the order of their columns.

        Raises:
            StreamError: for a class without a name, or one that is called as another of its data set.
        """
        where, known = type(self).__name__, len(self.texts_)
        called: dict[tuple[str, str], str] = {}
        for column, (name, shown) in enumerate(zip(self.names_, self.displays_, strict=True)):
            if column >= known and not shown:
                hint = "Load the images from folders, or give the task class_names"
                raise StreamError(where, f"name of class {name}", "given: this method reads names", None, hint)
            key = (name.rpartition("/")[0], shown)
            if column >= known and key in called:
                hint = f"Tell it from {called[key]!r} by a file of other names: stream.aliases"
                raise StreamError(where, f"name of class {name!r}", "like no other class's", shown, hint)
            called[key] = name
        return self.displays_[known:]

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        self._learn_names(task)
        super()._learn(task, rng)

    @abc.abstractmethod
    def _learn_names(self, task: Task) -> None:
        """Called before a task's images are looked at."""

    @abc.abstractmethod
    def _embedded(self, candidate: Candidate) -> Float[Tensor, "1 d"]:
        """The text embedding of a class that was never taught."""

    def _scores_by_text(self, features: Float[Tensor, "b d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
        """Scaled cosines with text embeddings, of classes that need not be taught."""
        return self.backbone.logit_scale * cosine_scores(features, texts)

    def _scores_among(
        self, data: LabelledImages, candidates: Sequence[Candidate]
    ) -> Iterator[Float[Tensor, "b candidates"]]:
        column = {name: i for i, name in enumerate(self.names_)}
        new = [c for c in candidates if c.name not in column]
        column |= {c.name: len(self.names_) + i for i, c in enumerate(new)}
        texts, order = torch.cat([self.texts_[:0], *map(self._embedded, new)]), [column[c.name] for c in candidates]
        for features in self.store.features(self.embedder, data, label="test features").batches():
            with torch.no_grad():
                both = self._scores_from_features(features), self._scores_by_text(features, texts)
                yield torch.cat(both, dim=1)[:, order]


class ClipConfig(MethodConfig):
    """Settings of every method that puts class names into sentences."""

    templates: Templates | dict[str, Templates] = Field(
        "photo", description="a list's name, templates with {} for the name, a .txt file of them, or these by data set"
    )

    @field_validator("templates")
    @classmethod
    def _templates_are_known(cls, given: Templates | dict[str, Templates]) -> Templates | dict[str, Templates]:
        try:
            for each in given.values() if isinstance(given, Mapping) else [given]:
                templates_of(each)
        except PerdureError as error:
            raise ValueError(f"{error.must_be}, which {error.got!r} is not") from None
        return given


P = TypeVar("P", bound=ClipConfig)


class ClipMethod(NamedMethod[P]):
    """A method whose text embeddings are those of sentences with the class's name in them."""

    def class_texts(self, names: Sequence[str], dataset: str | None) -> Float[Tensor, "n d"]:
        """w_c = n(mean over the templates of n(text)), float32; a text is encoded once ever.

        Args:
            names: as people write them.
            dataset: the data set they are from, where there are several.

        Raises:
            BackboneError: for a text of too many tokens.
            UnknownNameError: for a data set without templates.
        """
        templates = templates_of(self.config.templates, dataset)
        texts = [filled(template, name) for name in names for template in templates]
        each = normalised(float64(self.store.texts(self.backbone, texts)))
        return normalised(each.view(len(names), len(templates), self.backbone.dim).mean(1)).float()

    def _learn_names(self, task: Task) -> None:
        self.texts_ = torch.cat([self.texts_, self.class_texts(self.new_names(), task.dataset)])

    def _embedded(self, candidate: Candidate) -> Float[Tensor, "1 d"]:
        return self.class_texts([candidate.text], candidate.dataset)
