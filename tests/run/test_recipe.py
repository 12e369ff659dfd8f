"""Recipes: every problem at once, values by the field's own type, and what is resolved says the same."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure import Backbone, load_stream
from perdure.backbone import BareNameWarning
from perdure.errors import ConfigError, RecipeError, UnknownNameError
from perdure.run import Recipe, load_recipe
from perdure.run.recipe import BackboneConfig, StreamConfig

GOOD = ["stream.data=synthetic", "stream.tasks=3", "method.name=ranpac"]


def test_overrides_alone_make_a_recipe() -> None:
    r = load_recipe(None, [*GOOD, "method.projection_dim=64", "seed=3", "stream.order_seed=null"])
    assert (r.method_name, r.method.projection_dim, r.seed, r.stream.order_seed) == ("ranpac", 64, 3, None)  # type: ignore[attr-defined]


def test_text_is_read_by_the_fields_type(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    # PyYAML reads 1e-4 as text; the field knows better
    file.write_text("stream: {data: synthetic, sizes: [2, 4]}\nmethod: {name: joint, train: {lr: 1e-4}}\n")
    r = load_recipe(file, ["stream.skip_corrupt=false", "method.train.epochs=7"])
    assert r.method.train.lr == 1e-4  # type: ignore[attr-defined]
    assert r.method.train.epochs == 7  # type: ignore[attr-defined]
    assert r.stream.skip_corrupt is False
    assert r.stream.sizes == [2, 4]


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({"stream": {"data": "synthetic", "tasks": 3}, "method": {"name": "joint"}}))
    assert load_recipe(file, ["stream.tasks=2", "method.name=simplecil"]).method_name == "simplecil"


def test_resolved_values_make_the_same_recipe() -> None:
    r = load_recipe(None, [*GOOD, "method.preset=pilot"])
    again = Recipe.from_values(yaml.safe_load(yaml.safe_dump(r.values())))
    assert again.values() == r.values()
    assert again.label == r.label
    assert r.values()["method"]["head"] == "cosine"


@pytest.mark.parametrize(
    ("section", "called"), [(StreamConfig, load_stream), (BackboneConfig, Backbone.load)], ids=["stream", "backbone"]
)
def test_what_a_recipe_leaves_out_is_what_the_python_interface_takes(section: Any, called: Any) -> None:
    told = inspect.signature(called).parameters
    fields = {
        name: f for name, f in section.model_fields.items() if name != "preset" or name in told
    }  # no stream's name
    assert list(fields) == [name for name in told if name not in ("known", "include_known")]  # a run starts afresh
    for name, field in fields.items():
        if not field.is_required() and told[name].default is not inspect.Parameter.empty:
            assert field.default == told[name].default, name


def test_the_sections_defaults_are_these() -> None:
    r = load_recipe(None, ["stream.data=synthetic", "stream.tasks=3", "method.name=simplecil"])
    assert (r.seed, r.backbone.name, r.stream.order_seed, r.stream.test_fraction) == (0, "default", 1993, 0.2)
    assert (r.stream.scenario, r.stream.skip_corrupt, r.stream.split_seed) == ("class", False, 0)
    assert (r.backbone.pretrained, r.backbone.device, r.backbone.precision) == (True, "auto", "float32")


@pytest.mark.parametrize(
    ("good", "bad"),
    [
        ("stream.tasks=1", "stream.tasks=0"),
        ("stream.base=0", "stream.base=-1"),
        ("stream.increment=1", "stream.increment=0"),
        ("stream.order_seed=4294967295", "stream.order_seed=4294967296"),
        ("stream.order_seed=0", "stream.order_seed=-1"),
        ("stream.test_fraction=0.001", "stream.test_fraction=0"),
        ("stream.test_fraction=0.999", "stream.test_fraction=1"),
        ("stream.split_seed=0", "stream.split_seed=-1"),
        ("stream.train_per_class=1", "stream.train_per_class=0"),
        ("stream.test_per_class=1", "stream.test_per_class=0"),
        ("backbone.init_seed=0", "backbone.init_seed=-1"),
        ("seed=0", "seed=-1"),
    ],
)
def test_bounds_hold_on_both_sides(good: str, bad: str) -> None:
    load_recipe(None, [*GOOD, good])
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, [*GOOD, bad])
    key, _, value = bad.partition("=")
    assert f"{key.rpartition('.')[2]} must be" in str(caught.value)
    assert value in str(caught.value)


def test_the_label_tells_recipes_apart() -> None:
    a, b = load_recipe(None, GOOD), load_recipe(None, [*GOOD, "seed=1"])
    assert a.label != b.label
    assert a.label.startswith("synthetic-ranpac-")
    assert len(a.label) == len("synthetic-ranpac-") + 8
    assert load_recipe(None, GOOD[::-1]).label == a.label, "the order of the overrides does not matter"


def test_all_problems_are_listed_at_once_with_close_matches() -> None:
    bad = ["stream.data=fashon-mnist", "stream.tsks=3", "method.name=ranpack", "backbone.name=vit_bse_patch16_224"]
    with pytest.raises(RecipeError) as caught:
        load_recipe(None, [*bad, "seed=-1", "sede=2"])
    text = str(caught.value)
    assert len(caught.value.problems) == 6
    for hint in ("'fashion-mnist'", "'tasks'", "'ranpac'", "'vit_base_patch16_224'", "'-1'", "'seed'"):
        assert hint in text


@pytest.mark.parametrize("bad", ["nan", "inf", "-1", "0", "abc"])
def test_bad_numbers_are_refused_by_name(bad: str) -> None:
    with pytest.raises(RecipeError, match=r"ridge\.value") as caught:
        load_recipe(None, [*GOOD, "method.ridge=fixed", f"method.ridge.value={bad}"])
    assert bad in str(caught.value)


def test_a_bare_timm_name_is_completed_with_a_warning() -> None:
    with pytest.warns(BareNameWarning, match="augreg2_in21k_ft_in1k"):
        r = load_recipe(None, [*GOOD, "backbone.name=vit_base_patch16_224"])
    assert r.backbone.name == "vit_base_patch16_224.augreg2_in21k_ft_in1k"


def test_a_method_is_required() -> None:
    with pytest.raises(RecipeError, match="simplecil"):
        load_recipe(None, ["stream.data=synthetic"])


def test_malformed_recipes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "simplecil.yaml"
    with pytest.raises(UnknownNameError, match="nowhere"):
        load_recipe(tmp_path / "nowhere.yaml")
    file.write_text("stream: [unclosed")
    with pytest.raises(UnknownNameError, match=r"Did you mean .*simplecil\.yaml"):
        load_recipe(tmp_path / "simplecl.yaml")
    with pytest.raises(ConfigError, match="valid YAML"):
        load_recipe(file)
    file.write_bytes(b"method: {name: caf\xe9}")
    with pytest.raises(ConfigError, match=r"byte 0xe9.*Save it as UTF-8"):
        load_recipe(file)
    file.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="a mapping of sections"):
        load_recipe(file)
    file.write_text("stream: 5\nmethod: {name: simplecil}\n")
    with pytest.raises(RecipeError, match="stream must be a mapping of keys, but got 5"):
        load_recipe(file)


@pytest.mark.parametrize("bad", ["lr", "=3", "method.=3", "stream.sizes=[1,"])
def test_malformed_overrides_are_named(bad: str) -> None:
    with pytest.raises(ConfigError, match="-s"):
        load_recipe(None, [*GOOD, bad])


def test_an_override_below_a_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="a section"):
        load_recipe(None, ["seed=1", "seed.x=2"])


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(RecipeError, match=r"no/such/folder"):
        load_recipe(None, [*GOOD, "stream.data=no/such/folder"])


def test_a_sections_kind_may_be_given_before_its_keys(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("stream: {data: synthetic}\nmethod: {name: ranpac, adapt: ssf}\n")
    adapt = load_recipe(file, ["method.adapt.train.epochs=3", "method.adapt.train.optimizer=adam"]).method.adapt  # type: ignore[attr-defined]
    assert (adapt.variant, adapt.train.epochs, adapt.train.optimizer.name) == ("ssf", 3, "adam")
    with pytest.raises(ConfigError, match=r"data must be a section, since keys follow it, but got 'synthetic'"):
        load_recipe(file, ["stream.data.x=3"])


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_recipe_is_read_as_utf_8_with_or_without_its_mark(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "猫").mkdir()
    file = tmp_path / "recipe.yaml"
    file.write_bytes(mark + f"stream: {{data: {tmp_path}/猫}}\nmethod: {{name: simplecil}}\n".encode())
    assert load_recipe(file).stream.data == f"{tmp_path}/猫"


def test_a_bare_no_in_an_order_is_no_id() -> None:
    with pytest.raises(RecipeError, match=r"class_order\.0.*but got False"):
        load_recipe(
            None, ["stream.data=digits", "stream.tasks=2", "method.name=simplecil", "stream.class_order=[no, 1]"]
        )


def test_an_order_keeps_what_is_a_number_and_what_is_text() -> None:
    order = """stream.class_order=[1, "0", '2', cat, 3]"""
    recipe = load_recipe(None, ["stream.data=digits", "stream.tasks=2", "method.name=simplecil", order])
    assert recipe.stream.class_order == [1, "0", "2", "cat", 3]
    assert Recipe.from_values(yaml.safe_load(yaml.safe_dump(recipe.values()))).stream.class_order == [
        1,
        "0",
        "2",
        "cat",
        3,
    ]


def test_a_range_of_values_is_checked_and_written_out() -> None:
    r = load_recipe(None, [*GOOD, "stream.value_range=[0, 4095]"])
    assert r.values()["stream"]["value_range"] == [0.0, 4095.0]
    assert Recipe.from_values(yaml.safe_load(yaml.safe_dump(r.values()))).values() == r.values()
    for bad in ("[9, 0]", "[1]"):
        with pytest.raises(RecipeError, match="value_range must be two finite numbers, the lower one first") as caught:
            load_recipe(None, [*GOOD, f"stream.value_range={bad}"])
        assert str(yaml.safe_load(bad)[0]) in str(caught.value)
