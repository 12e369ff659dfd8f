from __future__ import annotations

from pathlib import Path

import pytest
import timm

from perdure import Backbone
from perdure.backbone import BareNameWarning
from perdure.backbone.names import full_timm_name
from perdure.errors import BackboneError, UnknownNameError


def test_a_full_tag_is_taken_as_it_is() -> None:
    name = "vit_base_patch16_224.augreg_in21k"
    assert full_timm_name(name, pretrained=True) == name
    assert full_timm_name(name, pretrained=False) == name


def test_a_bare_name_warns_of_the_tag_taken() -> None:
    taken = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    with pytest.warns(BareNameWarning, match=rf"vit_base_patch16_224 names .*taking {taken}, .* {timm.__version__}"):
        assert full_timm_name("vit_base_patch16_224", pretrained=True) == taken


def test_the_warning_points_at_the_caller(tmp_path: Path) -> None:
    script = tmp_path / "caller.py"
    source = 'from perdure import Backbone\n\nBackbone.load("test_vit")\n'
    with pytest.warns(BareNameWarning) as seen, pytest.raises(BackboneError):
        exec(compile(source, script, "exec"), {})
    (warned,) = (one for one in seen if one.category is BareNameWarning)
    assert (warned.filename, warned.lineno) == (str(script), 3)


def test_a_bare_name_without_weights_says_nothing() -> None:
    assert full_timm_name("test_vit", pretrained=False) == "test_vit"


def test_an_architecture_without_tags_is_its_own_full_name() -> None:
    bare = next(n for n in timm.list_models() if not timm.models.get_pretrained_cfg(n).tag)
    assert full_timm_name(bare, pretrained=True) == bare


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("vit_base_patch16_22", "vit_base_patch16_224"),
        ("efficientnet_lite", "efficientnet_lite0"),
        ("test_vitt", "test_vit"),
        ("vit_base_patch16_22.augreg_in21k", "vit_base_patch16_224"),
    ],
)
def test_an_unknown_name_gets_close_matches(name: str, close: str) -> None:
    with pytest.raises(UnknownNameError) as error:
        Backbone.load(name)
    message = str(error.value)
    assert f"backbone must be a timm model, but got '{name}'. Did you mean" in message
    assert f"'{close}'" in message


@pytest.mark.parametrize("name", ["", "no such thing at all"])
def test_a_name_like_no_other_is_told_how_many_there_are(name: str) -> None:
    with pytest.raises(UnknownNameError, match=rf"'{name}'\. \d+ names are known\."):
        Backbone.load(name)


@pytest.mark.parametrize("pretrained", [True, False])
def test_an_unknown_tag_gets_the_known_ones(pretrained: bool) -> None:
    with pytest.raises(UnknownNameError) as error:
        Backbone.load("test_vit.r160", pretrained=pretrained)
    message = str(error.value)
    assert "weights tag must be one timm has for test_vit, but got 'test_vit.r160'" in message
    assert "Did you mean 'test_vit.r160_in1k'?" in message
