"""Reference data in a recipe: refused at the door, and told apart in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from perdure import FeatureStore, cli, load, load_stream
from perdure.backbone import Backbone
from perdure.backbone.clip import tiny_clip
from perdure.errors import BackboneError, ConfigError, RecipeError, RunDirectoryError
from perdure.methods.simplecil import SimpleCIL
from perdure.methods.zscl import ZSCL
from perdure.run import Recipe, Runner, load_recipe, read_results
from perdure.run.fairness import fairness_of
from small_folders import fill
from tiny_clip import clip

ZSCL_RUN = [
    "stream.data=synthetic", "stream.tasks=2", "stream.train_per_class=4", "stream.test_per_class=2",
    "method.name=zscl",
    "method.train.iterations=2", "method.train.batch_size=4", "method.distill.batch_size=3",
]  # fmt: skip


@pytest.fixture
def places(tmp_path: Path) -> list[str]:
    """Overrides that name reference data."""
    (tmp_path / "sentences.txt").write_text("stripes\nsome dots\n")
    images = fill(tmp_path / "pictures", one=3, two=2)
    return [f"reference.images={images}", f"reference.sentences={tmp_path / 'sentences.txt'}"]


@pytest.fixture
def run(tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(Recipe, "load_backbone", lambda self: tiny_clip())

    def go(*overrides: str, out: str = "run") -> Any:
        return Runner(load_recipe(None, overrides), tmp_path / out, store=store).run()

    return go


def problems(*overrides: str) -> str:
    with pytest.raises(RecipeError) as error:
        load_recipe(None, overrides)
    return str(error.value)


def test_who_learns_from_it_is_refused_without() -> None:
    told = problems(*ZSCL_RUN)
    assert "reference must be given: ZSCL learns from it, but got None. Write reference: {images: FOLDER" in told
    assert load_recipe(None, [*ZSCL_RUN, "method.distill=none"]).reference is None
    assert load_recipe(None, [*ZSCL_RUN[:5], "method.preset=finetune"]).load_reference() is None


def test_who_takes_none_is_refused_with_it(places: list[str]) -> None:
    told = problems(*GOOD, *places)
    assert "reference must be left out: SimpleCIL learns from no reference data, but got {'images'" in told


GOOD = ["stream.data=synthetic", "stream.tasks=2", "method.name=simplecil"]


def test_all_that_is_wrong_is_told_at_once(places: list[str], tmp_path: Path) -> None:
    told = problems(*ZSCL_RUN, places[0], "reference.imags=3", "stream.tasks=0")
    assert "reference: sentences must be given, but got None" in told
    assert "'imags'" in told
    assert "stream: tasks must" in told
    assert problems(*ZSCL_RUN, "reference=3").startswith("recipe: reference must be a mapping of keys, but got '3'")
    assert "images must be given, but got None" in problems(*ZSCL_RUN, "reference={}")
    assert "but got 'nowhere.txt'" in problems(*ZSCL_RUN, places[0], "reference.sentences=nowhere.txt")
    missing = tmp_path / "missing"
    assert f"but got '{missing}'" in problems(*ZSCL_RUN, f"reference.images={missing}", places[1])
    assert "but got None" in problems("stream.data=synthetic", "method.name=no", *places[:1])


def test_a_recipe_without_says_nothing_of_it(places: list[str]) -> None:
    plain, with_it = load_recipe(None, GOOD), load_recipe(None, [*ZSCL_RUN, *places])
    assert "reference" not in plain.values()
    again = Recipe.from_values(yaml.safe_load(yaml.safe_dump(with_it.values())))
    assert again.reference == with_it.reference is not None
    assert (
        again.label == with_it.label != load_recipe(None, [*ZSCL_RUN, places[0], "reference.sentences=imagenet"]).label
    )


def test_a_run_keeps_its_hash_and_refuses_others(run: Any, places: list[str], tmp_path: Path) -> None:
    recipe = load_recipe(None, [*ZSCL_RUN, *places])
    results, data = run(*ZSCL_RUN, *places), recipe.load_reference()
    assert data is not None
    assert results.provenance.fingerprints["reference"] == data.fingerprint
    written = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert written["fingerprints"]["reference"] == data.fingerprint
    assert written["reference"] == recipe.values()["reference"]
    assert results.fairness is not None
    assert results.fairness.extra_data == "unlabelled images and sentences"
    assert run(*ZSCL_RUN, *places) == read_results(tmp_path / "run")
    (tmp_path / "sentences.txt").write_text("some dots\nstripes\n")
    with pytest.raises(RunDirectoryError, match=r"fingerprints\.reference = "):
        run(*ZSCL_RUN, *places)


def test_what_a_run_learned_predicts_without_reference_data(
    run: Any, places: list[str], tmp_path: Path, store: FeatureStore
) -> None:
    run(*ZSCL_RUN, *places)
    (tmp_path / "sentences.txt").unlink()
    method, more = load(tmp_path / "run", backbone=tiny_clip(), store=store), load_stream("synthetic", tasks=2)
    assert method.scores(more.test(0)).shape[1] == 6
    assert isinstance(method, ZSCL)
    with pytest.raises(ConfigError, match="reference must be given"):
        method.fit_task(load_stream("synthetic", tasks=2, known=method, include_known=True)[0])


def test_plain_fine_tuning_uses_no_extra_data(run: Any, backbone: Backbone, store: FeatureStore) -> None:
    results = run(*ZSCL_RUN, "method.distill=none", out="plain")
    assert results.fairness.extra_data is None
    assert "reference" not in results.provenance.fingerprints
    assert fairness_of(ZSCL(clip(), store=store), 0).extra_data == "unlabelled images and sentences"
    assert fairness_of(SimpleCIL(backbone, store=store), 0).extra_data is None


def test_a_sentence_that_is_too_long_is_told_before_anything_is_written(
    run: Any, places: list[str], tmp_path: Path
) -> None:
    (tmp_path / "sentences.txt").write_text("fine\n\n" + "word " * 80)
    with pytest.raises(BackboneError, match="reference sentence in line 3"):
        run(*ZSCL_RUN, *places)
    assert not (tmp_path / "run").exists()


def test_a_method_that_takes_it_is_shown_with_the_section(capsys: pytest.CaptureFixture[str]) -> None:
    for name, shown in (("zscl", True), ("simplecil", False)):
        with pytest.raises(SystemExit):
            cli.main(["show", name])
        assert ("-s reference.KEY=VALUE" in capsys.readouterr().out) == shown
