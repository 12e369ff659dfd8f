"""Runs a recipe task by task into one directory, and goes on where an interrupted run stopped.

    runs/<name>/
      recipe.yaml     the resolved recipe, with versions and fingerprints
      tasks/003/      state.safetensors + state.json, predictions.npz, cost.json: complete or absent;
                      selection.json too if the method chooses prompts
      log.jsonl       one line per event
      results.json    once all tasks are done

Each task's directory is written under a temporary name and renamed, so a killed run leaves only whole tasks.
"""

from __future__ import annotations

import contextlib
import dataclasses as dc
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from filelock import AcquireReturnProxy, FileLock, Timeout
from safetensors import SafetensorError

from perdure.data import Stream
from perdure.data.names import on_disk, typed
from perdure.errors import ConfigError, RunDirectoryError, StorageError
from perdure.eval import Predictions, evaluate
from perdure.memory import FeatureStore
from perdure.methods import Method
from perdure.run.checkpoint import save_state, state_after, tensor_bytes
from perdure.run.claim import RECIPE, data_changes, facts_of, refuse_another
from perdure.run.fairness import fairness_of
from perdure.run.reading import read_cost, read_predictions, read_recipe, read_results, task_folder, write_predictions
from perdure.run.recipe import Recipe, load_recipe
from perdure.run.results import Results, Selection, TaskCost
from perdure.run.selection import SELECTION_FILE, read_selection, selection_after
from perdure.run.summary import machine, now, summarise, versions
from perdure.train.runtime import peak_rss_bytes
from perdure.types import Progress, no_progress

Event = dict[str, Any]


class Runner:
    """One run of one recipe.

    Args:
        recipe: what to run.
        out: the run directory; ``runs/<recipe.label>`` by default.
        store: the feature store; the machine's default if not given.
        keep_states: ``last`` keeps the newest task's state (what resuming needs), ``all`` keeps every task's.
        command: how the run is repeated, for the provenance.
        progress: called while images are embedded.
        on_event: called with every event that goes to ``log.jsonl``.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path | None = None,
        *,
        store: FeatureStore | None = None,
        keep_states: Literal["last", "all"] = "last",
        command: str = "",
        progress: Progress = no_progress,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.recipe, self.out = recipe, on_disk(out or Path("runs") / recipe.label)
        self.store = store or FeatureStore(progress=progress)
        self.keep_states, self.command, self._on_event = keep_states, typed(command), on_event

    def run(self) -> Results:
        """Runs all tasks that are not done yet and writes ``results.json``.

        Raises:
            BackboneError: for a backbone that the method cannot use, or a name of too many tokens, before anything is
                written.
            StreamError: for names of classes that the method cannot tell apart, before anything is written.
            RunDirectoryError: if the directory belongs to another recipe, or another process is running it.
            StorageError: if the disk is full; all finished tasks are kept.
        """
        backbone, reference = self.recipe.load_backbone(), self.recipe.load_reference()
        method = self.recipe.make_method(backbone, self.store, reference)
        stream = self.recipe.load_stream()
        if method.tags.class_names:  # a method that is thrown away: the one that learns meets names with their tasks
            self.recipe.make_method(method.backbone, self.store, reference).require_names(stream.candidates)
        with self._locked():
            return self._run(stream, method, {"reference": reference.fingerprint} if reference else {})

    def _locked(self) -> AcquireReturnProxy:
        with self._writing():
            self.out.mkdir(parents=True, exist_ok=True)
            try:
                return FileLock(self.out / ".lock", timeout=0).acquire()
            except Timeout:
                hint = "Wait for it, or give another --out"
                raise RunDirectoryError("run", "directory", "free", f"{self.out}, in use by a process", hint) from None

    def _run(self, stream: Stream, method: Method, others: Mapping[str, str]) -> Results:
        backbone = method.backbone
        own = {"stream": stream.fingerprint, "backbone": backbone.fingerprint}
        fingerprints = {**own, **method.fingerprints, **others}
        if self.recipe.code:
            fingerprints["method"] = self.recipe.code
        self._claim(stream, fingerprints)
        method, done = self._resume(method, stream)
        self._log("run_started", recipe=self.recipe.label, tasks=len(stream), tasks_done=done)
        for note in stream.notes:
            self._log("note", text=note)
        for reason in stream.quarantined:
            self._log("file_left_out", reason=reason)
        for number, reason in enumerate(stream.unread, 1):
            self._log("file_not_read", reason=reason, number=number, of=len(stream.unread))
        for task in stream[done:]:
            name = f"task {task.index + 1}/{len(stream)}"
            self._log("task_started", task=task.index, classes=len(task.classes), images=len(task.train), name=name)
            before, start = backbone.passes.images, time.perf_counter()
            method.fit_task(task)
            trained, middle = backbone.passes.images, time.perf_counter()
            predictions = evaluate(method, stream, upto=task.index)
            state = method.state_dict()
            cost = TaskCost(
                train_seconds=middle - start,
                eval_seconds=time.perf_counter() - middle,
                train_passes=trained - before,
                test_passes=backbone.passes.images - trained,
                peak_rss_bytes=peak_rss_bytes(),
                learned_parameters=method.learned_parameters(),
                stored_bytes=tensor_bytes(state),
                exemplars=method.n_exemplars,
            )
            self._commit(task.index, state, predictions, cost, selection_after(method, stream, upto=task.index))
            accuracy = float(predictions.correct.mean()) if len(predictions.labels) else None
            self._log("task_finished", task=task.index, accuracy=accuracy, **dc.asdict(cost))
        return self._finish(stream, method, fingerprints)

    def _claim(self, stream: Stream, fingerprints: dict[str, str]) -> None:
        """Writes ``recipe.yaml``, or checks that the one there asks for the same."""
        file, found = self.out / RECIPE, facts_of(stream)
        mine = {**self.recipe.values(), "fingerprints": fingerprints, "found": found}
        if not file.exists():
            others = [
                p.name for p in self.out.iterdir() if p.name not in (".lock", "log.jsonl", _unfinished(file).name)
            ]
            if others:
                hint = "Give an empty or new --out"
                raise RunDirectoryError("run", "directory", "empty or a run's", f"{self.out} holding {others[0]}", hint)
            text = f"# {self.command}\n" if self.command else ""
            with self._writing():
                _write(
                    file, text + yaml.safe_dump({**mine, "versions": versions()}, sort_keys=False, allow_unicode=True)
                )
            if changed := data_changes(self.recipe.found, found):
                self._log("data_changed", since=changed)
            return
        theirs = read_recipe(file)
        refuse_another(self.out, mine, theirs)
        if theirs.get("versions") != versions():
            self._log("versions_changed", was=theirs.get("versions"), now=versions())

    def _resume(self, method: Method, stream: Stream) -> tuple[Method, int]:
        tasks = self.out / "tasks"
        with self._writing():
            tasks.mkdir(exist_ok=True)
            for unfinished in tasks.glob(".*"):
                shutil.rmtree(unfinished)
        done = 0
        while done < len(stream) and self._task(done).is_dir():
            done += 1
        if done:
            method.load_state_dict(state_after(self._task(done - 1), [task.class_names for task in stream[:done]]))
        return method, done

    def _commit(
        self, index: int, state: dict[str, Any], predictions: Predictions, cost: TaskCost, selection: Selection | None
    ) -> None:
        final = self._task(index)
        temporary = final.with_name(f".{final.name}")
        with self._writing():
            temporary.mkdir(parents=True)
            save_state(temporary, state)
            write_predictions(temporary, predictions)
            (temporary / "cost.json").write_text(json.dumps(dc.asdict(cost)), encoding="utf-8")
            if selection is not None:
                (temporary / SELECTION_FILE).write_text(selection.model_dump_json(), encoding="utf-8")
            temporary.rename(final)
        if self.keep_states == "last" and index:
            for name in ("state.safetensors", "state.json"):
                (self._task(index - 1) / name).unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SafetensorError) as error:
            hint = f"Free some space or give another --out; finished tasks are kept, the same command goes on ({error})"
            raise StorageError("run", "run directory", "writable", str(self.out), hint) from error

    def _finish(self, stream: Stream, method: Method, fingerprints: dict[str, str]) -> Results:
        file = self.out / "results.json"
        if file.exists():
            return read_results(self.out)
        after = [read_predictions(self._task(i)) for i in range(len(stream))]
        costs = [read_cost(self._task(i)) for i in range(len(stream))]
        selection = [read_selection(self._task(i)) for i in range(len(stream))]
        provenance = {
            "recipe": self.recipe.values(),
            "command": self.command,
            "versions": versions(),
            "fingerprints": fingerprints,
            "machine": machine(method.backbone),
            "depends_on_test_batch": method.promises.depends_on_test_batch,
            "quarantined": list(stream.quarantined),
            "started": self._started(),
            "finished": now(),
        }
        fairness = fairness_of(method, costs[-1].exemplars)
        results = summarise(stream, after, costs, selection, provenance, fairness)
        with self._writing():
            _write(file, results.model_dump_json(indent=1) + "\n")
        self._log("run_finished", last_accuracy=results.metrics.last_accuracy)
        return results

    def _started(self) -> str:
        for line in (self.out / "log.jsonl").read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):  # a full disk or a kill may have cut it short
                return str(json.loads(line)["time"])
        return now()

    def _task(self, index: int) -> Path:
        return task_folder(self.out, index)

    def _log(self, event: str, **details: Any) -> None:
        line = {"time": now(), "event": event, **details}
        with self._writing(), open(self.out / "log.jsonl", "a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")
        if self._on_event:
            self._on_event(line)


def run_recipe(
    recipe: Recipe | str | Path | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    overrides: Sequence[str] = (),
    store: FeatureStore | None = None,
    progress: Progress = no_progress,
) -> Results:
    """Runs a recipe, or goes on where it stopped.

    Args:
        recipe: a YAML file, its values by section, or what ``load_recipe`` gave.
        out: the run directory; ``runs/<the recipe's label>`` by default. ``perdure.load(out)`` opens it.
        overrides: ``section.key=value`` texts, for a file.
        store: the feature store; the machine's default if not given.
        progress: called while images are embedded.

    Raises:
        RecipeError: with every problem of the recipe.
        ConfigError: for overrides of anything but a file.
        RunDirectoryError: if the directory belongs to another recipe, or another process is running it.
        StorageError: if the disk is full; all finished tasks are kept.
    """
    if isinstance(recipe, str | Path):
        recipe = load_recipe(Path(recipe).expanduser(), overrides)
    elif overrides:
        hint = "Change the values themselves"
        raise ConfigError("run_recipe", "overrides", "left out but for a file", list(overrides), hint)
    checked = recipe if isinstance(recipe, Recipe) else Recipe.from_values(recipe)
    return Runner(checked, None if out is None else Path(out).expanduser(), store=store, progress=progress).run()


def _write(file: Path, text: str) -> None:
    """Whole or not at all."""
    _unfinished(file).write_text(text, encoding="utf-8")
    os.replace(_unfinished(file), file)


def _unfinished(file: Path) -> Path:
    return file.with_name(f".{file.name}")
