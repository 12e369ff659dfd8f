"""Rules on words: docstrings, their sections, and error messages."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Sequence

from rules_base import FUNCTIONS, File, Function, file_rule, house_rule

METHOD_SECTIONS = ("Source", "Use when", "Deviations", "Relations", "Cost")
METHOD_LINES, LINE = 22, 120  # of a method's docstring, and characters in one of them
NOT_OURS = {"forward", "main"}  # torch's method; the console script's door
NO_DOCSTRING = {"overload", "override", "setter", "deleter"}
VALIDATORS = {"field_validator", "model_validator", "field_serializer", "model_serializer"}  # pydantic wants ValueError
EXITS = {"typer.Exit", "typer.Abort", "typer.BadParameter", "SystemExit"}  # the command line's, not errors
PIECES = 5  # where, name, must_be, got, hint
# a name, perhaps with a conversion or a format; not a doubled brace, not CSS, not JSON
PLACEHOLDER = re.compile(r"(?<!\{)\{[A-Za-z_][\w.\[\]()]*(![rsa])?(:[<>=^+\-, #0-9._]*[bcdeEfFgGnosxX%]?)?\}(?!\})")


def is_public(name: str) -> bool:
    """Neither private nor dunder."""
    return not name.startswith("_")


def decorators(node: Function | ast.ClassDef) -> set[str]:
    """The last part of each decorator's name."""
    calls = [d.func if isinstance(d, ast.Call) else d for d in node.decorator_list]
    return {d.attr if isinstance(d, ast.Attribute) else getattr(d, "id", "") for d in calls}


def public_things(file: File) -> Iterator[tuple[ast.ClassDef | None, Function | ast.ClassDef]]:
    """(owner, class or function) for all that a user may reach; functions inside functions are out of reach."""

    def inside(owner: ast.ClassDef | None, body: Sequence[ast.stmt]) -> Iterator:
        for node in body:
            if isinstance(node, (ast.ClassDef, *FUNCTIONS)) and is_public(node.name):
                yield owner, node
            if isinstance(node, ast.ClassDef) and is_public(node.name):
                yield from inside(node, node.body)

    return inside(None, file.tree.body)


@file_rule
def everything_public_says_its_purpose(file: File) -> Iterator[tuple[int, str]]:
    if file.tree.body and ast.get_docstring(file.tree) is None:
        yield 1, "the module has no docstring"
    for owner, node in public_things(file):
        exempt = isinstance(node, FUNCTIONS) and (node.name in NOT_OURS or decorators(node) & NO_DOCSTRING)
        if not exempt and not (ast.get_docstring(node) or "").strip():
            yield node.lineno, f"{owner.name + '.' if owner else ''}{node.name} has no docstring"


@file_rule
def methods_tell_source_and_cost(file: File) -> Iterator[tuple[int, str]]:
    text = ast.get_docstring(file.tree) or ""
    for section in METHOD_SECTIONS if file.is_method else ():
        if not re.search(rf"\b{section}:\s+(?!({'|'.join(METHOD_SECTIONS)}):)\S", text):
            yield 1, f"the docstring has no '{section}:'"


@file_rule
def method_docstrings_have_one_form(file: File) -> Iterator[tuple[int, str]]:
    if not file.is_method:
        return
    lines = (ast.get_docstring(file.tree) or "").splitlines()
    if len(lines) > METHOD_LINES:
        yield 1, f"the docstring has {len(lines)} lines, not {METHOD_LINES} or fewer"
    if not lines or not re.fullmatch(r"[\w-]+: .+\.", lines[0]):
        yield 1, "the docstring's first line is not 'NAME: what it does.'"
    section, found = "", []
    for number, line in enumerate(lines, 1):
        heading = re.match(rf"({'|'.join(METHOD_SECTIONS)}):", line)
        if heading:
            section = heading[1]
            found.append(section)
        elif line.startswith("- ") != (section == "Deviations"):
            yield number, f"a deviation is one line that starts with '- ', but here is {line[:20]!r}"
        elif section and not line.startswith(("- ", "    ")):
            yield number, f"a section goes on with four spaces, but here is {line[:20]!r}"
        if len(line) > LINE:
            yield number, f"the line has {len(line)} characters, not {LINE} or fewer"
    if found != [*METHOD_SECTIONS]:
        yield 1, f"the docstring's sections are {found}, not {[*METHOD_SECTIONS]}"


def raised(node: ast.AST, file: File) -> list[str]:
    """The names of the errors made and raised in a function, without re-raises."""
    made = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc is not None]
    names = [file.called(e.func if isinstance(e, ast.Call) else e) for e in made]
    return [name.split(".")[-1] for name in names if name not in EXITS]


CONSTRUCTORS = {"__init__", "__post_init__", "setup"}


@file_rule
def what_is_raised_is_written(file: File) -> Iterator[tuple[int, str]]:
    for _, node in public_things(file):
        is_check = file.path.startswith("checks/") and node.name.startswith("check_")
        if is_check or decorators(node) & {"command", "callback"}:
            continue  # raising is what a check is for; a command's docstring is its help text
        if node.name == "setup":
            continue  # a part of the constructor, whose errors the class tells
        if isinstance(node, ast.ClassDef):
            inits = [n for n in node.body if isinstance(n, FUNCTIONS) and n.name in CONSTRUCTORS]
            errors = [error for init in inits for error in raised(init, file)]
        else:
            errors = raised(node, file)
        section = (ast.get_docstring(node) or "").partition("Raises:")[2]
        for error in sorted(set(errors)):
            if not section or (error[:1].isupper() and error not in section):
                yield node.lineno, f"{node.name} raises {error}, but its docstring's 'Raises:' does not say so"


def error_signatures(files: Sequence[File]) -> dict[str, range]:
    """Every subclass of PerdureError, and how many arguments it may be given."""
    classes = {c.name: (f, c) for f in files for c in f.walk(ast.ClassDef)}
    counts = {"PerdureError": range(PIECES, PIECES + 1)}

    def count(name: str) -> range | None:
        if name not in counts and name in classes:
            file, node = classes[name]
            parents = [count(file.called(base).split(".")[-1]) for base in node.bases]
            inherited = next((p for p in parents if p is not None), None)
            own = next((n.args for n in node.body if isinstance(n, FUNCTIONS) and n.name == "__init__"), None)
            if inherited is not None and own is not None:
                most = len(own.args) - 1 + len(own.kwonlyargs)  # without self
                optional = len(own.defaults) + sum(d is not None for d in own.kw_defaults)
                counts[name] = range(most - optional, most + 1)
            elif inherited is not None:
                counts[name] = inherited
        return counts.get(name)

    for name in classes:
        count(name)
    return counts


@house_rule
def errors_say_all_five_things(files: Sequence[File]) -> Iterator[str]:
    signatures = error_signatures(files)
    for file in files:
        for node in file.walk(ast.Call):
            name = file.called(node.func).split(".")[-1]
            wanted = signatures.get(name)
            given = len(node.args) + len(node.keywords)
            starred = any(isinstance(a, ast.Starred) for a in node.args) or any(k.arg is None for k in node.keywords)
            if wanted is not None and (given not in wanted or starred):
                yield f"{file.path}:{node.lineno}: {name} takes {wanted[-1]} pieces, but is given {given}"


@house_rule
def all_errors_are_ours(files: Sequence[File]) -> Iterator[str]:
    ours = error_signatures(files)
    for file in files:
        validators = {id(r) for f in file.walk(*FUNCTIONS) if decorators(f) & VALIDATORS for r in ast.walk(f)}
        for node in file.walk(ast.Raise):
            if node.exc is None or id(node) in validators:
                continue
            error = file.called(node.exc.func if isinstance(node.exc, ast.Call) else node.exc)
            last = error.split(".")[-1]
            is_lower = not last[:1].isupper()  # an error caught before, or made by a function
            is_exit = file.path in {"cli.py", "__main__.py"} and error in EXITS
            is_planted = file.path.startswith("checks/") and last == "OSError"  # a check's broken disk
            is_pythons = file.path == "lazy.py" and last in {"AttributeError", "ImportError"}  # its protocol of names
            if not (is_lower or is_exit or is_planted or is_pythons or last in ours):
                yield f"{file.path}:{node.lineno}: raises {error or 'something'}, no PerdureError"


@house_rule
def hints_have_no_full_stop(files: Sequence[File]) -> Iterator[str]:
    signatures = error_signatures(files)
    for file in files:
        texts = [a for c in file.walk(ast.Call) if file.called(c.func).split(".")[-1] in signatures for a in c.args[2:]]
        for node in file.walk(ast.Assign):
            if any(isinstance(t, ast.Name) and t.id in {"hint", "must_be"} for t in node.targets):
                texts.append(node.value)
        for text in texts:
            last = text.values[-1] if isinstance(text, ast.JoinedStr) and text.values else text
            if isinstance(last, ast.Constant) and isinstance(last.value, str) and last.value.endswith("."):
                yield f"{file.path}:{text.lineno}: the message adds its own full stop"


@file_rule
def no_f_is_forgotten(file: File) -> Iterator[tuple[int, str]]:
    exempt = list(_exempt_strings(file))
    for token in tokenize.generate_tokens(io.StringIO(file.source).readline):
        if token.type != tokenize.STRING or "f" in re.match(r"[A-Za-z]*", token.string)[0].lower():
            continue
        found = PLACEHOLDER.search(token.string)
        is_template = token.start[0] != token.end[0]
        if found and not is_template and not any(start <= token.start < end for start, end in exempt):
            yield token.start[0], f"{found[0]} in a string without f"


def _exempt_strings(file: File) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where braces may stand: docstrings, shapes in annotations, what is ``.format``ted, and rich's own templates."""
    lines = file.source.splitlines()
    for node in ast.walk(file.tree):
        exempt = [getattr(node, "annotation", None), getattr(node, "returns", None)]
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            exempt.append(node.value)
        if isinstance(node, ast.Attribute) and node.attr in {"format", "format_map"}:
            exempt.append(node.value)
        if isinstance(node, ast.Call) and file.called(node.func).endswith("TextColumn"):
            exempt += node.args
        for part in filter(None, exempt):
            ends = ((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset))
            start, end = ((row, len(lines[row - 1].encode()[:column].decode())) for row, column in ends)
            yield start, end
