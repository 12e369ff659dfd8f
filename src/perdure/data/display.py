"""Display names: what people, and models that read texts, are shown for a class.

A class's name is its folder's name, and that is what it is known by. Its display name depends on its folder's name and
on the alias file alone, never on other classes: a class of a later task cannot change it. So two classes may have the
same display name (ImageNet has two cranes); who must tell them apart looks at the folder names.
"""

from __future__ import annotations

import csv
import functools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from timm.data import ImageNetInfo

from perdure.data.names import on_disk, shown
from perdure.errors import ConfigError, DataNotFoundError, PerdureError, UnknownNameError, did_you_mean

_WNID: Final = re.compile(r"n\d{8}")
_IN_FRONT: Final = re.compile(r"^(n\d{8}[-_\s]+|\d+\.(?=[^\W\d_]))")  # after the dot a letter: `1. FC`, `3.5 inch` stay
_KINDS: Final = (".yaml", ".yml", ".json", ".csv", ".tsv", ".txt")


def display_name(name: str) -> str:
    """A folder's name as people write it.

    Underscores become spaces, and several spaces one. In front of a name, a WordNet id (``n02085620-Chihuahua``) and a
    number with a dot (``001.Black_footed_Albatross``) are left out. A WordNet id alone becomes its first word, for all
    of ImageNet's 21 844. What would become empty stays as it is, and so does the case of letters.

    Args:
        name: the folder's name.
    """
    if _WNID.fullmatch(name):
        return _first_words().get(name, name)
    return _on_one_line(_IN_FRONT.sub("", name).replace("_", " ")) or name


def display_names(names: Mapping[int, str], aliases: Mapping[str, str] | None = None) -> dict[int, str]:
    """The display name of every class: its alias where it has one, else :func:`display_name`. Some may be the same.

    Args:
        names: folder names by class id.
        aliases: display names by folder name.
    """
    given = aliases or {}
    return {class_id: given.get(name) or display_name(name) for class_id, name in names.items()}


def read_aliases(file: Path) -> dict[str, str]:
    """Display names by folder name from a file in UTF-8.

    Args:
        file: by its ending, YAML or JSON (a mapping ``folder: display name``, in which every name is text), CSV
            (``folder,display name``), TSV or plain text (a folder's name and its display name with a tab between
            them, or spaces where there is no tab). The last three have no heading.

    Raises:
        DataNotFoundError: if there is no such file.
        ConfigError: if it is of another kind or form, gives a folder twice, or has an empty name.
    """
    file = on_disk(file)
    place = shown(file)
    if file.suffix.lower() not in _KINDS:
        raise ConfigError("aliases", "alias file", f"one of {', '.join(_KINDS)}", place, "Rename or convert it")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        hint = f"Check the path ({error.strerror})"
        raise DataNotFoundError("aliases", "alias file", "an existing file", place, hint) from error
    except UnicodeDecodeError as error:
        raise ConfigError("aliases", "alias file", "UTF-8 text", place, f"Save it as UTF-8 ({error})") from error
    aliases: dict[str, str] = {}
    for written, display in _pairs(file, text):
        folder = unicodedata.normalize("NFC", written)  # as a class is called
        if not folder.strip() or not display.strip():
            hint = f"Complete or remove this line of {place}"
            raise ConfigError("aliases", "folder and display name", "not empty", f"{folder}: {display}", hint)
        if folder in aliases:
            hint = f"Keep one of its lines in {place}"
            raise ConfigError("aliases", "folder name", "given once", folder, hint)
        aliases[folder] = _on_one_line(display)
    return aliases


def require_known(aliases: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuses an alias for a folder that is not there.

    Args:
        aliases: display names by folder name.
        names: the names of all class folders.

    Raises:
        UnknownNameError: naming the first such alias, and the folders that are called nearly so.
    """
    known = set(names)
    for folder in aliases:
        if folder not in known:
            hint = did_you_mean(folder, known)
            raise UnknownNameError("aliases", "folder name", "a class's folder", folder, hint)


def imagenet_sentences() -> list[str]:
    """The names of each of ImageNet's 1000 classes, and then each class's names with its definition."""
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(k, detailed=detailed) for detailed in (False, True) for k in range(1000)]


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def _first_words() -> dict[str, str]:
    """The first word for each WordNet id that ImageNet has; read when it is first asked for."""
    # all subsets share one table of words, so the largest subset knows every id
    info = ImageNetInfo("imagenet-22k-ms")
    return {wnid: info.label_name_to_description(wnid).split(",")[0] for wnid in info.label_names()}


def _pairs(file: Path, text: str) -> list[tuple[str, str]]:
    kind = file.suffix.lower()
    if kind in {".yaml", ".yml"}:
        return _pairs_of_yaml(file, text)
    if kind == ".json":
        return _pairs_of_json(file, text)
    if kind == ".csv":
        rows = [row for row in csv.reader(text.splitlines()) if row]
    else:
        lines = [line for line in text.splitlines() if line.strip()]
        rows = [line.split("\t") if "\t" in line else line.split(maxsplit=1) for line in lines]
    for row in rows:
        if len(row) != 2:
            raise _not_pairs(file, " ".join(row))
    return [(folder.strip(), shown) for folder, shown in rows]


def _pairs_of_yaml(file: Path, text: str) -> list[tuple[str, str]]:
    try:
        # nodes, not values: a value of YAML knows no key twice, and takes a folder `no` for false and `007` for 7
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _not_pairs(file, _on_one_line(str(error))) from error
    if not isinstance(root, yaml.MappingNode):
        raise _not_pairs(file, "a list" if isinstance(root, yaml.SequenceNode) else "one word or nothing")
    for node in (node for pair in root.value for node in pair):
        if not isinstance(node, yaml.ScalarNode):
            raise _not_pairs(file, f"a list or mapping in line {node.start_mark.line + 1}")
    return [(folder.value, shown.value) for folder, shown in root.value]


def _pairs_of_json(file: Path, text: str) -> list[tuple[str, str]]:
    try:
        pairs: Any = json.loads(text, object_pairs_hook=tuple)
    except json.JSONDecodeError as error:
        raise _not_pairs(file, str(error)) from error
    if not isinstance(pairs, tuple):
        raise _not_pairs(file, f"a {type(pairs).__name__}")
    for pair in pairs:
        if not isinstance(pair[1], str):
            raise _not_pairs(file, pair)
    return list(pairs)


def _not_pairs(file: Path, got: object) -> PerdureError:
    return ConfigError("aliases", "alias file", "pairs of a folder and its display name", got, f"Correct {shown(file)}")
