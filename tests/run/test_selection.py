"""Which prompts the tests choose: written with every task, told by results, report and command line."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from test_report import TWO_TASKS, check_page, make_results, page_of, put
from test_runner import recipe

from perdure import cli
from perdure.errors import CheckpointError
from perdure.methods import methods
from perdure.run import Results, Runner, read_results
from perdure.run.results import Selection
from perdure.run.selection import SELECTION_FILE, read_selection, selection_after, selection_sentence, view_selection

SCHEMA = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
HEADING = "<h3>Which prompts are chosen</h3>"


def choosing(*shares: list[float] | None) -> Any:
    """A method that gives these shares for the tests of tasks 0, 1, …"""
    return SimpleNamespace(
        selection_of=lambda data: (
            None if shares[data[0]] is None else torch.tensor(shares[data[0]], dtype=torch.float32)
        )
    )


def stream_of(*n_images: int) -> Any:
    """A stream whose test of task k has that many images, all of them the number k."""
    return SimpleNamespace(test=lambda k: [k] * n_images[k])


def selected(*after: Selection | None, n_images: tuple[int, ...] = (10, 10)) -> Results:
    results = make_results(TWO_TASKS, method={"name": "l2p"})
    return results.model_copy(update={"selection": list(after), "test_images_per_task": list(n_images)})


@pytest.mark.parametrize(
    ("shares", "n_images", "entropy"),
    [
        (([1.0, 0.0], [1.0, 0.0]), (4, 4), 0.0),
        (([1.0, 0.0], [0.0, 1.0]), (4, 4), 1.0),
        (([1.0, 0.0], [0.0, 1.0]), (1, 3), 0.8112781),
        (([0.2] * 5 + [0.0] * 5,), (3,), 0.69897),
        (([0.5, 0.5], [0.0, 1.0]), (4, 0), 1.0),
    ],
)
def test_the_entropy_is_that_of_all_test_images_together(
    shares: tuple[list[float], ...], n_images: tuple[int, ...], entropy: float
) -> None:
    found = selection_after(choosing(*shares), stream_of(*n_images), upto=len(shares) - 1)
    assert found is not None
    assert found.entropy == pytest.approx(entropy, abs=1e-6)
    for row, expected, n in zip(found.shares, shares, n_images, strict=True):
        assert row == (pytest.approx(expected) if n else None)


def test_a_single_prompt_has_no_entropy_and_no_test_images_no_selection() -> None:
    assert selection_after(choosing([1.0]), stream_of(3), upto=0) == Selection(shares=[[1.0]], entropy=None)
    assert selection_after(choosing([1.0]), stream_of(0), upto=0) is None
    assert selection_after(choosing(None, None), stream_of(3, 3), upto=1) is None


def test_a_run_writes_what_its_tests_choose(tmp_path: Path) -> None:
    results = Runner(recipe("l2p"), tmp_path / "run").run()
    assert results.selection is not None
    for k, after in enumerate(results.selection):
        assert after == read_selection(tmp_path / "run" / "tasks" / f"{k:03d}")
        assert after is not None
        assert [len(row or []) for row in after.shares] == [10] * (k + 1)
        assert all(sum(row or []) == pytest.approx(1, abs=1e-5) for row in after.shares)
        assert 0.69 < (after.entropy or 0) <= 1  # five prompts per image, at least
    jsonschema.validate(json.loads((tmp_path / "run" / "results.json").read_text()), SCHEMA)
    assert read_results(tmp_path / "run") == results


def test_a_method_that_does_not_choose_writes_nothing(tmp_path: Path) -> None:
    assert Runner(recipe(), tmp_path / "run").run().selection is None
    assert not list((tmp_path / "run").rglob(SELECTION_FILE))
    assert '"selection": null' in (tmp_path / "run" / "results.json").read_text()
    assert HEADING not in page_of(tmp_path / "run")
    assert selection_sentence(read_results(tmp_path / "run")) is None


def test_asking_costs_nothing_and_prompts_may_grow_with_the_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grown(self: Any, data: Any) -> torch.Tensor:
        self.backbone.passes.images += 1000
        return torch.full((self.tasks_seen_,), 1 / self.tasks_seen_)

    monkeypatch.setattr(methods.get("simplecil"), "selection_of", grown)
    results = Runner(recipe(), tmp_path / "run").run()
    assert results.cost.passes_per_train_image == results.cost.passes_per_test_image == 1.0
    assert [s and (len(s.shares), len(s.shares[0] or []), s.entropy) for s in results.selection or []] == [
        (1, 1, None),
        (2, 2, pytest.approx(1.0)),
        (3, 3, pytest.approx(1.0)),
    ]
    check_page(page_of(tmp_path / "run"))


def test_a_task_without_the_file_is_not_recorded_and_a_damaged_one_named(tmp_path: Path) -> None:
    run = tmp_path / "run"
    complete = Runner(recipe("l2p"), run).run().selection
    (run / "results.json").unlink()
    (run / "tasks" / "000" / SELECTION_FILE).unlink()
    results = Runner(recipe("l2p"), run).run()
    assert results.selection == [None, *(complete or [])[1:]]
    jsonschema.validate(json.loads(results.model_dump_json()), SCHEMA)
    assert "from the first on: –, 0." in page_of(run)
    (run / "results.json").unlink()
    (run / "tasks" / "001" / SELECTION_FILE).write_text('{"shares": [[0.')
    with pytest.raises(CheckpointError, match="001"):
        Runner(recipe("l2p"), run).run()


def test_results_written_before_there_was_a_selection_are_read(tmp_path: Path) -> None:
    old = json.loads(selected(Selection(shares=[[1.0]], entropy=None), None).model_dump_json())
    del old["selection"]
    jsonschema.validate(old, SCHEMA)
    run = put(tmp_path / "a", make_results(TWO_TASKS))
    (run / "results.json").write_text(json.dumps(old))
    assert read_results(run).selection is None
    page = page_of(run)
    check_page(page)
    assert HEADING not in page
    assert page.count("<svg") == 3


def test_the_report_tells_it_in_a_figure_in_words_and_as_a_table(tmp_path: Path) -> None:
    first = Selection(shares=[[0.5, 0.5, 0.0, 0.0]], entropy=0.5)
    last = Selection(shares=[[0.75, 0.25, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]], entropy=0.9)
    page = page_of(put(tmp_path / "a", selected(first, last)))
    check_page(page)
    assert page.count(HEADING) == 1
    assert "the tests choose 4 of 4 prompts; the entropy of their shares is 0.90 (1: all" in page
    words = "task 1: 0.41 (2 of 4 prompts, most often 1 with 75%); task 2: 1.00 (4 of 4 prompts, most often 1 with 25%)"
    assert f"Entropy of each test: {words}." in page
    assert "after each task from the first on: 0.50, 0.90." in page
    figure = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)[2]
    assert f'aria-label="Heat map: which of 4 prompts the tests of 2 tasks choose. Entropy by {words}."' in figure
    printed = re.findall(r">(\d+)</text>", figure)
    assert sorted(printed) == sorted([*"1234", *"12", "75", "25", "0", "0", *["25"] * 4])
    assert {f"var(--{name})" for name in ("accent", "ink", "on-accent")} <= set(re.findall(r"var\([^)]*\)", figure))
    assert "<td>75.0</td><td>25.0</td><td>0.0</td><td>0.0</td></tr>" in page


def test_a_test_without_images_is_a_gap(tmp_path: Path) -> None:
    gap = Selection(shares=[[1.0, 0.0], None], entropy=0.0)
    page = page_of(put(tmp_path / "a", selected(None, gap, n_images=(10, 0))))
    check_page(page)
    assert "choose 1 of 2 prompts; the entropy of their shares is 0.00" in page
    assert '<tr><th scope="row">2</th><td>–</td><td>–</td></tr>' in page


def test_nothing_recorded_after_the_last_task_shows_nothing(tmp_path: Path) -> None:
    results = selected(Selection(shares=[[0.5, 0.5]], entropy=1.0), None)
    assert view_selection(results) is None
    assert HEADING not in page_of(put(tmp_path / "a", results))


def test_large_pools_are_shaded_but_not_printed(tmp_path: Path) -> None:
    rows: list[list[float] | None] = [[0.01] * 100, [0.02] * 50 + [0.0] * 50]
    page = page_of(put(tmp_path / "a", selected(None, Selection(shares=rows, entropy=0.9))))
    check_page(page)
    figure = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)[2]
    assert ">2</text>" in figure, "the tick of task 2"
    assert figure.count("</text>") < 20
    assert len(page) < 1_000_000


@pytest.mark.parametrize("preset", [None, "pilot"])
def test_dependence_on_the_test_batch_is_marked_wherever_the_numbers_are(
    preset: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["method.train.epochs=1", *([f"method.preset={preset}"] if preset else [])]
    results = Runner(recipe("l2p", *settings), tmp_path / "run").run()
    saved = json.loads((tmp_path / "run" / "results.json").read_text())
    assert saved["provenance"]["depends_on_test_batch"] is (preset == "pilot")
    monkeypatch.setattr(cli.out, "_width", 200)
    cli.print_results({"mine": results})
    printed, page = capsys.readouterr().out, page_of(tmp_path / "run")
    assert "mine: After the last task, the tests choose" in printed
    shown = ("mine * ┃", "* mine: these numbers depend on which images are tested together")
    assert [text in printed for text in shown] == [preset == "pilot"] * 2
    head, body = page.split("</header>")
    assert ("Mind the test batch" in head) == ("depends on the test batch" in body) == (preset == "pilot")


@pytest.mark.parametrize("order", ["stored", "class_sorted", "shuffled"])
def test_images_that_vote_together_in_a_test_do_so_in_its_statistics(
    order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["method.train.epochs=1", "method.vote.batch_size=3", f"method.vote.order={order}"]
    checked = recipe("l2p", *settings)
    stream, method = checked.load_stream(), checked.make_method(checked.load_backbone(), None)
    method.fit_task(stream[0])
    used, slots_of = [], method._test_slots

    def watched(queries: torch.Tensor) -> torch.Tensor:
        used.append(slots_of(queries))
        return used[-1]

    with monkeypatch.context() as patch:
        patch.setattr(method, "_test_slots", watched)
        list(method.scores_of(stream.test(0)))
    assert [len(slots) for slots in used] == [3, 3, 2]
    counts = torch.bincount(torch.cat(used).flatten(), minlength=10)
    assert torch.allclose(method.selection_of(stream.test(0)), counts / counts.sum())
