"""What a method promises and needs, for the common checks, the command line and the report."""

from __future__ import annotations

import dataclasses as dc
from collections.abc import Mapping
from typing import Any


@dc.dataclass(frozen=True, slots=True)
class Tags:
    """What a method promises and needs.

    Args:
        split_invariant: the final predictions do not depend on how the data are cut into tasks.
        trains_backbone: it trains weights of its own copy of the backbone, so its features cannot be cached.
        adapts: it trains parts inserted into a view of the backbone, or a copy, whose features are kept afterwards.
        prompted: it sends images through the frozen backbone together with prompts, anew after every task.
        keeps_data: it stores training images, or something per training image (counted in its stored bytes).
        depends_on_test_batch: an image's scores depend on the images tested with it; reported beside every number.
        small: configuration for the common checks, quick on a tiny random backbone.
        learns: changes to ``small`` where a check asks the method to learn an easy task well.
        expected_failures: check name to the reason why this method cannot pass it.
    """

    split_invariant: bool = False
    trains_backbone: bool = False
    adapts: bool = False
    prompted: bool = False
    keeps_data: bool = False
    depends_on_test_batch: bool = False
    small: Mapping[str, Any] = dc.field(default_factory=dict)
    learns: Mapping[str, Any] = dc.field(default_factory=dict)
    expected_failures: Mapping[str, str] = dc.field(default_factory=dict)
