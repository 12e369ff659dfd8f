"""Whether a run directory is this recipe's: the same settings, backbone and images, or what has changed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.data import Stream
from perdure.errors import RunDirectoryError
from perdure.run.streams import without_name

RECIPE = "recipe.yaml"


def facts_of(stream: Stream) -> dict[str, Any]:
    """What a run found in its data: the classes by id, and how many images.

    Args:
        stream: the run's.
    """
    n_test = sum(len(stream.test(task.index)) for task in stream)
    return {"classes": stream.class_names, "train": sum(len(task.train) for task in stream), "test": n_test}


def data_changes(then: Any, now: Mapping[str, Any]) -> list[str]:
    """What is new or gone, in words; nothing where it is not told what there was.

    Args:
        then: from :func:`facts_of`, as a file has it that may have been written by hand.
        now: the same, later.
    """
    if not isinstance(then, Mapping) or not now.keys() <= then.keys() or not isinstance(then["classes"], Mapping):
        return []
    old, new = (list(facts["classes"].values()) for facts in (then, now))
    told = {"new classes": [n for n in new if n not in old], "classes that are gone": [n for n in old if n not in new]}
    lines = [f"{what}: {', '.join(names)}" for what, names in told.items() if names]
    return lines + [
        f"{part} images: {now[part]} now, {then[part]} then" for part in ("train", "test") if now[part] != then[part]
    ]


def refuse_another(out: Path, mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> None:
    """Refuses a directory that holds the run of other values.

    Args:
        out: the run directory.
        mine: the recipe's values with fingerprints and facts.
        theirs: the same, as the directory has them.

    Raises:
        RunDirectoryError: naming every value that differs; for data that have changed, what is new in them.
    """
    plain = without_name({k: v for k, v in theirs.items() if k not in ("versions", "found")})
    different = _differences(without_name({k: v for k, v in mine.items() if k != "found"}), plain)
    if [line for line in different if not line.startswith("fingerprints.stream ")]:
        hint = f"Give another --out; {out} differs in this recipe"
        raise RunDirectoryError("run", "directory", "made by the same recipe", different, hint)
    if different:
        changes = data_changes(theirs.get("found"), mine["found"])
        hint = (
            f"Give another --out to run on all there is now; to teach what {out} learned more, load it with "
            "perdure.load once it is finished, and the rest with load_stream(data, known=method)"
        )
        got = changes or ["other images, or the same in another order"]
        raise RunDirectoryError("run", "data", f"as when {out} was begun", got, hint)


def _differences(mine: Any, theirs: Any, path: str = "") -> list[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        keys = [*mine, *(k for k in theirs if k not in mine)]
        found = [_differences(mine.get(k), theirs.get(k), f"{path}.{k}" if path else str(k)) for k in keys]
        return [line for lines in found for line in lines]
    return [] if mine == theirs else [f"{path} = {theirs!r} there, {mine!r} asked for"]
