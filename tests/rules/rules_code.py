"""Rules on code: sizes, copies, and calls that have no place in a library."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence

from rules_base import FUNCTIONS, File, file_rule, house_rule

FILE_LINES, METHOD_LINES, FUNCTION_LINES, COPY_LINES = 300, 150, 60, 6
REFUSALS = {"_require_fitted", "_require_frozen"}
SAFE_LOADS = {
    "torch.load": ("weights_only", True),
    "torch.hub.load_state_dict_from_url": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
}


@file_rule
def files_are_short(file: File) -> Iterator[tuple[int, str]]:
    lines, most = len(file.source.splitlines()), METHOD_LINES if file.is_method else FILE_LINES
    if lines > most:
        yield lines, f"{lines} lines, at most {most}"


@file_rule
def functions_are_short(file: File) -> Iterator[tuple[int, str]]:
    for node in file.walk(*FUNCTIONS):
        lines = node.end_lineno - node.lineno + 1
        if lines > FUNCTION_LINES:
            yield node.lineno, f"{node.name} has {lines} lines, at most {FUNCTION_LINES}"


@file_rule
def a_refusal_names_the_function_that_refuses(file: File) -> Iterator[tuple[int, str]]:
    for function in file.walk(*FUNCTIONS):
        for call in ast.walk(function):
            named = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.args
            told = call.args[0] if named and call.func.attr in REFUSALS else None
            if isinstance(told, ast.Constant) and str(told.value).rpartition(".")[2] != function.name:
                yield call.lineno, f"{told.value!r} in {function.name}"


@house_rule
def no_copied_functions(files: Sequence[File]) -> Iterator[str]:
    places = defaultdict(list)
    for file in files:
        for node in file.walk(*FUNCTIONS):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and body[-1].end_lineno - body[0].lineno + 1 >= COPY_LINES:
                same = "\n".join(ast.dump(statement) for statement in body)
                places[same].append(f"{file.path}:{node.lineno} {node.name}")
    for copies in places.values():
        if len(copies) > 1:
            yield "same body: " + ", ".join(copies)


@file_rule
def no_utils(file: File) -> Iterator[tuple[int, str]]:
    if file.path.split("/")[-1] in {"utils.py", "util.py"} or "utils" in file.path.split("/"):
        yield 1, "name it after what it holds"


@file_rule
def only_the_cli_prints(file: File) -> Iterator[tuple[int, str]]:
    for node in file.walk(ast.Call):
        if file.called(node.func) in {"print", "builtins.print"} and file.path != "cli.py":
            yield node.lineno, "print outside cli.py"


@file_rule
def no_handler_swallows_everything(file: File) -> Iterator[tuple[int, str]]:
    for node in file.walk(ast.ExceptHandler):
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        is_wide = any(c is None or file.called(c).removeprefix("builtins.") == "BaseException" for c in caught)
        returns = any(isinstance(inner, ast.Return) for inner in ast.walk(node))
        if is_wide and (returns or not isinstance(node.body[-1], ast.Raise)):
            yield node.lineno, "catches everything and does not raise in the end"


@file_rule
def no_dirty_tricks(file: File) -> Iterator[tuple[int, str]]:
    for node in file.walk(ast.Call):
        name = file.called(node.func)
        if name.removeprefix("builtins.") in {"eval", "exec", "globals", "os.chdir"}:
            yield node.lineno, f"calls {name}"
    for node in file.walk(ast.Attribute, ast.Name):
        if file.called(node) == "sys.path":
            yield node.lineno, "touches sys.path"
    for node in file.walk(ast.Global):
        yield node.lineno, f"global {', '.join(node.names)}"


@file_rule
def loading_never_unpickles(file: File) -> Iterator[tuple[int, str]]:
    for node in file.walk(ast.Call):
        name = file.called(node.func)
        if name in SAFE_LOADS:
            key, value = SAFE_LOADS[name]
            given = [k.value for k in node.keywords if k.arg == key]
            if not (given and isinstance(given[0], ast.Constant) and given[0].value is value):
                yield node.lineno, f"{name} without {key}={value}"


@file_rule
def no_assert(file: File) -> Iterator[tuple[int, str]]:
    for node in file.walk(ast.Assert):
        yield node.lineno, "assert; raise a PerdureError at the door"


@file_rule
def text_files_name_their_encoding(file: File) -> Iterator[tuple[int, str]]:
    for node in file.walk(ast.Call):
        attribute = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        opens = file.called(node.func).removeprefix("builtins.") in {"open", "io.open", "os.fdopen"}
        method = attribute in {"read_text", "write_text"} or (attribute == "open" and not opens and _is_path_open(node))
        given = {k.arg for k in node.keywords}
        if (method or (opens and "b" not in _mode(node, 1))) and not given & {"encoding", None}:
            yield node.lineno, f"{ast.unparse(node.func)} without encoding: every machine has its own default"


def _is_path_open(node: ast.Call) -> bool:
    """Whether a method called ``open`` opens a text file, as far as its arguments tell."""
    mode = _mode(node, 0)
    return bool(mode) and set(mode) <= set("rwaxt+")


def _mode(node: ast.Call, position: int) -> str:
    modes = [*node.args[position : position + 1], *(k.value for k in node.keywords if k.arg == "mode")]
    return str(modes[0].value) if modes and isinstance(modes[0], ast.Constant) else ""
