"""Adapting a part of the backbone to the classes of one task: adapters, scales and shifts, prompts, or all weights.

The part learns under a cosine head that is thrown away afterwards. This is the first session of APER and RanPAC and
every session of EASE.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Int, Num
from pydantic import Field
from torch import Tensor, nn

from perdure.backbone import Backbone, PromptTokens, Site
from perdure.config import Config
from perdure.data import LabelledImages, Task
from perdure.memory import FeatureStore
from perdure.modules.adapter import Adapter
from perdure.modules.cosine_head import CosineHead
from perdure.modules.ssf import ScaleShift
from perdure.train.batches import Batch
from perdure.train.session import on_images
from perdure.train.settings import SGD, Augment, EpochCosine, ImageTraining

TRAIN = ImageTraining(
    lr=0.01, epochs=20, batch_size=48, optimizer=SGD(weight_decay=5e-4), schedule=EpochCosine(), augment=Augment()
)
Asked: TypeAlias = Callable[[int, Tensor], Tensor]  # (task, positions) -> features under that task's adapter


class _Part(Config):
    train: ImageTraining = Field(TRAIN, description="of the part and of a cosine head that is thrown away")


class AdapterPart(_Part):
    """A bottleneck beside every block's MLP."""

    variant: Literal["adapter"] = "adapter"
    rank: int = Field(64, ge=1, description="width of an adapter's bottleneck (r)")

    def insert(self, view: Backbone, rng: torch.Generator) -> nn.Module:
        """Into a view of the backbone; it starts as nothing."""
        return view.insert("mlp", lambda site: Adapter(site.n_in, self.rank, rng))


class ScaleShiftPart(_Part):
    """A scale and a shift behind every layer, near the identity at first."""

    variant: Literal["ssf"] = "ssf"

    def insert(self, view: Backbone, rng: torch.Generator) -> nn.Module:
        """Into a view of the backbone."""
        return view.insert("outputs", lambda site: ScaleShift(site.n_out, rng))


class _Prompts(_Part):
    shallow: ClassVar[bool]
    prompt_length: int = Field(5, ge=1, description="prompt tokens, of vpt_deep in every block (p)")
    prompt_init: Literal["uniform", "zeros"] = Field(
        "uniform", description="uniform is VPT's; zeros is published for APER, and its p tokens stay equal for ever"
    )

    def insert(self, view: Backbone, rng: torch.Generator) -> nn.Module:
        """Into a view of the backbone."""

        def make(site: Site) -> nn.Module:
            pixels = math.prod(view.vit.patch_embed.patch_size)
            v = (6 / (3 * pixels + site.n_in)) ** 0.5 if self.prompt_init == "uniform" else 0.0
            return PromptTokens(v * (2 * torch.rand(self.prompt_length, site.n_in, generator=rng) - 1))

        return view.insert("tokens", make, blocks=[0] if self.shallow else None, stay=self.shallow)


class ShallowPrompts(_Prompts):
    """Prompt tokens before the first block, which travel on."""

    shallow = True
    variant: Literal["vpt_shallow"] = "vpt_shallow"


class DeepPrompts(_Prompts):
    """New prompt tokens in every block."""

    shallow = False
    variant: Literal["vpt_deep"] = "vpt_deep"


class AllWeights(_Part):
    """A copy of the whole backbone."""

    variant: Literal["finetune"] = "finetune"


Adaptation: TypeAlias = AdapterPart | ScaleShiftPart | ShallowPrompts | DeepPrompts | AllWeights


class Inserts(Protocol):
    """Anything that is inserted into a view of the backbone."""

    def insert(self, view: Backbone, rng: torch.Generator) -> nn.Module:
        """Puts it there; its initial values come from ``rng``."""
        ...


def adaptable(backbone: Backbone, how: AllWeights | Inserts, rng: torch.Generator) -> tuple[Backbone, nn.Module]:
    """A backbone with a part that may learn, frozen for now, and that part.

    Source: Zhou et al., "Revisiting Class-Incremental Learning with Pre-Trained Models", IJCV 2024, section 5: adapters
    start as nothing, scales and shifts near the identity; prompts as Jia et al., "Visual Prompt Tuning", ECCV 2022,
    draw them, or as zeros.

    Args:
        backbone: is not changed; all parts but the copy of all weights share its own.
        how: what learns.
        rng: of initial values.

    Raises:
        BackboneError: if the backbone has no seat for it.
    """
    if isinstance(how, AllWeights):
        thawed = backbone.thawed_copy()
        thawed.requires_grad_(False)
        return thawed, thawed.model
    view = backbone.view()
    return view, how.insert(view, rng).requires_grad_(False)


def adapt(
    backbone: Backbone,
    part: nn.Module,
    data: LabelledImages,
    columns: Int[Tensor, " n"],
    config: ImageTraining,
    rng: torch.Generator,
    store: FeatureStore,
) -> None:
    """Trains a part of a backbone to tell the classes of one task apart; the cosine head it takes is thrown away.

    Source: as :func:`adaptable`: cross-entropy on sigma cos(f, w_c), sigma learned from 1.

    Args:
        backbone: with that part.
        part: what learns.
        data: the task's images.
        columns: of their classes; any numbers.
        config: the training's settings.
        rng: a CPU generator.
        store: of features.

    Raises:
        TrainingError: if the loss is no longer finite.
    """
    classes, own = torch.unique(columns, return_inverse=True)
    head = CosineHead(backbone.dim)
    head.grow(len(classes), rng)
    head.to(backbone.device)

    def loss(batch: Batch) -> Tensor:
        return F.cross_entropy(head(batch.features(backbone)), batch.columns)

    on_images(backbone, data, own, config, rng, store, fast=[part, *head.parameters()], stage="adapting").run(loss)


class FirstSession:
    """A backbone that adapts to the first task and is frozen ever after.

    Args:
        given: the backbone; it is never changed.
        how: what adapts; None: nothing, and the adapted backbone is the given one.
        rng: of initial values.

    Raises:
        BackboneError: if the backbone has no seat for it.
    """

    def __init__(self, given: Backbone, how: Adaptation | None, rng: torch.Generator) -> None:
        self.how, self.backbone = how, given
        self.part: nn.Module = nn.ModuleList()
        if how is not None:
            self.backbone, self.part = adaptable(given, how, rng)

    def adapt(self, task: Task, columns: Int[Tensor, " n"], rng: torch.Generator, store: FeatureStore) -> None:
        """Adapts to ``task``, if anything is to adapt and it is the first.

        Args:
            task: any task.
            columns: of its training images' classes.
            rng: a CPU generator.
            store: of features.
        """
        if self.how is not None and not task.index:
            adapt(self.backbone, self.part, task.train, columns, self.how.train, rng, store)


class AdapterStack(nn.Module):
    """A stored adapter per task, each in a view of the backbone of its own. Loading a state makes as many as it holds.

    Args:
        backbone: is not changed.
        how: what an adapter is.
        draw: a task's index to the generator of its adapter's initial values.
        added: called with a task's index when its adapter is there.
    """

    def __init__(
        self,
        backbone: Backbone,
        how: AdapterPart,
        draw: Callable[[int], torch.Generator],
        added: Callable[[int], None] = lambda task: None,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        self._backbone, self._how = (backbone,), how  # in a tuple: not a module of this one
        self._draw, self._added = draw, added
        self.views: list[Backbone] = []  # one per task: the backbone with its adapter

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, task: int) -> nn.Module:
        return self.parts[task]

    def one(self) -> dict[str, Tensor]:
        """The state of one adapter: the first, or what it will be before it learns."""
        part = self.parts[0] if len(self) else adaptable(self._backbone[0], self._how, self._draw(0))[1]
        return dict(part.state_dict())

    def add(self, *, go_on: bool = False) -> None:
        """Adds an adapter for the next task.

        Args:
            go_on: with the values of the last one, in place of fresh ones.
        """
        view, part = adaptable(self._backbone[0], self._how, self._draw(len(self)))
        if go_on and len(self):
            part.load_state_dict(self.parts[-1].state_dict())
        self.parts.append(part)
        self.views.append(view)
        self._added(len(self) - 1)

    def adapt(
        self, data: LabelledImages, columns: Int[Tensor, " n"], rng: torch.Generator, store: FeatureStore
    ) -> None:
        """Adds an adapter for the next task and trains it; see :func:`adapt`.

        Args:
            data: the task's images.
            columns: of their classes; any numbers.
            rng: a CPU generator.
            store: of features.
        """
        self.add()
        adapt(self.views[-1], self.parts[-1], data, columns, self._how.train, rng, store)

    def stored(self, data: LabelledImages, store: FeatureStore, label: str) -> Asked:
        """Features of some images under any of the adapters, each computed once ever.

        Args:
            data: the images.
            store: of features.
            label: what to call it in events.
        """

        def features(task: int, positions: Tensor) -> Tensor:
            return store.features(self.views[task], data.subset(positions.numpy()), label=label)[:]

        return features

    def of(self, images: Num[Tensor, "b 3 h w"]) -> Asked:
        """The same of images that are in no store.

        Args:
            images: as for :meth:`perdure.backbone.Backbone.features`.
        """
        return lambda task, positions: self.views[task].features(images[positions]).cpu()

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch; adapters are added or taken away as needed.

        Args:
            state_dict: from :meth:`state_dict`.
            strict: as in torch.
            assign: as in torch.
        """
        n = len({name.split(".")[1] for name in state_dict})
        self.parts, self.views = self.parts[:n], self.views[:n]
        while len(self) < n:
            self.add()
        return super().load_state_dict(state_dict, strict, assign)
