"""The command line: what it prints, what it exits with, and that it is the same as the Python interface."""

from __future__ import annotations

import functools
import itertools
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from rich.console import ColorSystem

from perdure import cli
from perdure.backbone import backbones
from perdure.checks import CheckResult, check_method
from perdure.data import LabelledImages
from perdure.describe import setting_rows
from perdure.lines import task_line
from perdure.methods import methods
from perdure.run import Recipe, Results, Runner, load, load_recipe, read_results
from perdure.run.streams import STREAMS
from picture_files import tiff
from plugins import Install

TINY = [
    "-s", "stream.data=synthetic", "-s", "stream.tasks=3", "-s", "backbone.name=test_vit",
    "-s", "backbone.pretrained=false", "-s", "backbone.device=cpu",
]  # fmt: skip

Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def perdure(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Calls the command line in an empty directory; gives (exit code, stdout, stderr), unwrapped."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("perdure.tune_allocator", lambda: True)  # process-wide: not in a test process
    for console in (cli.out, cli.err):
        monkeypatch.setattr(console, "_width", 200)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = 0
        try:
            cli.main(arguments)
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def image_folder(root: Path, classes: int = 3, each: int = 3, parts: tuple[str, ...] = ("train", "test")) -> Path:
    for part in parts:
        for c in range(classes):
            folder = root / part / f"class_{c}"
            folder.mkdir(parents=True)
            for i in range(each):
                colour = (60 * c, 10 * i, 100 if part == "train" else 200)
                Image.new("RGB", (40, 40), colour).save(folder / f"{i}.png")
    return root


def test_version_help_and_unknown_commands(perdure: Call) -> None:
    assert perdure("--version")[1].strip() == "0.1.0"
    assert perdure("--help")[0] == 0
    assert perdure("nonsense")[0] == 2
    assert perdure("run", "--nonsense")[0] == 2
    assert "install-completion" not in perdure("--help")[1]
    assert "Look at image folders." in "".join(perdure("data")[1:]), "told what there is, not what is missing"


def test_a_run_tunes_the_allocator_first(perdure: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr("perdure.tune_allocator", lambda: called.append("tuned"))
    monkeypatch.setattr(cli, "run_recipe", lambda *_, **__: called.append("run") or sys.exit(3))
    assert perdure("run", *TINY, "-s", "method.name=simplecil")[0] == 3
    assert called == ["tuned", "run"]


def test_ls_names_everything(perdure: Call, tmp_path: Path) -> None:
    recipe = tmp_path / "recipes" / f"{ODD}.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.touch()
    code, text, _ = perdure("ls")
    assert text.endswith(f"Recipes (perdure run FILE)\n  recipes/{ODD}.yaml\n")
    assert code == 0
    for name in (*methods.names(), *backbones.names(), "fashion-mnist", "digits", "root/<domain>/<class>/", *STREAMS):
        assert name in text
    assert "fashion-mnist" not in perdure("ls", "methods")[1]
    offline = set(re.findall(r"^  (\S+) .* \(offline\)$", perdure("ls", "backbones")[1], re.M))
    assert offline == {name for name in backbones.names() if not name.endswith("/")}
    assert perdure("show")[1] == text


PLUGIN = """
from perdure.backbone import backbones
from perdure.methods import register
from perdure.methods.simplecil import SimpleCIL
from tiny_vit import tiny

@register("quiet")
class Quiet(SimpleCIL):
    pass

@backbones.register("tiny_far")
def load_far():
    return tiny().model, tiny().preprocess
"""


@pytest.mark.filterwarnings("always::perdure.registry.PluginWarning")
def test_plugins_are_listed_shown_and_named_where_they_are_broken(perdure: Call, install: Install) -> None:
    install("perdure-far", {"perdure.methods": {"quiet": "perdure_far"}}, PLUGIN)
    bad = {"perdure.methods": {"bad_method": "perdure_bad"}, "perdure.backbones": {"bad_backbone": "perdure_bad"}}
    install("perdure-bad", bad, "raise OSError('no disk')")
    _, text, warned = perdure("ls")
    for kind in ("method", "backbone"):
        assert f"warning: {kind} plug-in 'bad_{kind}' of perdure-bad 1.0 failed to load and is left out: OSE" in warned
    assert re.search(r"^  tiny_far +\(plug-in\)$", text, re.M)
    assert re.search(r"^  quiet ", text, re.M)
    assert "8 features per image" in perdure("show", "tiny_far")[1]
    assert "preset" in perdure("show", "quiet")[1]
    for command in (["show", "bad_method"], ["show", "bad_backbone"], ["check", "bad_method"]):
        code, _, error = perdure(*command)
        assert code == 2
        assert "Mend or uninstall perdure-bad 1.0, whose loading failed (OSError: no disk)" in error
    assert perdure("show", "simplecil")[0] == 0


def test_a_method_from_a_file_is_run_shown_and_checked(
    perdure: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        '"""Mine: class means under another name.\n\nSource: none.\n"""\n'
        "from perdure.methods.simplecil import SimpleCIL\n\n\nclass Mine(SimpleCIL):\n    pass\n"
    )
    named = ["-s", "method.name=./mine.py:Mine"]
    code, text, error = perdure("run", *TINY, *named)
    assert code == 0, error
    assert text.endswith("-s backbone.device=cpu -s method.name=./mine.py:Mine\n")
    (folder,) = (tmp_path / "runs").iterdir()
    assert perdure("report", str(folder))[0] == 0
    assert perdure("run", *TINY, *named)[1] == text, "a finished run is told again"
    code, _, error = perdure("run", str(folder / "recipe.yaml"))
    assert code == 2
    assert "only a -s typed on the command line may name one" in error
    assert "class means under another name" in perdure("show", "./mine.py:Mine")[1]
    checked: list[str] = []
    monkeypatch.setattr("perdure.checks.check_method", lambda kind, on_result: checked.append(kind.__name__) or [])
    assert perdure("check", "./mine.py:Mine")[0] == 0
    assert checked == ["Mine"]


def test_figures_stand_to_the_right_and_words_to_the_left(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_table("t", ("name", "kind", "figure"), [("one", "ox", "1.5"), ("two", "lynx", "–")])
    rows = [line for line in capsys.readouterr().out.splitlines() if "ox" in line or "lynx" in line]
    assert rows[0].index("ox") == rows[1].index("lynx")
    assert rows[0].index("1.5") + 2 == rows[1].index("–")


def test_show_explains_methods_data_backbones_and_recipes(perdure: Call, tmp_path: Path) -> None:
    assert "projection_dim" in perdure("show", "ranpac")[1]
    assert "> 0; < 1" in perdure("show", "ranpac")[1]
    for name, needs in {"ranpac": "any backbone", "l2p": "a plain Vision Transformer"}.items():
        assert f"\nBackbone: {needs}\n" in perdure("show", name)[1]
    assert "order_seed" in perdure("show", "digits")[1]
    assert "stream.preset" not in perdure("show", "digits")[1], "no stream of these has a name"
    assert "cifar100-b0-inc10" in perdure("show", "cifar100")[1]
    assert "cub-b0-inc10" not in perdure("show", "cifar100")[1]
    assert yaml.safe_load(perdure("show", "vtab-b0-inc10")[1])["order_seed"] is None
    assert "1280 features per image" in perdure("show", "efficientnet_lite0")[1]
    assert "64 features per image" in perdure("show", "test_vit")[1]
    shown = perdure("show", "default")[1]
    for fact in ("192 features per image", "EfficientNet-Lite0 up to its fifth stage", "licence", "sha256"):
        assert fact in shown
    (tmp_path / "r.yaml").write_text("stream: {data: synthetic, tasks: 2}\nmethod: {name: joint}\n")
    assert "epochs: 4" in perdure("show", "r.yaml", "-s", "method.train.epochs=4")[1]
    folder = f"./{'a_long_name_' * 20}"
    (tmp_path / folder).mkdir()
    assert yaml.safe_load(perdure("show", "r.yaml", "-s", f"stream.data={folder}")[1])["stream"]["data"] == folder
    code, _, error = perdure("show", "ranpak")
    assert code == 2
    assert "Did you mean 'ranpac'" in error


def test_show_tells_a_methods_settings_as_they_were_typed(perdure: Call) -> None:
    paper = methods.get("slca").Config(preset="paper")
    shown = perdure("show", "slca", "-s", "method.preset=paper", "-s", "method.train.epochs=77")[1]
    lines = [line.strip().split("   ")[0] for line in shown.splitlines()]
    assert {"preset = paper", f"align.epochs = {paper.align.epochs}", "train.epochs = 77"} <= {*lines}
    rows = setting_rows(type(paper), paper.but(train={"epochs": 77}))
    values = {f"{key} = {value}" for key, _, value, _ in rows if " " not in key and value not in ("", "required")}
    assert values <= {*lines}
    assert shown != perdure("show", "slca")[1]
    off = perdure("show", "slca", "-s", "method.align=none")[1]
    assert "\nalign = none " in off


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["slca", "-s", "method.train.epoch=3"], "method: key must be one of its fields, but got 'train.epoch'"),
        (["slca", "-s", "stream.tasks=3"], "-s must be method.KEY=VALUE, as a method is shown, but got 'stream'"),
        (["slca", "-s", "method=paper"], "-s must be method.KEY=VALUE, as a method is shown, but got 'method'"),
        (["digits", "-s", "stream.tasks=3"], "-s must be left out for digits, but got 'stream.tasks=3'"),
        (["test_vit", "-s", "backbone.device=cpu"], "-s must be left out for test_vit, but got 'backbone.device=cpu'"),
        (["vtab-b0-inc10", "-s", "stream.tasks=3"], "-s must be left out for vtab-b0-inc10, but got"),
        (["-s", "method.preset=paper"], "-s must be left out for a list of names, but got 'method.preset=paper'"),
    ],
)
def test_show_refuses_a_setting_that_it_cannot_show(perdure: Call, arguments: list[str], told: str) -> None:
    code, text, error = perdure("show", *arguments)
    assert (code, text) == (2, "")
    assert told in error


@pytest.mark.parametrize("name", [None, *methods.names(), "digits", "fashion-mnist", "default", "test_vit"])
def test_what_is_shown_fits_80_columns(perdure: Call, monkeypatch: pytest.MonkeyPatch, name: str | None) -> None:
    monkeypatch.setattr(cli.out, "_width", 80)
    code, text, _ = perdure("show", *([name] if name else []))
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80


def test_names_are_bold_on_a_terminal_alone(perdure: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = perdure("show", "mos")[1]
    monkeypatch.setattr(cli.out, "_force_terminal", True)
    monkeypatch.setattr(cli.out, "_color_system", ColorSystem.STANDARD)
    bold = perdure("show", "mos")[1]
    assert "\x1b[1mSource:\x1b[0m Sun" in bold
    assert "\x1b[1m  adapter.rank\x1b[0m = 16   int\n" in bold
    assert re.sub(r"\x1b\[\d+m", "", bold) == plain


def test_an_alias_is_shown_but_never_listed(perdure: Call) -> None:
    assert methods.aliases()
    for alias, name in methods.aliases().items():
        assert perdure("show", alias) == perdure("show", name)
    mistyped = [["show", "adan"], ["check", "adan"], ["run", *TINY, "-s", "method.name=adan"]]
    errors = [perdure(*command)[2] for command in mistyped]
    assert all("Did you mean 'aper'?" in error for error in errors)
    assert not set(methods.aliases()) & set(re.findall(r"\w+", errors[0])), "show knows too many names to list them"
    for text in (*errors[1:], perdure("run", *TINY)[2], perdure("ls", "methods")[1]):
        words = set(re.findall(r"\w+", text))
        assert set(methods.names()) <= words
        assert not set(methods.aliases()) & words


def test_run_prints_table_report_and_the_command_that_repeats_it(perdure: Call, tmp_path: Path) -> None:
    code, text, _ = perdure("run", *TINY, "-s", "method.name=simplecil", "--out", "my run")
    assert code == 0
    assert "simplecil" in text
    assert (tmp_path / "my run" / "report.html").is_file()
    command = text.split("repeat it: ")[1].strip()
    assert command.endswith("--out 'my run'")
    assert read_results(tmp_path / "my run").provenance.command == command


STOP = {None: "no task was begun", 0: "0 of 3 tasks are finished", 2: "2 of 3 tasks are finished"}


@pytest.mark.parametrize("at", STOP)
def test_a_run_that_is_interrupted_tells_what_is_finished(
    at: int | None, perdure: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind: Any = methods.get("simplecil")
    learn = kind.fit_task

    def fit_task(method: Any, task: Any) -> Any:
        return interrupt() if task.index == at else learn(method, task)

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    whole = [*TINY, "-s", "method.name=simplecil"]
    with monkeypatch.context() as patch:
        patch.setattr(*((Recipe, "load_stream", interrupt) if at is None else (kind, "fit_task", fit_task)))
        code, text, error = perdure("run", *whole)
    assert (code, text) == (130, "")
    assert error.splitlines()[-1] == f"Stopped; {STOP[at]}. The same command goes on."
    assert perdure("run", *whole)[0] == 0


def test_without_a_terminal_a_run_tells_every_task_in_a_line(perdure: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [*TINY, "-s", "method.name=simplecil"]
    lines = perdure("run", *whole)[2].splitlines()
    told = r"task {} of 3: \d+\.\d s, accuracy \d+\.\d% on all test images seen so far"
    assert [bool(re.fullmatch(told.format(i + 1), line)) for i, line in enumerate(lines)] == [True] * 3
    assert task_line({"task": 0, "train_seconds": 1.5, "eval_seconds": 1, "accuracy": None}, 2) == (
        "task 1 of 2: 2.5 s, no test images"
    )
    monkeypatch.setattr(cli.err, "_force_terminal", True)
    assert "of 3:" not in perdure("run", *whole, "--out", "other")[2], "bars tell it"


@pytest.mark.filterwarnings("always::perdure.run.merger.TaughtTwiceWarning")
def test_two_runs_are_merged(perdure: Call, tmp_path: Path) -> None:
    for seed in "12":
        half = ["-s", "stream.train_per_class=3", "-s", f"stream.split_seed={seed}", "-s", "method.name=simplecil"]
        assert perdure("run", *TINY, *half, "--out", seed)[0] == 0
    code, text, error = perdure("merge", "1", "2", "--out", "both")
    runs = [load(tmp_path / seed) for seed in "12"]
    both = load(tmp_path / "both")
    assert (code, text) == (0, f"6 classes, {both.n_taught_} images: both\n")
    assert error.startswith("warning: merge: both learned the same ")
    assert torch.equal(both.sums_, runs[0].sums_ + runs[1].sums_)
    code, text, error = perdure("merge", "1", "2", "--out", "other", "--mode", "fisher", "--data", "synthetic")
    assert (code, text) == (2, "")
    assert error.startswith("error: merge: how must be 'linear' for SimpleCIL, which has no fine-tuned network")
    assert not (tmp_path / "other").exists()
    assert perdure("merge", "1", "2", "--out", "both", "--weight", "2")[0] == 2
    assert perdure("run", *TINY, "-s", "method.name=fecam", "--out", "3")[0] == 0
    assert "methods differ: SimpleCIL and FeCAM" in perdure("merge", "1", "3", "--out", "other")[2]


ODD = "a [bold]b[/] :cat: it's $HOME"
REPEATED = {
    "overrides alone": [*TINY, "-s", "method.name=simplecil"],
    "a recipe": ["r.yaml"],
    "a recipe, overrides, a directory": ["r.yaml", "-s", "seed=3", "-s", "stream.order_seed=null", "--out", "there"],
    "all states": ["r.yaml", "--keep-states", "all"],
    "the states that are kept anyway": ["r.yaml", "--keep-states", "last", "--out", "there"],
    "names that a shell or a terminal would read": ["-s", f"stream.data=./{ODD}", "--out", f"out {ODD}", f"{ODD}.yaml"],
}


@pytest.mark.parametrize("case", REPEATED)
def test_the_printed_command_repeats_the_run(case: str, perdure: Call, tmp_path: Path) -> None:
    image_folder(tmp_path / ODD)
    for name in ("r.yaml", f"{ODD}.yaml"):
        (tmp_path / name).write_text(
            "stream: {data: synthetic, tasks: 3}\nmethod: {name: ranpac, projection_dim: 32}\nseed: 1\n"
            "backbone: {name: test_vit, pretrained: false, device: cpu}\n"
        )

    def run(*arguments: str) -> tuple[str, dict[str, Any]]:
        """What was printed, and everything that the run left but times, by file."""
        code, text, error = perdure("run", *arguments)
        assert code == 0, error
        (folder,) = {path.parent for path in tmp_path.rglob("results.json")}
        told = json.loads((folder / "results.json").read_text())
        told["provenance"] = {k: told["provenance"][k] for k in ("recipe", "command", "fingerprints")}
        del told["cost"]
        files = sorted(str(path.relative_to(tmp_path)) for path in folder.rglob("*"))
        assert text.split("report: ")[1].splitlines()[0].strip() == str((folder / "report.html").relative_to(tmp_path))
        shutil.rmtree(folder)
        return text, {"results": told, "files": files}

    text, first = run(*REPEATED[case])
    (line,) = [line for line in text.splitlines() if line.startswith("repeat it: ")]
    command = line.removeprefix("repeat it: ")
    name, verb, *arguments = shlex.split(command)
    assert (name, verb) == ("perdure", "run")
    assert run(*arguments)[1] == first
    assert first["results"]["provenance"]["command"] == command
    overrides = [value for flag, value in itertools.pairwise(REPEATED[case]) if flag == "-s"]
    recipe = next((Path(word) for word in REPEATED[case] if word.endswith(".yaml")), None)
    assert first["results"]["provenance"]["recipe"] == load_recipe(recipe, overrides).values()


def test_the_command_line_equals_the_python_interface(perdure: Call, tmp_path: Path) -> None:
    overrides = [*TINY, "-s", "method.name=ranpac", "-s", "method.projection_dim=64"]
    perdure("run", *overrides, "--out", "cli")
    Runner(load_recipe(None, [o for o in overrides if o != "-s"]), tmp_path / "api").run()
    assert read_results(tmp_path / "cli").metrics == read_results(tmp_path / "api").metrics


def test_report_compares_runs(perdure: Call, tmp_path: Path) -> None:
    for name in ("simplecil", "joint"):
        perdure("run", *TINY, "-s", f"method.name={name}", "--out", name)
    code, text, _ = perdure("report", "simplecil", "joint", "--out", f"{ODD}.html")
    assert (code, text) == (0, f"{ODD}.html\n")
    page = (tmp_path / f"{ODD}.html").read_text()
    assert "SimpleCIL" in page
    assert "Joint" in page


def test_check_exits_with_one_if_a_promise_is_broken(perdure: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    assert perdure("check", "simplecil")[0] == 0
    two = ("check_constructor_learns_nothing", "check_learns_an_easy_task")
    monkeypatch.setattr("perdure.checks.check_method", functools.partial(check_method, only=two))
    monkeypatch.setattr(methods.get("simplecil"), "columns", lambda self, labels: 1 / 0)
    code, text, _ = perdure("check", "simplecil")
    assert code == 1
    assert "ZeroDivisionError" in text


def test_check_shows_the_lines_of_the_methods_own_file_or_the_whole_way(
    perdure: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(
        "from perdure.methods.simplecil import SimpleCIL\n\n\nclass Mine(SimpleCIL):\n"
        "    def predict(self, images):\n        return super().predict(images) / 0 @ [1]\n"
    )
    asked = ("check_scores_cover_the_seen_classes",)
    monkeypatch.setattr("perdure.checks.check_method", functools.partial(check_method, only=asked))
    code, text, _ = perdure("check", "./mine.py:Mine")
    assert code == 1
    here = f"    {tmp_path / 'mine.py'}:6 in predict: return super().predict(images) / 0 @ [1]"
    assert here in text.splitlines()
    assert "Traceback" not in text
    code, text, _ = perdure("check", "./mine.py:Mine", "--traceback")
    assert code == 1
    assert "    Traceback (most recent call last):" in text.splitlines()
    assert f'      File "{tmp_path / "mine.py"}", line 6, in predict' in text.splitlines()
    assert here not in text


def test_check_marks_the_broken_promises_and_no_others(perdure: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [CheckResult("a", True, "", 0.5), CheckResult("b", False, "x", 1.5), CheckResult("c", True, "y", 2.5)]

    def check_method(kind: type, on_result: Callable[[CheckResult], None]) -> list[CheckResult]:
        for result in found:
            on_result(result)
        return found

    monkeypatch.setattr("perdure.checks.check_method", check_method)
    code, text, _ = perdure("check", "joint")
    lines = [line.split() for line in text.splitlines()]
    assert lines[:3] == [["ok", "0.50", "s", "a"], ["FAIL", "1.50", "s", "b", "x"], ["ok", "2.50", "s", "c", "y"]]
    assert text.splitlines()[3:] == ["2 of 3 checks passed"]
    assert code == 1
    found.pop(1)
    code, text, _ = perdure("check", "joint")
    assert [line.split()[0] for line in text.splitlines()] == ["ok", "ok", "2"]
    assert text.splitlines()[-1] == "2 of 2 checks passed"
    assert code == 0


def test_data_check_reports_and_exits(perdure: Call, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    assert perdure("data", "check", "images")[:2] == (0, "nothing found\n")
    (root / "train" / "notes.txt").touch()
    code, text, _ = perdure("data", "check", "images")
    assert (code, text.splitlines()) == (
        0,
        [
            "info ignored-files: 1 file or folder is no image of a class and will be ignored.",
            "    images/train/notes.txt",
            "1 finding, 0 of them errors",
        ],
    )
    (root / "train" / "class_0" / "broken.jpg").write_bytes(b"\xff\xd8 no jpeg")
    (root / "train" / "class_2" / "again.png").write_bytes((root / "train" / "class_2" / "0.png").read_bytes())
    code, text, _ = perdure("data", "check", "images")
    assert code == 1
    lines = text.splitlines()
    assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == [
        "error corrupt-file", "info duplicate-in-class", "info ignored-files", "3 findings, 1 of them errors"
    ]  # fmt: skip
    assert [line.strip() for line in lines if line.startswith("    ")] == [
        "images/train/class_0/broken.jpg",
        *(f"images/train/class_2/{name}.png" for name in ("0", "again")),
        "images/train/notes.txt",
    ]
    assert "nothing found" not in text
    assert perdure("data", "check", "nowhere")[0] == 2


def test_the_printed_table_has_each_figure_in_its_row_and_column(
    perdure: Call, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    perdure("run", *TINY, "-s", "method.name=simplecil", "--out", "r")
    results = read_results(tmp_path / "r")

    def with_(after: list[float], average: float, last: float, forgetting: float | None) -> Results:
        ends = {"average_incremental_accuracy": average, "last_accuracy": last, "forgetting": forgetting}
        metrics = results.metrics.model_copy(update={"accuracy_after_task": after, **ends})
        cost = results.cost.model_copy(update={"exemplars": round(1000 * last)})
        return results.model_copy(update={"metrics": metrics, "cost": cost})

    runs = {"one": with_([0.91, 0.82, 0.73], 0.64, 0.55, 0.46), "two": with_([0.37], 0.28, 0.19, None)}
    capsys.readouterr()
    cli.print_results(runs)
    lines = [line.strip("│┃").split("│" if "│" in line else "┃") for line in capsys.readouterr().out.splitlines()]
    assert [[cell.strip() for cell in cells] for cells in lines if len(cells) == 3] == [
        ["after task", "one", "two"],
        *(["1", "91.0", "37.0"], ["2", "82.0", "–"], ["3", "73.0", "–"]),
        *(["average", "64.0", "28.0"], ["last", "55.0", "19.0"], ["forgetting", "46.0", "–"]),
        ["images kept", "550", "190"],
    ]


BAD_REQUESTS = {
    "unknown method": (["-s", "method.name=simplecill"], "Did you mean 'simplecil'"),
    "unknown data": (["-s", "method.name=joint", "-s", "stream.data=digit"], "Did you mean 'digits'"),
    "unknown backbone": (["-s", "method.name=joint", "-s", "backbone.name=test_vitt"], "Did you mean 'test_vit'"),
    "unknown key": (["-s", "method.name=joint", "-s", "method.train.epoch=3"], "Did you mean 'epochs'"),
    "unknown section": (["-s", "method.name=joint", "-s", "streem.tasks=3"], "Did you mean 'stream'"),
    "missing folder": (["-s", "method.name=joint", "-s", "stream.data=./nowhere"], "./nowhere"),
    "empty folder": (["-s", "method.name=joint", "-s", "stream.data=empty"], "one sub-folder per class"),
    "fewer classes than tasks": (["-s", "method.name=joint", "-s", "stream.tasks=7"], "got 7"),
    "negative number": (["-s", "method.name=joint", "-s", "method.train.lr=-1"], "'-1'"),
    "not a number": (["-s", "method.name=joint", "-s", "method.train.lr=nan"], "'nan'"),
    "unknown device": (["-s", "method.name=joint", "-s", "backbone.device=gpu9"], "gpu9"),
    "no recipe file": (["nowhere.yaml"], "nowhere.yaml"),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_wrong_request_exits_with_two_and_no_traceback(case: str, perdure: Call, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    arguments, said = BAD_REQUESTS[case]
    code, out, error = perdure("run", *TINY, *arguments)
    assert code == 2, error
    assert said in error
    assert "Traceback" not in out + error
    assert not (tmp_path / "runs").exists()


def test_a_run_directory_of_another_recipe_exits_with_two(perdure: Call) -> None:
    perdure("run", *TINY, "-s", "method.name=joint", "--out", "r")
    code, _, error = perdure("run", *TINY, "-s", "method.name=simplecil", "--out", "r")
    assert code == 2
    assert "method.name = 'joint' there" in error


def test_failed_work_exits_with_one_and_names_every_file(perdure: Call, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    bad = [root / "train" / "class_0" / "a.jpg", root / "test" / "class_1" / "b.png"]
    for path in bad:
        path.write_bytes(b"")
    arguments = [*TINY, "-s", "stream.data=images", "-s", "method.name=simplecil", "--out", "r"]
    code, _, error = perdure("run", *arguments)
    assert code == 1
    assert all(path.name in error for path in bad)
    code, _, error = perdure("run", *arguments, "-s", "stream.skip_corrupt=true")
    assert code == 0
    assert all(path.name in error for path in bad)
    assert len(read_results(tmp_path / "r").provenance.quarantined) == 2


def test_a_test_class_that_train_never_has_exits_with_one(perdure: Call, tmp_path: Path) -> None:
    root = image_folder(tmp_path / "images")
    (root / "train" / "class_2").rename(root / "train" / "class_9")
    code, _, error = perdure("run", *TINY, "-s", "stream.data=images", "-s", "method.name=joint")
    assert code == 1
    assert "class_2" in error


def test_nan_features_exit_with_one_and_name_the_image(perdure: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    from perdure import Backbone

    monkeypatch.setattr(
        Backbone, "embed", lambda self, images: images.float().mean((2, 3)).repeat(1, 22)[:, :64] * float("nan")
    )
    code, _, error = perdure("run", *TINY, "-s", "method.name=simplecil")
    assert code == 1
    assert "synthetic/train[0]" in error


def test_labels_out_of_range_are_refused() -> None:
    from perdure.data.named import dataset_of_arrays
    from perdure.data.synthetic import synthetic_dataset
    from perdure.errors import DataError

    good: LabelledImages = synthetic_dataset([0, 1]).train
    pixels = good.source._pixels  # type: ignore[attr-defined]
    with pytest.raises(DataError, match=r"\[7\]"):
        dataset_of_arrays("mine", (pixels, good.labels * 7), (pixels, good.labels), ["a", "b"])


def test_a_defect_of_ours_is_short_without_debug_and_whole_with_it(
    perdure: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.checks.check_method", lambda *a, **k: 1 / 0)
    code, _, error = perdure("check", "joint")
    assert code == 1
    assert "ZeroDivisionError" in error
    assert "--debug" in error
    with pytest.raises(ZeroDivisionError):
        perdure("check", "joint", "--debug")


def test_debug_shows_the_traceback_of_a_refusal(perdure: Call) -> None:
    from perdure.errors import UnknownNameError

    with pytest.raises(UnknownNameError):
        perdure("--debug", "show", "nothing_i_know")


def test_the_installed_command_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = Path(sys.executable).parent / "perdure"
    run = subprocess.run([command, "ls", "methods"], check=False, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0
    assert "simplecil" in run.stdout
    monkeypatch.setattr(sys, "argv", [str(command), "check", "nothing"])
    with pytest.raises(SystemExit) as stop:  # the same script, in this process
        runpy.run_path(str(command), run_name="__main__")
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_python_m_perdure_is_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["perdure", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("perdure", run_name="__main__")
    assert not stop.value.code
    assert "Teach a pretrained model new classes" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "shown", "more"), [(1, 1, False), (10, 10, False), (13, 10, True)])
def test_files_that_are_not_read_are_told_some_by_name(
    n: int, shown: int, more: bool, perdure: Call, tmp_path: Path
) -> None:
    root = image_folder(tmp_path / "images")
    for i in range(n):
        (root / "train" / "class_0" / f"{i}.svg").touch()
    code, _, error = perdure("run", *TINY, "-s", "stream.data=images", "-s", "method.name=simplecil", "--out", "r")
    assert code == 0
    assert error.count(".svg files are not read; convert them") == shown
    assert ("3 more, all in log.jsonl" in error) == more
    assert ("more" in error) == more


def test_a_folder_is_checked_under_a_range_of_values(perdure: Call, tmp_path: Path) -> None:
    path = image_folder(tmp_path / "images") / "train" / "class_0" / "deep.tif"
    path.write_bytes(tiff(32, b"\xff\xff\xff\xff\x09\0\0\0", 2, kind=2))
    code, text, _ = perdure("data", "check", "images")
    assert code == 1
    assert "stream.value_range" in text
    assert perdure("data", "check", "images", "--value-range", "-1", "9")[:2] == (0, "nothing found\n")
