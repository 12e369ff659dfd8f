"""What tells something about perdure starts at once: it imports no library that takes long."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import perdure
from small_folders import fill

SLOW = {"torch", "torchvision", "timm", "sklearn", "scipy", "matplotlib", "jinja2", "numpy", "PIL", "safetensors"}
LIGHT = (
    "--version", "--help", "ls", "ls methods", "ls backbones", "ls data", "ls streams", "ls recipes", "show",
    "show --help", "run --help", "report --help", "merge --help", "check --help", "data --help", "data check --help",
    "show cifar100-b0-inc10", "show cifar100-b0-inc10 -s stream.tasks=3", "lss", "run --keep-states none",
)  # fmt: skip

# run in a process of its own; prints what is imported so far, before the first command and after each
PROBE = """
import contextlib, io, sys
import perdure
from perdure.cli import main
print("import perdure:", *sys.modules)
for line in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        with contextlib.suppress(SystemExit):
            main(line.split())
    print(f"{line}:", *sys.modules)
"""


def slow_imports(*commands: str) -> dict[str, set[str]]:
    """The slow libraries that are there after the import of perdure and after each command, one after another."""
    source = Path(perdure.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *commands],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line.rpartition(":") for line in done.stdout.splitlines()]
    return {command: {module.partition(".")[0] for module in found.split()} & SLOW for command, _, found in lines}


def test_commands_that_tell_something_import_nothing_slow() -> None:
    found = slow_imports(*LIGHT)
    assert list(found) == ["import perdure", *LIGHT]
    assert {command: modules for command, modules in found.items() if modules} == {}


def test_a_folder_is_checked_without_pytorch(tmp_path: Path) -> None:
    fill(tmp_path, ant=2)
    command = f"data check {tmp_path}"
    assert slow_imports(command)[command] == {"numpy", "PIL"}


def test_a_command_that_needs_a_slow_library_is_seen() -> None:
    found = slow_imports("ls", "show synthetic")
    assert found["ls"] == set()
    assert {"torch", "timm"} <= found["show synthetic"]
