"""What the documents say is true: their code runs, their links lead somewhere, their numbers are the committed ones."""

from __future__ import annotations

import json
import re
import sys
import tomllib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from perdure.checks import check_method
from perdure.methods import methods
from perdure.run import Runner, load_recipe
from perdure.run.method_file import typed_method
from plugins import Install, look_again
from scripts import write_tables

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RESULTS = json.loads((ROOT / "benchmarks/results/caltech101.json").read_text())
COMPARED = json.loads((ROOT / "benchmarks/results/representation_methods.json").read_text())


def python_blocks(path: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL))


def test_the_tutorial_runs(capsys: pytest.CaptureFixture[str]) -> None:
    scope: dict[str, Any] = {"__name__": "perdure.tutorial"}
    sys.modules["perdure.tutorial"] = types.ModuleType("perdure.tutorial")
    try:
        exec(compile(python_blocks(ROOT / "docs/tutorial.md"), "tutorial", "exec"), scope)
    finally:
        del sys.modules["perdure.tutorial"]
    assert capsys.readouterr().out.splitlines()[-1] == "['check_docstring_names_its_source']"


def test_what_is_written_of_merging_works(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(python_blocks(ROOT / "docs/merging.md"), "merging", "exec"), {})
    assert re.fullmatch(r"(7\d|80) images: 1\d\d answers\n", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["ranpac", "simplecil"])
def test_the_readme_leads_from_a_folder_to_a_name_and_on(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), flags=re.DOTALL)
    assert len([line for line in f"pip install .\n{first}".splitlines() if line]) <= 8
    small = first.replace('"default"', '"test_vit", pretrained=False').replace('"ranpac"', f'"{name}"')
    assert small != first
    monkeypatch.chdir(tmp_path)
    write_photographs(tmp_path / "photos", {"emu": (90, 70, 50), "okapi": (200, 30, 20), "llama": (230, 225, 215)})
    write_photographs(tmp_path, {"seen": (200, 30, 20)})
    (tmp_path / "seen" / "0.png").rename("photo.jpg")
    scope: dict[str, Any] = {}
    exec(compile(small, "README", "exec"), scope)
    assert capsys.readouterr().out == "['okapi']\n"
    write_photographs(tmp_path / "photos", {"anchor": (20, 60, 200)})
    exec(compile(second, "README", "exec"), scope)
    assert capsys.readouterr().out == "1.0\n"
    assert scope["method"].class_names[3] == "anchor"


def write_photographs(folder: Path, colours: dict[str, tuple[int, int, int]]) -> None:
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(5):
            noise = np.random.default_rng([i, *colour]).normal(0, 20, (40, 60, 3))
            pixels = (np.array(colour) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")


def test_what_the_contributing_guide_writes_outside_this_repository_works(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("## Methods and backbones outside")[2]
    method, backbone = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    points = tomllib.loads(re.findall(r"```toml\n(.*?)```", text, flags=re.DOTALL)[0])["project"]["entry-points"]
    typed = next(part for part in re.findall(r"```sh\n(.*?)\n", text)[0].split() if part.startswith("method.name="))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "class_means.py").write_text(method)
    rest = ["stream.data=synthetic", "stream.tasks=2", "backbone.name=my_vit", "backbone.device=cpu"]
    install("my-vit", {"perdure.backbones": points["perdure.backbones"]}, backbone)
    torch.manual_seed(0)  # of the backbone's weights, which are drawn in each run
    from_file = Runner(load_recipe(None, [*rest, typed])).run()
    look_again(methods)
    install("class-means", {"perdure.methods": points["perdure.methods"]}, method)
    torch.manual_seed(0)
    installed = Runner(load_recipe(None, [*rest, "method.name=class_means"])).run()
    assert from_file.metrics == installed.metrics
    assert {"my-vit", "class-means"} <= set(installed.provenance.versions)


def test_the_method_that_trains_keeps_what_it_promises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "replay.py").write_text(python_blocks(ROOT / "docs/writing_a_method.md"))
    kind, _ = typed_method("./replay.py:Replay")
    asked = ["check_state_is_declared", "check_resumed_equals_straight", "check_data_are_kept_if_the_tag_says_so"]
    assert [r.name for r in check_method(kind, only=asked) if not r.ok] == []
    assert kind.Config(preset="small_memory").memory.n_images == 50


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files(path: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text())
    missing = [link for link in links if not link.startswith("http") and not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_tables_are_those_of_the_committed_results(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = path.read_text()
    assert write_tables.filled(text) == text


FOUR = {
    "`finetune`": RESULTS["runs"]["finetune"]["metrics"],
    "`simplecil`": RESULTS["runs"]["simplecil"]["metrics"],
    "`joint`": RESULTS["runs"]["joint"]["metrics"],
    "`ranpac`, M = 10 000": RESULTS["runs"]["ranpac"]["metrics"],
    "`ranpac`, M = 2 000": COMPARED["runs"]["caltech101"]["ranpac"]["1993"],
}


@pytest.mark.parametrize("document", ["README.md", "REPRODUCE.md"])
@pytest.mark.parametrize("first", FOUR)
def test_accuracies_are_the_committed_ones(document: str, first: str) -> None:
    start = f"| {first} | Caltech-101"
    (row,) = [line for line in (ROOT / document).read_text().splitlines() if line.startswith(start)]
    for key in ("last_accuracy", "average_incremental_accuracy"):
        assert f"{100 * FOUR[first][key]:.1f}" in row, key
