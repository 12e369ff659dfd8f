"""Runs with names of any script and encoding, also where a machine knows ASCII only: each file says the right names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from perdure.cli import main
from perdure.run import Runner, load_recipe, read_results
from perdure.run.report import write_report

ASCII = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C", "HF_HUB_OFFLINE": "1"}
NAMES = {b"caf\xe9": r"caf\xe9", b"dog": "dog", "çà".encode(): "çà", "猫".encode(): "猫"}
TINY = ["backbone.name=test_vit", "backbone.pretrained=false", "backbone.device=cpu", "method.name=simplecil"]


def fill(root: Path, seed: int = 0) -> Path:
    """A class folder of five images for each of the names, one of them of a file name that is not UTF-8."""
    rng = np.random.default_rng(seed)
    for raw in NAMES:
        folder = root / os.fsdecode(raw)
        folder.mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / os.fsdecode(b"\xff.png" if i == 0 else b"%d.png" % i))
    return root


def in_ascii(folder: Path, *arguments: str | bytes) -> subprocess.CompletedProcess[bytes]:
    """The command line on a machine that knows ASCII only."""
    command = [sys.executable, "-m", "perdure", *arguments]
    return subprocess.run(command, cwd=folder, env={**os.environ, **ASCII}, capture_output=True, check=False)


def test_a_run_on_an_ascii_machine_writes_the_right_names(tmp_path: Path) -> None:
    fill(tmp_path / "données")
    told = [sys.executable, "-c", "import locale; print(locale.getpreferredencoding())"]
    default = subprocess.run(told, env={**os.environ, **ASCII}, capture_output=True, text=True, check=True).stdout
    if "utf" in default.lower():
        pytest.skip("this system's C locale is UTF-8")
    text = r"""# für Kätzchen
stream: {data: données, tasks: 2, class_order: ["猫", dog, 'caf\xe9', "çà"]}
backbone: {name: test_vit, pretrained: false, device: cpu}
method: {name: simplecil}
"""
    (tmp_path / "résumé.yaml").write_text(text, encoding="utf-8-sig")
    done = in_ascii(tmp_path, "run", "résumé.yaml")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("données-simplecil-")
    results = read_results(run)
    assert list(results.class_names.values()) == list(NAMES.values())
    assert results.provenance.command == "perdure run 'résumé.yaml'"
    recipe = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(recipe)["stream"]["class_order"] == ["猫", "dog", r"caf\xe9", "çà"]
    started = json.loads((run / "log.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert started["recipe"] == run.name
    page = (run / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in NAMES.values())
    assert b"repeat it: perdure run 'r\\xe9sum\\xe9.yaml'" in done.stdout
    again = Runner(load_recipe(tmp_path / "résumé.yaml", [f"stream.data={tmp_path}/données"]), tmp_path / "again").run()
    assert again.class_names == results.class_names
    assert again.provenance.fingerprints["stream"] == results.provenance.fingerprints["stream"]


def test_a_path_that_is_not_utf_8_is_run_resumed_and_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = fill(tmp_path / os.fsdecode(b"f\xe9"))
    out = tmp_path / os.fsdecode(b"run\xff")
    settings = [f"stream.data={root}", "stream.tasks=2", "stream.test_per_class=1", *TINY]
    with monkeypatch.context() as patch:
        patch.setattr(Runner, "_finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            Runner(load_recipe(None, settings), out).run()
    results = Runner(load_recipe(None, settings), out, command=f"perdure run -s stream.data={root}").run()
    assert list(results.class_names.values()) == sorted(NAMES.values())
    assert read_results(out).provenance.recipe["stream"]["data"] == f"{tmp_path}/f\\xe9"
    assert f"{tmp_path}/run\\xff" in write_report([out]).read_text(encoding="utf-8")
    arguments = [part for text in settings for part in ("-s", text)]
    main_ends(["run", *arguments, "--out", str(tmp_path / "cli")])
    repeat = capsys.readouterr().out.splitlines()[-1]
    assert rf"stream.data={tmp_path}/f\xe9" in repeat
    repeat.encode()
    main_ends(["data", "check", str(root)])
    assert "nothing found" in capsys.readouterr().out
    assert (
        load_recipe(None, [rf"stream.data={tmp_path}/f\xe9", *settings[1:]])
        .load_stream()[0]
        .train.name(0)
        .endswith(".png")
    )


def main_ends(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_the_check_says_what_a_run_of_domains_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "root" / "day")
    main_ends(["data", "check", str(tmp_path / "root")])
    assert "read as domains: a run needs stream.scenario=domain\n" in capsys.readouterr().out
    main_ends(["data", "check", str(tmp_path / "root" / "day")])
    assert "domains" not in capsys.readouterr().out


def test_a_run_says_how_a_folder_was_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = fill(tmp_path / "root" / "train").parent
    fill(root / "val", seed=1)
    (root / "test").mkdir()
    Image.new("RGB", (8, 8)).save(root / "test" / "1.png")
    arguments = [part for text in (f"stream.data={root}", "stream.tasks=2", *TINY) for part in ("-s", text)]
    main_ends(["run", *arguments, "--out", str(tmp_path / "run")])
    note = f"{root}/val is the test part, because {root}/test holds no class folders."
    assert f"note {note}\n" in capsys.readouterr().err
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["text"] for line in log if line["event"] == "note"] == [note]
