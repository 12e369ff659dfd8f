"""What APER and RanPAC share: a part of the backbone that adapts to the first task and is frozen ever after."""

from __future__ import annotations

from typing import Literal, TypeVar

from torch import nn

from perdure.backbone import Backbone
from perdure.data import Task
from perdure.memory import FeatureStore
from perdure.methods.base import Method
from perdure.train.tuning import TuningConfig, Variant, adapt, adaptable

INITIAL, TRAINING = 2**32 - 1, 2**32 - 2  # random streams; those of tasks are their indices

F = TypeVar("F", bound=TuningConfig)


class FirstSessionMethod(Method[F]):
    """A method with an adapted backbone beside the given one.

    Args:
        backbone: frozen; it is never changed.
        config: the method's settings.
        variant: what adapts; ``none``: nothing, and the adapted backbone is the given one.
        seed: of everything random.
        store: where features are kept.

    Raises:
        BackboneError: if the backbone has no seat for the variant.
    """

    def __init__(
        self,
        backbone: Backbone,
        config: F | None = None,
        variant: Variant | Literal["none"] = "none",
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
    ) -> None:
        super().__init__(backbone, config, seed=seed, store=store)
        self.adapts = variant != "none"
        self.adapted = backbone
        self.tuned_: nn.Module = nn.ModuleList()  # the part that adapts
        if variant != "none":
            self.adapted, self.tuned_ = adaptable(backbone, variant, self.config, self._generator(INITIAL))

    @property
    def embedder(self) -> Backbone:
        """The adapted backbone, or the one given: what a :class:`FeatureMethod` takes its features from."""
        return self.adapted

    def _adapt_once(self, task: Task) -> None:
        """Adapts to the first task; does nothing later on."""
        if not self.adapts or self.tasks_seen_:
            return
        columns, rng = self.columns(task.train.labels), self._generator(TRAINING)
        patches = self.store.training_patches(self.adapted, task.train, self.config.augments)
        progress = self.store.progress
        adapt(self.adapted, self.tuned_, task.train, columns, self.config, rng, patches=patches, progress=progress)
