"""A disk that fills up at any file of a run, and files that a kill or a hand damaged: no work is lost, all is named."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from perdure import FeatureStore
from perdure.errors import CheckpointError, RunDirectoryError, StorageError
from perdure.methods import Method
from perdure.run import Results, Runner, load, load_recipe

SETTINGS = [
    "stream.data=synthetic", "stream.tasks=2", "backbone.name=test_vit", "backbone.pretrained=false",
    "backbone.device=cpu", "method.name=simplecil",
]  # fmt: skip


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """All features are kept before, so that a full disk meets the run directory and nothing else."""
    folder = tmp_path_factory.mktemp("kept")
    store = FeatureStore(folder / "features")
    Runner(load_recipe(None, SETTINGS), folder / "warm", store=store).run()
    return store


@pytest.fixture
def run(store: FeatureStore, tmp_path: Path) -> Callable[..., Results]:
    def go(name: str = "run", **options: Any) -> Results:
        return Runner(load_recipe(None, SETTINGS), tmp_path / name, store=store, **options).run()

    return go


@contextmanager
def no_file_longer_than(n_bytes: int) -> Iterator[None]:
    """What the system does when the disk is full, for files of this process that grow beyond a length."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def refuse(*args: object) -> None:
    raise AssertionError("this task was done before")


# recipe.yaml has some 800 bytes, a task's predictions 1524 and 2436, the states 2152 and 4096
@pytest.mark.parametrize(
    ("n_bytes", "finished"), [(0, 0), (100, 0), (900, 0), (1600, 0), (2300, 1), (3000, 1), (100_000, 2)]
)
def test_a_disk_full_at_any_file_is_named_and_the_same_command_goes_on(
    n_bytes: int, finished: int, run: Callable[..., Results], tmp_path: Path
) -> None:
    if finished < 2:
        with pytest.raises(StorageError, match="the same command goes on") as error, no_file_longer_than(n_bytes):
            run()
        assert f"run directory must be writable, but got '{tmp_path / 'run'}'" in str(error.value)
    assert len(list(tmp_path.glob("run/tasks/[0-9]*"))) == finished % 2
    assert run().accuracy_matrix == run("straight").accuracy_matrix


def test_a_disk_full_at_the_results_costs_no_task(
    run: Callable[..., Results], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(event: dict[str, Any]) -> None:
        if event["event"] == "task_finished" and event["task"] == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    with pytest.raises(StorageError, match="writable"), no_file_longer_than(1_000_000):
        run(on_event=fill)
    assert not (tmp_path / "run" / "results.json").exists()
    monkeypatch.setattr(Method, "fit_task", refuse)
    assert len(run().accuracy_matrix) == 2


def test_a_log_cut_short_does_not_stop_the_end_of_a_run(run: Callable[..., Results], tmp_path: Path) -> None:
    first = run().provenance.started
    log = tmp_path / "run" / "log.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    assert json.loads(lines[0])["time"] == first
    for kept, started in ((lines[0][:9] + "".join(lines[1:]), json.loads(lines[1])["time"]), (lines[0][:9], None)):
        (tmp_path / "run" / "results.json").unlink()
        log.write_text(kept)
        found = run().provenance
        assert found.started == (started or found.finished)


def test_a_run_directory_may_lie_in_folders_that_do_not_exist_yet(run: Callable[..., Results], tmp_path: Path) -> None:
    run("not/there/yet")
    assert (tmp_path / "not" / "there" / "yet" / "results.json").is_file()


def test_a_lock_that_cannot_be_made_is_named(run: Callable[..., Results], tmp_path: Path) -> None:
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with pytest.raises(StorageError, match=f"'{tmp_path}/run'"):
        run()


def test_tasks_that_cannot_be_made_are_named(run: Callable[..., Results], tmp_path: Path) -> None:
    with pytest.raises(StorageError), no_file_longer_than(1000):
        run()
    for path in sorted((tmp_path / "run" / "tasks").rglob("*"), reverse=True):
        path.rmdir()
    (tmp_path / "run" / "tasks").rmdir()
    (tmp_path / "run" / "tasks").write_text("a file")
    with pytest.raises(StorageError, match="run directory must be writable"):
        run()


def test_the_lock_is_free_after_a_run_that_fails(run: Callable[..., Results]) -> None:
    with pytest.raises(StorageError), no_file_longer_than(0):
        run()
    run()


@pytest.mark.parametrize("damage", ["", "- a list", "a: [b", "text"])
def test_a_damaged_recipe_is_named(damage: str, run: Callable[..., Results], tmp_path: Path) -> None:
    run()
    (tmp_path / "run" / "recipe.yaml").write_text(damage)
    with pytest.raises(CheckpointError, match=f"recipe.yaml must be readable, but got '{tmp_path}/run'"):
        run()


@pytest.mark.parametrize("name", ["cost.json", "predictions.npz"])
def test_a_file_of_a_task_cut_short_anywhere_is_named(name: str, run: Callable[..., Results], tmp_path: Path) -> None:
    run()
    file = tmp_path / "run" / "tasks" / "000" / name
    (tmp_path / "run" / "results.json").unlink()
    whole = file.read_bytes()
    for kept in [0, 1, 4, *np.linspace(5, len(whole) - 1, 6).astype(int)]:
        file.write_bytes(whole[:kept])
        with pytest.raises(CheckpointError, match=f"{name} must be readable, but got '{file.parent}'"):
            run()
    file.unlink()
    with pytest.raises(CheckpointError, match=str(file.parent)):
        run()
    file.write_bytes(whole)
    assert run().test_images_per_task == [12, 12]


def test_a_flipped_bit_in_the_predictions_is_named(run: Callable[..., Results], tmp_path: Path) -> None:
    run()
    file = tmp_path / "run" / "tasks" / "001" / "predictions.npz"
    content = bytearray(file.read_bytes())
    content[content.index(b"\x93NUMPY") + 130] ^= 1
    file.write_bytes(content)
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(CheckpointError, match=r"predictions\.npz"):
        run()


def test_damaged_results_are_named_when_the_run_is_asked_for_again(run: Callable[..., Results], tmp_path: Path) -> None:
    run()
    (tmp_path / "run" / "results.json").write_text("{")
    with pytest.raises(CheckpointError, match="valid results"):
        run()


def test_a_learned_method_without_its_state_is_named(run: Callable[..., Results], tmp_path: Path) -> None:
    run()
    (tmp_path / "run" / "tasks").rename(tmp_path / "run" / "gone")
    with pytest.raises(CheckpointError, match=f"{tmp_path}/run/tasks/001"):
        load(tmp_path / "run")


def test_only_what_a_run_leaves_may_lie_in_its_directory(run: Callable[..., Results], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".hidden").write_text("mine")
    with pytest.raises(RunDirectoryError, match=r"holding \.hidden"):
        run()
