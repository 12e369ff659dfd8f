"""Class names as a text tower reads them."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.backbone.text_tower import TextTower
from perdure.errors import StreamError


def require_told_apart(
    tower: TextTower, names: Sequence[str], displays: Sequence[str], where: str, known: int = 0
) -> None:
    """Refuses a class whose name is missing, or is to the tower the same text as another's of its data set.

    A tower may lose upper case, accents, and signs that are not in its vocabulary.

    Args:
        tower: that reads the names.
        names: of classes; of several data sets each begins with its set's.
        displays: what the tower reads of each.
        where: whom an error is from.
        known: so many classes are known already, and may stay as they are.

    Raises:
        StreamError: naming the class.
        BackboneError: for a name of too many tokens.
    """
    for name, shown in zip(names[known:], displays[known:], strict=True):
        if not shown:
            hint = "Load the images from folders, or give the task class_names"
            raise StreamError(where, f"name of class {name}", "given: this method reads names", None, hint)
    called: dict[tuple[str, str], str] = {}
    for column, (name, shown, ids) in enumerate(zip(names, displays, tower.tokens(displays).tolist(), strict=True)):
        of_set = name.rpartition("/")[0]
        key = of_set, str(ids)
        if column >= known and key in called:
            way = "rename one's folder" if of_set else "give it another name in a file (stream.aliases)"
            hint = f"To the text tower it is the same as {called[key]!r}: {way}"
            raise StreamError(where, f"name of class {name!r}", "like no other class's", shown, hint)
        called[key] = name
