"""A recipe's stream over several data sets: checked with the recipe, told in its label, and run by the command line."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_report import page_of

from perdure import cli
from perdure.catalog import stream_lines
from perdure.errors import RecipeError
from perdure.run import Recipe, Runner, load, load_recipe, read_results
from perdure.run.report import data_name
from perdure.run.streams import STREAMS, places, stream_rows, without_name
from small_folders import fill_named

REST = ["method.name=simplecil", "backbone.name=test_vit", "backbone.pretrained=false", "backbone.device=cpu"]
OLD = {"synthetic": "41ad13c9", "digits": "c3ddf12d"}  # the ends of labels that stand on people's disks


def asked(*overrides: str) -> Recipe:
    return load_recipe(None, [*REST, *overrides])


def refusals(*overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        asked(*overrides)
    return [str(problem) for problem in caught.value.problems]


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    """Two folders that share a class's name."""
    return two_sets(tmp_path)


def two_sets(root: Path, salt: str = "") -> list[Path]:
    found = {"zoo": {"emu": 5, "zebu": 5}, "farm": {"cow": 5, "emu": 5}}
    return [fill_named(root / name, classes, salt=name + salt) for name, classes in found.items()]


def perdure(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0


def test_several_sets_stand_in_place_of_data(sets: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(f"stream: {{datasets: [synthetic, {sets[0]}], tasks: 2}}\nmethod: {{name: simplecil}}\n")
    recipe = load_recipe(file)
    assert (recipe.stream.data, recipe.stream.datasets) == (None, ["synthetic", str(sets[0])])
    assert Recipe.from_values(yaml.safe_load(yaml.safe_dump(recipe.values()))).values() == recipe.values()
    assert [task.dataset for task in recipe.load_stream()] == ["synthetic", "synthetic", "zoo", "zoo"]
    assert re.fullmatch(r"synthetic\+zoo-simplecil-[0-9a-f]{8}", recipe.label)
    other = load_recipe(file, [f"stream.datasets=[{sets[0]}, synthetic]"])
    assert other.label.startswith("zoo+synthetic-")
    assert other.identity() != recipe.identity()


@pytest.mark.parametrize("data", OLD)
def test_a_recipe_of_one_set_is_the_one_that_it_was(data: str) -> None:
    recipe = load_recipe(None, ["stream.data=synthetic", "stream.tasks=3", "method.name=simplecil"])
    if data == "digits":
        recipe = load_recipe(None, ["stream.data=digits", "stream.tasks=2", "seed=4", "method.name=simplecil"])
    assert recipe.label == f"{data}-simplecil-{OLD[data]}"
    assert "datasets" not in recipe.identity()["stream"]
    assert without_name({"stream": {"data": "x", "datasets": None}}) == {"stream": {"data": "x"}}
    assert without_name({"stream": {"datasets": ["x"]}}) == {"stream": {"datasets": ["x"]}}


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], ["data must be given, but got None. Add 'data: NAME'"]),
        (["stream.tasks=0"], ["tasks must be", "data must be given, but got None"]),
        (["stream.preset=nowhere"], ["preset must be the name of a preset, but got 'nowhere'"]),
        (["stream.data=digits", "stream.datasets=[synthetic]"], ["not both, but got {'data': 'digits', 'datasets'"]),
        (["stream.preset=cifar10-5-tasks", "stream.datasets=[synthetic]"], ["not both, but got {'data': 'cifar10'"]),
        (["stream.datasets=digits"], ["datasets must be a valid list, but got 'digits'"]),
        (["stream.datasets=[]"], ["datasets must be a list of data sets, but got []"]),
        (["stream.datasets=[digits, digits]"], ["datasets must be of different names"]),
        (["stream.datasets=[digits, {a: 1}]"], ["datasets.1 must be a valid string, but got {'a': 1}", "{'a': 1}"]),
        (
            ["stream.datasets=[digitz, no/where]", "stream.sizes=[1]", "stream.aliases=names.txt"],
            [
                "keys of one data set must be absent with datasets, but got {'sizes': [1], 'aliases': 'names.txt'}",
                "datasets must be a data set or an existing folder, but got 'digitz'. Did you mean 'digits'?",
                "datasets must be an existing folder, but got 'no/where'",
            ],
        ),
        (["stream.datasets=[digits]", "stream.scenario=domain"], ["with datasets, but got {'scenario': 'domain'}"]),
    ],
)
def test_what_is_wrong_is_told_with_the_recipe(overrides: list[str], told: list[str]) -> None:
    found = refusals(*overrides)
    assert len(found) == len(told)
    for problem, text in zip(found, told, strict=True):
        assert problem.startswith("stream: ")
        assert text in problem


def test_a_named_stream_may_be_of_several_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STREAMS, "two-sets", {"datasets": ["synthetic", "digits"], "tasks": 2, "order_seed": None})
    assert asked("stream.preset=two-sets").stream.datasets == ["synthetic", "digits"]
    row = ("two-sets", "synthetic, digits", "tasks 2, order_seed none")
    assert row in stream_rows()
    assert stream_rows("digits") == stream_rows("synthetic") == [row]
    assert "two-sets" in "".join(head for head, _ in stream_lines("digits", 80))
    assert places({}) == ["unknown data"]


def test_a_run_over_several_sets_from_the_command_line_to_the_report(
    sets: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("perdure.tune_allocator", lambda: True)  # process-wide: not in a test process
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which the command line sets
    options = [part for text in [*REST, "stream.datasets=[zoo, farm]", "stream.tasks=2"] for part in ("-s", text)]
    perdure("run", *options, "--out", "run")
    results = read_results(tmp_path / "run")
    assert data_name(results) == "zoo, farm"
    assert set(results.class_names.values()) == {"zoo/emu", "zoo/zebu", "farm/cow", "farm/emu"}
    assert "SimpleCIL on zoo, farm: " in page_of(tmp_path / "run")
    method: Any = load(tmp_path / "run")
    assert method.names_ == [results.class_names[str(c)] for classes in results.task_classes for c in classes]
    more = two_sets(tmp_path / "more", salt="m")
    Runner(asked(f"stream.datasets=[{more[0]}, {more[1]}]", "stream.tasks=2"), tmp_path / "other").run()
    perdure("merge", "run", "other", "--out", "both")
    assert load(tmp_path / "both").names_ == method.names_
    assert "4 classes, 32 images: both" in capsys.readouterr().out
    file = tmp_path / "run" / "recipe.yaml"
    assert yaml.safe_load(file.read_text())["stream"]["datasets"] == ["zoo", "farm"]
    perdure("show", str(file))
    assert "  datasets:\n  - zoo\n  - farm\n" in capsys.readouterr().out
