"""Every row of the documents' tables is what the recipe that it names gives."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from perdure.run import Recipe, load_recipe, reference_settings, stream_settings
from scripts import table_recipes, write_tables
from scripts.old_settings import in_sections
from scripts.table_recipes import NOTES, RUNS, Run, read

ROOT = Path(__file__).parents[2]
WORDS = {"METHOD": r"\w+", "DATA": r"[\w-]+", "VARIANT": r"\w+", "ORDER": r"\d+"}


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(stream_settings, "_require_there", lambda *_: None)  # recipes are read, not run
    monkeypatch.setattr(reference_settings, "require_places", lambda *_: None)


def plain(values: Any) -> Any:
    return json.loads(json.dumps(values))


def leaves(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Every value by its path, sections taken apart."""
    found = {}
    for key, value in values.items():
        found |= leaves(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


def differences(recipe: dict[str, Any], recorded: dict[str, Any], whole: bool) -> list[str]:
    """Where the settings kept with a result are not the recipe's.

    Args:
        recipe: a recipe with every default written out.
        recorded: what was kept, in sections or from before there were any.
        whole: every setting was kept: one that is missing did not exist, and must be at the value that leaves it out.
    """
    name = recipe["method"]["name"]
    kept = {"seed": 0, **recorded, "method": in_sections({"name": name, **recorded.get("method", {})})}
    if whole:  # what is missing is at its own default, not at the preset's
        preset = kept["method"].get("preset", "default")
        method = {key: value for key, value in kept["method"].items() if key != "preset"}
        kept = plain(Recipe.from_values({**kept, "method": method}).identity())
        kept["method"]["preset"] = preset
    there, here = leaves(kept), leaves(recipe)
    paths = there.keys() | here.keys() if whole else there
    missing = "nothing"
    told = {path: (there.get(path, missing), here.get(path, missing)) for path in sorted(paths)}
    return [f"{path}: {was!r} kept, {now!r} in the recipe" for path, (was, now) in told.items() if was != now]


def recipe_of(run: Run) -> dict[str, Any]:
    return plain(load_recipe(ROOT / run.recipe, list(run.overrides)).identity())


def rows_of(table: str) -> list[str]:
    """The first cells of a table, without marks."""
    lines = [line for line in write_tables.TABLES[table]().splitlines() if line.startswith("|")]
    return [line.split(" | ")[0].removeprefix("| ").rstrip(" †‡") for line in lines[2:]]


@pytest.mark.parametrize("table", RUNS)
def test_results_were_made_with_their_recipes_settings(table: str) -> None:
    wrong = {}
    for run in RUNS[table]():
        whole = run.recorded.keys() >= {"stream", "backbone", "method", "seed"}
        if found := differences(recipe_of(run), run.recorded, whole):
            wrong[run.row, run.recipe, run.overrides] = found
    assert wrong == {}


@pytest.mark.parametrize("table", RUNS)
def test_each_row_has_its_runs_and_the_line_below_names_their_recipes(table: str) -> None:
    runs = defaultdict(list)
    for run in RUNS[table]():
        runs[run.row].append(run)
    known = {"`default_random_top`", "direct, 1 to 2", "ours, 1 to 10", "ours, 1 to 2"}  # no recipe, or a part of a run
    assert set(rows_of(table)) - known <= runs.keys()
    patterns = [re.escape(text) for text in re.findall(r"`(recipes/[^` ]+)`", NOTES[table])]
    for word, stands_for in WORDS.items():
        patterns = [p.replace(word, stands_for) for p in patterns]
    for run in (run for row in runs.values() for run in row):
        assert any(re.fullmatch(p, run.recipe) for p in patterns), (run.recipe, patterns)
        for override in run.overrides:
            value = override.partition("=")[2]
            told = NOTES[table].replace("ORDER", value).replace("KEPT", value)
            assert f"`-s {override}`" in told or override == "stream.order_seed=1993", (run.row, override)


@pytest.mark.parametrize(
    "table", ["table:prompt-methods", "table:representation-default", "table:representation-lite0"]
)
def test_a_mean_is_over_the_orders_that_the_line_below_tells(table: str) -> None:
    orders = defaultdict(set)
    for run in RUNS[table]():
        orders[run.row, run.recipe.split("/")[1]].add(run.overrides[0])
    shown = {key: found for key, found in orders.items() if key[0] in rows_of(table)}
    assert shown
    assert {frozenset(found) for found in shown.values()} == {
        frozenset(f"stream.order_seed={seed}" for seed in (1993, 1994, 1995))
    }


def test_every_table_has_its_line_and_every_line_is_printed() -> None:
    assert NOTES.keys() == write_tables.TABLES.keys()
    for name, note in NOTES.items():
        text = write_tables.filled(f"<!-- {name} -->\nold\n<!-- end -->")
        assert text.endswith(f"\n\n{note}\n<!-- end -->")


def commands() -> Iterator[tuple[str, str]]:
    for table, note in NOTES.items():
        yield from ((table, path) for path in re.findall(r"`((?:recipes|benchmarks)/[^` ]+)", note))
        modules = re.findall(r"`python -m ([\w.]+)", note)
        yield from ((table, f"{module.replace('.', '/')}.py") for module in modules)


@pytest.mark.parametrize(("table", "path"), list(commands()))
def test_what_a_line_names_is_there(table: str, path: str) -> None:
    some = {"METHOD": "simplecil", "DATA": "cifar10", "VARIANT": "adapter"}
    for word, one in some.items():
        path = path.replace(word, one)
    assert Path(path).is_file()


@pytest.mark.parametrize("table", [name for name, note in NOTES.items() if "`-s" in note])
def test_the_overrides_that_a_line_tells_are_taken(table: str) -> None:
    methods = {"table:batch-effect": "dap", "table:prompt-explanation": "l2p", "table:replay-methods": "er"}
    method = methods.get(table, "ranpac")
    some = {
        "METHOD": method,
        "DATA": "cifar10",
        "VARIANT": "adapter",
        "ORDER": "1994",
        "KEPT": "5",
        "CLASSES": "51",
        "LR": "0.01",
    }
    note = NOTES[table]
    for word, one in some.items():
        note = note.replace(word, one)
    overrides = re.findall(r"`-s ([^` ]+)`", note)
    assert len(overrides) == note.count("-s ")
    recipe = plain(load_recipe(Path(re.findall(r"`(recipes/[^` ]+)`", note)[0]), overrides).values())
    for key, value in dict(override.split("=") for override in overrides).items():  # of a key told twice the last
        got = leaves(recipe)[key]
        assert got is None if value == "null" else got == value or got == float(value)


def test_ranpac_shows_its_m_in_every_table() -> None:
    shown = [row for table in write_tables.TABLES for row in rows_of(table) if "`ranpac" in row]
    assert len(shown) > 10
    assert all(re.search(r"`ranpac\w*`, M = \d+ 000$", row) for row in shown)


def test_the_rows_of_ranpac_on_caltech101() -> None:
    told = {
        row.split(" | ")[0][2:]: row.split(" | ")[3:5] + row.split(" | ")[7:]
        for row in write_tables.methods_table().splitlines()
    }
    assert told["`ranpac`, M = 2 000"] == ["91.2", "95.0", "21.7 MB |"], "what recipes/caltech101/ranpac.yaml gives"
    assert told["`ranpac`, M = 10 000"] == ["91.4", "95.4", "237.7 MB |"]


def test_runs_taken_apart_are_the_comparisons_own() -> None:
    """These result files keep no settings: where they repeat a run of a comparison they must give its accuracy."""
    compared = read("prompt_methods")["runs"]["cifar10"]
    for method, rows in read("explain_prompts")["rows"].items():
        assert rows["5"]["own_head"] == round(compared[f"{method}_default"]["1993"]["last_accuracy"], 4)
    rows, runs = read("explain_first_session")["rows"], read("representation_methods")["runs"]
    pairs = [(rows[v]["10"], runs["caltech101"][f"aper_{v}_default"]["1993"]) for v in ("adapter", "vpt_shallow")]
    pairs.append((rows["cifar10, order 1994: finetune_lite0 lr 0.001"]["2"], runs["cifar10"]["aper_finetune"]["1994"]))
    alike = [(row, run) for row, run in pairs if ("made_before" in row) == ("made_before" in run)]
    assert len(alike) > 1
    for row, run in alike:
        assert row["both"] == round(run["last_accuracy"], 4)


def test_the_run_told_beside_the_default_backbone() -> None:
    told = read("caltech101_ranpac_default")["provenance"]["recipe"]
    run = Run("", "recipes/caltech101/ranpac_default.yaml", ("method.projection_dim=10000",), told)
    assert differences(recipe_of(run), told, whole=True) == []


def test_a_recipe_that_changes_is_found() -> None:
    recipe = plain(load_recipe(ROOT / "recipes/caltech101/ranpac.yaml").identity())
    for section, key, value in (
        ("method", "projection_dim", 5000),
        ("stream", "tasks", 5),
        ("backbone", "name", "default"),
    ):
        kept = {**recipe, section: {**recipe[section], key: value}}
        assert len(differences(recipe, kept, whole=True)) == 1
        del kept[section][key]
        assert len(differences(recipe, kept, whole=True)) == 1
        assert differences(recipe, kept, whole=False) == []
    assert differences(recipe, {**recipe, "seed": 1}, whole=True) == ["seed: 1 kept, 0 in the recipe"]
    assert table_recipes.label("ranpac", recipe) == "`ranpac`, M = 2 000"
