"""What is told when a run directory's data are not what they were, or its recipe is another."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure import FeatureStore, cli, load_stream
from perdure.errors import RecipeError, RunDirectoryError
from perdure.run import Results, Runner, load_recipe, read_results, run_recipe
from perdure.run.claim import data_changes, facts_of, refuse_another
from small_folders import fill

TINY = ["backbone.name=test_vit", "backbone.pretrained=false", "backbone.device=cpu", "method.name=simplecil"]
THEN = {"classes": {0: "emu", 1: "llama"}, "train": 16, "test": 4}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return fill(tmp_path / "data", emu=10, llama=10)


@pytest.fixture
def run(data: Path, tmp_path: Path, store: FeatureStore) -> Any:
    def go(*more: str, out: str = "run", **options: Any) -> Results:
        recipe = load_recipe(None, [f"stream.data={data}", "stream.tasks=2", *TINY, *more])
        return Runner(recipe, tmp_path / out, store=store, **options).run()

    return go


def test_the_facts_are_classes_and_counts(data: Path) -> None:
    assert facts_of(load_stream(data, tasks=2)) == THEN


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (THEN, []),
        ({**THEN, "classes": {0: "emu", 1: "llama", 2: "zebu"}}, ["new classes: zebu"]),
        ({**THEN, "classes": {0: "ant", 1: "bee", 2: "emu"}, "train": 20},
         ["new classes: ant, bee", "classes that are gone: llama", "train images: 20 now, 16 then"]),
        ({**THEN, "test": 3}, ["test images: 3 now, 4 then"]),
    ],
)  # fmt: skip
def test_changes_are_told_in_words(now: dict[str, Any], told: list[str]) -> None:
    assert data_changes(THEN, now) == told


@pytest.mark.parametrize("then", [None, 3, "text", [], {}, {"classes": {}}, {**THEN, "classes": ["emu"]}])
def test_nothing_is_told_of_what_is_not_known(then: object) -> None:
    assert data_changes(then, THEN) == []


def test_a_folder_that_grew_is_announced_with_the_names_that_are_new(run: Any, data: Path, tmp_path: Path) -> None:
    run()
    fill(data, anchor=5, zebu=10)
    with pytest.raises(RunDirectoryError) as error:
        run()
    out = tmp_path / "run"
    assert str(error.value) == (
        f"run: data must be as when {out} was begun, but got \n"
        "    new classes: anchor, zebu\n    train images: 28 now, 16 then\n    test images: 7 now, 4 then\n "
        f". Give another --out to run on all there is now; to teach what {out} learned more, load it with perdure.load "
        "once it is finished, and the rest with load_stream(data, known=method)."
    )


def test_a_folder_that_grew_while_a_run_was_stopped_is_announced(run: Any, data: Path) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["event"] == "task_finished":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(on_event=stop)
    fill(data, emu=20)
    with pytest.raises(RunDirectoryError, match="train images: 24 now, 16 then"):
        run()


def test_other_images_as_many_as_before_are_refused(run: Any, data: Path) -> None:
    run()
    (data / "emu" / "000.png").write_bytes((data / "llama" / "000.png").read_bytes())
    with pytest.raises(RunDirectoryError, match=r"but got \['other images, or the same in another order'\]"):
        run()


def test_a_run_that_did_not_tell_what_it_found_is_refused_all_the_same(run: Any, data: Path, tmp_path: Path) -> None:
    run()
    file = tmp_path / "run" / "recipe.yaml"
    values = yaml.safe_load(file.read_text(encoding="utf-8"))
    del values["found"]
    file.write_text(yaml.safe_dump(values), encoding="utf-8")
    run()
    fill(data, anchor=5)
    with pytest.raises(RunDirectoryError, match="other images"):
        run()


def test_another_recipe_is_refused_for_its_values_whatever_the_data_are(run: Any, data: Path) -> None:
    run()
    fill(data, anchor=5)
    with pytest.raises(RunDirectoryError, match="seed = 0 there, 7 asked for") as error:
        run("seed=7")
    assert "differs in this recipe" in str(error.value)


def test_the_same_recipe_is_not_refused(tmp_path: Path) -> None:
    mine = {"seed": 0, "fingerprints": {"stream": "a"}, "found": THEN}
    refuse_another(tmp_path, mine, {**mine, "versions": {"torch": "1"}})
    refuse_another(tmp_path, mine, {**mine, "found": {**THEN, "train": 1}})  # the fingerprint is what counts


def test_a_finished_runs_recipe_can_be_run_again(
    run: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run()
    monkeypatch.setattr(cli, "tune_allocator", lambda: True, raising=False)  # process-wide: not in a test process
    file = tmp_path / "run" / "recipe.yaml"

    def again(out: str) -> tuple[int, str]:
        capsys.readouterr()
        try:
            cli.main(["run", str(file), "--out", str(tmp_path / out)])
        except SystemExit as stop:
            return int(stop.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    code, told = again("again")
    assert (code, "changed" in told) == (0, False)
    results = read_results(tmp_path / "again")
    assert results.accuracy_matrix == first.accuracy_matrix
    assert results.metrics == first.metrics
    assert results.provenance.fingerprints == first.provenance.fingerprints
    assert again("run")[0] == 0
    fill(data, anchor=5)
    code, told = again("grown")
    assert code == 0
    flat = " ".join(told.split())
    assert "the data have changed since that run: new classes: anchor; train images: 20 now, 16 then" in flat
    assert '"data_changed"' in (tmp_path / "grown" / "log.jsonl").read_text(encoding="utf-8")
    code, told = again("run")
    assert code == 2
    assert "new classes: anchor" in told
    shutil.rmtree(data)
    assert again("gone")[0] == 2


@pytest.mark.parametrize("found", [3, [], {}, {"classes": 1, "train": 2, "test": 3}, None])
def test_what_a_hand_wrote_as_found_is_no_trouble(found: object, data: Path, tmp_path: Path) -> None:
    values = {
        "stream": {"data": str(data), "tasks": 1}, "method": {"name": "simplecil"}, "found": found,
        "backbone": {"name": "test_vit", "pretrained": False, "device": "cpu"},
    }  # fmt: skip
    run_recipe(values, tmp_path / "run")
    assert "data_changed" not in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", ["fund", "fingerprint", "version", "tasks"])
def test_an_unknown_section_is_refused(section: str, data: Path) -> None:
    values = {"stream": {"data": str(data)}, "method": {"name": "simplecil"}, section: {}}
    with pytest.raises(RecipeError, match=f"section must be one of its sections, but got '{section}'"):
        run_recipe(values)
