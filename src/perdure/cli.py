"""The command line: ``perdure ls | show | run | report | check | data check``."""

from __future__ import annotations

import inspect
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from perdure import __version__
from perdure.backbone import Backbone, backbones
from perdure.backbone.default import WEIGHTS, read_weights
from perdure.checks import CheckResult, check_method
from perdure.config import Config
from perdure.data.datasets import datasets
from perdure.data.doctor import check_folder
from perdure.describe import described, notes, purpose, setting_rows
from perdure.errors import PerdureError, UnknownNameError, did_you_mean
from perdure.memory import FeatureStore
from perdure.methods import methods
from perdure.run import Results, Runner, load_recipe
from perdure.run.method_file import names_file, typed_method
from perdure.run.recipe import BackboneConfig, StreamConfig
from perdure.run.report import accuracy_table, write_report
from perdure.run.selection import selection_sentence
from perdure.train.runtime import tune_allocator
from perdure.types import Event

app = typer.Typer(
    help="Teach a pretrained model new classes, one task after another, without forgetting the old ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at image folders.", no_args_is_help=True)
app.add_typer(data_app, name="data")
out, err = Console(emoji=False), Console(stderr=True, emoji=False)

Overrides = Annotated[
    list[str] | None,
    typer.Option("-s", metavar="SECTION.KEY=VALUE", help="Set one value; may be repeated."),
]


@app.command("ls")
def list_names(
    what: Annotated[Literal["all", "methods", "backbones", "data", "recipes"], typer.Argument()] = "all",
) -> None:
    """List methods, backbones, data sets and the recipes under ./recipes."""
    if what in ("all", "methods"):
        kinds = {name: methods.get(name) for name in methods.names()}
        rows = [(name, purpose(described(kind)), notes(kind.tags)) for name, kind in kinds.items()]
        _print_table("Methods", ("name", "what it does", "notes"), rows)
    if what in ("all", "backbones"):
        loaders = {name: backbones.get(name) for name in backbones.names()}
        whose = {name: "offline" if f.__module__.startswith("perdure.") else "plug-in" for name, f in loaders.items()}
        rows = [(name, purpose(described(load)), whose[name]) for name, load in loaders.items()]
        rows.append(("any timm model", "by its full tag, e.g. vit_base_patch16_224.augreg_in21k", "hub or a file"))
        _print_table("Backbones", ("name", "what it is", "weights"), rows)
    if what in ("all", "data"):
        named = [(name, purpose(datasets.get(name))) for name in datasets.names()]
        folder = ("any folder", "root/{train,test}/<class>/, root/<class>/ or root/<domain>/<class>/")
        _print_table("Data sets", ("name", "what it is"), [*named, folder])
    if what in ("all", "recipes"):
        out.print("[bold]Recipes[/] (perdure run FILE)")
        for path in sorted(Path("recipes").glob("**/*.yaml")):
            _print_line(f"  {path}")


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="A method, a backbone, a data set, or a recipe file.")],
    overrides: Overrides = None,
) -> None:
    """Explain a method with all its settings, a backbone, a data set, or a recipe with every default written out."""
    if Path(name).suffix in (".yaml", ".yml"):
        _print_line(yaml.safe_dump(load_recipe(Path(name), overrides or []).values(), sort_keys=False).rstrip())
    elif name in methods or names_file(name):
        kind, _ = typed_method(name)
        out.print(escape(inspect.getdoc(described(kind)) or ""))
        _print_settings(
            f"Settings (-s method.KEY=VALUE; presets: {', '.join(kind.Config.presets) or 'none'})", kind.Config
        )
    elif name in datasets:
        out.print(escape(inspect.getdoc(datasets.get(name)) or ""))
        _print_settings("Settings (-s stream.KEY=VALUE)", StreamConfig)
    elif name in methods.broken():
        methods.get(name)  # says why it is not there
    elif name in backbones or name in backbones.broken() or "." in name or "_" in name:
        backbone = Backbone.load(name, pretrained=name in backbones)
        n = sum(p.numel() for p in backbone.parameters())
        told = inspect.getdoc(described(backbones.get(name))) or "" if name in backbones else f"timm's {name}"
        out.print(escape(told))
        out.print(f"\n{n:,} parameters, {backbone.dim} features per image\n{backbone.preprocess}", highlight=False)
        if name == "default":
            _print_table("Its weights", ("fact", ""), list(read_weights(WEIGHTS)[1].items()))
        _print_settings("Settings (-s backbone.KEY=VALUE)", BackboneConfig)
    else:
        hint = did_you_mean(name, [*methods.names(), *datasets.names(), *backbones.names()], methods.aliases())
        raise UnknownNameError("perdure show", "name", "a method, backbone, data set or recipe", name, hint)


@app.command()
def run(
    recipe: Annotated[
        Path | None, typer.Argument(help="A YAML recipe; may be left out if -s gives everything.")
    ] = None,
    overrides: Overrides = None,
    directory: Annotated[
        Path | None, typer.Option("--out", help="Run directory [default: runs/<recipe's label>].")
    ] = None,
    keep_states: Annotated[Literal["last", "all"], typer.Option(help="Which tasks' states stay on disk.")] = "last",
) -> None:
    """Run a recipe, or go on where it stopped; ends with a table, the report and the command that repeats it."""
    tune_allocator()
    flags = [part for text in overrides or [] for part in ("-s", text)]
    flags += ["--out", str(directory)] if directory else []
    flags += ["--keep-states", keep_states] if keep_states != "last" else []
    command = shlex.join(["perdure", "run", *([str(recipe)] if recipe else []), *flags])
    checked = load_recipe(recipe, overrides or [])
    results, folder = run_recipe(checked, directory, command=command, keep_states=keep_states)
    print_results({checked.method_name: results})
    _print_line(f"report:    {write_report([folder])}")
    _print_line(f"repeat it: {command}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Finished run directories.")],
    file: Annotated[Path | None, typer.Option("--out", help="The HTML file to write.")] = None,
) -> None:
    """Write one HTML file, readable offline, about one run or comparing several."""
    _print_line(str(write_report(runs, file)))


@app.command()
def check(name: Annotated[str, typer.Argument(help="A method's name, or FILE.py:Class.")]) -> None:
    """Hold a method to every common check; exit code 1 if one fails."""

    def tell(result: CheckResult) -> None:
        mark = "[green]ok[/]  " if result.ok else "[red]FAIL[/]"
        out.print(f"{mark} {result.seconds:6.2f} s  {result.name}  [dim]{escape(result.note)}[/]", soft_wrap=True)

    results = check_method(typed_method(name)[0], on_result=tell)
    failed = sum(not r.ok for r in results)
    out.print(f"{len(results) - failed} of {len(results)} checks passed")
    raise typer.Exit(1 if failed else 0)


@data_app.command("check")
def data_check(folder: Annotated[Path, typer.Argument(help="An image folder.")]) -> None:
    """Report everything wrong with an image folder at once; exit code 1 if a run would refuse it."""
    findings = check_folder(folder)
    for finding in findings:
        colour = {"error": "red", "warning": "yellow", "info": "dim"}[finding.severity]
        out.print(f"[{colour}]{finding.severity}[/] {finding.kind}: {escape(finding.message)}", soft_wrap=True)
        for path in finding.paths:
            out.print(f"    {escape(path)}", highlight=False, soft_wrap=True)
    n_errors = sum(f.severity == "error" for f in findings)
    found = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
    out.print(f"{found}, {n_errors} of them errors" if findings else "nothing found")
    raise typer.Exit(1 if n_errors else 0)


def run_recipe(
    recipe: Any, directory: Path | None, *, command: str = "", keep_states: Literal["last", "all"] = "last"
) -> tuple[Results, Path]:
    """Runs a recipe with progress bars on the terminal.

    Args:
        recipe: a checked recipe.
        directory: the run directory; the recipe's default if None.
        command: what repeats the run.
        keep_states: see :class:`perdure.run.Runner`.

    Returns:
        The results and the run directory.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bars:
        whole = bars.add_task(f"{recipe.method_name}: tasks", total=None)
        images = bars.add_task("images", total=None, visible=False)

        def progress(event: Event) -> None:
            n, total = event.done, event.total
            bars.update(images, description=event.stage, completed=n, total=total, visible=n < total)

        def on_event(event: dict[str, Any]) -> None:
            if event["event"] == "run_started":
                bars.update(whole, total=event["tasks"], completed=event["tasks_done"])
            elif event["event"] == "task_finished":
                bars.update(whole, completed=event["task"] + 1)
            elif event["event"] == "file_left_out":
                err.print(f"[yellow]left out[/] {escape(event['reason'])}", soft_wrap=True)

        runner = Runner(
            recipe, directory, store=FeatureStore(progress=progress),
            command=command, keep_states=keep_states, on_event=on_event,
        )  # fmt: skip
        return runner.run(), runner.out


def print_results(runs: dict[str, Results]) -> None:
    """Prints the accuracy after every task, one column per run: ten tasks in a row would not fit a terminal."""
    (_, *labels), *rows = zip(*accuracy_table(runs), strict=True)
    labels = [f"{label} *" if runs[label].provenance.depends_on_test_batch else label for label in labels]
    _print_table("Accuracy on all test images seen so far, %", ("after task", *labels), rows)
    for name, results in runs.items():
        if results.provenance.depends_on_test_batch:
            out.print(f"[yellow]* {escape(name)}: these numbers depend on which images are tested together[/]")
        if chosen := selection_sentence(results):
            _print_line(f"{name}: {chosen}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: 0 on success, 1 if the work failed, 2 if the request was wrong; no traceback without --debug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    if arguments == ["--version"]:
        out.print(__version__, highlight=False)
        return
    warnings.showwarning = lambda message, *_: err.print(f"[yellow]warning:[/] {escape(str(message))}", soft_wrap=True)
    try:
        app([a for a in arguments if a != "--debug"], prog_name="perdure")
    except PerdureError as error:
        if debug:
            raise
        err.print(f"[red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except Exception as error:
        if debug:
            raise
        text = escape(f"{type(error).__name__}: {error}")
        err.print(f"[red]error:[/] {text}. This is a defect of perdure; --debug shows where.", soft_wrap=True)
        sys.exit(1)


def _print_line(text: str) -> None:
    """As it is, to be copied: not wrapped, coloured or read as markup."""
    out.print(text, highlight=False, soft_wrap=True, markup=False)


def _print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(header):
        numbers = i > 0 and all(set(row[i]) <= set("0123456789.-–") for row in rows)
        table.add_column(column, overflow="fold", justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    out.print(table)


def _print_settings(title: str, config: type[Config]) -> None:
    _print_table(title, ("key", "type", "default", "meaning and bounds"), setting_rows(config))
