"""CoOp: the words around a class's name are learned vectors, one set for each task.

Source: Zhou, Yang, Loy & Liu, "Learning to Prompt for Vision-Language Models", IJCV 2022 (arXiv 2109.01134), with
    contexts shared by the classes of a task and the name at the end: [start] V_1 … V_M name . [end].
Use when: a CLIP is there, images must not be kept, and there is time to pass the text tower thousands of times.
Deviations:
- Paper: one set of contexts for all classes at once. Here each task learns its own, against its own classes alone.
- An old class's text embedding stays as its task left it. Scores of different contexts are not calibrated.
- Released code: its first epoch runs at a rate of 1e-5. Here the cosine falls from the first step.
- Images are embedded once, without augmentation, so that a step costs the text tower alone.
Relations: clip_zeroshot has words there. L2P and its kin put learned tokens into the image tower instead.
Cost: F is a frozen forward pass. Any image: F once ever. A step: one forward and backward pass of the text tower per
    class of the task, whatever the batch. State: 4 M w per task (w: a token's width), 4 d per class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from pydantic import Field, StringConstraints
from torch import Tensor, nn

from perdure.backbone import normalised
from perdure.backbone.contexts import NamedContexts, vectors_of_words
from perdure.config import MethodConfig
from perdure.data import Task
from perdure.data.stream import Candidate
from perdure.learned import Sizes, learned
from perdure.memory import Features
from perdure.methods.base import Tags, methods
from perdure.methods.base_clip import NamedMethod
from perdure.train.batches import Rows
from perdure.train.session import Session
from perdure.train.settings import SGD, Cosine, Training

TRAIN = Training(lr=2e-3, epochs=50, batch_size=32, optimizer=SGD(weight_decay=5e-4), schedule=Cosine())


class CoOpConfig(MethodConfig):
    """Settings of CoOp."""

    length: int = Field(16, ge=1, description="M, context vectors drawn from N(0, 0.02²)")
    words: Annotated[str, StringConstraints(strip_whitespace=True)] = Field(
        "", description="start from these words' vectors instead, e.g. 'a photo of a'"
    )
    train: Training = Field(TRAIN, description="of a task's contexts, on cached image embeddings")


@methods.register("coop")
class CoOp(NamedMethod[CoOpConfig]):
    """logit_scale * cos(image, text(V_t, name)), with the contexts V_t of the task that brought the class.

    Raises:
        StreamError: for classes without names.
    """

    Config = CoOpConfig
    tags: ClassVar = Tags(
        backbone="towers", class_names=True, open_vocabulary=True,
        small={"length": 4, "train": {"epochs": 1, "batch_size": 8}},
        expected_failures={"check_remembers_every_task": "scores of two tasks' contexts are not calibrated"},
        learns={"train": {"epochs": 40, "lr": 0.1, "optimizer": "adam"}},
    )  # fmt: skip

    contexts_: Tensor = learned("tasks, M, w", torch.float32, "V_t, each task's context vectors")

    def sizes(self) -> Sizes:
        """M: context vectors; w: a token's width."""
        return {"M": len(self.start), "w": self.backbone.text.width}

    @property
    def start(self) -> Float[Tensor, "M w"]:
        """What the contexts of every task start from; random ones are drawn by task."""
        words, tower = self.config.words, self.backbone.text
        return vectors_of_words(tower, words) if words else torch.zeros(self.config.length, tower.width)

    def embeddings(self, names: Sequence[str], context: Float[Tensor, "M w"]) -> Float[Tensor, "n d"]:
        """text(V, name) of length 1, with gradient to V.

        Args:
            names: of classes.
            context: V.
        """
        texts = NamedContexts(self.backbone.text, names, len(context))
        return normalised(self.backbone.text_embeddings_of(texts.filled(context), texts.ids))

    def _learn_names(self, task: Task) -> None:
        """A name's embedding waits for its context."""

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        new, c, device = self.new_names(), self.config, self.backbone.device
        start = self.start if c.words else 0.02 * torch.randn(self.start.shape, generator=rng)
        context = nn.Parameter(start.to(device, copy=True))
        own, targets = columns.unique(return_inverse=True)
        texts = NamedContexts(self.backbone.text, [self.displays_[i] for i in own.tolist()], len(context))

        def loss(rows: Int[Tensor, " b"]) -> Tensor:
            names = self.backbone.text_embeddings_of(texts.filled(context), texts.ids)
            logits = self.backbone.logits(features[rows.numpy()].to(device), names)
            return F.cross_entropy(logits, targets[rows].to(device))

        rows = Rows(len(columns), c.train)
        Session(rows, c.train, rng, fast=[context], stage="learning contexts", progress=self.store.progress).run(loss)
        self.contexts_ = torch.cat([self.contexts_, context.detach().cpu()[None]])
        with torch.no_grad():
            found = self.embeddings(new, context.detach()) if new else self.texts_[:0]
        self.texts_ = torch.cat([self.texts_, found.cpu()])

    def _require_readable(self, candidate: Candidate) -> None:
        NamedContexts(self.backbone.text, [candidate.text], len(self.start))

    def _embedded(self, candidates: Sequence[Candidate]) -> Float[Tensor, "n d"]:
        """With the contexts of the newest task; one by one, so that none depends on the others."""
        context = self.contexts_[-1].to(self.backbone.device)
        with torch.no_grad():
            return torch.cat([self.embeddings([c.text], context) for c in candidates]).cpu()

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return self._scores_by_text(features, self.texts_)
