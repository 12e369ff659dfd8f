"""The searches choose what is on record, and keep every row they have found."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rapf_settings, search, search_baselines, search_prompts, search_representation
from benchmarks.comparison import Comparison, _same
from benchmarks.records import ResultFile
from benchmarks.search import Cut, Grid, product
from perdure import load_stream
from perdure.run import load_recipe, stream_settings

ROOT = Path(__file__).parents[2]


def recorded(name: str) -> dict[str, Any]:
    held: dict[str, Any] = json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())
    return held


def cells(name: str) -> list[tuple[Grid, dict[str, Any]]]:
    """Every grid with what a result file has of it."""
    held = recorded(name)
    if name == "search_prompts":
        return [(search_prompts.SEARCH.grids[m], found) for data in held["data"].values() for m, found in data.items()]
    if name == "search_representation":
        grids = search_representation.SEARCH.grids
        return [(grids[v], f) for cut in held["data"].values() for b in cut.values() for v, f in b.items() if f["rows"]]
    if name == "rapf_settings":
        grids = rapf_settings.SEARCH.grids
        return [(grids[v], f) for cut in held["data"].values() for b in cut.values() for v, f in b.items() if f["rows"]]
    return [(grid, held[m]) for m, grid in search_baselines.SEARCH.grids.items() if m in held]


@pytest.mark.parametrize(
    "name",
    ["search_prompts", "search_representation", "search_baselines", "search_joint_default_caltech101",
     "rapf_settings", "search_joint_default_cifar10"],
)  # fmt: skip
def test_what_is_chosen_is_on_record(name: str) -> None:
    assert cells(name)
    for grid, found in cells(name):
        best = {key: found["best"][key] for key in grid.keys}
        assert grid.best(found["rows"]) == best
        assert found.get("chosen_by", grid.by) == grid.by


def test_ties_go_to_fewer_epochs_then_to_smaller_numbers() -> None:
    grid = Grid("joint", product(lr=[1, 2], epochs=[1, 2]), by="last_accuracy")
    rows = [{**point, "last_accuracy": 0.5} for point in reversed(grid.points)]
    assert grid.best(rows) == {"lr": 1, "epochs": 1}
    assert grid.best([*rows, {"lr": 2, "epochs": 2, "last_accuracy": 0.6}]) == {"lr": 2, "epochs": 2}


def test_every_point_is_a_configuration() -> None:
    for one in (search_baselines.SEARCH, search_representation.SEARCH, rapf_settings.SEARCH):
        for grid in one.grids.values():
            assert len({repr(grid.config(point)) for point in grid.points}) == len(grid.points)
    adapted = search_representation.SEARCH.grids["aper_ssf"].config({"lr": 0.01, "epochs": 5}).adapt  # type: ignore[attr-defined]
    assert (adapted.variant, adapted.train.lr, adapted.train.epochs, adapted.train.batch_size) == ("ssf", 0.01, 5, 16)


def test_a_search_adds_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(search, "ProcessPoolExecutor", lambda workers, _: ThreadPoolExecutor(workers))
    monkeypatch.setattr(search, "score", lambda *job: {**job[-1], "accuracy": [0.5]})
    small = ["--data", "synthetic", "--tasks", "3", "--first", "1", "--per-class", "5", "--workers", "1"]
    small += ["--backbones", "efficientnet_lite0", "--methods", "simplecil", "--out", "found.json"]
    for _ in range(2):
        search_representation.SEARCH.main("", small)
    (cut,) = json.loads(Path("found.json").read_text())["data"].items()
    assert cut[0] == "synthetic, first 1 of 3 tasks, 5 images per class"
    found = cut[1]["efficientnet_lite0"]["simplecil"]
    assert (len(found["rows"]), found["best"], found["chosen_by"]) == (1, {}, "accuracy")
    assert capsys.readouterr().out.count("simplecil") == 1, "the second call has found it done"
    other = ["--tasks", "4", "--methods", "finetune", "--out", "finetune.json"]
    Path("finetune.json").write_text(json.dumps({"data": "caltech101"}))
    with pytest.raises(SystemExit, match=r"has tasks 10, but asked for is 4: give another --out"):
        search_baselines.SEARCH.main("", other)


def test_what_is_held_out_is_a_fifth_of_the_training_images() -> None:
    stream, whole = Cut("synthetic", 3, 2, 5).stream(1993), load_stream("synthetic", tasks=3)
    assert len(stream) == 2
    for i, task in enumerate(stream):
        assert task.classes == whole[i].classes
        assert (len(task.train), len(stream.test(i))) == (4 * len(task.classes), len(task.classes))
        keys = {*whole[i].train.keys}
        assert {*task.train.keys} | {*stream.test(i).keys} <= keys
        assert not {*task.train.keys} & {*stream.test(i).keys}


def test_a_result_file_is_changed_in_place(tmp_path: Path) -> None:
    file = ResultFile(tmp_path / "found.json", tmp_path / "runs" / ".lock")
    for i in range(2):
        with file.changing() as held:
            held.setdefault("rows", []).append(i)
    assert file.read() == {"rows": [0, 1]}


COMPARISONS = ["prompt_methods", "representation_methods", "mixture_methods", "replay_methods"]


@pytest.mark.parametrize("name", COMPARISONS)
def test_runs_on_record_are_those_of_the_recipes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(stream_settings, "_require_there", lambda *_: None)
    for data, recipes in Comparison(name).recorded().items():
        for row, (seed, run) in ((r, next(iter(orders.items()))) for r, orders in recipes.items()):
            recipe, *changes = row.split(" ")
            asked = load_recipe(Path(f"recipes/{data}/{recipe}.yaml"), [f"stream.order_seed={seed}", *changes])
            assert _same(run["recipe"], asked), (data, row)
