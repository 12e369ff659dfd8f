"""One training session: batches in, a loss, a step; whatever learns, learns here.

A session may be stopped after any step: :meth:`Session.state_dict` is all of its progress, and a new session of the
same task, settings and parts that is given it goes on with the same bits.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, Literal, TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from perdure.backbone import Backbone
from perdure.data import LabelledImages
from perdure.errors import CheckpointError, TrainingError
from perdure.memory import FeatureStore
from perdure.modules.adapter import Adapter, adapters_in, dropping
from perdure.train.batches import Batch, Kept, Queries, Source, TaskImages
from perdure.train.settings import ImageTraining, Learns, Training
from perdure.types import Event, Progress, no_progress

B = TypeVar("B")
Hook = Callable[[], None]


class Session(Generic[B]):
    """Minimises a loss with a new optimiser.

    Args:
        source: of the batches.
        config: epochs, rate, optimiser, schedule.
        rng: a CPU generator, for everything random.
        fast: what learns at the peak rate. Modules are thawed while they train, with the dropout of adapters, and
            frozen afterwards; parameters are taken as they are.
        slow: what learns at another rate.
        slow_factor: that rate, in units of ``config.peak``.
        undecayed: what learns at the peak rate without weight decay.
        stage: what to call it in events.
        progress: called after every step.
    """

    def __init__(
        self,
        source: Source[Any, B],
        config: Training,
        rng: torch.Generator,
        *,
        fast: Learns,
        slow: Learns = (),
        slow_factor: float = 1.0,
        undecayed: Learns = (),
        stage: str = "training",
        progress: Progress = no_progress,
    ) -> None:
        self.source, self.config, self.stage, self.progress = source, config, stage, progress
        parts: tuple[list[nn.Module | nn.Parameter], ...] = (list(fast), list(slow), list(undecayed))
        self.modules = [m for part in parts for m in part if isinstance(m, nn.Module)]
        self._adapters = [adapter for part in self.modules for adapter in adapters_in(part)]
        self.dropout = _dropout_of(self._adapters, rng)
        peaks = [{"peak": config.peak}, {"peak": config.peak * slow_factor}, {"peak": config.peak, "weight_decay": 0.0}]
        groups = [{"params": parameters_of(part), **how} for part, how in zip(parts, peaks, strict=True)]
        groups = [group for group in groups if group["params"]]
        self.learned = [p for part in parts for p in parameters_of(part)]
        self.optimizer = config.optimizer.make(groups, config.peak)
        self.rng, self._epoch_rng = rng, rng.get_state()
        self.epoch = self.step = self._at = 0  # epochs behind us, steps behind us, those of this epoch
        self.per_epoch = 0  # steps

    @property
    def n_steps(self) -> int:
        """Of all epochs; known once the first has begun."""
        return self.config.epochs * self.per_epoch

    def ends(self, period: Literal["step", "epoch", "task_end"]) -> bool:
        """Whether the last step was the last of an epoch, or of all; every step ends a step.

        Args:
            period: what may have ended.
        """
        return self.step % {"step": 1, "epoch": self.per_epoch, "task_end": self.n_steps}[period] == 0

    def run(
        self,
        loss: Callable[[B], Tensor],
        *,
        before_epoch: Hook = lambda: None,
        after_backward: Hook = lambda: None,
        after_step: Hook = lambda: None,
    ) -> None:
        """Trains to the end; see :meth:`steps`."""
        for _ in self.steps(loss, before_epoch=before_epoch, after_backward=after_backward, after_step=after_step):
            pass

    def steps(
        self,
        loss: Callable[[B], Tensor],
        *,
        before_epoch: Hook = lambda: None,
        after_backward: Hook = lambda: None,
        after_step: Hook = lambda: None,
    ) -> Iterator[int]:
        """Trains, step by step, from where the session stands.

        Args:
            loss: scalar loss of one batch.
            before_epoch: called when an epoch begins.
            after_backward: called when all gradients of a step are there, before they are clipped and used.
            after_step: called after every step.

        Yields:
            How many steps are behind us.

        Raises:
            TrainingError: if the loss is no longer finite.
        """
        with self.source.open(), self._learning():
            while self.epoch < self.config.epochs:
                if not self._at:
                    self._epoch_rng = self.rng.get_state()
                    before_epoch()
                plans = self._plans()
                self.per_epoch = len(plans)
                for plan in plans[self._at :]:
                    self._step(plan, loss, after_backward)
                    after_step()
                    yield self.step
                self.epoch, self._at = self.epoch + 1, 0

    def _plans(self) -> Any:
        """This epoch's; of one that was left, they are drawn again and the generator is put back."""
        if not self._at:
            return self.source.plan(self.rng)
        now = self.rng.get_state()
        self.rng.set_state(self._epoch_rng)
        plans = self.source.plan(self.rng)
        self.rng.set_state(now)
        return plans

    def _step(self, plan: Any, loss: Callable[[B], Tensor], after_backward: Hook) -> None:
        c, parts = self.config, [plan]
        if c.accumulate > 1:
            parts = list(plan.tensor_split(min(c.accumulate, len(plan))))
        factor = c.schedule.factor(self.step, self.n_steps, self.epoch, c.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad()
        total = 0.0
        for part in parts:
            batch = self.source.batch(part, self.rng)
            with torch.enable_grad():
                value = loss(batch)
                value = value if len(parts) == 1 else value * (len(part) / len(plan))
                total += (number := value.item())
                if not math.isfinite(number):
                    raise TrainingError("train", "loss", "finite", number, f"Lower lr, now {c.lr}")
                value.backward()
        after_backward()
        if c.clip_norm:
            nn.utils.clip_grad_norm_(self.learned, c.clip_norm)
        self.optimizer.step()
        self.step, self._at = self.step + 1, self._at + 1
        rates = tuple(group["lr"] for group in self.optimizer.param_groups)
        self.progress(Event(self.stage, self.step, self.n_steps, loss=total, rates=rates))

    # --- progress

    def state_dict(self) -> dict[str, Any]:
        """All progress, as one value: stage, place, what was learned, the optimiser's and the generators' states."""
        return {
            "stage": self.stage, "epoch": self.epoch, "step": self.step, "step_of_epoch": self._at,
            "rng": self.rng.get_state(), "epoch_rng": self._epoch_rng.clone(),
            "dropout": None if self.dropout is None else self.dropout.get_state(),
            "learned": [p.detach().clone() for p in self.learned],
            "optimizer": copy.deepcopy(self.optimizer.state_dict()["state"]),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the progress of a session of the same task, settings and parts; :meth:`steps` goes on from there.

        Raises:
            CheckpointError: if it is of another stage, or of parts of other shapes.
        """
        mine = (self.stage, [tuple(p.shape) for p in self.learned])
        if (told := (state["stage"], [tuple(p.shape) for p in state["learned"]])) != mine:
            raise CheckpointError("Session", "progress", f"of {mine}", told, "Give it the parts it was taken from")
        for p, value in zip(self.learned, state["learned"], strict=True):
            p.data.copy_(value)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": copy.deepcopy(state["optimizer"]), "param_groups": groups})
        self.epoch, self.step, self._at = state["epoch"], state["step"], state["step_of_epoch"]
        self._epoch_rng = state["epoch_rng"].clone()
        self.rng.set_state(state["rng"])
        if self.dropout is not None:
            self.dropout.set_state(state["dropout"])

    @contextlib.contextmanager
    def _learning(self) -> Iterator[None]:
        for part in self.modules:
            part.requires_grad_(True)
        try:
            with dropping(self._adapters, self.dropout):
                yield
        finally:
            for part in self.modules:
                part.requires_grad_(False)
            for p in self.learned:
                p.grad = None


def parameters_of(learns: Learns) -> list[nn.Parameter]:
    """The parameters of modules, and parameters, in order."""
    return [p for part in learns for p in (part.parameters() if isinstance(part, nn.Module) else [part])]


def _dropout_of(adapters: Sequence[Adapter], rng: torch.Generator) -> torch.Generator | None:
    """A generator for the dropout of adapters, on their device; None without any."""
    if not adapters:
        return None
    seed = int(torch.randint(2**62, (), generator=rng))
    return torch.Generator(next(adapters[0].parameters()).device).manual_seed(seed)


def on_images(
    backbone: Backbone,
    data: LabelledImages,
    columns: Int[Tensor, " n"],
    config: ImageTraining,
    rng: torch.Generator,
    store: FeatureStore,
    *,
    fast: Learns,
    slow: Learns = (),
    slow_factor: float = 1.0,
    stage: str = "training",
    prompted: bool = False,
    queries: Queries | None = None,
    kept: Kept | None = None,
) -> Session[Batch]:
    """A session on a task's images, which come from the store in the cheapest form that will do.

    Args:
        backbone: what the images pass through.
        data: the task's images.
        columns: of their classes.
        config: of the training.
        rng: a CPU generator.
        store: of features; it tells where it stands.
        fast: see :class:`Session`.
        slow: see :class:`Session`.
        slow_factor: see :class:`Session`.
        stage: see :class:`Session`.
        prompted: whether the loss takes tokens, to lay prompts beside them.
        queries: whether it takes frozen features as well: those of each view, or the stored ones of the eval view.
        kept: images that every step takes some of besides.

    Raises:
        ConfigError: as :class:`TaskImages` says.
    """
    fast, slow = list(fast), list(slow)
    learned = parameters_of([*fast, *slow])
    images = TaskImages(backbone, data, columns, config, store, learned, prompted=prompted, queries=queries, kept=kept)
    return Session(
        images, config, rng, fast=fast, slow=slow, slow_factor=slow_factor, stage=stage, progress=store.progress
    )
