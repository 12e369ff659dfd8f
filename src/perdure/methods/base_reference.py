"""What a method on a CLIP starts from that learns from reference data too: images without labels, and sentences."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar

from perdure.backbone import TwoTowers
from perdure.backbone.sentences import readable_sentences
from perdure.data import Reference
from perdure.data.stream import Candidate
from perdure.errors import ConfigError
from perdure.learned import learned
from perdure.memory import FeatureStore
from perdure.methods.base import Tags
from perdure.methods.base_clip import ClipConfig, ClipMethod

NEEDED: Final = (
    "Write reference: {images: FOLDER, sentences: FILE} in the recipe, e.g. ImageNet's names and descriptions with "
    "sentences: imagenet; in Python reference=Reference.load(images=FOLDER, sentences='imagenet')"
)


class ReferenceConfig(ClipConfig):
    """Settings of a method that learns from reference data."""

    @property
    def uses_reference(self) -> bool:
        """Whether, with these settings, reference data are needed."""
        return True


R = TypeVar("R", bound=ReferenceConfig)


class ReferenceMethod(ClipMethod[R]):
    """A method on a CLIP that learns from reference data beside its tasks; to predict, it does not need them.

    Args:
        backbone: as for every method.
        config: as for every method.
        seed: as for every method.
        store: as for every method.
        reference: images and sentences; they may be given later, as ``method.reference = ...``, to a method that was
            loaded, and must then be those that it was taught with.
        settings: as for every method.
    """

    reference: Reference | None
    reference_: str = learned("", str, "hash of the reference data it was taught with")

    def __init__(
        self,
        backbone: TwoTowers,
        config: R | Mapping[str, Any] | None = None,
        *,
        seed: int = 0,
        store: FeatureStore | None = None,
        reference: Reference | None = None,
        **settings: Any,
    ) -> None:
        self.reference = reference
        super().__init__(backbone, config, seed=seed, store=store, **settings)

    @property
    def uses_reference(self) -> bool:
        """Whether, with these settings, it learns from reference data."""
        return self.config.uses_reference

    @property
    def promises(self) -> Tags:
        """Nothing else is learned from where reference data are not used."""
        return self.tags if self.uses_reference else dc.replace(self.tags, extra_data="")

    def require_names(self, classes: Sequence[Candidate]) -> None:
        """As every method; reference sentences are held to what the text tower reads, too."""
        super().require_names(classes)
        if self.uses_reference:
            readable_sentences(self.backbone.text, self.known_reference("require_names"))

    def known_reference(self, where: str) -> Reference:
        """The reference data, the same in all tasks.

        Args:
            where: what asks for them.

        Raises:
            ConfigError: if there are none, or others than in earlier tasks.
        """
        what, given = f"{type(self).__name__}.{where}", self.reference
        if given is None:
            raise ConfigError(what, "reference", "given: this method learns from it", None, NEEDED)
        if self.reference_ not in ("", given.fingerprint):
            must_be = f"the data it was taught with ({self.reference_})"
            hint = "Give the same images and sentences, in the same order"
            raise ConfigError(what, "reference", must_be, given.fingerprint, hint)
        return given
