"""A method in a folder knows what it is: saved whole or not at all, and opened only on what it learned on."""

from __future__ import annotations

import dataclasses as dc
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import perdure
from in_child import in_child
from perdure import Backbone, FeatureStore, load_stream, methods
from perdure.backbone.tiny import TINY, small_vit
from perdure.checks.subject import equal, reference_for, small_stream
from perdure.data.reading import READING
from perdure.errors import (
    BackboneError,
    CheckpointError,
    ConfigError,
    DataNotFoundError,
    RecipeError,
    RunDirectoryError,
    StorageError,
)
from perdure.methods.ranpac import RanPAC
from perdure.methods.simplecil import SimpleCIL
from perdure.run import Runner, load_recipe
from perdure.run.saved import ReadingWarning, load, save
from perdure.run.summary import versions
from small_folders import fill

STREAM = small_stream()


def test_vit(**options: Any) -> Backbone:
    return Backbone.load("test_vit", **{"pretrained": False, "device": "cpu", **options})


test_vit.__test__ = False  # type: ignore[attr-defined]


@pytest.fixture
def method(store: FeatureStore) -> SimpleCIL:
    """Taught four classes in two tasks."""
    found = SimpleCIL(test_vit(), store=store, seed=3)
    for task in STREAM[:2]:
        found.fit_task(task)
    return found


@pytest.fixture
def folder(method: SimpleCIL, tmp_path: Path) -> Path:
    save(method, tmp_path / "model")
    return tmp_path / "model"


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("name", methods.names())
def test_every_method_answers_and_learns_on_as_if_it_had_never_been_saved(
    name: str, store: FeatureStore, tmp_path: Path
) -> None:
    kind = methods.get(name)
    made: Callable[[], Backbone] = small_vit if kind.tags.backbone == "any" else TINY[kind.tags.backbone]
    given = reference_for(kind)
    straight = kind(made(), dict(kind.tags.small), seed=5, store=store, **given)
    for task in STREAM[:2]:
        straight.fit_task(task)
    save(straight, tmp_path / "model")
    again = load(tmp_path / "model", backbone=made(), store=store)
    assert type(again) is kind
    assert (again.config, again.seed, again.class_names) == (straight.config, 5, straight.class_names)
    assert equal(again.state_dict(), straight.state_dict())
    tests = STREAM.test(0).joined(STREAM.test(1))
    assert equal(list(again.scores_of(tests)), list(straight.scores_of(tests)))
    vars(again).update(given)
    for each in (straight, again):
        each.fit_task(STREAM[2])
    assert equal(again.state_dict(), straight.state_dict())
    assert equal(list(again.scores_of(tests)), list(straight.scores_of(tests)))


def test_a_folder_holds_what_the_module_says(folder: Path) -> None:
    about = json.loads((folder / "method.json").read_text(encoding="utf-8"))
    assert list(about) == ["format", "method", "settings", "seed", "backbone", "reading", "state", "versions"]
    assert (about["format"], about["method"], about["seed"]) == (1, "simplecil", 3)
    assert about["settings"] == SimpleCIL.Config().model_dump()
    assert about["backbone"]["identity"] == test_vit().identity
    assert about["backbone"]["loaded"] == test_vit().source
    assert about["backbone"]["preprocess"]["image_size"] == 160
    assert about["versions"] == versions()
    state = about["state"]
    assert sorted(content(folder)) == ["method.json", f"{state}/state.json", f"{state}/state.safetensors"]


def test_other_settings_than_the_defaults_come_back(store: FeatureStore, tmp_path: Path) -> None:
    ranpac = RanPAC(test_vit(), projection_dim=32, ridge="fixed", store=store).fit_task(STREAM[0])
    save(ranpac, tmp_path / "model")
    again = load(tmp_path / "model", store=store)
    assert again.config == RanPAC.Config(projection_dim=32, ridge="fixed") != RanPAC.Config(projection_dim=32)
    assert torch.equal(again.scores(STREAM.test(0)), ranpac.scores(STREAM.test(0)))


def test_a_method_that_was_taught_nothing_can_be_saved(store: FeatureStore, tmp_path: Path) -> None:
    save(SimpleCIL(test_vit(), store=store), tmp_path / "model")
    again = load(tmp_path / "model", store=store)
    assert again.class_names == {}
    assert again.fit_task(STREAM[0]).tasks_seen_ == 1


@pytest.mark.parametrize(
    ("name", "arrivals"), [("ranpac", ("ant", "bee", "cow", "dog")), ("simplecil", ("dog", "ant", "cow", "bee"))]
)
def test_four_processes_in_four_weeks_are_as_one_that_knew_it_all(
    name: str, arrivals: tuple[str, ...], store: FeatureStore, tmp_path: Path
) -> None:
    kind, data, model = methods.get(name), tmp_path / "weeks", tmp_path / "model"

    def week(number: int) -> None:
        fill(data, **{arrivals[number]: 5})
        started = kind(test_vit(), kind.tags.small, store=store) if not number else load(model, store=store)
        for task in load_stream(data, known=started):
            started.fit_task(task)
        save(started, model)

    for number in range(4):
        assert in_child(functools.partial(week, number)) == (0, "")
    whole = kind(test_vit(), kind.tags.small, store=store)
    for task in load_stream(data, sizes=[1] * 4, class_order=arrivals):
        whole.fit_task(task)
    tests = load_stream(data, tasks=1).test(0)
    scores, names = whole.scores(tests), whole.predict_names(tests)
    data.rename(tmp_path / "elsewhere")
    model.rename(tmp_path / "moved")
    grown = load(tmp_path / "moved", device="cpu", store=store)
    moved = load_stream(tmp_path / "elsewhere", tasks=1).test(0)
    assert grown.names_ == whole.names_ == list(arrivals)
    assert torch.equal(grown.scores(moved), scores)
    assert grown.predict_names(moved) == names


def test_three_lines_name_a_photograph(store: FeatureStore, tmp_path: Path) -> None:
    data = fill(tmp_path / "data", emu=5, llama=5)
    method = SimpleCIL(test_vit(), store=store).fit_task(load_stream(data, tasks=1)[0])
    perdure.save(method, tmp_path / "model")
    photo = shutil.copy(data / "emu" / "000.png", tmp_path / "photo.png")
    shutil.rmtree(data)
    code = """
        import sys, perdure
        method = perdure.load(sys.argv[1])
        print(method.predict_names(sys.argv[2]))
    """
    told = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), tmp_path / "model", photo],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (told.returncode, told.stdout) == (0, f"{method.predict_names(photo)}\n"), told.stderr


def test_saving_again_replaces_the_whole(method: SimpleCIL, folder: Path, store: FeatureStore) -> None:
    method.fit_task(STREAM[2])
    save(method, folder)
    assert load(folder, store=store).tasks_seen_ == 3
    ranpac = RanPAC(test_vit(), projection_dim=16, store=store).fit_task(STREAM[0])
    save(ranpac, str(folder))
    assert isinstance(load(str(folder), store=store), RanPAC)
    assert [p.name for p in folder.parent.iterdir() if "model" in p.name] == ["model"]


@pytest.mark.parametrize("where", ["~/model", "model", "./a/../model", "deep/er/model"])
def test_a_folder_may_be_given_in_any_way(
    where: str, method: SimpleCIL, store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    save(method, where)
    assert (tmp_path / where.replace("~/", "") / "method.json").is_file()
    assert load(Path(where), store=store).class_names == method.class_names


def test_a_link_stays_a_link(method: SimpleCIL, folder: Path, store: FeatureStore) -> None:
    link = folder.parent / "latest"
    link.symlink_to(folder)
    save(method.fit_task(STREAM[2]), link)
    assert link.is_symlink()
    assert load(folder, store=store).tasks_seen_ == load(link, store=store).tasks_seen_ == 3


@pytest.mark.parametrize("mine", ["thesis.tex", ".hidden", "figures/one.png"])
@pytest.mark.parametrize("beside", [False, True])
def test_what_else_is_in_a_folder_is_left_alone(
    mine: str, beside: bool, method: SimpleCIL, folder: Path, tmp_path: Path, store: FeatureStore
) -> None:
    place = folder if beside else tmp_path / "work"
    (place / mine).parent.mkdir(parents=True, exist_ok=True)
    (place / mine).write_text("years of work")
    before = content(place)
    method.fit_task(STREAM[2])
    if beside:
        save(method, place)
        assert (place / mine).read_text() == "years of work"
        assert load(place, store=store).tasks_seen_ == 3
        return
    told = f"save: folder must be new, empty, or a saved method's, but got '{place} holding {mine.split('/')[0]}'"
    with pytest.raises(CheckpointError) as error:
        save(method, place)
    assert told in str(error.value)
    assert content(place) == before


def test_the_current_folder_is_taken(
    method: SimpleCIL, tmp_path: Path, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save(method, ".")
    save(method.fit_task(STREAM[2]), Path())
    assert Path.cwd() == tmp_path / "here"
    assert load(".", store=store).tasks_seen_ == 3


def test_a_damaged_method_is_replaced(method: SimpleCIL, folder: Path, store: FeatureStore) -> None:
    (folder / "method.json").write_text("{")
    save(method, folder)
    assert load(folder, store=store).tasks_seen_ == 2


def test_an_empty_folder_is_taken_and_a_file_is_not(method: SimpleCIL, tmp_path: Path, store: FeatureStore) -> None:
    (tmp_path / "empty").mkdir()
    save(method, tmp_path / "empty")
    assert load(tmp_path / "empty", store=store).tasks_seen_ == 2
    (tmp_path / "file").write_text("text")
    with pytest.raises(CheckpointError, match=r"folder must be a folder, but got '.*/file'"):
        save(method, tmp_path / "file")
    with pytest.raises(StorageError, match=r"folder must be writable, but got '.*/file/model'"):
        save(method, tmp_path / "file" / "model")
    assert (tmp_path / "file").read_text() == "text"


def test_a_finished_runs_directory_is_not_saved_over(method: SimpleCIL, tmp_path: Path) -> None:
    run(tmp_path / "run")
    before = content(tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"but got '.*/run holding log\.jsonl'"):
        save(method, tmp_path / "run")
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize("n_bytes", [0, 300, 2000])
def test_a_full_disk_leaves_what_was_saved_before(
    n_bytes: int, method: SimpleCIL, folder: Path, tmp_path: Path
) -> None:
    before = content(folder)
    method.fit_task(STREAM[2])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        for place in (folder, tmp_path / "new"):
            with pytest.raises(StorageError, match=f"folder must be writable, but got '{place}'. Free some space"):
                save(method, place)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content(folder) == before
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".") or p.name == "new") == []


@pytest.mark.parametrize("stop", [OSError("the disk went away"), KeyboardInterrupt()])
@pytest.mark.parametrize("new", [False, True])
def test_a_rename_that_fails_leaves_what_was_saved_before(
    stop: BaseException, new: bool, method: SimpleCIL, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if new:
        shutil.rmtree(folder)
    before = content(folder)

    def fails(source: Any, target: Any) -> None:
        raise stop

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fails)
        with pytest.raises(StorageError if isinstance(stop, OSError) else KeyboardInterrupt):
            save(method.fit_task(STREAM[2]), folder)
    assert content(folder) == before
    assert folder.exists() != new


def test_what_cannot_be_written_leaves_what_was_saved_before(method: SimpleCIL, folder: Path) -> None:
    before = content(folder)
    method.odd_ = {1, 2}  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError, match="odd_ must be a tensor or a plain value, but got 'set'"):
        save(method, folder)
    assert content(folder) == before


def test_who_reads_while_another_saves_gets_one_or_the_other(folder: Path, method: SimpleCIL) -> None:
    def reads() -> None:
        for _ in range(30):
            assert load(folder, backbone=method.backbone).tasks_seen_ == 2

    child = os.fork()
    if not child:
        try:
            while True:
                save(method, folder)
        finally:
            os._exit(0)
    try:
        reads()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "method.json must be readable, but got '{}'"),
        ("{", "method.json must be readable, but got '{}'"),
        ("5", "method.json must be readable, but got '{}'"),
        (
            '{"backbone": {"loaded": 5}}',
            "without method, settings, seed, reading, state, backbone.name, backbone.identity, backbone.loaded",
        ),
        ('{"seed": "1", "settings": [], "method": null}', "without method, settings, seed, backbone, reading, state'"),
        ("[]", "method.json must be readable, but got '{}'"),
        ("\udcff", "method.json must be readable, but got '{}'"),
        (
            "{}",
            "of format 1, whole, but got 'format None without method, settings, seed, backbone, reading, state'",
        ),
        ('{"format": 2}', "whole, but got 'format 2 without method, settings, seed"),
        ('{"backbone": 5}', "without method, settings, seed, backbone, reading, state'"),
    ],
)
def test_a_damaged_description_is_named(text: str, told: str, folder: Path) -> None:
    (folder / "method.json").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(CheckpointError) as error:
        load(folder)
    assert told.format(folder / "method.json") in str(error.value)


@pytest.mark.parametrize("lost", ["method", "settings", "seed", "backbone", "name", "identity", "loaded"])
def test_a_description_that_lacks_something_says_what(lost: str, folder: Path) -> None:
    about = json.loads((folder / "method.json").read_text())
    about.pop(lost, None) or about["backbone"].pop(lost, None)
    (folder / "method.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=f"whole, but got 'format 1 without .*{lost}"):
        load(folder)


def test_a_description_of_another_format_says_which(folder: Path) -> None:
    change(folder / "method.json", format=7)
    with pytest.raises(CheckpointError, match=r"of format 1, whole, but got 'format 7'\. Use the perdure that wrote"):
        load(folder)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
@pytest.mark.parametrize("harm", ["gone", "cut", "flipped"])
def test_a_damaged_state_is_named(name: str, harm: str, folder: Path) -> None:
    (file,) = folder.glob(f"*/{name}")
    whole = bytearray(file.read_bytes())
    file.unlink()
    if harm != "gone":
        whole[len(whole) // 2] ^= 1
        file.write_bytes(whole if harm == "flipped" else whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"state.json.*but got '{file.parent}'. Copy the whole folder again"):
        load(folder)


@pytest.mark.parametrize("text", ["[]", "5", "null", '"text"', "[1, 2]"])
def test_a_state_that_is_none_is_named(text: str, folder: Path) -> None:
    (file,) = folder.glob("*/state.json")
    file.write_text(text)
    with pytest.raises(CheckpointError, match=r"state\.json must be readable|format must be 3, but got None"):
        load(folder)


def test_settings_edited_to_something_else_are_named(folder: Path) -> None:
    change(folder / "method.json", settings={"preset": "default", "rigde": 3})
    with pytest.raises(RecipeError, match="'rigde'"):
        load(folder)


@pytest.mark.parametrize(
    "other",
    [
        {"init_seed": 1},
        {"preset": "lamda"},
    ],
)
def test_other_weights_or_another_view_are_refused(other: dict[str, Any], folder: Path) -> None:
    wrong = test_vit(**other)
    told = (
        rf"backbone must be the one that the method learned on \(test_vit, \w+\), but got 'test_vit, {wrong.identity}'"
    )
    with pytest.raises(CheckpointError, match=told):
        load(folder, backbone=wrong)
    about = json.loads((folder / "method.json").read_text())
    about["backbone"]["loaded"] |= other
    (folder / "method.json").write_text(json.dumps(about))
    with pytest.raises(CheckpointError, match=told):
        load(folder, device="cpu")


def test_another_model_or_another_width_is_refused(folder: Path) -> None:
    for wrong in (Backbone.load("test_vit2", pretrained=False, device="cpu"), TINY["any"](), TINY["vit"]()):
        with pytest.raises(CheckpointError, match=f"but got '{wrong.name}, {wrong.identity}'"):
            load(folder, backbone=wrong)


def test_a_changed_layer_is_refused(folder: Path, store: FeatureStore) -> None:
    changed = test_vit()
    changed.model.blocks[0].mlp.act = nn.ReLU()
    with pytest.raises(CheckpointError, match="backbone must be the one"):
        load(folder, backbone=changed)
    cropped = test_vit()
    cropped.preprocess = dc.replace(cropped.preprocess, crop_pct=0.5)
    with pytest.raises(CheckpointError, match="its eval view counts too"):
        load(folder, backbone=cropped)
    assert load(folder, backbone=test_vit(precision="bfloat16"), store=store).tasks_seen_ == 2


def test_a_state_is_refused_by_a_method_on_other_weights(method: SimpleCIL, store: FeatureStore) -> None:
    other = SimpleCIL(test_vit(init_seed=1), store=store)
    with pytest.raises(CheckpointError, match=rf"as here: '{other.origin_}', but got '{method.origin_}'"):
        other.load_state_dict(method.state_dict())
    assert other.tasks_seen_ == 0


def test_a_backbone_that_was_not_loaded_has_to_be_given(store: FeatureStore, tmp_path: Path) -> None:
    save(SimpleCIL(small_vit(), store=store).fit_task(STREAM[0]), tmp_path / "model")
    with pytest.raises(ConfigError, match=r"backbone must be given, but got None\. Give load\(folder, backbone="):
        load(tmp_path / "model")
    assert load(tmp_path / "model", backbone=small_vit(), store=store).tasks_seen_ == 1


def test_weights_from_a_file_are_found_again_or_named(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in test_vit(init_seed=4).model.state_dict().items()}, file)
    monkeypatch.chdir(tmp_path)
    save(SimpleCIL(test_vit(weights="weights.safetensors"), store=store).fit_task(STREAM[0]), "model")
    monkeypatch.chdir("/")
    assert load(tmp_path / "model", device="cpu", store=store).backbone.identity == test_vit(init_seed=4).identity
    file.unlink()
    with pytest.raises(BackboneError, match=f"existing safetensors file, but got '{file}'"):
        load(tmp_path / "model", device="cpu")
    assert load(tmp_path / "model", backbone=test_vit(init_seed=4), store=store).tasks_seen_ == 1


class Own(SimpleCIL):
    """A class that is not registered."""


def test_a_class_that_is_not_registered_has_to_be_given(store: FeatureStore, tmp_path: Path) -> None:
    save(Own(test_vit(), store=store).fit_task(STREAM[0]), tmp_path / "model")
    with pytest.raises(ConfigError, match=r"method must be given, or registered, but got 'Own'\. Give .*method="):
        load(tmp_path / "model")
    assert type(load(tmp_path / "model", method=Own, store=store)) is Own
    with pytest.raises(ConfigError, match=r"method must be the class Own, but got 'simplecil'\. Give the class it was"):
        load(tmp_path / "model", method=SimpleCIL)


def test_a_file_is_never_run_because_a_folder_names_it(folder: Path) -> None:
    change(folder / "method.json", method="/tmp/evil.py:Evil")
    with pytest.raises(ConfigError, match=r"name must be a registered one, but got '/tmp/evil\.py:Evil'"):
        load(folder)


def test_a_registered_class_may_be_given_too(folder: Path, store: FeatureStore) -> None:
    assert type(load(folder, method=SimpleCIL, store=store)) is SimpleCIL


@pytest.mark.parametrize("what", ["gone", "empty", "file"])
def test_a_folder_that_is_neither_is_named(what: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    with pytest.raises(DataNotFoundError, match=f"or a finished run's, but got '{tmp_path / what}'"):
        load(tmp_path / what)


def run(out: Path, *more: str, **options: Any) -> None:
    settings = [
        "stream.data=synthetic", "stream.tasks=3", "backbone.name=test_vit", "backbone.pretrained=false",
        "backbone.device=cpu", "method.name=ranpac", "method.projection_dim=16", "method.ridge=fixed", "seed=4",
    ]  # fmt: skip
    Runner(load_recipe(None, [*settings, *more]), out, **options).run()


def test_a_finished_run_opens_with_its_images_gone_and_on_any_device(tmp_path: Path, store: FeatureStore) -> None:
    data = fill(tmp_path / "data", emu=5, llama=5, ant=5)
    run(tmp_path / "run", f"stream.data={data}", store=store)
    test = load_stream(fill(tmp_path / "copy", emu=5, llama=5, ant=5), tasks=1).test(0)
    expected = load(tmp_path / "run", store=store).scores(test)
    shutil.rmtree(data)
    file = tmp_path / "run" / "results.json"
    results = json.loads(file.read_text())
    results["provenance"]["recipe"]["backbone"]["device"] = "cuda"
    file.write_text(json.dumps(results))
    again = load(tmp_path / "run", device="cpu", store=store)
    assert torch.equal(again.scores(test), expected)
    assert again.config == RanPAC.Config(projection_dim=16, ridge="fixed")
    assert (again.seed, set(again.names_)) == (4, {"emu", "llama", "ant"})
    save(again, tmp_path / "model")
    assert torch.equal(load(tmp_path / "model", store=store).scores(test), expected)


def test_a_finished_run_goes_on_learning(tmp_path: Path, store: FeatureStore) -> None:
    run(tmp_path / "run", store=store)
    method = load(tmp_path / "run", store=store)
    method.fit_task(load_stream(fill(tmp_path / "data", emu=5), known=method)[0])
    assert method.class_names[6] == "emu"


def test_an_unfinished_run_is_refused(tmp_path: Path, store: FeatureStore) -> None:
    run(tmp_path / "run", store=store)
    (tmp_path / "run" / "results.json").unlink()
    with pytest.raises(RunDirectoryError, match=f"a finished run directory, but got '{tmp_path / 'run'}'. Finish it"):
        load(tmp_path / "run")


def test_a_run_is_not_opened_on_another_backbone(tmp_path: Path, store: FeatureStore) -> None:
    run(tmp_path / "run", store=store)
    assert load(tmp_path / "run", backbone=test_vit(), store=store).tasks_seen_ == 3
    with pytest.raises(CheckpointError, match="backbone must be the one that the method learned on"):
        load(tmp_path / "run", backbone=test_vit(init_seed=1))


def test_another_rule_of_reading_is_told(folder: Path, store: FeatureStore) -> None:
    file = folder / "method.json"
    about = json.loads(file.read_text("utf-8"))
    assert about["reading"] == READING
    file.write_text(json.dumps({**about, "reading": "0"}), "utf-8")
    with pytest.warns(ReadingWarning, match=f"was taught on images read by rule 0, and here it is rule {READING}: ans"):
        load(folder, store=store)
