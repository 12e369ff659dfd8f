"""Runs: complete, resumable with the same bits, and careful with what is already there."""

from __future__ import annotations

import itertools
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image

from in_child import in_child
from perdure import Backbone, Task
from perdure.backbone.clip import tiny_clip
from perdure.errors import BackboneError, CheckpointError, DataNotFoundError, RunDirectoryError, StorageError
from perdure.memory import Exemplars
from perdure.methods import Method, methods
from perdure.methods.simplecil import SimpleCIL
from perdure.run import Recipe, Results, Runner, load, load_recipe, read_results
from perdure.run.checkpoint import load_state, save_state
from perdure.run.reference_settings import takes_reference
from perdure.run.selection import SELECTION_FILE
from perdure.train.runtime import peak_rss_bytes
from small_folders import fill

SMALL = ["backbone.name=test_vit", "backbone.pretrained=false", "backbone.device=cpu"]


def small_settings(method: str) -> list[str]:
    """Few passes over the images, unless a test says otherwise."""
    small = {"joint": {"train": {"epochs": 3}}, "l2p": {"train": {"epochs": 1}}}.get(
        method, methods.get(method).tags.small
    )
    written = {name: value if isinstance(value, str) else json.dumps(value) for name, value in small.items()}
    settings = [f"method.{name}={value}" for name, value in written.items()]
    if not takes_reference(methods.get(method)):
        return settings
    beside = Path(os.environ["PERDURE_CACHE"]).with_name("reference")  # the test's own folder
    images, sentences = fill(beside, one=6), beside / "sentences.txt"
    sentences.write_text("stripes\nsome dots\n")
    return [*settings, f"reference.images={images}", f"reference.sentences={sentences}"]


def recipe(method: str = "simplecil", *more: str) -> Any:
    base = ["stream.data=synthetic", "stream.tasks=3", *SMALL, f"method.name={method}"]
    return load_recipe(None, [*base, *small_settings(method), *more])


@pytest.fixture(autouse=True)
def _towers_for_those_that_need_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny CLIP has no name by which a recipe could ask for it."""
    load = Recipe.load_backbone

    def either(self: Recipe) -> Backbone:
        return tiny_clip() if self.kind.tags.backbone == "towers" else load(self)

    monkeypatch.setattr(Recipe, "load_backbone", either)


def arrays(run: Path) -> dict[str, Any]:
    """Everything a run decided: predictions and choices after every task, and the last state's tensors."""
    found: dict[str, Any] = {}
    for task in sorted((run / "tasks").iterdir()):
        with np.load(task / "predictions.npz", allow_pickle=False) as npz:
            found |= {f"{task.name}/{k}": npz[k] for k in npz}
        if (task / SELECTION_FILE).exists():
            found[f"{task.name}/selection"] = (task / SELECTION_FILE).read_text()
        if (task / "state.json").exists():
            found["state"] = json.dumps(load_state(task), default=lambda t: t.tolist())
    return found


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_run_leaves_what_the_design_says(tmp_path: Path) -> None:
    results = Runner(recipe(), tmp_path / "run", command="perdure run x").run()
    files = sorted(str(p.relative_to(tmp_path / "run")) for p in (tmp_path / "run").rglob("*") if p.is_file())
    each = ["cost.json", "predictions.npz"]
    tasks = [f"tasks/00{i}/{name}" for i in range(3) for name in each]
    expected = {*tasks, "tasks/002/state.json", "tasks/002/state.safetensors"}
    assert set(files) == {*expected, ".lock", "log.jsonl", "recipe.yaml", "results.json"}
    assert results == read_results(tmp_path / "run")
    saved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert saved["fingerprints"] == results.provenance.fingerprints
    assert saved["versions"]["torch"]
    events = [json.loads(line)["event"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert events == ["run_started", *["task_started", "task_finished"] * 3, "run_finished"]


def test_results_follow_the_schema_in_docs(tmp_path: Path) -> None:
    Runner(recipe(), tmp_path / "run").run()
    schema = json.loads((Path(__file__).parents[2] / "docs" / "results.schema.json").read_text())
    assert schema == Results.model_json_schema(mode="serialization"), "run: python -m scripts.write_schema"
    jsonschema.validate(json.loads((tmp_path / "run" / "results.json").read_text()), schema)


def test_a_single_task_has_null_where_nothing_is_defined(tmp_path: Path) -> None:
    results = Runner(recipe("simplecil", "stream.tasks=1"), tmp_path / "run").run()
    assert results.metrics.forgetting is None
    assert '"forgetting": null' in (tmp_path / "run" / "results.json").read_text()


@pytest.mark.parametrize(("tested", "after_task"), [([2, 3], [None, 1.0]), ([], [None, None])])
def test_tasks_without_test_images_have_null_and_no_warning(
    tested: list[int], after_task: list[float | None], tmp_path: Path
) -> None:
    """A class folder that only ``train`` has; and one image per class, which leaves none to hold out."""
    root = tmp_path / "images"
    for part, classes in {"train": [0, 1, 2, 3], "test": tested}.items():
        for c in classes:
            folder = (root / part if tested else root) / f"class_{c}"
            folder.mkdir(parents=True)
            Image.new("RGB", (20, 20), (80 * c, 0, 40 if part == "train" else 41)).save(folder / "0.png")
    wanted = recipe("simplecil", f"stream.data={root}", "stream.tasks=2", "stream.order_seed=null")
    metrics = Runner(wanted, tmp_path / "run").run().metrics
    assert metrics.accuracy_after_task == after_task
    assert metrics.last_accuracy == metrics.last_accuracy_over_tasks == metrics.top5 == after_task[1]
    assert (metrics.ece is None) == (not tested)
    assert metrics.average_incremental_accuracy is metrics.average_incremental_accuracy_over_tasks is None
    assert metrics.forgetting is metrics.backward_transfer is None


def test_passes_are_one_cold_and_none_warm(tmp_path: Path) -> None:
    cold = Runner(recipe("simplecil"), tmp_path / "a").run().cost
    warm = Runner(recipe("ranpac"), tmp_path / "b").run().cost
    assert (cold.passes_per_train_image, cold.passes_per_test_image) == (1.0, 1.0)
    assert (warm.passes_per_train_image, warm.passes_per_test_image) == (0.0, 0.0)


def test_a_method_that_trains_its_backbone_pays_for_it(tmp_path: Path) -> None:
    cost = Runner(recipe("finetune"), tmp_path / "a").run().cost
    assert cost.passes_per_train_image == 1.0  # one epoch
    assert cost.passes_per_test_image == pytest.approx((1 + 2 + 3) / 3)  # all tests so far, after every task


@pytest.mark.parametrize("name", methods.names())
def test_resumed_equals_straight(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    straight = tmp_path / "straight"
    Runner(recipe(name), straight).run()
    original = Method.fit_task
    for stop_after in (1, 2):

        def dies(self: Method[Any], task: Any, *, at: int = stop_after) -> Any:
            if task.index == at:
                raise KeyboardInterrupt
            return original(self, task)

        with monkeypatch.context() as patch:
            patch.setattr(Method, "fit_task", dies)
            with pytest.raises(KeyboardInterrupt):
                Runner(recipe(name), tmp_path / "run").run()
        assert len(list((tmp_path / "run" / "tasks").glob("[0-9]*"))) == stop_after
    results = Runner(recipe(name), tmp_path / "run").run()
    assert same(arrays(straight), arrays(tmp_path / "run"))
    assert results.metrics == read_results(straight).metrics
    assert results.selection == read_results(straight).selection
    assert len(results.cost.train_seconds_per_task) == 3


def test_a_killed_process_leaves_whole_tasks_and_resumes(tmp_path: Path) -> None:
    def event(e: dict[str, Any]) -> None:
        if e["event"] == "task_started" and e["task"] == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    killed = in_child(Runner(recipe("ranpac"), tmp_path / "run", on_event=event).run)
    assert killed == (-signal.SIGKILL, "")
    assert sorted(p.name for p in (tmp_path / "run" / "tasks").iterdir()) == ["000", "001"]
    Runner(recipe("ranpac"), tmp_path / "run").run()
    Runner(recipe("ranpac"), tmp_path / "straight").run()
    assert same(arrays(tmp_path / "run"), arrays(tmp_path / "straight"))


def test_a_half_written_task_is_done_again(tmp_path: Path) -> None:
    Runner(recipe(), tmp_path / "run").run()
    before = arrays(tmp_path / "run")
    last = tmp_path / "run" / "tasks" / "002"
    Runner(recipe(), tmp_path / "all", keep_states="all").run()
    (tmp_path / "all" / "results.json").unlink()
    (tmp_path / "all" / "tasks" / "002").rename(tmp_path / "all" / "tasks" / ".002")
    Runner(recipe(), tmp_path / "all", keep_states="all").run()
    assert last.is_dir()
    assert same(before, arrays(tmp_path / "all"))


def test_a_finished_run_is_only_read(tmp_path: Path) -> None:
    first = Runner(recipe(), tmp_path / "run").run()
    stamp = (tmp_path / "run" / "results.json").stat().st_mtime_ns
    assert Runner(recipe(), tmp_path / "run").run() == first
    assert (tmp_path / "run" / "results.json").stat().st_mtime_ns == stamp


def test_another_recipe_is_refused_and_the_difference_named(tmp_path: Path) -> None:
    Runner(recipe(), tmp_path / "run").run()
    with pytest.raises(RunDirectoryError, match=r"seed = 0 there, 5 asked for"):
        Runner(recipe("simplecil", "seed=5"), tmp_path / "run").run()
    assert RunDirectoryError.exit_code == 2


@pytest.mark.parametrize("name", ["ease", "l2p"])
def test_a_backbone_that_the_method_cannot_use_is_refused_before_anything_is_done(name: str, tmp_path: Path) -> None:
    wrong = recipe(name, "backbone.name=test_efficientnet", "stream.tasks=4000")  # a stream that cannot be, too
    with pytest.raises(BackboneError, match=r"test_efficientnet \(EfficientNet\)"):
        Runner(wrong, tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_a_folder_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("…")
    with pytest.raises(RunDirectoryError, match=r"thesis\.tex"):
        Runner(recipe(), tmp_path).run()


def test_a_directory_in_use_is_refused(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(RunDirectoryError, match="in use"):
        Runner(recipe(), tmp_path).run()


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Runner(recipe(), tmp_path / "file" / "run").run()


def test_a_full_disk_keeps_the_finished_tasks(tmp_path: Path) -> None:
    """The state of the second task no longer fits: the first stays, and the same command goes on."""
    overrides = ["stream.data=synthetic", "stream.tasks=3", *SMALL, "method.name=ranpac", "method.projection_dim=128"]

    def event(e: dict[str, Any]) -> None:
        import resource  # which Windows lacks

        if e["event"] == "task_started" and e["task"] == 1:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    # warm the feature store first, so that the limit meets the run directory and nothing else
    Runner(load_recipe(None, overrides), tmp_path / "warm", keep_states="all").run()
    limit = (tmp_path / "warm" / "tasks" / "000" / "state.safetensors").stat().st_size + 100
    status, told = in_child(Runner(load_recipe(None, overrides), tmp_path / "run", on_event=event).run)
    assert status == 1
    assert told.splitlines()[-1].startswith("perdure.errors.StorageError: ")
    assert str(tmp_path / "run") in told.splitlines()[-1]
    assert [p.name for p in (tmp_path / "run" / "tasks").glob("[0-9]*")] == ["000"]
    Runner(load_recipe(None, overrides), tmp_path / "run").run()
    assert same(arrays(tmp_path / "run"), arrays(tmp_path / "warm"))


def test_a_state_of_the_wrong_task_is_refused(tmp_path: Path) -> None:
    Runner(recipe(), tmp_path / "run", keep_states="all").run()
    tasks = tmp_path / "run" / "tasks"
    (tmp_path / "run" / "results.json").unlink()
    for name in ("state.json", "state.safetensors"):
        (tasks / "002" / name).write_bytes((tasks / "000" / name).read_bytes())
    with pytest.raises(CheckpointError, match=r"state in .*002 must be of 3 tasks, but got 1\. Remove"):
        Runner(recipe(), tmp_path / "run").run()


def test_a_state_of_other_classes_is_refused(tmp_path: Path) -> None:
    Runner(recipe(), tmp_path / "run").run()
    state = load_state(tmp_path / "run" / "tasks" / "002")
    classes = state["classes_"]
    save_state(tmp_path / "run" / "tasks" / "002", {**state, "classes_": [classes[1], classes[0], *classes[2:]]})
    told = rf"state in .*002 must be of the stream's 3 first tasks, .* but got \[{classes[1]}, {classes[0]}, "
    with pytest.raises(CheckpointError, match=told):
        load(tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(CheckpointError, match=told):
        Runner(recipe(), tmp_path / "run").run()


def test_damaged_predictions_and_results_are_named(tmp_path: Path) -> None:
    Runner(recipe(), tmp_path / "run").run()
    (tmp_path / "run" / "results.json").unlink()
    (tmp_path / "run" / "tasks" / "001" / "predictions.npz").write_bytes(b"PK damaged")
    with pytest.raises(CheckpointError, match="001"):
        Runner(recipe(), tmp_path / "run").run()
    with pytest.raises(RunDirectoryError, match="finished run directory"):
        read_results(tmp_path / "run")
    (tmp_path / "run" / "results.json").write_text('{"version": "new"}')
    with pytest.raises(CheckpointError, match="valid results"):
        read_results(tmp_path / "run")


@pytest.mark.parametrize("name", ["simplecil", "l2p"])
def test_the_learned_method_is_read_back(name: str, tmp_path: Path) -> None:
    wanted = recipe(name)
    Runner(wanted, tmp_path / "run").run()
    method, stream = load(tmp_path / "run"), wanted.load_stream()
    last = arrays(tmp_path / "run")
    guesses = np.concatenate([method.predict(stream.test(i)).numpy() for i in range(3)])
    assert np.array_equal(guesses, last["002/top"][:, 0])


def test_a_method_is_not_read_onto_other_weights(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"one that perdure\.save wrote, or a finished run's, but got"):
        load(tmp_path)
    Runner(recipe(), tmp_path / "run").run()
    file = tmp_path / "run" / "results.json"
    results = json.loads(file.read_text())
    results["provenance"]["recipe"]["backbone"]["init_seed"] = 1
    file.write_text(json.dumps(results))
    with pytest.raises(CheckpointError, match="backbone"):
        load(tmp_path / "run")


def test_other_versions_are_logged_not_refused(tmp_path: Path) -> None:
    Runner(recipe(), tmp_path / "run").run()
    file = tmp_path / "run" / "recipe.yaml"
    file.write_text(file.read_text().replace("perdure: ", "perdure: 0.0.0+"))
    Runner(recipe(), tmp_path / "run").run()
    assert "versions_changed" in (tmp_path / "run" / "log.jsonl").read_text()


def test_cost_is_measured(tmp_path: Path) -> None:
    start = time.perf_counter()
    cost = Runner(recipe("ranpac"), tmp_path / "run").run().cost
    assert 0 < cost.train_seconds + cost.eval_seconds < time.perf_counter() - start
    assert cost.learned_parameters == 64 * 6
    assert cost.stored_bytes > 64 * 64 * 8
    assert cost.exemplars == 0
    assert cost.peak_rss_bytes is not None
    assert 50e6 < cost.peak_rss_bytes < 1.05 * (peak_rss_bytes() or 0)  # Linux counts pages per core: by rough sums


@pytest.mark.parametrize("name", methods.names())
def test_a_domain_incremental_folder_runs(name: str, tmp_path: Path) -> None:
    for d, domain in enumerate(("day", "night")):
        for c in range(3):
            folder = tmp_path / "images" / domain / f"class_{c}"
            folder.mkdir(parents=True)
            for i in range(5):
                Image.new("RGB", (20, 20), (80 * c, 40 * d, 30 * i)).save(folder / f"{i}.png")
    settings = ["stream.scenario=domain", f"stream.data={tmp_path / 'images'}", "stream.tasks=null"]
    results = Runner(recipe(name, *settings), tmp_path / "run").run()
    assert [len(classes) for classes in results.task_classes] == [3, 3]
    assert results.test_images_per_task == [3, 3]
    assert sorted(results.class_accuracy) == ["0", "1", "2"]
    assert results.accuracy_matrix[0][1] is None


class KeepsImages(SimpleCIL):
    """Two places for images, one of them inside another module."""

    def __init__(self, *args: Any, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self.all_ = Exemplars("random", n_images=7)
        self.parts_ = torch.nn.ModuleList([Exemplars("random", n_per_class=1)])

    def _learn(self, task: Task, rng: torch.Generator) -> None:
        for kept in (self.all_, *self.parts_):
            kept.add(task.train, rng)
        super()._learn(task, rng)


def test_kept_images_are_counted_and_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    methods.names()  # finds all others first
    monkeypatch.setitem(vars(methods)["_things"], "keeps_images", KeepsImages)
    cost = Runner(recipe("keeps_images"), tmp_path / "run").run().cost
    plain = Runner(recipe(), tmp_path / "plain").run().cost
    method = load(tmp_path / "run")
    assert cost.exemplars == method.n_exemplars == 7 + 6
    assert plain.exemplars == 0
    assert cost.stored_bytes - plain.stored_bytes == method.all_.nbytes + method.parts_[0].nbytes > 13 * 1000


def test_files_that_are_not_read_are_logged_and_a_range_of_values_is_resumed(tmp_path: Path) -> None:
    for part, name in itertools.product(("train", "test"), ("cat", "dog")):
        folder = tmp_path / "images" / part / name
        folder.mkdir(parents=True)
        Image.new("RGB", (40, 40), (len(name + part) * 20, 9, ord(name[0]))).save(folder / "0.png")
    drawings = [tmp_path / "images" / "train" / "cat" / f"{i}.svg" for i in range(3)]
    for path in drawings:
        path.touch()
    asked = recipe("simplecil", f"stream.data={tmp_path / 'images'}", "stream.tasks=2", "stream.value_range=[0, 9]")
    first = Runner(asked, tmp_path / "run").run()
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    told = [(e["reason"].split(": ")[0], e["number"], e["of"]) for e in events if e["event"] == "file_not_read"]
    assert told == [(str(path), i + 1, 3) for i, path in enumerate(drawings)]
    assert Runner(asked, tmp_path / "run").run().model_dump() == first.model_dump()
