"""CODA-Prompt: prefixes mixed from components of all tasks, by learned weights; a task adds and trains its own block.

Source: Smith et al., "CODA-Prompt: COntinual Decomposed Attention-based Prompting for Rehearsal-Free Continual
    Learning", CVPR 2023, arXiv 2211.13218; as its code has been since June 2023, without orthogonality penalty.
Use when: a ViT is given and prompts for each image shall be learned end to end by the classification loss alone.
    Domains instead of classes, untested by the authors: ``logits=seen``.
Deviations:
- From the paper: new components are made orthogonal task by task, without penalty; the paper's is ``preset=paper_v1``.
- From the released code: they are exactly orthogonal; ``components.ortho=reference`` is its Gram-Schmidt, which is not.
- From both: components grow by a fixed number per task; a pool for T tasks is ``components=pool``.
- From the released code: the rate falls by the printed formula, an epoch earlier (``train.schedule.released=true``).
- From the released code: a task of few batches keeps its last; ``train.drop_last=always`` never does.
- From the released code: queries in eval mode; old blocks stay as they are, without weight decay or momentum.
- From the released code: the penalty (``mu``) counts once per step, not once per GPU.
- Unseen classes are never predicted: the head grows with the classes.
Relations: L2P and DualPrompt choose prompts by a match that the classification loss does not train.
Cost: F is a frozen forward pass. Training image: F (query, unless stored) + 2 F. Test image: F once + F per task.
    State: M (Lp + 2) D numbers per layer for M components of Lp rows, of which a task trains its own, and the head.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from perdure.backbone import prefix
from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.learned import Sizes, learned_module
from perdure.methods.base import PromptMethod, Tags, methods
from perdure.modules.components import ComponentLayers, PerTask, SharedPool
from perdure.modules.heads import GrowingLinear, HeadInit, linear_scores
from perdure.modules.losses import masked_cross_entropy
from perdure.train import prompting
from perdure.train.batches import Batch, Queries
from perdure.train.settings import ImageTraining

SHORT = {"epochs": 1, "batch_size": 8}
STEPS = {"schedule": "quarter_cosine", "clip_norm": None, "drop_last": "from_4_batches"}
TRAIN = prompting.TRAIN.but(epochs=20, batch_size=128, augment={"min_scale": 0.08}, **STEPS)


class CODAPromptConfig(MethodConfig):
    """Settings of CODA-Prompt."""

    presets: ClassVar = published("coda_prompt")

    train: ImageTraining = Field(TRAIN, description="of the task's components and the head")
    layers: list[int] = Field([0, 1, 2, 3, 4], min_length=1, description="blocks that read a prefix, counted from 0")
    length: int = Field(8, ge=2, multiple_of=2, description="rows of a component (Lp): half of them keys, half values")
    components: PerTask | SharedPool = Field(PerTask(), discriminator="name", description="how many, how made")
    mu: float = Field(0.0, ge=0, description="weight of the orthogonality penalty")
    head_init: HeadInit = Field("torch_linear", description="initial weights of new classes")
    logits: prompting.Logits = prompting.LOGITS
    query_view: Queries = prompting.QUERY_VIEW


@methods.register("coda_prompt")
class CODAPrompt(PromptMethod[CODAPromptConfig]):
    """Mixes each image's prefixes from all components seen so far."""

    Config = CODAPromptConfig
    tags: ClassVar = Tags(
        backbone="vit",
        prompted=True,
        small={"layers": [0, 2], "length": 4, "components": {"name": "per_task", "each": 2}, "train": SHORT},
        learns={"train": {"epochs": 5, "lr": 0.01, "augment": {"min_scale": 1.0, "flip": False}}},
        expected_failures=prompting.HEADS_APART,
    )

    components_: ComponentLayers = learned_module(ComponentLayers.STATE, "of each layer, by task")

    def sizes(self) -> Sizes:
        """layers: those that read a prefix; m: components of a task; Lp: rows of each."""
        c = self.config
        return {"layers": len(c.layers), "m": c.components.each, "Lp": c.length}

    def setup(self) -> None:
        """An empty head, and layers without components."""
        c, backbone = self.config, self.backbone
        prompting.require_blocks("CODAPrompt", backbone, layers=c.layers)
        self.head_ = GrowingLinear(backbone.dim)
        self.components_ = ComponentLayers(c.components, len(c.layers), c.length, backbone.dim)
        self.tests = prompting.PromptTests(backbone, self.store, self._test_logits)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, columns = self.config, self.columns(task.train.labels)
        self.head_.grow(len(self.classes_), rng, c.head_init)
        self.components_.add(task.index, rng, whole=self._initial())
        compared = prompting.columns_in_loss(columns, c.logits)

        def loss(batch: Batch) -> Tensor:
            embedded = batch.embedded(self.backbone)
            logits = self.head_(self._prompted(embedded, batch.queries(self.backbone, embedded)).float())
            value = masked_cross_entropy(logits, batch.columns, compared)
            return value + c.mu * self.components_.penalty() if c.mu else value

        self._train(task, c.train, rng, loss, [self.head_, *prompting.learning(self.components_)], c.query_view)

    def _prompted(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b d"]:
        """The pooled feature with each layer's mixed prefix."""
        rows = zip(self.config.layers, self.components_.prefixes(queries), strict=True)
        prompts = {i: prefix(self.backbone.vit, i, *keys_and_values) for i, keys_and_values in rows}
        return self.backbone.pool(self.backbone.walk(embedded, prompts))

    def _test_logits(self, embedded: Float[Tensor, "b n d"], queries: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        return linear_scores(self._prompted(embedded, queries), self.head_)

    def _selection_of(self, data: LabelledImages) -> Float[Tensor, " slots"]:
        queries = self.store.features(self.backbone, data, label="test queries")
        return self.components_.shares(batch.to(self.backbone.device) for batch in queries.batches())
