"""What a method's members would reach alone: in every task's directory, the results, the report and the summary."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from test_report import check_page, make_results, page_of, put

from perdure import cli
from perdure.eval import Predictions
from perdure.run import Runner, load_recipe, read_results
from perdure.run.members import members_in, members_sentence
from perdure.run.reading import read_predictions, write_predictions
from perdure.run.results import Member

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/results.schema.json").read_text())
TINY = ["stream.data=synthetic", "stream.tasks=2", "backbone.name=test_vit", "backbone.pretrained=false"]
HEADING = "Its members alone"


def said(task: list[int], right: list[int], alone: list[int]) -> Predictions:
    labels = np.ones(len(task), int)
    top, confidence = np.array(right)[:, None], np.full(len(task), 0.5, np.float32)
    return Predictions(np.array(task), labels, top, confidence, {"one": np.array(alone), "other": 1 - np.array(alone)})


def test_figures_by_hand() -> None:
    after = [said([0, 0], [1, 1], [1, 1]), said([0, 0, 1, 1], [1, 1, 1, 1], [0, 1, 1, 1])]
    found = members_in(after)
    assert found is not None
    one = Member(
        last_accuracy=0.75, average_incremental_accuracy=0.875, forgetting=0.5, accuracy_after_task=[1.0, 0.75]
    )
    assert found["one"] == one
    assert (found["other"].accuracy_after_task, found["other"].forgetting) == ([0.0, 0.25], -0.5)
    assert members_in([Predictions(p.task, p.labels, p.top, p.confidence) for p in after]) is None


def test_predictions_come_back_with_their_members(tmp_path: Path) -> None:
    given = said([0, 0, 1], [1, 0, 1], [1, 1, 0])
    write_predictions(tmp_path, given)
    found = read_predictions(tmp_path)
    assert {name: best.tolist() for name, best in found.members.items()} == {"one": [1, 1, 0], "other": [0, 0, 1]}
    assert found.top.tolist() == given.top.tolist()


def test_a_run_of_lae_tells_of_both_experts_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ['method.module={"rank": 2}', 'method.train={"epochs": 2, "batch_size": 8}']
    run = tmp_path / "run"
    results = Runner(load_recipe(None, [*TINY, "backbone.device=cpu", "method.name=lae", *small]), run).run()
    assert results.members is not None
    assert list(results.members) == ["online", "offline"]
    after = [read_predictions(run / "tasks" / f"00{k}") for k in range(2)]
    for name, member in results.members.items():
        right = [float((p.members[name] == p.labels).mean()) for p in after]
        assert member.accuracy_after_task == pytest.approx(right)
    n_test = sum(results.test_images_per_task)
    once = results.test_images_per_task[0] + 2 * n_test  # both experts are one after the first task
    assert results.cost.passes_per_test_image == pytest.approx(once / n_test)
    jsonschema.validate(json.loads((run / "results.json").read_text()), SCHEMA)
    assert read_results(run) == results
    page = page_of(run)
    check_page(page)
    last = 100 * (results.members["offline"].last_accuracy or 0)
    [row] = re.findall(r'<tr><th scope="row">offline</th>.*?</tr>', page)
    assert f"<td>{last:.1f}</td>" in row
    [row] = re.findall(r'<tr><th scope="row">together</th>(.*?)</tr>', page)
    ends = (results.metrics.average_incremental_accuracy, results.metrics.last_accuracy, results.metrics.forgetting)
    percents = [f"{100 * float(value or 0):.1f}" for value in (*results.metrics.accuracy_after_task, *ends)]
    assert re.findall(r"<td>([^<]*)</td>", row) == percents
    assert '<th scope="colgroup" colspan="2">after task</th>' in page
    monkeypatch.setattr(cli.out, "_width", 200)
    cli.print_results({"lae": results})
    assert f"lae: {members_sentence(results)}" in capsys.readouterr().out


def test_the_sentence_and_what_is_not_defined(tmp_path: Path) -> None:
    alone: dict[str, Any] = {"last_accuracy": 0.5, "average_incremental_accuracy": 0.625, "accuracy_after_task": [0.5]}
    results = make_results([[0.5]]).model_copy(update={"members": {"online": Member(**alone, forgetting=None)}})
    assert members_sentence(results) == "Alone, its members reach: online 50.0 last, 62.5 average, – forgetting."
    assert page_of(put(tmp_path / "a", results)).count(HEADING) == 1


def test_results_without_members_say_nothing(tmp_path: Path) -> None:
    plain = make_results([[0.5]])
    old = json.loads(plain.model_dump_json())
    del old["members"]
    jsonschema.validate(old, SCHEMA)
    run = put(tmp_path / "a", plain)
    (run / "results.json").write_text(json.dumps(old))
    assert members_sentence(read_results(run)) is None
    assert HEADING not in page_of(run)
