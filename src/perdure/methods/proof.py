"""PROOF: every task adds a projection to each side of a frozen CLIP; attention fuses images, names and prototypes.

Source: Zhou, Zhang, Wang, Ning, Ye, Zhan & Liu, "Learning without Forgetting for Vision-Language Models", IEEE TPAMI
    2025 (arXiv 2305.19270), and its released code.
Use when: a CLIP is there, some images may be kept, and training is to run on cached embeddings.
Deviations:
- From the released code, as all here: an image has fused rows of its own; ``fusion=batch_mean`` averages them.
- Old text projections stand still, as the paper says (``train.freeze_old_text``).
- What stands still does not decay (``train.decay_frozen``); nor does the logit scale, below 100 (``train.hold_scale``).
- Tests add three cosines, as in the paper. In released inner products the first hardly counts (``score_mode``).
- Tests normalise projected images as training does (``normalise_tests``), which reads all templates (``train.texts``).
- Of a total budget of images, the classes seen first get what is left over.
- A class that comes again has the mean of all its images for a prototype.
- An untaught name reads what the taught rows read, and itself; none reads it. Its fused text stands for a prototype.
Relations: simplecil compares with such prototypes, clip_zeroshot with such texts, and nothing learns there.
Cost: F is a frozen forward pass. Any image, kept ones too: F once ever; a text once ever. A step of B images and C
    classes: 15 (B + 2 C) d² + 12 B C² d multiplications, the last for dropout alone; a test image about 4 C d. State:
    2 d² numbers per task and 4 d² in all, 2 d per class, d per template of it; files of what is kept.
"""

from __future__ import annotations

import dataclasses as dc
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from perdure.backbone import normalised
from perdure.config import published
from perdure.data import LabelledImages, Task
from perdure.learned import Sizes, learned, learned_module
from perdure.memory import Exemplars, Features
from perdure.methods.base import Tags, methods
from perdure.methods.base_clip import ClipConfig, ClipMethod
from perdure.modules.contrastive import contrastive
from perdure.modules.cross_modal import CrossModal
from perdure.modules.gaussians import add_class_counts
from perdure.modules.heads import float64
from perdure.modules.prototypes import add_class_chunks
from perdure.train.fusing import Fusing, Learner
from perdure.train.replay import keep


class ProofConfig(Fusing, ClipConfig):
    """Settings of PROOF."""

    presets: ClassVar = published("proof")


@methods.register("proof")
class Proof(ClipMethod[ProofConfig]):
    """x·w_c + z·w̃_c + z·p̃_c: projected image and text; fused image z, text w̃_c and prototype p̃_c."""

    Config = ProofConfig
    tags: ClassVar = Tags(
        backbone="towers", class_names=True, open_vocabulary=True, keeps_data=True,
        small={"train": {"epochs": 1, "batch_size": 8}, "memory": {"n_per_class": 2}},
        learns={"train": {"epochs": 20, "lr": 0.01}, "memory": {"n_per_class": 4}},
    )  # fmt: skip

    texts_: Tensor = learned("classes, sentences, d", torch.float32, "text embeddings, zeros where templates are fewer")
    counts_: Tensor = learned("classes", torch.long, "n_c: images of each class", merges="added")
    sums_: Tensor = learned("classes, d", torch.float64, "sums of image embeddings of length 1", merges="added")
    network_: CrossModal = learned_module(CrossModal.STATE, "learned in every task", rest="fusion", merges="")
    contexts_: Tensor = learned("tasks, prompts, d", torch.float32, "C_k, each task's context prompts")
    log_scale_: Tensor = learned("", torch.float32, "logarithm of the logit scale")
    exemplars_: Exemplars = learned_module(Exemplars.STATE, "images of earlier tasks")

    def sizes(self) -> Sizes:
        """sentences: the most templates of a data set; prompts: those of a task."""
        return {"sentences": self.config.most_templates, "prompts": self.config.n_prompts}

    def setup(self) -> None:
        """No projections yet."""
        network = CrossModal(self.backbone.dim, self.config.dropout, self._initial())
        self.network_ = network.requires_grad_(False)
        self.log_scale_ = torch.tensor(math.log(self.backbone.logit_scale))
        self.exemplars_ = self.config.memory.make()

    @property
    def promises(self) -> Tags:
        """Scores depend on the test batch where fused rows are means over one."""
        return dc.replace(self.tags, depends_on_test_batch=self.config.fusion == "batch_mean")

    @property
    def prototypes(self) -> Float[Tensor, "classes d"]:
        """p_c, float64: the mean of image embeddings of length 1, itself not of length 1."""
        return self.sums_ / self.counts_[:, None]

    def learned_parameters(self) -> int:
        """With prompts, logit scale and prototypes."""
        return super().learned_parameters() + self.contexts_.numel() + self.log_scale_.numel() + self.sums_.numel()

    def class_texts(self, names: Sequence[str], dataset: str | None) -> Float[Tensor, "n sentences d"]:
        """Raw embeddings, sentence by sentence."""
        each = self.sentence_embeddings(names, dataset)
        return F.pad(each, (0, 0, 0, self.texts_.shape[1] - each.shape[1]))

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        self.exemplars_.require_room(len(self.classes_))
        super()._learn(task, rng)
        keep(self.exemplars_, task.train, rng, self.backbone, self.store)

    def _learn_features(self, features: Features, columns: Int[Tensor, " n"], rng: torch.Generator) -> None:
        train, device, width = self.config.train, self.backbone.device, len(self.classes_)
        unit = (normalised(chunk.double()) for chunk in features.batches())
        self.sums_ = add_class_chunks(self.sums_, columns, unit, width)
        self.counts_ = add_class_counts(self.counts_, columns, width)
        old, mean = self.exemplars_.images(), self.promises.depends_on_test_batch
        rows = torch.cat([features[:], self.store.features(self.backbone, old)[:]]).to(device)
        columns = torch.cat([columns, self.columns(old.labels)]).to(device)
        sentences = self.texts_[:, : 1 if train.texts == "first" else None].to(device)
        prototypes = self.prototypes.float().to(device)
        learner = Learner(self.network_, self.contexts_, self.log_scale_, rng)

        def loss(at: Int[Tensor, " b"]) -> Tensor:
            x, y = self.network_.images(rows[at.to(device)]), columns[at.to(device)]
            fused = self.network_.rows(sentences, prototypes, learner.contexts, mean=mean, rng=rng)
            by_text, by_prototype, _ = fused.similarities(x)
            pairs = contrastive(x, fused.texts[y], y, learner.scale, multi_positive=train.pairs == "multi_positive")
            return F.cross_entropy(by_text, y) + F.cross_entropy(by_prototype, y) + pairs

        self.contexts_, self.log_scale_ = learner.run(loss, len(columns), train, self.store.progress)

    @torch.no_grad()
    def _answers(self, batches: Iterable[Tensor], strange: Float[Tensor, "n sentences d"]) -> Iterator[Tensor]:
        """Scores of the classes seen, then of strange ones, in float64: once rounded, they do not depend on a batch."""
        c, device, cosine = self.config, self.backbone.device, self.config.score_mode == "cosine"
        known = (self.texts_, self.prototypes, self.contexts_, strange)
        fused = self.network_.rows(*(float64(x.to(device)) for x in known), mean=self.promises.depends_on_test_batch)
        for features in batches:
            x = self.network_.images(float64(features.to(device)), unit=c.normalise_tests)
            scores = fused.scores(x, c.projected, cosine=cosine)
            yield (scores * self.log_scale_.exp() if cosine else scores).float().cpu()

    def _scores_from_features(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b classes"]:
        return torch.cat([*self._answers(features.split(self.config.train.batch_size), self.texts_[:0])])

    def _scores_beside(self, data: LabelledImages, texts: Float[Tensor, "n sentences d"]) -> Iterator[Tensor]:
        features = self.store.features(self.backbone, data, label="test features")
        yield from self._answers(features.batches(self.config.train.batch_size), texts)

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        yield from self._scores_beside(data, self.texts_[:0])
