"""What a method uses beside its tasks' images: told in results, in a report's table and in words."""

from __future__ import annotations

import dataclasses as dc
from pathlib import Path
from typing import Any

import pytest
from test_report import check_page, make_results, page_of, put
from test_report_tables import Tables

from open_vocabulary import Reader
from perdure import Backbone, FeatureStore
from perdure.methods import methods
from perdure.run import Runner, load_recipe
from perdure.run.fairness import fairness_of, fairness_sentence
from perdure.run.results import Fairness

USES = "Beside the images of its tasks. Rows that differ here answer different questions."
NOTHING = {"class_names": False, "exemplars": 0, "features_kept": False, "extra_data": None, "towers": 1}


@pytest.mark.parametrize(
    ("name", "exemplars", "wanted"),
    [
        ("simplecil", 0, {}),
        ("joint", 0, {"features_kept": True}),
        ("er", 12, {"exemplars": 12}),
    ],
)
def test_tags_and_what_is_kept_tell(
    name: str, exemplars: int, wanted: dict[str, Any], backbone: Backbone, store: FeatureStore
) -> None:
    found = fairness_of(methods.get(name)(backbone, store=store), exemplars)
    assert found.model_dump() == {**NOTHING, **wanted}


def test_class_names_are_read_by_a_second_tower(backbone: Backbone, store: FeatureStore, monkeypatch: Any) -> None:
    method = Reader(backbone, store=store)
    wanted = {**NOTHING, "class_names": True, "extra_data": "a planted table", "towers": 2}
    assert fairness_of(method, 0).model_dump() == wanted
    other = dc.replace(Reader.tags, class_names=False, open_vocabulary=False)
    monkeypatch.setattr(Reader, "promises", other)  # with other settings
    assert fairness_of(method, 0).model_dump() == {**wanted, "class_names": False, "towers": 1}


def test_a_run_tells_it(tmp_path: Path) -> None:
    tiny = ["stream.data=synthetic", "stream.tasks=2", "backbone.name=test_vit", "backbone.pretrained=false"]
    small = ["backbone.device=cpu", "method.name=er", "method.memory.n_images=6", "method.train.epochs=1"]
    results = Runner(load_recipe(None, [*tiny, *small]), tmp_path / "run").run()
    assert results.fairness is not None
    assert results.fairness.model_dump() == {**NOTHING, "exemplars": 6}


def test_the_report_shows_a_row_for_every_run(tmp_path: Path) -> None:
    uses = Fairness(class_names=True, exemplars=1234, features_kept=True, extra_data="captions", towers=2)
    results = [make_results([[0.5]]).model_copy(update={"fairness": f}) for f in (uses, Fairness(**NOTHING), None)]
    runs = [put(tmp_path / f"{k}", r) for k, r in enumerate(results)]
    page = page_of(*runs, out=tmp_path / "all.html")
    check_page(page)
    (rows,) = Tables(page).of(USES)
    assert rows[0] == ["run", "class names", "images kept", "features kept", "extra data", "towers"]
    assert [row[1:] for row in rows[1:]] == [
        ["yes", "1,234", "yes", "captions", "2"],
        ["no", "0", "no", "none", "1"],
        ["–", "0", "–", "–", "–"],
    ]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, None),
        ({"exemplars": 5}, None),
        ({"class_names": True, "towers": 2}, "Mind in comparisons: it uses class names (2 towers)."),
        ({"features_kept": True}, "Mind in comparisons: it keeps features of its training images."),
        (
            {"features_kept": True, "extra_data": "captions"},
            "Mind in comparisons: it keeps features of its training images, learns from other data too: captions.",
        ),
    ],
)
def test_in_words(changes: dict[str, Any], told: str | None) -> None:
    results = make_results([[0.5]]).model_copy(update={"fairness": Fairness(**{**NOTHING, **changes})})
    assert fairness_sentence(results) == told
    assert fairness_sentence(make_results([[0.5]])) is None
