"""Class names as a text tower reads them."""

from __future__ import annotations

import pytest

from perdure.backbone.class_names import require_told_apart
from perdure.errors import StreamError
from tiny_clip import minilm


@pytest.mark.parametrize("pair", [("Apple", "apple"), ("café", "cafe"), ("🐶", "🐱"), ("crane", "crane")])
def test_names_that_the_tower_reads_alike_are_refused(pair: tuple[str, str]) -> None:
    names = ["one", "two"]
    match = f"M: name of class 'two' must be like no other class's, but got '{pair[1]}'.*'one'.*stream.aliases"
    with pytest.raises(StreamError, match=match):
        require_told_apart(minilm(), names, pair, "M")
    with pytest.raises(StreamError, match="rename one's folder"):
        require_told_apart(minilm(), ["set/one", "set/two"], pair, "M", known=1)
    require_told_apart(minilm(), ["set/one", "other/two"], pair, "M")
    require_told_apart(minilm(), names, pair, "M", known=2)


def test_names_in_other_scripts_are_told_apart() -> None:
    require_told_apart(minilm(), ["a", "b", "c"], ["犬", "猫", "_"], "M")


def test_a_class_without_a_name_is_refused() -> None:
    with pytest.raises(StreamError, match="name of class 7 must be given: this method reads names, but got None"):
        require_told_apart(minilm(), ["7"], [""], "M")
