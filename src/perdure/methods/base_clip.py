"""What the methods on a CLIP share: every class's name becomes an embedding when its task comes, and never before."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float, Int
from pydantic import Field, field_validator
from torch import Tensor

from perdure.backbone import TwoTowers, normalised
from perdure.backbone.class_names import require_told_apart
from perdure.config import MethodConfig
from perdure.data import LabelledImages, Task
from perdure.data.stream import Candidate
from perdure.data.templates import Templates, filled, templates_of, written_out
from perdure.errors import PerdureError, StreamError
from perdure.learned import learned
from perdure.methods.base import C, FeatureMethod, Method
from perdure.modules.heads import cosine_scores, float64


class TextMethod(Method[C]):
    """A method on a CLIP that has one text embedding per class."""

    backbone: TwoTowers

    texts_: Tensor = learned("classes, d", torch.float32, "w_c: each class's text embedding, of length 1")

    def new_names(self) -> list[str]:
        """What the classes are called that have no embedding yet, in the order of their columns.

        Raises:
            StreamError: for a class without a name, or one whose name is read as another's of its data set.
        """
        known = len(self.texts_)
        require_told_apart(self.backbone.text, self.names_, self.displays_, type(self).__name__, known)
        return self.displays_[known:]

    def require_names(self, classes: Sequence[Candidate]) -> None:
        """As every method."""
        names, displays = [c.name for c in classes], [c.text for c in classes]
        require_told_apart(self.backbone.text, names, displays, type(self).__name__)
        for candidate in classes:
            self._require_readable(candidate)

    def _meet(self, task: Task) -> None:
        before = self.displays_
        super()._meet(task)
        for name, known, text in zip(self.names_, before, self.displays_, strict=False):
            if text != known:
                hint = "What was learned of the class goes with that text: leave the alias out, or name another class"
                where = f"{type(self).__name__}.fit_task"
                raise StreamError(where, f"text of class {name!r}", f"{known!r}, as it was taught", text, hint)

    @abc.abstractmethod
    def _require_readable(self, candidate: Candidate) -> None:
        """Refuses a class whose name makes too long a text."""


class NamedMethod(TextMethod[C], FeatureMethod[C]):
    """Such a method that decides from cached image embeddings."""

    @property
    def embedder(self) -> TwoTowers:
        """As every method of features; its text tower reads the names."""
        return self.backbone

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        self._learn_names(task)
        super()._learn(task, rng)

    @abc.abstractmethod
    def _learn_names(self, task: Task) -> None:
        """Called before a task's images are looked at."""

    @abc.abstractmethod
    def _embedded(self, candidates: Sequence[Candidate]) -> Float[Tensor, "n d"]:
        """The text embeddings of classes that were never taught; at least one."""

    def _scores_by_text(self, features: Float[Tensor, "b d"], texts: Float[Tensor, "n d"]) -> Float[Tensor, "b n"]:
        """Scaled cosines with text embeddings, of classes that need not be taught."""
        return self.backbone.logit_scale * cosine_scores(features, texts)

    def texts_among(self, candidates: Sequence[Candidate]) -> tuple[Float[Tensor, "n ..."], Int[Tensor, " n"]]:
        """The candidates' text embeddings, and their score columns; -1 for those that were not taught.

        Args:
            candidates: classes by their names.
        """
        column = {name: i for i, name in enumerate(self.names_)}
        columns = torch.tensor([column.get(c.name, -1) for c in candidates], dtype=torch.long)
        new = [c for c in candidates if c.name not in column]
        texts = self.texts_.new_empty(len(candidates), *self.texts_.shape[1:])
        texts[columns >= 0] = self.texts_[columns[columns >= 0]]
        if new:
            texts[columns < 0] = self._embedded(new)
        return texts, columns

    def _scores_among(
        self, data: LabelledImages, candidates: Sequence[Candidate]
    ) -> Iterator[Float[Tensor, "b candidates"]]:
        texts, columns = self.texts_among(candidates)
        new = columns < 0
        columns[new] = len(self.names_) + torch.arange(int(new.sum()))
        yield from (scores[:, columns] for scores in self._scores_beside(data, texts[new]))

    def _scores_beside(self, data: LabelledImages, texts: Float[Tensor, "n ..."]) -> Iterator[Float[Tensor, "b all"]]:
        """The scores of the classes seen, and then of n that were never taught, by their text embeddings."""
        for features in self.store.features(self.embedder, data, label="test features").batches():
            with torch.no_grad():
                both = self._scores_from_features(features), self._scores_by_text(features, texts)
                yield torch.cat(both, dim=1)


class ClipConfig(MethodConfig):
    """Settings of every method that puts class names into sentences."""

    templates: Templates | dict[str, Templates] = Field(
        "photo", description="a list's name, templates with {} for the name, a .txt file of them, or these by data set"
    )

    @property
    def most_templates(self) -> int:
        """How many a class has, or has at most where data sets differ."""
        lists = self.templates.values() if isinstance(self.templates, Mapping) else [self.templates]
        return max(len(templates_of(each)) for each in lists)

    @field_validator("templates")
    @classmethod
    def _templates_are_known(cls, given: Templates | dict[str, Templates]) -> Templates | dict[str, Templates]:
        try:
            if isinstance(given, Mapping):
                return {name: written_out(each) for name, each in given.items()}
            return written_out(given)
        except PerdureError as error:
            raise ValueError(f"{error.must_be}, which {error.got!r} is not") from None


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
        each = normalised(float64(self.sentence_embeddings(names, dataset)))
        return normalised(each.mean(1)).float()

    def sentence_embeddings(self, names: Sequence[str], dataset: str | None) -> Float[Tensor, "n templates d"]:
        """Raw text embeddings, one for every template.

        Args:
            names: as for :meth:`class_texts`.
            dataset: as for :meth:`class_texts`.

        Raises:
            BackboneError, UnknownNameError: as for :meth:`class_texts`.
        """
        texts = [text for name in names for text in self.sentences(name, dataset)]
        per_name = len(texts) // max(len(names), 1)
        return self.store.texts(self.embedder, texts).view(len(names), per_name, self.backbone.dim)

    def sentences(self, name: str, dataset: str | None) -> list[str]:
        """The templates with a name in them.

        Args:
            name: as for :meth:`class_texts`.
            dataset: as for :meth:`class_texts`.

        Raises:
            UnknownNameError: as for :meth:`class_texts`.
        """
        return [filled(template, name) for template in templates_of(self.config.templates, dataset)]

    def _learn_names(self, task: Task) -> None:
        self.texts_ = torch.cat([self.texts_, self.class_texts(self.new_names(), task.dataset)])

    def _require_readable(self, candidate: Candidate) -> None:
        self.backbone.text.tokens(self.sentences(candidate.text, candidate.dataset))

    def _embedded(self, candidates: Sequence[Candidate]) -> Float[Tensor, "n ..."]:
        found = self.texts_.new_empty(len(candidates), *self.texts_.shape[1:])
        for dataset in {c.dataset for c in candidates}:
            at = [i for i, c in enumerate(candidates) if c.dataset == dataset]
            found[at] = self.class_texts([candidates[i].text for i in at], dataset)
        return found
