"""The command line: ``perdure ls | show | run | report | merge | check | data check``."""

from __future__ import annotations

import io
import shlex
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
import yaml
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

import perdure
from perdure.catalog import What, names, refuse_settings
from perdure.data.names import shown, typed
from perdure.errors import PerdureError
from perdure.lines import Line, note_of, task_line
from perdure.run.streams import STREAMS
from perdure.types import Event

if TYPE_CHECKING:  # what takes seconds to import; a command that needs it asks ``perdure``
    import perdure.checks
    import perdure.data.doctor
    import perdure.run.fairness
    import perdure.run.members
    import perdure.run.merger
    import perdure.run.method_file
    import perdure.run.report
    import perdure.run.selection
    import perdure.run.table
    import perdure.shown
    from perdure.checks import CheckResult
    from perdure.run import Results

app = typer.Typer(
    help="Teach a pretrained model new classes, one task after another, without forgetting the old ones.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data_app = typer.Typer(help="Look at image folders.", no_args_is_help=True)
app.add_typer(data_app, name="data")
INTERRUPTED = 130  # what a shell expects after Ctrl-C
out, err = Console(emoji=False), Console(stderr=True, emoji=False)

Overrides = Annotated[
    list[str] | None,
    typer.Option("-s", metavar="SECTION.KEY=VALUE", help="Set one value; may be repeated."),
]


@app.command("ls")
def list_names(what: Annotated[What, typer.Argument()] = "all") -> None:
    """List methods, backbones, data sets, named streams and the recipes under ./recipes."""
    _print_lines(names(what, out.width))


@app.command()
def show(
    name: Annotated[
        str | None, typer.Argument(help="A method, backbone, data set, stream or recipe file; without it, all names.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Explain a method with all its settings, those of -s among them, a backbone, a data set, or a whole recipe."""
    if name is None:
        refuse_settings("a list of names", overrides or [])
        list_names("all")
    elif Path(name).suffix in (".yaml", ".yml"):
        recipe = perdure.run.load_recipe(Path(name), overrides or [])
        _print_line(yaml.safe_dump(recipe.values(), sort_keys=False).rstrip())
    elif name in STREAMS:
        refuse_settings(name, overrides or [])
        _print_line(yaml.safe_dump(STREAMS[name], sort_keys=False).rstrip())
    else:
        _print_lines(perdure.shown.in_full(name, out.width, overrides or []))


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
    perdure.tune_allocator()
    flags = [part for text in overrides or [] for part in ("-s", text)]
    flags += ["--out", str(directory)] if directory else []
    flags += ["--keep-states", keep_states] if keep_states != "last" else []
    command = shlex.join(map(typed, ["perdure", "run", *([str(recipe)] if recipe else []), *flags]))
    checked = perdure.run.load_recipe(recipe, overrides or [])
    results, folder = run_recipe(checked, directory, command=command, keep_states=keep_states)
    print_results({checked.method_name: results})
    _print_line(f"report:    {shown(perdure.run.report.write_report([folder]))}")
    _print_line(f"repeat it: {command}")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Finished run directories.")],
    file: Annotated[Path | None, typer.Option("--out", help="The HTML file to write.")] = None,
) -> None:
    """Write one HTML file, readable offline, about one run or comparing several."""
    _print_line(shown(perdure.run.report.write_report(runs, file)))


@app.command()
def merge(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="A finished run, or a folder of perdure.save.")],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="Another, of the same recipe but for its images.")],
    directory: Annotated[Path, typer.Option("--out", help="The folder to write; perdure.load opens it.")],
    mode: Annotated[
        Literal["linear", "fisher"], typer.Option(help="Merge all weights alike, or each by its Fisher information.")
    ] = "linear",
    weight: Annotated[
        float, typer.Option(help="The share of RUN_B in weights, 0 to 1. Statistics are added, whatever it is.")
    ] = 0.5,
    data: Annotated[
        str | None, typer.Option(help="For fisher: a folder of images or a data set; not where states hold it.")
    ] = None,
) -> None:
    """Make one method of two that learned different images of the same classes."""
    made = perdure.run.merger.merge_saved(first, second, directory, how=mode, weight=weight, data=data)
    _print_line(f"{len(made.classes_)} classes, {made.n_taught_} images: {shown(directory)}")


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="A method's name, or FILE.py:Class.")],
    whole: Annotated[bool, typer.Option("--traceback", help="Show where a check failed, call by call.")] = False,
) -> None:
    """Hold a method to every common check; exit code 1 if one fails. Below it, the method's own lines that failed."""
    kind, _ = perdure.run.method_file.typed_method(name)

    def tell(result: CheckResult) -> None:
        mark = "[green]ok[/]  " if result.ok else "[red]FAIL[/]"
        out.print(f"{mark} {result.seconds:6.2f} s  {result.name}  [dim]{escape(result.note)}[/]", soft_wrap=True)
        if result.ok or result.error is None:
            return
        told = "".join(traceback.format_exception(result.error)).splitlines() if whole else None
        for line in told or perdure.checks.own_frames(result.error, kind):
            _print_line(f"    {line}")

    results = perdure.checks.check_method(kind, on_result=tell)
    failed = sum(not r.ok for r in results)
    out.print(f"{len(results) - failed} of {len(results)} checks passed")
    raise typer.Exit(1 if failed else 0)


@data_app.command("check")
def data_check(
    folder: Annotated[Path, typer.Argument(help="An image folder.")],
    value_range: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="stream.value_range, if it will be set.")
    ] = None,
) -> None:
    """Report everything wrong with an image folder at once; exit code 1 if a run would refuse it."""
    findings = perdure.data.doctor.check_folder(folder, value_range=value_range)
    for finding in findings:
        colour = {"error": "red", "warning": "yellow", "info": "dim"}[finding.severity]
        out.print(f"[{colour}]{finding.severity}[/] {finding.kind}: {escape(finding.message)}", soft_wrap=True)
        for path in finding.paths:
            out.print(f"    {escape(path)}", highlight=False, soft_wrap=True)
    if any("/" in part for part in perdure.data.doctor.summary(folder)):
        _print_line("read as domains: a run needs stream.scenario=domain")
    n_errors = sum(f.severity == "error" for f in findings)
    found = "1 finding" if len(findings) == 1 else f"{len(findings)} findings"
    out.print(f"{found}, {n_errors} of them errors" if findings else "nothing found")
    raise typer.Exit(1 if n_errors else 0)


def run_recipe(
    recipe: Any, directory: Path | None, *, command: str = "", keep_states: Literal["last", "all"] = "last"
) -> tuple[Results, Path]:
    """Runs a recipe with progress bars on the terminal; elsewhere with one line for every task.

    Args:
        recipe: a checked recipe.
        directory: the run directory; the recipe's default if None.
        command: what repeats the run.
        keep_states: see :class:`perdure.run.Runner`.

    Returns:
        The results and the run directory.

    Raises:
        SystemExit: with 130 after Ctrl-C; what is finished is told.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as bars:
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
                if bars.disable:
                    err.print(task_line(event, bars.tasks[0].total), highlight=False, markup=False, soft_wrap=True)
            elif told := note_of(event):
                err.print(f"[yellow]{told[0]}[/] {escape(told[1])}", highlight=False, soft_wrap=True)

        runner = perdure.run.Runner(
            recipe, directory, store=perdure.FeatureStore(progress=progress),
            command=command, keep_states=keep_states, on_event=on_event,
        )  # fmt: skip
        try:
            return runner.run(), runner.out
        except KeyboardInterrupt:
            done, total = bars.tasks[0].completed, bars.tasks[0].total
            told = "no task was begun" if total is None else f"{done:.0f} of {total:.0f} tasks are finished"
            err.print(f"Stopped; {told}. The same command goes on.", highlight=False, soft_wrap=True)
            sys.exit(INTERRUPTED)


def print_results(runs: dict[str, Results]) -> None:
    """Prints the accuracy after every task, one column per run: ten tasks in a row would not fit a terminal."""
    (_, *labels), *rows = zip(*perdure.run.table.accuracy_table(runs), strict=True)
    labels = [f"{label} *" if runs[label].provenance.depends_on_test_batch else label for label in labels]
    _print_table("Accuracy on all test images seen so far, %", ("after task", *labels), rows)
    for name, results in runs.items():
        if results.provenance.depends_on_test_batch:
            out.print(f"[yellow]* {escape(name)}: these numbers depend on which images are tested together[/]")
        members, chosen = perdure.run.members.members_sentence, perdure.run.selection.selection_sentence
        for tell in (perdure.run.fairness.fairness_sentence, members, chosen):
            if sentence := tell(results):
                _print_line(f"{name}: {sentence}")


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: 0 on success, 1 if the work failed, 2 if the request was wrong; no traceback without --debug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal need not have every script
    if arguments == ["--version"]:
        out.print(perdure.__version__, highlight=False)
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


def _print_lines(lines: Sequence[Line]) -> None:
    """Lines of the terminal's width."""
    for strong, rest in lines:
        out.print(f"[bold]{escape(strong)}[/]{escape(rest)}", highlight=False, soft_wrap=True)
