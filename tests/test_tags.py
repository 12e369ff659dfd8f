"""What a method says of itself."""

from __future__ import annotations

import pytest

from perdure.errors import ConfigError
from perdure.tags import BACKBONES, Tags, notes


def test_a_backbone_of_no_known_kind_is_refused_with_close_ones() -> None:
    for kind in BACKBONES:
        assert Tags(backbone=kind).backbone == kind
    with pytest.raises(ConfigError, match=r"'transformers'\. Did you mean 'transformer'"):
        Tags(backbone="transformers")


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        (Tags(), ""),
        (Tags(split_invariant=True, adapts=True), "any split, same result, trains parts inserted into the backbone"),
        (Tags(keeps_data=True, depends_on_test_batch=True), "keeps data, depends on the test batch"),
        (
            Tags(backbone="transformer", adapts=True),
            "needs a Vision Transformer or Swin, trains parts inserted into the backbone",
        ),
        (Tags(trains_backbone=True), "trains the backbone"),
        (Tags(keeps_data=True, class_names=True), "keeps data, uses class names"),
        (Tags(class_names=True, open_vocabulary=True), "scores classes by their names, taught or not"),
        (Tags(extra_data="captions of CC3M"), "learns from other data too: captions of CC3M"),
    ],
)
def test_tags_are_told_in_words(tags: Tags, told: str) -> None:
    assert notes(tags) == told


def test_an_open_vocabulary_is_one_of_class_names() -> None:
    with pytest.raises(
        ConfigError, match=r"class_names must be True with open_vocabulary, but got False\. Set class_n"
    ):
        Tags(open_vocabulary=True)
