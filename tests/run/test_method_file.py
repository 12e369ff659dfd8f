"""A method from a file: run because a person typed its name, and never because a file says so."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from perdure import FeatureStore
from perdure.errors import ConfigError, PerdureError, RecipeError, RunDirectoryError, UnknownNameError
from perdure.methods import methods
from perdure.methods.simplecil import SimpleCIL
from perdure.run import Recipe, Runner, load, load_recipe, read_results
from perdure.run.method_file import typed_method
from perdure.run.report import method_name, write_report
from perdure.shown import in_full
from plugins import Install

MINE = """
from __future__ import annotations

from pathlib import Path

from pydantic import Field

from perdure.config import MethodConfig
from perdure.methods.simplecil import SimpleCIL

Path(__file__).with_suffix(".ran").touch()


class MineConfig(MethodConfig):
    strength: float = Field(1.0, ge=0, description="of nothing")


class Mine(SimpleCIL):
    Config = MineConfig


NUMBER = 7
"""
REST = [
    "stream.data=synthetic", "stream.tasks=2", "backbone.name=test_vit", "backbone.pretrained=false",
    "backbone.device=cpu",
]  # fmt: skip


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file in the current directory that leaves a trace when it is run."""
    monkeypatch.chdir(tmp_path)
    known = set(sys.modules)
    file = tmp_path / "my method.py"
    file.write_text(MINE)
    yield file
    for name in set(sys.modules) - known:
        if name.startswith(("my_method", "other")):
            del sys.modules[name]


def recipe(typed: str, *more: str) -> Recipe:
    return load_recipe(None, [*REST, f"method.name={typed}", *more])


def test_a_typed_file_gives_its_class_and_its_hash(mine: Path) -> None:
    found = recipe("./my method.py:Mine", "method.strength=2")
    assert found.code == hashlib.sha256(mine.read_bytes()).hexdigest()
    assert (found.kind.__name__, found.method.strength) == ("Mine", 2.0)  # type: ignore[attr-defined]
    assert found.values()["method"] == {"name": "my method.py:Mine", "preset": "default", "strength": 2.0}
    assert found.label.startswith("synthetic-Mine-")
    assert recipe(f"{mine}:Mine").kind is found.kind, "the same file, by whatever path, is run once"
    assert recipe(f"{mine}:Mine", "method.strength=2").label == found.label
    assert load_recipe(None, [*REST, "method={name: './my method.py:Mine'}"]).kind is found.kind
    mine.write_text(MINE + "# changed\n")
    again = recipe("./my method.py:Mine", "method.strength=2")
    assert again.kind is not found.kind
    assert again.label != found.label, "an edited file gets a run directory of its own"
    assert not list(mine.parent.rglob("*.pyc"))


def test_a_registered_method_has_no_file(mine: Path) -> None:
    found = recipe("simplecil")
    assert (found.code, found.kind, found.method_name) == (None, SimpleCIL, "simplecil")


def test_a_typed_file_may_be_a_copy_of_an_installed_plug_in(mine: Path, install: Install) -> None:
    registered = 'from perdure.methods import methods\n\n\n@methods.register("mine")\nclass Mine('
    named = MINE.replace("class Mine(", registered)
    install("perdure-mine", {"perdure.methods": {"mine": "perdure_mine"}}, named)
    installed = methods.get("mine")
    for text in (named, named + "# changed\n"):
        mine.write_text(text)
        found, shown = recipe("./my method.py:Mine"), in_full("./my method.py:Mine", 80)
        assert found.code == hashlib.sha256(text.encode()).hexdigest()
        assert found.kind is not installed
        assert any("strength" in line for line, _ in shown)
        assert methods.get("mine") is installed


def test_a_file_is_run_only_if_a_person_typed_it(mine: Path) -> None:
    file = mine.parent / "r.yaml"
    values = {"stream": {"data": "synthetic", "tasks": 2}, "method": {"name": f"{mine}:Mine"}}
    file.write_text(yaml.safe_dump(values))
    for overrides in ([], ["seed=1"], ["method.strength=1"], ["method.name.x=1"]):
        with pytest.raises(RecipeError, match=r"method: name must be .*, but got .*my method\.py:Mine"):
            load_recipe(file, overrides)
    with pytest.raises(RecipeError, match=r"only a -s typed on the command line may name one"):
        Recipe.from_values(values)
    assert not mine.with_suffix(".ran").exists()
    load_recipe(file, [f"method.name={mine}:Mine"])
    assert mine.with_suffix(".ran").exists()


def test_settings_of_a_recipe_hold_for_a_typed_file(mine: Path) -> None:
    file = mine.parent / "r.yaml"
    file.write_text(yaml.safe_dump({"stream": {"data": "synthetic", "tasks": 2}, "method": {"strength": 3}}))
    assert load_recipe(file, [f"method.name={mine}:Mine"]).method.strength == 3.0  # type: ignore[attr-defined]


def test_a_run_of_it_resumes_and_is_reported_and_read(mine: Path, store: FeatureStore) -> None:
    found, out = recipe("./my method.py:Mine"), mine.parent / "run"
    straight = Runner(found, out, store=store, keep_states="all").run()
    assert straight.provenance.fingerprints["method"] == found.code
    assert yaml.safe_load((out / "recipe.yaml").read_text())["fingerprints"]["method"] == found.code
    (out / "results.json").unlink()
    shutil.rmtree(out / "tasks" / "001")
    assert Runner(recipe(f"{mine}:Mine"), out, store=store).run().metrics == straight.metrics
    assert method_name(read_results(out)) == "Mine"
    assert "Mine" in write_report([out]).read_text()

    ran = mine.with_suffix(".ran")
    ran.unlink()
    with pytest.raises(ConfigError, match=r"my method\.py:Mine.* load\(run, method=Class\)"):
        load(out, store=store)
    with pytest.raises(RecipeError, match=r"must be a registered one"):
        load_recipe(out / "recipe.yaml")
    learned = load(out, store=store, method=found.kind)
    assert isinstance(learned, found.kind)
    assert learned.tasks_seen_ == 2
    assert not ran.exists()


def test_an_edited_file_does_not_go_on_where_the_old_one_stopped(mine: Path, store: FeatureStore) -> None:
    out, was = mine.parent / "run", recipe("./my method.py:Mine")
    Runner(was, out, store=store).run()
    mine.write_text(MINE + "# changed\n")
    with pytest.raises(RunDirectoryError, match=f"fingerprints.method = '{was.code}' there"):
        Runner(recipe("./my method.py:Mine"), out, store=store).run()


WRONG = {
    "./nowhere.py:Mine": (UnknownNameError, r"file must be a readable Python file, but got '\./nowhere\.py'"),
    "./my method.py": (ConfigError, r"name must be FILE\.py:Class, but got '\./my method\.py'"),
    "./my method.py:Min": (UnknownNameError, r"one of its methods, but got 'Min'\. Did you mean 'Mine'"),
    "./my method.py:MineConfig": (ConfigError, r"a subclass of perdure\.Method, but got <class .*MineConfig'>"),
    "./my method.py:NUMBER": (ConfigError, r"NUMBER in .* must be a subclass of .*, but got 7\. "),
    "./other.py:A": (ConfigError, r"imported, but got 'other\.py'\. Correct it \(ZeroDivisionError: division"),
    "./other_exit.py:A": (ConfigError, r"but got 'other_exit\.py'\. Correct it \(SystemExit: 3\)"),
    "./other_words.py:A": (ConfigError, r"'other_words\.py'\. Correct it \(SyntaxError"),
    "./other_empty.py:A": (UnknownNameError, r"but got 'A'\. Write a subclass of perdure\.Method there"),
    "./other_bare.py:A": (ConfigError, r"one without \['_learn', '_scores', 'Config'\]"),
}


@pytest.mark.parametrize("typed", WRONG)
def test_what_is_wrong_with_a_file_is_told(typed: str, mine: Path) -> None:
    texts = {
        "other": "1 / 0", "other_exit": "import sys; sys.exit(3)", "other_words": "no python", "other_empty": "",
        "other_bare": "from perdure import Method\nclass A(Method): ...",
    }  # fmt: skip
    for name, text in texts.items():
        (mine.parent / f"{name}.py").write_text(text)
    kind, told = WRONG[typed]
    assert issubclass(kind, PerdureError)
    with pytest.raises(kind, match=told):
        typed_method(typed)
    with pytest.raises(RecipeError, match=told):
        recipe(typed)
    assert not [name for name in sys.modules if name.startswith(("other_exit", "other_words"))], "run anew next time"


def test_an_interrupt_is_no_error_of_the_file(mine: Path) -> None:
    (mine.parent / "other.py").write_text("raise KeyboardInterrupt")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            typed_method("other.py:A")


def test_a_recipe_may_be_given_the_class_itself() -> None:
    class Own(SimpleCIL):
        pass

    values = {"stream": {"data": "synthetic", "tasks": 2}, "method": {"name": "own.py:Own"}}
    found = Recipe.from_values(values, method=Own)
    assert (found.kind, found.code, found.method_name) == (Own, None, "own.py:Own")
