"""Every shipped recipe says which weights it means and how to run it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import open_clip
import pytest
import yaml
from timm.models import is_model_pretrained

from perdure.backbone import backbones
from perdure.run.streams import STREAMS

ROOT = Path(__file__).parents[2]
RECIPES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.y*ml"))


def recipe_problems(path: str, text: str) -> Iterator[str]:
    """What is wrong with a shipped recipe.

    Args:
        path: from the repository's root.
        text: what is in it.
    """
    command, first = f"# perdure run {path}", text.partition("\n")[0]
    if first != command and not first.startswith(f"{command} "):
        yield f"{path}: the first line must be {command!r}, but is {first!r}"
    name = str(((yaml.safe_load(text) or {}).get("backbone") or {}).get("name"))
    if name not in backbones and not _has_weights(name):
        yield f"{path}: backbone.name must be built in or a full timm tag, but is {name!r}"
    stream = (yaml.safe_load(text) or {}).get("stream") or {}
    if stream.get("preset") not in STREAMS:
        yield f"{path}: stream.preset must name a stream, but is {stream.get('preset')!r}"
    for key, value in stream.items():
        if STREAMS.get(stream.get("preset"), {}).get(key, ...) == value:
            yield f"{path}: stream.{key} must be left out, since the named stream has it, but is {value!r}"


def _has_weights(name: str) -> bool:
    """Whether a name says which weights it means: timm's full tag, or open_clip's architecture and weights."""
    family, _, rest = name.partition("/")
    if family == "open_clip":
        return tuple(rest.split("/")) in open_clip.list_pretrained()
    return "." in name and bool(is_model_pretrained(name))


@pytest.mark.parametrize("path", RECIPES)
def test_recipe_names_its_weights_and_its_command(path: str) -> None:
    assert list(recipe_problems(path, (ROOT / path).read_text(encoding="utf-8"))) == []


NAMED = "stream: {preset: vtab-b0-inc10}\n"


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        (f"# perdure run recipes/a.yaml\n{NAMED}backbone: {{name: efficientnet_lite0}}\n", 0),
        (f"# perdure run recipes/a.yaml -s seed=1\n{NAMED}backbone: {{name: vit_base_patch16_224.augreg_in21k}}\n", 0),
        (f"# perdure run recipes/b.yaml\n{NAMED}backbone: {{name: efficientnet_lite0}}\n", 1),
        (f"{NAMED}backbone: {{name: efficientnet_lite0}}\n", 1),
        (f"# perdure run recipes/a.yaml\n{NAMED}backbone: {{name: open_clip/ViT-B-16/laion400m_e32}}\n", 0),
        (f"# perdure run recipes/a.yaml\n{NAMED}backbone: {{name: open_clip/ViT-B-16}}\n", 1),
        (f"# perdure run recipes/a.yaml\n{NAMED}backbone: {{name: vit_base_patch16_224}}\n", 1),
        (f"# perdure run recipes/a.yaml\n{NAMED}backbone: {{name: vit_base_patch16_224.no_such_tag}}\n", 1),
        (f"# perdure run recipes/a.yaml\n{NAMED}method: {{name: ranpac}}\n", 1),
        ("# perdure run recipes/a.yaml\nstream: {preset: vtab}\nbackbone: {name: efficientnet_lite0}\n", 1),
        (
            "# perdure run recipes/a.yaml\nstream: {preset: vtab-b0-inc10, data: x, order_seed: null, base: 10}\n"
            "backbone: {name: efficientnet_lite0}\n",
            2,
        ),
        ("", 3),
    ],
)
def test_the_rule_can_fail(text: str, wrong: int) -> None:
    assert len(list(recipe_problems("recipes/a.yaml", text))) == wrong
