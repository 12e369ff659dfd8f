"""Methods that take any backbone keep those promises on a convolutional one that could break there."""

from __future__ import annotations

import dataclasses as dc

import pytest

from perdure import Backbone
from perdure.backbone.tiny import TINY
from perdure.checks import CheckResult, check_method
from perdure.methods import Method, methods

ON_ANOTHER_KIND = (
    "check_scores_cover_the_seen_classes",  # sizes taken from the model
    "check_what_is_learned_depends_on_the_images",  # statistics of BatchNorm, which are no weights
    "check_backbone_untouched",  # the same, in the model given
    "check_predicting_changes_nothing",  # the same, in tests
    "check_batch_does_not_matter",  # convolutions take other kernels for other batches
    "check_whole_data_equals_batches",
    "check_frozen_features_cost_one_pass",
    "check_features_come_from_where_the_tags_say",  # other seats, and weights that are no matrices
    "check_state_round_trip",  # counts of BatchNorm, which are whole numbers; weights in channels-last order
    "check_resumed_equals_straight",
    "check_same_seed_same_bits",
    "check_failed_task_changes_nothing",
    "check_state_is_declared",  # bytes of all these
    "check_refused_state_changes_nothing",
)
"""Settings, labels and names are another matter, and how well a task is learned depends on rates set for a ViT."""


def cnn() -> Backbone:
    """Of timm's, with BatchNorm, on images of 64 px."""
    made = TINY["any"]()
    return Backbone(made.model, name=made.name, preprocess=dc.replace(made.preprocess, image_size=64), device="cpu")


def checked(kind: type[Method], *names: str) -> list[CheckResult]:
    """On the CNN; on Swin if a part in the method's small settings has no seat there."""
    (first,) = check_method(kind, only=names[:1], make_backbone=cnn)
    has_seat = getattr(first.error, "name", "") != "seat"
    return check_method(kind, only=names, make_backbone=cnn if has_seat else TINY["transformer"])


@pytest.mark.parametrize("name", [name for name in methods.names() if methods.get(name).tags.backbone == "any"])
def test_promises_are_kept_on_another_kind_of_backbone(name: str) -> None:
    results = checked(methods.get(name), "check_constructor_learns_nothing", *ON_ANOTHER_KIND)
    assert [(r.name, r.note) for r in results if not r.ok] == []
