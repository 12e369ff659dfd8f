"""Named streams: what each stands for, and that a stream is what its values say, however it was asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from perdure.data.stream import task_sizes
from perdure.errors import RecipeError, RunDirectoryError
from perdure.run import Recipe, Runner, load_recipe, stream_settings
from perdure.run.streams import STREAMS, stream_rows, without_name

CLASSES = {"cifar100": 100, "cub": 200, "imagenet-a": 200, "imagenet-r": 200, "objectnet": 200}
CLASSES |= {"5-datasets": 50, "domainnet": 345, "domainnet200": 200, "omnibenchmark": 300, "vtab": 50}
CLASSES |= {"aircraft": 100, "cars": 100, "food": 100, "sun": 300, "ucf": 100}
CLASSES |= {"caltech101": 101, "cifar10": 10, "fashion-mnist": 10}
TASKS = {
    "cifar100-b0-inc5": 20, "cifar100-b0-inc10": 10, "cub-b0-inc10": 20, "cub-b0-inc20": 10, "imagenet-a-b0-inc10": 20,
    "imagenet-a-b0-inc20": 10, "imagenet-r-b0-inc5": 40, "imagenet-r-b0-inc10": 20, "imagenet-r-b0-inc20": 10,
    "objectnet-b0-inc10": 20, "objectnet-b0-inc20": 10, "omnibenchmark-b0-inc20": 15, "omnibenchmark-b0-inc30": 10,
    "vtab-b0-inc10": 5, "5-datasets-b0-inc10": 5, "domainnet200-b0-inc20": 10,
    "caltech101-10-tasks": 10, "cifar10-5-tasks": 5, "fashion-mnist-5-tasks-100-each": 5,
    "domainnet-b0-inc69": 5, "aircraft-b0-inc10": 10, "cars-b0-inc10": 10, "food-b0-inc10": 10, "sun-b0-inc30": 10,
    "ucf-b0-inc10": 10, "imagenet-r-b0-inc40": 5, "cifar100-b50-inc5": 11, "imagenet-r-b100-inc10": 11,
    "cifar100-b50-inc10": 6, "cub-b100-inc20": 6, "imagenet-r-b100-inc20": 6, "objectnet-b100-inc20": 6,
    "aircraft-b50-inc10": 6, "cars-b50-inc10": 6, "food-b50-inc10": 6, "sun-b150-inc30": 6, "ucf-b50-inc10": 6,
}  # fmt: skip
REST = ["method.name=simplecil", "backbone.name=test_vit", "backbone.pretrained=false", "backbone.device=cpu"]
INC10 = ["stream.data=cifar100", "stream.base=10", "stream.increment=10"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of three small tasks with a name."""
    monkeypatch.setitem(STREAMS, "synthetic-3-tasks", {"data": "synthetic", "tasks": 3, "order_seed": 1993})


def asked(*overrides: str) -> Recipe:
    return load_recipe(None, [*REST, *overrides])


@pytest.mark.parametrize("name", TASKS)
def test_a_name_stands_for_so_many_tasks_in_the_fields_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_settings, "_require_there", lambda *_: None)  # most are folders of a user's own
    stream = asked(f"stream.preset={name}").stream
    data = Path(stream.data).name
    sizes = task_sizes(CLASSES[data], tasks=stream.tasks, base=stream.base, increment=stream.increment)
    assert name.startswith(f"{data}-")
    assert len(sizes) == TASKS[name]
    base = sizes[0] if sizes[0] > sizes[-1] else 0
    assert name.endswith((f"-b{base}-inc{sizes[-1]}", f"-{len(sizes)}-tasks", f"-{len(sizes)}-tasks-100-each"))
    assert stream.order_seed == (None if data in ("vtab", "5-datasets", "domainnet", "domainnet200") else 1993)
    each = 100 if name.endswith("-100-each") else None
    assert (stream.train_per_class, stream.test_per_class) == (each, each)


def test_every_name_is_held_to_that() -> None:
    others = {"core50-domains", "caltech101-cifar10-fashion-mnist", "mtil-order-1", "mtil-order-2", "x-tail-16-shot"}
    assert {*TASKS, *others} == STREAMS.keys()


def test_core50_comes_by_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_settings, "_require_there", lambda *_: None)
    stream = asked("stream.preset=core50-domains").stream
    assert (stream.data, stream.scenario, stream.domain_order, stream.tasks) == ("data/core50", "domain", None, None)


def test_both_orders_of_mtil_have_the_same_eleven_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_settings, "_require_there", lambda *_: None)
    one, two = (asked(f"stream.preset=mtil-order-{number}").stream for number in (1, 2))
    assert (one.datasets[:3], one.datasets[-1]) == (["data/aircraft", "data/caltech101", "cifar100"], "data/sun397")
    assert (two.datasets[0], two.datasets[-2:]) == ("data/cars", ["data/eurosat", "cifar100"])
    assert {*one.datasets} == {*two.datasets}
    assert (len(one.datasets), one.tasks, two.tasks, one.order_seed) == (11, 1, 1, None)


def test_a_name_may_stand_for_several_data_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_settings, "_require_there", lambda *_: None)
    stream = asked("stream.preset=caltech101-cifar10-fashion-mnist").stream
    assert stream.datasets == ["data/caltech101", "cifar10", "fashion-mnist"]
    assert (stream.data, stream.tasks, stream.train_per_class, stream.test_per_class) == (None, 1, 100, 100)


def test_x_tail_has_ten_data_sets_of_16_images_a_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_settings, "_require_there", lambda *_: None)
    stream = asked("stream.preset=x-tail-16-shot").stream
    assert stream.datasets is not None
    assert (len(stream.datasets), stream.datasets[0], stream.datasets[-1]) == (10, "data/aircraft", "data/sun397")
    assert (stream.tasks, stream.train_per_class, stream.test_per_class) == (1, 16, None)


def test_a_name_and_its_values_make_one_recipe() -> None:
    named, by_values = asked("stream.preset=cifar100-b0-inc10"), asked(*INC10)
    assert named.stream.preset == named.values()["stream"]["preset"] == "cifar100-b0-inc10"
    assert named.values()["stream"]["increment"] == 10, "the values are told beside the name"
    assert by_values.values()["stream"]["preset"] is None
    assert named.identity() == by_values.identity() == without_name(named.values())
    assert named.label == by_values.label
    assert Recipe.from_values(named.values()) == named
    other = asked(*INC10, "stream.order_seed=1994")
    assert other.identity() != named.identity()
    assert other.label != named.label


def test_explicit_values_win_over_the_names() -> None:
    stream = asked("stream.preset=cifar100-b0-inc10", "stream.order_seed=null", "stream.data=digits").stream
    assert (stream.data, stream.order_seed, stream.increment) == ("digits", None, 10)


def test_values_without_a_stream_stay_as_they_are() -> None:
    for values in ({}, {"seed": 1}, {"stream": 5}, {"stream": {"data": "x"}}):
        assert without_name(values) == values


def test_an_unknown_name_is_told_with_close_matches() -> None:
    with pytest.raises(RecipeError) as caught:
        asked("stream.preset=cifar100-b0-inc01")
    (problem,) = caught.value.problems
    assert str(problem).startswith("stream: preset must be the name of a preset, but got 'cifar100-b0-inc01'. Did you ")
    assert "'cifar100-b0-inc10'" in problem.hint
    assert "vtab-b0-inc10" in problem.hint
    with pytest.raises(RecipeError, match="tasks must be") as caught:
        asked("stream.preset=cifar100-b0-inc01", "stream.tasks=0")
    assert len(caught.value.problems) == 2


def test_missing_data_of_a_named_stream_are_named() -> None:
    with pytest.raises(RecipeError, match=r"stream: data must be an existing folder, but got 'data/cub'"):
        asked("stream.preset=cub-b0-inc10")


def test_rows_tell_what_a_name_stands_for() -> None:
    assert [row[0] for row in stream_rows()] == list(STREAMS)
    assert stream_rows("data/vtab") == [
        ("vtab-b0-inc10", "data/vtab", "base 10, increment 10, order_seed none"),
    ]
    assert stream_rows("digits") == []


def test_a_run_begun_with_values_goes_on_with_the_name(small: None, tmp_path: Path) -> None:
    begun = Runner(asked("stream.data=synthetic", "stream.tasks=3"), tmp_path / "run").run()
    named = asked("stream.preset=synthetic-3-tasks")
    assert Runner(named, tmp_path / "run").run() == begun
    told = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    del told["stream"]["preset"]  # as it was written before streams had names
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(told))
    assert Runner(named, tmp_path / "run").run() == begun
    with pytest.raises(RunDirectoryError, match=r"stream\.tasks = 3 there, 2 asked for"):
        Runner(asked("stream.preset=synthetic-3-tasks", "stream.tasks=2"), tmp_path / "run").run()


def test_a_run_begun_with_the_name_goes_on_with_the_values(small: None, tmp_path: Path) -> None:
    begun = Runner(asked("stream.preset=synthetic-3-tasks"), tmp_path / "run").run()
    assert Runner(asked("stream.data=synthetic", "stream.tasks=3"), tmp_path / "run").run() == begun


def test_a_runs_provenance_tells_name_and_values(small: None, tmp_path: Path) -> None:
    told = Runner(asked("stream.preset=synthetic-3-tasks"), tmp_path / "run").run().provenance.recipe["stream"]
    assert (told["preset"], told["data"], told["tasks"]) == ("synthetic-3-tasks", "synthetic", 3)
