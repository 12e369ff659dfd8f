"""Templates: the sentences that a class's name is put into before a text tower reads it.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, and the
    lists of templates released with it, written out here from their patterns. ImageNet-R and ObjectNet are used with
    ``imagenet7``, the seven that serve ImageNet best.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from perdure.data.names import on_disk
from perdure.errors import ConfigError, DataNotFoundError, UnknownNameError, did_you_mean, told

Templates = str | list[str]

_BOTH: Final = ("a", "the")


def _each(patterns: Iterable[str], fills: Iterable[str] = _BOTH) -> tuple[str, ...]:
    """Every pattern with every word for its ``<>``."""
    patterns = tuple(patterns)
    return tuple(pattern.replace("<>", fill) for fill in fills for pattern in patterns)


_SEEN = (
    ("", ""), ("blurry ", ""), ("black and white ", ""), ("low contrast ", ""), ("high contrast ", ""), ("bad ", ""),
    ("good ", ""), ("", "small "), ("", "big "),
)  # fmt: skip
_MADE = (
    "a photo of <> {}.", "a painting of <> {}.", "<> plastic {}.", "a sculpture of <> {}.", "a sketch of <> {}.",
    "a tattoo of <> {}.", "<> toy {}.", "a rendition of <> {}.", "<> embroidered {}.", "<> cartoon {}.",
    "<> {} in a video game.", "<> plushie {}.", "<> origami {}.", "art of <> {}.", "graffiti of <> {}.",
    "a drawing of <> {}.", "a doodle of <> {}.",
)  # fmt: skip
_KINDS = ("photo", "video", "example", "demonstration")
_ACTS = ("", "using ", "doing ", "during ", "performing ", "practicing ")

TEMPLATES: Final[Mapping[str, tuple[str, ...]]] = {
    "photo": ("a photo of a {}.",),
    "bare": ("{}",),
    "this": ("This is a photo of a {}.",),
    "aircraft": ("a photo of a {}, a type of aircraft.", "a photo of the {}, a type of aircraft."),
    "birds": ("a photo of a {}, a type of bird.",),
    "caltech101": _each(_MADE),
    "cars": (
        "a photo of a {}.", "a photo of the {}.", "a photo of my {}.", "i love my {}!", "a photo of my dirty {}.",
        "a photo of my clean {}.", "a photo of my new {}.", "a photo of my old {}.",
    ),
    "cifar": _each([f"a {seen}photo of <> {small}{{}}." for seen, small in _SEEN]),
    "flowers": ("a photo of a {}, a type of flower.",),
    "food": ("a photo of {}, a type of food.",),
    "imagenet7": (
        "itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}.", "a {} in a video game.",
        "art of the {}.", "a photo of the small {}.",
    ),
    "pets": ("a photo of a {}, a type of pet.",),
    "sun397": ("a photo of a {}.", "a photo of the {}."),
    "ucf101": _each(f"a {kind} of <> person {act}{{}}." for act in _ACTS for kind in _KINDS),
}  # fmt: skip
"""The published lists by name. In each, ``{}`` stands for a class's name."""


def templates_of(asked: Templates | Mapping[str, Templates], dataset: str | None = None) -> tuple[str, ...]:
    """The templates that a setting means.

    Args:
        asked: a name in ``TEMPLATES``, a text file with one template per line, the templates themselves, or one of
            these by data set, with ``""`` for all others.
        dataset: the data set's name, in a stream over several.

    Raises:
        UnknownNameError: for an unknown name, or a data set without templates.
        DataNotFoundError: if there is no such file.
        ConfigError: for a template without exactly one ``{}``, no template at all, or a file that cannot be read.
    """
    if isinstance(asked, Mapping):
        name = dataset or ""
        if name not in asked and "" not in asked:
            if not name:
                hint = "Without stream.datasets, write templates: NAME, or put them under '' here"
                raise ConfigError("templates", "templates by data set", "for data without a set's name", [*asked], hint)
            hint = did_you_mean(name, asked)
            raise UnknownNameError("templates", "data set", "one that has templates", name, hint)
        return templates_of(asked[name] if name in asked else asked[""])
    found = tuple(asked) if not isinstance(asked, str) else TEMPLATES.get(asked) or _in_file(asked)
    for template in found:
        if template.count("{}") != 1:
            hint = "Write the place of the class's name once, as in 'a photo of a {}.'"
            raise ConfigError("templates", "template", "a sentence with one {}", template, hint)
    if not found:
        hint = "Write 'photo' for 'a photo of a {}.'"
        raise ConfigError("templates", "templates", "a list or file of at least one", asked, hint)
    return found


def written_out(asked: Templates) -> Templates:
    """The setting with a file's templates in its place: a file may be gone, or another, when the setting is read again.

    Args:
        asked: as for :func:`templates_of`, for one data set.

    Raises:
        UnknownNameError, DataNotFoundError, ConfigError: as for :func:`templates_of`.
    """
    found = templates_of(asked)
    return [*found] if isinstance(asked, str) and asked not in TEMPLATES else asked


def filled(template: str, name: str) -> str:
    """A template with a class's name in its place.

    Args:
        template: with one ``{}``.
        name: any text, with braces too.
    """
    return template.replace("{}", name)


def _in_file(name: str) -> tuple[str, ...]:
    file = on_disk(name)
    if file.suffix != ".txt":
        hint = f"{did_you_mean(name, TEMPLATES)} A file's name ends in .txt"
        raise UnknownNameError("templates", "templates", "a known list or a text file", name, hint)
    if not file.is_file():
        raise DataNotFoundError("templates", "template file", "an existing file", name, "Check the path")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        hint = f"Save it as UTF-8 ({told(error)})"
        raise ConfigError("templates", "template file", "a text file in UTF-8 that can be read", name, hint) from error
    return tuple(line for line in lines if line.strip())
