"""APER: adapt once, to the first task, then class means on frozen and adapted features side by side.

Source: Zhou, Cai, Ye, Zhan & Liu, "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability
    and Adaptivity are All You Need", IJCV 2024 (arXiv 2303.07338; ADAM in its first version).
Deviations: sums are float64 and add up, so a class that comes again gets the mean of all its images. Prompts start as
    the original VPT draws them; APER's zeros (``prompt_init=zeros``, in the presets) make p equal tokens that stay
    equal. Crops are cut from the eval view, not from a larger image. Where training views do not change
    (``min_scale=1``, ``flip=false``) the output of a stem comes from the store. The BatchNorm variant for ResNets is
    left out. The presets are the released settings of the variants whose name they bear, for CIFAR-100 (of
    ``official_finetune`` those of its log, which the released file is not); the other rows of the paper are recipes.
Use when: the first task is large and like the later ones; its classes decide what the backbone adapts to. Relations:
    SimpleCIL is the same without adapted features; RanPAC puts a ridge head on them; EASE adapts to every task.
Cost: ``epochs`` training passes over the first task's images, then two passes per image ever (one of them SimpleCIL's);
    state is the adapted part (``finetune``: a whole backbone) and 16 d + 8 bytes per class.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor

from perdure.config import MethodConfig
from perdure.data import LabelledImages, Task
from perdure.methods.base import TRAINING, Method, Tags, methods
from perdure.modules.gaussians import add_class_counts, add_class_sums
from perdure.modules.heads import cosine_scores
from perdure.train.adapting import Adaptation, AdapterPart, FirstSession

LOGGED = {"optimizer": {"weight_decay": 0.05}}
ZEROS = {"variant": "vpt_deep", "prompt_init": "zeros"}


class APERConfig(MethodConfig):
    """Settings of APER."""

    presets: ClassVar = {
        "official": {"adapt": {"variant": "adapter"}},
        "official_finetune": {"adapt": {"variant": "finetune", "train": LOGGED}},
        "official_vpt_deep": {"adapt": {**ZEROS, "train": {"epochs": 5, "lr": 0.05, "batch_size": 16}}},
        "pilot_finetune": {"adapt": {"variant": "finetune", "train": {**LOGGED, "epochs": 6, "batch_size": 128}}},
        "pilot_vpt_deep": {"adapt": ZEROS},
    }

    adapt: Adaptation = Field(AdapterPart(), discriminator="variant", description="what adapts to the first task")


@methods.register("aper", "adam")
class APER(Method[APERConfig]):
    """Cosine nearest class mean of [frozen; adapted] features.

    Raises:
        BackboneError: if the backbone has no seat for the variant.
    """

    Config = APERConfig
    tags: ClassVar = Tags(
        adapts=True,
        small={"adapt": {"variant": "adapter", "rank": 4, "train": {"epochs": 1, "batch_size": 8}}},
        learns={"adapt": {"train": {"epochs": 3, "augment": {"min_scale": 1.0, "flip": False}}}},
    )

    def setup(self) -> None:
        """A part that has not adapted yet, and no class."""
        self.first = FirstSession(self.backbone, self.config.adapt, self._initial())
        self.tuned_ = self.first.part
        self.counts_ = torch.zeros(0, dtype=torch.long)  # n_c, (classes,)
        self.sums_ = torch.zeros(0, 2 * self.backbone.dim, dtype=torch.float64)  # s_c of z = [f0; f1], (classes, 2d)

    @property
    def prototypes(self) -> Float[Tensor, "classes two_d"]:
        """P_c = s_c / n_c: each class's mean merged feature, float64."""
        return self.sums_ / self.counts_[:, None]

    def learned_parameters(self) -> int:
        """The adapted part and the prototypes' values."""
        return super().learned_parameters() + self.sums_.numel()

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        columns, width, done = self.columns(task.train.labels), len(self.classes_), 0
        self.first.adapt(task, columns, self._generator(TRAINING), self.store)
        for z in self._merged(task.train, "train features"):
            here = columns[done : done + len(z)]
            self.sums_ = add_class_sums(self.sums_, here, z, width)
            self.counts_ = add_class_counts(self.counts_, here, width)
            done += len(z)

    def _merged(self, data: LabelledImages, label: str) -> Iterator[Float[Tensor, "b two_d"]]:
        """z = [f0; f1] of all images; both come from the store, the frozen half shared with every other method."""
        frozen, adapted = (self.store.features(b, data, label=label) for b in (self.backbone, self.first.backbone))
        for f0, f1 in zip(frozen.batches(), adapted.batches(), strict=True):
            yield torch.cat([f0, f1], dim=1)

    def scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """As in :class:`Method`, with two backbone passes per image ever."""
        self._require_fitted("scores_of")
        for z in self._merged(data, "test features"):
            yield cosine_scores(z, self.prototypes)

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        z = torch.cat([b.features(images).cpu() for b in (self.backbone, self.first.backbone)], dim=1)
        return cosine_scores(z, self.prototypes)
