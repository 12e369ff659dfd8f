"""What EASE and MOS share: a stored adapter per task, each in a view of the backbone, fixed once its task is over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from torch import nn

from perdure.backbone import Backbone
from perdure.memory import FeatureStore
from perdure.methods.base import Method
from perdure.train.tuning import TuningConfig, adaptable

INITIAL = 2**32 - 1  # the random streams of initial values count down from here; those of tasks are their indices

A = TypeVar("A", bound=TuningConfig)


class AdapterMethod(Method[A]):
    """A method with an adapter per task.

    Args:
        backbone: a frozen Vision Transformer; it is never changed.
        config: the method's settings.
        seed: of everything random.
        store: where features are kept, those under every adapter too.
    """

    def __init__(
        self, backbone: Backbone, config: A | None = None, *, seed: int = 0, store: FeatureStore | None = None
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        self.views: list[Backbone] = []  # one per task: the backbone with A_t
        self.adapters_ = nn.ModuleList()

    def _make_room(self, state: Mapping[str, Any]) -> None:
        """As many adapters as the state holds."""
        self.views, self.adapters_ = [], nn.ModuleList()
        for task in range(len({name.partition(".")[0] for name in state["adapters_"]})):
            self._add_adapter(task)

    def _snapshot(self) -> dict[str, Any]:
        return {**super()._snapshot(), "views": self.views}

    def _add_adapter(self, task: int) -> None:
        """Adds a fresh one; one that a failed task left behind goes."""
        view, adapter = adaptable(self.backbone, "adapter", self.config, self._generator(INITIAL - task))
        self.views = [*self.views[:task], view]
        self.adapters_ = nn.ModuleList([*self.adapters_, adapter])
