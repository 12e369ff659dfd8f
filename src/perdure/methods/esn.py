"""ESN: a small classifier per task on a frozen ViT's tokens; energies vote on which of them answers.

Source: Wang, Ma, Huang, Wang, Su & Hong, "Isolation and Impartial Aggregation: A Paradigm of Incremental Learning
    without Interference", AAAI 2023, arXiv 2211.15969, and its released code where the paper leaves a choice.
Use when: nothing learned earlier may change, and a large classifier per task (5 d² numbers) is affordable.
Deviations:
- From the released code: the prompt learns in the first task only, not in all (``prompt_mode=sequential``).
- From the usual free energy: training anchors a soft minimum of the logits, as in the code (``anchor.form=softmax``).
- From the released code: tasks may differ in size; no colour jitter; crops are cut from the eval view.
- An extension: ``temperature=fixed``, for the selection only looks at what the newest task's classifier gets.
- An extension: a class that comes again (a new domain) has a further row, in its new task; its best row counts.
Relations: EASE has an adapter per task and class means in the place of classifiers. DAP looks for an image's task, too.
Cost: F is a frozen forward pass, F' that of n + p tokens. Training image: 3 F' per epoch of the first task; later F'
    per epoch and F' to choose a temperature, or F' once in all where views do not change. Test image: F' once in all.
    State: 5 d² + 10.5 d numbers per task, d + 1 per class and p d.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Num
from pydantic import Field
from torch import Tensor

from perdure.backbone import PromptTokens
from perdure.config import MethodConfig, published
from perdure.data import LabelledImages, Task
from perdure.errors import ConfigError
from perdure.learned import Sizes, learned, learned_module
from perdure.methods.base import Method, Tags, methods
from perdure.modules.ensemble import EnergyVote, Fixed, NewestRecall, combined
from perdure.modules.heads import GrowingLinear, linear_scores
from perdure.modules.losses import Anchor
from perdure.modules.task_attention import TaskAttentions, normalised
from perdure.train.outputs import Outputs
from perdure.train.settings import SGD, Augment, EpochCosine, ImageTraining

TRAIN = ImageTraining(
    lr=0.01, epochs=30, batch_size=128, optimizer=SGD(weight_decay=5e-4), schedule=EpochCosine(),
    augment=Augment(min_scale=0.08),
)  # fmt: skip
SLOTS = {"weight": learned("slots, d", torch.float32), "bias": learned("slots", torch.float32)}


class ESNConfig(MethodConfig):
    """Settings of ESN."""

    presets: ClassVar = published("esn")

    train: ImageTraining = Field(TRAIN, description="of a task's classifier, and of the prompt where it learns")
    heads: int | None = Field(None, ge=1, description="attention heads of each task's block; null: the backbone's")
    prompt_mode: Literal["none", "first_stage", "sequential"] = Field("first_stage", description="when it learns")
    length: int = Field(100, ge=1, description="prompt tokens (p)")
    anchor: Anchor = Field(Anchor(), description="holds the energy E of every task's classifier at one level")
    temperature: NewestRecall | Fixed = Field(NewestRecall(), discriminator="name", description="of the vote")
    store_tokens: bool = Field(True, description="keep 4 (n + p) d bytes per image in the store, for one pass ever")


@methods.register("esn")
class ESN(Method[ESNConfig]):
    """Each task's block reads the tokens; the one of the lowest energy at most temperatures answers.

    Raises:
        ConfigError: if the heads do not divide the backbone's width.
    """

    Config = ESNConfig
    tags: ClassVar = Tags(
        backbone="vit", prompted=True, small={"length": 2, "train": {"epochs": 1, "batch_size": 8}},
        learns={  # of so few images, others' are not held 10 below 0 too, as softmin needs
            "train": {"epochs": 15, "batch_size": 4, "augment": {"min_scale": 1.0, "flip": False}},
            "anchor": {"form": "softmax"},
        },
    )  # fmt: skip

    prompt_: PromptTokens = learned_module({"values": learned("p, d", torch.float32)}, "P")
    blocks_: TaskAttentions = learned_module({}, "token e and block of each task", rest="block", each="tasks")
    head_: GrowingLinear = learned_module(SLOTS, "W and b of all tasks")
    slot_columns_: list[int] = learned("slots", int, "column of each class of each task", below="classes")
    widths_: list[int] = learned("tasks", int, "classes of each task")
    temperatures_: list[float] = learned("tasks", float, "T")

    def sizes(self) -> Sizes:
        """p: prompt tokens."""
        return {"p": 0 if self.config.prompt_mode == "none" else self.config.length}

    def setup(self) -> None:
        """The prompt at its initial values, and no task's classifier."""
        c, d, vit = self.config, self.backbone.dim, self.backbone.vit
        heads = c.heads or max(getattr(m, "num_heads", 0) for m in vit.blocks.modules())
        if d % heads:
            raise ConfigError("ESN", "heads", f"a divisor of the backbone's width {d}", heads, "Leave out method.heads")
        spread = 2 * torch.rand(self.sizes()["p"], d, generator=self._initial()) - 1
        self.prompt_ = PromptTokens(spread * d**-0.5).requires_grad_(False)
        self.blocks_ = TaskAttentions(torch.zeros(d) if vit.cls_token is None else vit.cls_token[0, 0], heads)
        self.head_ = GrowingLinear(d)
        keep = c.store_tokens and c.prompt_mode != "sequential"
        self.outputs = Outputs(self.backbone, self.prompt_, self.store, keep=keep)

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        c, anchor = self.config, self.config.anchor
        mine, own = self.columns(task.train.labels).unique(return_inverse=True)
        rows = own + len(self.slot_columns_)
        self.slot_columns_, self.widths_ = [*self.slot_columns_, *mine.tolist()], [*self.widths_, len(mine)]
        self.blocks_.add(rng)
        self.head_.grow(len(self.slot_columns_), rng, "torch_linear")
        block = self.blocks_.parts[-1]
        with self.head_.apart(rows) as (head, own):  # a task's classes among themselves

            def loss(tokens: Float[Tensor, "b m d"], columns: Int[Tensor, " b"]) -> Tensor:
                logits = head(block(normalised(tokens)))
                return F.cross_entropy(logits, columns) + anchor.loss(logits)

            self.outputs.train(
                task.train, own, c.train, rng, loss, learns=[block, *head.parameters()],
                with_prompt=c.prompt_mode == "sequential" or (c.prompt_mode == "first_stage" and not task.index),
            )  # fmt: skip
        logits = self._logits_of(task.train) if task.index else ()  # there is nothing to choose for the first task
        self.temperatures_ = [*self.temperatures_, c.temperature.choose(z.split(self.widths_, 1) for z in logits)]

    def _logits(self, tokens: Float[Tensor, "b m d"]) -> Float[Tensor, "b slots"]:
        """Those of every task, side by side."""

        def compute(part: Tensor) -> Tensor:
            each = [linear_scores(rows, self.head_).split(self.widths_, 1) for rows in self.blocks_.exact(part)]
            return torch.cat([of_all[task] for task, of_all in enumerate(each)], 1)

        return self.backbone.in_batches(compute, tokens, passes=0).cpu()

    def _logits_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b slots"]]:
        return map(self._logits, self.outputs.batches(data))

    def _scores_of(self, data: LabelledImages) -> Iterator[Float[Tensor, "b classes"]]:
        """One pass per image ever, unless the prompt goes on learning or tokens are not kept."""
        return map(self._vote, self._logits_of(data))

    def _scores(self, images: Num[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        return self._vote(self._logits(self.outputs.of(images)))

    def _vote(self, logits: Float[Tensor, "b slots"]) -> Float[Tensor, "b classes"]:
        columns = [part.tolist() for part in torch.tensor(self.slot_columns_).split(self.widths_)]
        return combined(logits.split(self.widths_, 1), columns, EnergyVote(self.temperatures_))
