"""Programs beside the package are modules of ``benchmarks`` and ``scripts``: none imports another by its folder."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from rules_base import File
from rules_code import text_files_name_their_encoding

ROOT = Path(__file__).parents[2]
PROGRAMS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("tests/scripts/*.py")])
NAMES = {path.stem for path in PROGRAMS} - {"__init__"}
OWN_COPY = "scripts/mutant_runs.py"  # puts a changed copy of the package under test on the path


def by_folder(path: str, text: str) -> Iterator[str]:
    """Imports that need a program's folder on the path.

    Args:
        path: from the repository's root.
        text: the program's source.
    """
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "sys.path" and path != OWN_COPY:
            yield f"{path}:{node.lineno}: touches sys.path"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or "."] if isinstance(node, ast.ImportFrom) and not node.level else []
        for name in names:
            if name in NAMES or name.startswith("importlib.util"):
                yield f"{path}:{node.lineno}: imports {name}"


@pytest.mark.parametrize("path", [p.relative_to(ROOT).as_posix() for p in PROGRAMS])
def test_no_program_imports_another_by_its_folder(path: str) -> None:
    assert list(by_folder(path, (ROOT / path).read_text(encoding="utf-8"))) == []


def test_programs_name_the_encoding_of_their_text_files() -> None:
    paths = [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("scripts/*.py"), *ROOT.glob("examples/*.py")]
    files = [File(p.relative_to(ROOT).as_posix(), p.read_text(encoding="utf-8")) for p in paths]
    assert len(files) > 30
    assert list(text_files_name_their_encoding(files)) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("from benchmarks.comparison import Job\nfrom scripts import mutants\nimport perdure, json", 0),
        ("import sys\nsys.path.insert(0, 'scripts')", 1),
        ("from comparison import Job", 1),
        ("def f():\n    import old_settings as o", 1),
        ("from importlib.util import spec_from_file_location", 1),
    ],
)
def test_the_rule_can_fail(text: str, wrong: int) -> None:
    assert len(list(by_folder("benchmarks/a.py", text))) == wrong
