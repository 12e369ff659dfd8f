"""APER: adapt once, to the first task, then class means on frozen and adapted features side by side.

Source: Zhou, Cai, Ye, Zhan & Liu, "Revisiting Class-Incremental Learning with Pre-Trained Models: Generalizability
    and Adaptivity are All You Need", IJCV 2024, arXiv 2303.07338; first called ADAM.
    The presets are its code's and LAMDA-PILOT's settings for CIFAR-100; the paper's other rows are recipes.
Use when: the first task is large and like the later ones; its classes decide what the backbone adapts to.
Deviations:
- From the paper: sums add up in float64, so a class that comes again gets the mean of all its images.
- From the released code: prompts start at random; its zeros (``adapt.prompt_init=zeros``) stay equal for ever.
- From the released code: crops are cut from the eval view, not from a larger image.
- From the released code: ``preset=official_finetune`` is what its log shows, which its settings file is not.
- Left out: the variant for ResNets, which only re-estimates BatchNorm's statistics.
Relations: SimpleCIL is the same without adapted features; RanPAC puts a ridge head on them; EASE adapts to every task.
Cost: F is a frozen forward pass. First task's image: 2 F per epoch. Any image: 2 F once ever, one of them SimpleCIL's.
    State: the adapted part and 16 d + 8 bytes per class. With ``adapt.variant=finetune`` 3 F, and a whole backbone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from jaxtyping import Float, Num
from pydantic import Field
from torch import Tensor, nn

from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.learned import learned, learned_module
from perdure.methods.base import TRAINING, Method, Tags, methods
from perdure.modules.gaussians import add_class_counts
from perdure.modules.heads import cosine_scores
from perdure.modules.prototypes import add_class_chunks
from perdure.train.adapting import Adaptation, AdapterPart, FirstSession


class APERConfig(MethodConfig):
    """Settings of APER."""

    presets: ClassVar = published("aper")

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

    tuned_: nn.Module = learned_module({}, "what adapts to the first task", rest="part")
    counts_: Tensor = learned("classes", torch.long, "n_c: images of each class", merges="added")
    sums_: Tensor = learned("classes, 2 d", torch.float64, "s_c: sums of z = [f0; f1]", merges="added", under="tuned_")

    def setup(self) -> None:
        """A part that has not adapted yet."""
        self.first = FirstSession(self.backbone, self.config.adapt, self._initial())
        self.tuned_ = self.first.part

    @property
    def prototypes(self) -> Float[Tensor, "classes two_d"]:
        """P_c = s_c / n_c: each class's mean merged feature, float64."""
        return self.sums_ / self.counts_[:, None]

    def learned_parameters(self) -> int:
        """The adapted part and the prototypes' values."""
        return super().learned_parameters() + self.sums_.numel()

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        columns, width = self.columns(task.train.labels), len(self.classes_)
        self.first.adapt(task, columns, self._generator(TRAINING), self.store)
        self.sums_ = add_class_chunks(self.sums_, columns, self._merged(task.train, "train features"), width)
        self.counts_ = add_class_counts(self.counts_, columns, width)

    def _merged(self, data: LabelledImages, label: str) -> Iterator[Float[Tensor, "b two_d"]]:
        """z = [f0; f1] of all images; both come from the store, the frozen half shared with every other method."""
        for both in self.store.side_by_side([self.backbone, self.first.backbone], data, label=label):
            yield torch.cat(both, dim=1)

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """Two backbone passes per image ever."""
        for z in self._merged(data, "test features"):
            yield cosine_scores(z, self.prototypes)

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        z = torch.cat([b.features(images).cpu() for b in (self.backbone, self.first.backbone)], dim=1)
        return cosine_scores(z, self.prototypes)
