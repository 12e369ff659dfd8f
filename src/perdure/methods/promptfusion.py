"""PromptFusion: a prompted CLIP that forgets little and a prompted ViT that adapts well, their scores added.

Source: Chen, Wu, Han, Jia & Jiang, "PromptFusion: Decoupling Stability and Plasticity for Continual Learning", ECCV
    2024 (arXiv 2303.07223). The CLIP is its Stabilizer, the second backbone its Booster; ``lite`` is its Lite form.
Use when: a CLIP with a ViT as image tower is there, images may be kept, and two backbones are affordable.
Deviations:
- From the released code: one weight per class in the loss; there one per place in the batch (``weights=row``).
- From the code: the booster's pixels are normalised as its own weights want (``booster_view=shared``).
- From the code: nothing stands between a class's vectors and its name; there M tokens X (``keep_placeholders``).
- From the code: prompts are those behind the last step, not one step behind; a gate at test has no noise.
- From the figure: lambda's sigmoid is the booster's share, as in the code (``fusion_sign=figure``).
- Old texts are kept, not encoded anew; their vectors V_c, which nothing reads any more, are not. The head grows.
- A class that comes again keeps its text and weighs as an old one.
Relations: CoOp learns vectors before names alone, VPT prompts alone. ER trains on kept images too.
Cost: F is a pass of one ViT, f of a text. Training image: 4.6 F, and 2 f per new class and step. Test image: 2.3 F,
    with ``lite`` 1.2 F + 1.2 F where the gate asks. Herding: F once. State: 4 d per class, prompts, head, image files.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int, Num
from pydantic import Field
from torch import Tensor

from perdure.backbone import Backbone
from perdure.backbone.second import SecondBackbone, View
from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.data.stream import Candidate
from perdure.learned import Sizes, learned, learned_constant, learned_module
from perdure.memory import Exemplars
from perdure.methods.base import Tags, methods
from perdure.methods.base_clip import TextMethod
from perdure.modules.heads import GrowingLinear, cosine_scores, linear_scores
from perdure.modules.score_fusion import ClassWeights, Gate, LearnedShare, Lite, Sign
from perdure.train.class_contexts import ClassContexts
from perdure.train.pairs import Embedded, PairedImages, PairedPrompts, WholeBatches
from perdure.train.replay import keep
from perdure.train.session import Session
from perdure.train.settings import AdamW, EpochCosine

TRAIN = WholeBatches(
    lr=2e-3, epochs=3, batch_size=32, optimizer=AdamW(weight_decay=1e-4), schedule=EpochCosine(), clip_norm=1.0
)


class PromptFusionConfig(MethodConfig):
    """Settings of PromptFusion."""

    presets: ClassVar = published("promptfusion")

    booster: SecondBackbone = Field(SecondBackbone(), description="the second backbone, a ViT")
    booster_view: View = Field("own", description="normalise its pixels as its weights want, or as the CLIP's")
    train: WholeBatches = Field(TRAIN, description="of all that learns, on new and kept images together")
    context: int = Field(30, ge=1, description="M, learned vectors before each class's name")
    keep_placeholders: bool = Field(False, description="leave M tokens X between the vectors and the name")
    clip_prompt: int = Field(30, ge=1, description="tokens in the CLIP's image tower, from N(0, 1)")
    booster_prompt: int = Field(30, ge=1, description="tokens in the booster, from U(-1, 1)")
    weights: Literal["class", "row"] = Field("class", description="learned weights in the loss: by class, or batch row")
    fusion_sign: Sign = Field("code", description="whose share sigmoid(lambda) is: the booster's, or the CLIP's")
    lite: Lite | None = Field(None, description="ask the booster only where a gate says so; null: always")
    n_images: int = Field(5000, ge=1, description="images kept in all, by herding")


@methods.register("promptfusion")
class PromptFusion(TextMethod[PromptFusionConfig]):
    """z = (1 - sigmoid(lambda)) z_S + sigmoid(lambda) z_B; or z = z_S + g z_B with a gate g.

    Raises:
        BackboneError, ConfigError: if a tower is no ViT that takes prompts, or they have no image size in common.
    """

    Config = PromptFusionConfig
    tags: ClassVar = Tags(
        backbone="towers", prompted=True, keeps_data=True, class_names=True,
        small={"booster": {"name": "test_vit", "pretrained": False}, "context": 2, "clip_prompt": 2,
               "booster_prompt": 2, "n_images": 12, "train": {"epochs": 1, "batch_size": 8}},
        learns={"train": {"epochs": 7, "lr": 0.03, "batch_size": 4}},
    )  # fmt: skip

    booster_: str = learned_constant("a hash of the booster", of="booster")
    prompts_: PairedPrompts = learned_module({}, "tokens in the CLIP's image tower, in the booster", rest="prompts")
    head_: GrowingLinear = learned_module(GrowingLinear.state("e"), "of the booster")
    fusion_: LearnedShare | Gate = learned_module({}, "lambda, or the gate", rest="fusion")
    alpha_: Tensor = learned("rows, new", torch.float32, "of the weights of the last task's new classes")
    exemplars_: Exemplars = learned_module(Exemplars.STATE, "images of earlier tasks")

    @functools.cached_property
    def booster(self) -> Backbone:
        """The second backbone; its passes are counted with the CLIP's."""
        return self.config.booster.beside(self.backbone, self.config.booster_view, "PromptFusion")

    def sizes(self) -> Sizes:
        """e: features of the booster; rows: of alpha, a batch's places or 1."""
        return {"e": self.booster.dim, "rows": self.config.train.batch_size if self.config.weights == "row" else 1}

    def setup(self) -> None:
        """Prompts, lambda or the gate at their initial values, an empty head, and an empty memory."""
        c, rng = self.config, self._initial()
        self.prompts_ = PairedPrompts(self.backbone, self.booster, c.clip_prompt, c.booster_prompt, rng)
        self.booster_, self.head_ = self.booster.identity, GrowingLinear(self.booster.dim)
        self.fusion_ = Gate(self.backbone.dim, c.lite, rng) if c.lite else LearnedShare(c.fusion_sign)
        self.exemplars_ = Exemplars("herding", n_images=c.n_images)

    def learned_parameters(self) -> int:
        """Texts, prompts, head, and lambda or the gate."""
        return super().learned_parameters() + self.texts_.numel()

    def _require_readable(self, candidate: Candidate) -> None:
        c = self.config
        ClassContexts(self.backbone, [candidate.text], c.context, c.keep_placeholders, self._initial())

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        new, t, clip, c = self.new_names(), self.tasks_seen_, self.backbone, self.config
        contexts, old = ClassContexts(clip, new, c.context, c.keep_placeholders, rng), self.texts_.to(clip.device)
        self.exemplars_.require_room(len(self.classes_))
        self.head_.grow(len(self.classes_), rng, "normal_0.02")
        weights = ClassWeights(t, len(old), len(new), self.alpha_).to(clip.device)
        gate_before = copy.deepcopy(self.fusion_) if t else None

        def loss(batch: tuple[Embedded, Int[Tensor, " b"]]) -> Tensor:
            (image, feature), columns = self.prompts_(batch[0]), batch[1]
            z_stable = clip.logit_scale * image @ torch.cat([old, contexts()]).T
            z, of_gate = self.fusion_.trained(image, z_stable, self.head_(feature), gate_before, rng)
            return weights.loss(z, columns) + of_gate

        both = task.train.joined(self.exemplars_.images())
        learns = [contexts, self.prompts_, self.head_, self.fusion_, weights]
        source = PairedImages(self.prompts_.towers, both, self.columns(both.labels), c.train, self.store)
        Session(source, c.train, rng, fast=learns, stage="learning prompts", progress=self.store.progress).run(loss)
        self.texts_, self.alpha_ = torch.cat([self.texts_, contexts().detach().cpu()]), weights.learned_alpha
        keep(self.exemplars_, task.train, rng, clip, self.store)

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._fused(self.prompts_.embedded(images))

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        yield from map(self._fused, self.prompts_.batches(self.store, data))

    @torch.no_grad()
    def _fused(self, pair: Embedded) -> Float[Tensor, "b classes"]:
        image, asked, feature = self.prompts_.tested(pair, self.fusion_.asks)
        z_stable = self.backbone.logit_scale * cosine_scores(image, self.texts_.to(image.device)).cpu()
        return self.fusion_.tested(z_stable, linear_scores(feature, self.head_).cpu(), asked)
