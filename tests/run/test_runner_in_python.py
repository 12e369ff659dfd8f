"""A recipe run from Python: from a file, from values, from what was loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import perdure
from perdure.data import LabelledImages
from perdure.errors import ConfigError, RecipeError, UnknownNameError
from perdure.run import Recipe, load_recipe, run_recipe

VALUES: dict[str, Any] = {
    "stream": {"data": "synthetic", "tasks": 2}, "method": {"name": "simplecil"}, "seed": 3,
    "backbone": {"name": "test_vit", "pretrained": False, "device": "cpu"},
}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(VALUES), encoding="utf-8")
    return tmp_path / "recipe.yaml"


def test_a_file_values_and_a_recipe_run_the_same(file: Path, tmp_path: Path, store: perdure.FeatureStore) -> None:
    ways: list[Any] = [file, str(file), VALUES, Recipe.from_values(VALUES), load_recipe(file)]
    found = [run_recipe(way, tmp_path / str(i), store=store) for i, way in enumerate(ways)]
    assert len({r.model_dump_json(include={"accuracy_matrix", "metrics", "class_names"}) for r in found}) == 1
    assert all(r.provenance.recipe == found[0].provenance.recipe for r in found)
    assert perdure.load(tmp_path / "0", store=store).tasks_seen_ == 2


def test_a_file_takes_overrides_and_nothing_else_does(file: Path, tmp_path: Path, store: perdure.FeatureStore) -> None:
    found = run_recipe(file, tmp_path / "run", overrides=["seed=9", "stream.tasks=3"], store=store)
    assert (found.provenance.recipe["seed"], len(found.task_classes)) == (9, 3)
    for recipe in (VALUES, Recipe.from_values(VALUES)):
        with pytest.raises(ConfigError, match=r"overrides must be left out but for a file, but got \['seed=9'\]"):
            run_recipe(recipe, tmp_path / "other", overrides=["seed=9"])
    assert not (tmp_path / "other").exists()


def test_the_directory_has_the_recipes_label_if_none_is_given(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_recipe(file)
    assert (tmp_path / "runs" / load_recipe(file).label / "results.json").is_file()


def test_the_home_folder_may_be_meant(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    run_recipe("~/recipe.yaml", "~/run")
    assert (tmp_path / "run" / "results.json").is_file()


def test_progress_is_told(file: Path, tmp_path: Path) -> None:
    told: list[Any] = []
    run_recipe(file, tmp_path / "run", progress=told.append)
    assert told


def test_bad_recipes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"an existing YAML file, but got '.*gone\.yaml'"):
        run_recipe(tmp_path / "gone.yaml")
    with pytest.raises(RecipeError, match="'simplecill'"):
        run_recipe({**VALUES, "method": {"name": "simplecill"}})


def test_test_data_are_asked_for_by_the_evaluator_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a run tells of its data are names and counts: no test image is decoded for it."""
    seen: list[LabelledImages] = []
    monkeypatch.setattr(LabelledImages, "batches", lambda self, *_: seen.append(self) or iter(()))
    stream = load_recipe(file).load_stream()
    perdure.run.claim.facts_of(stream)
    assert seen == []
