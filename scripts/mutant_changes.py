"""Small wrong changes to a source file, such as a slip of the hand could make; made on its syntax tree."""

from __future__ import annotations

import ast
import copy
import dataclasses as dc
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

COMPARISONS = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
ARITHMETIC = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv, ast.Pow: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr,
}  # fmt: skip
OTHER_NAME = {a: b for one, two in (("min", "max"), ("any", "all")) for a, b in ((one, two), (two, one))}
OTHER_ATTRIBUTE = OTHER_NAME | {
    a: b
    for one, two in (("argmin", "argmax"), ("mean", "sum"), ("zeros", "ones"), ("floor", "ceil"), ("amin", "amax"))
    for a, b in ((one, two), (two, one))
}
OTHER_ATTRIBUTE |= {"float64": "float32", "double": "float", "nanmean": "nansum", "randn": "rand", "T": "", "mT": ""}
LEFT_OUT_FUNCTIONS = {"abs", "int", "reversed", "round", "set", "sorted"}
LEFT_OUT_METHODS = {
    "abs", "clone", "contiguous", "copy", "detach", "exp", "log", "lower", "resolve", "sqrt", "square", "strip", "t",
}  # fmt: skip
WORDING = {"description", "help", "hint", "reason"}  # keyword arguments that people read
NO_MATTER = {"encoding", "stacklevel", "strict"}  # keyword arguments that guard against what cannot come
KEPT_DECORATORS = {"abstractmethod", "classmethod", "overload", "property", "setter", "staticmethod"}
SCOPES = (ast.ClassDef, ast.FunctionDef)
LEFT_ALONE = (ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.expr_context, ast.operator, ast.cmpop)
ALIASES = {"Annotated", "Callable", "Literal", "Sequence", "Float"}


@dc.dataclass(frozen=True)
class Spot:
    """A node that may be changed."""

    node: ast.AST
    statement: ast.stmt | ast.ExceptHandler
    scope: tuple[ast.AST, ...]  # the classes and functions around the statement, outermost first
    wording: bool  # inside of an error's message or a description


@dc.dataclass(frozen=True)
class Change:
    """One change: where, of which kind, and how to find it again in the same source.

    Args:
        file: path below ``src/perdure``.
        lines: first and last line of the statement, or of its head, where it has a body.
        around: first and last line of its class or function; of the function whose head it is.
        at_import: whether the statement runs when the module is imported.
        place: number of the spot, and of the alternative at this spot.
    """

    file: str
    line: int
    scope: str
    operator: str
    lines: tuple[int, int]
    around: tuple[int, int]
    at_import: bool
    place: tuple[int, int]


def package(file: str) -> str:
    """The package of a file; ``perdure`` for the files at the top."""
    return file.split("/")[0] if "/" in file else "perdure"


def changes(file: str, source: str) -> list[Change]:
    """Every change that can be made to a file."""
    found, tree = [], ast.parse(source)
    for i, spot in enumerate(spots(tree)):
        names = ".".join(getattr(s, "name", "") for s in spot.scope)
        in_function = any(isinstance(s, ast.FunctionDef) for s in spot.scope)
        holder = spot.statement if isinstance(spot.statement, SCOPES) else (spot.scope or (tree,))[-1]
        around = (getattr(holder, "lineno", 1), getattr(holder, "end_lineno", len(source.splitlines())))
        line = getattr(spot.node, "lineno", spot.statement.lineno)
        for j, (operator, _) in enumerate(alternatives(spot)):
            found.append(Change(file, line, names, operator, _head(spot.statement), around, not in_function, (i, j)))
    return found


def made(source: str, change: Change) -> tuple[str, str, str]:
    """The changed source, and the statement before and after."""
    spot = list(spots(tree := ast.parse(source)))[change.place[0]]
    _, new = alternatives(spot)[change.place[1]]
    before = _told(spot.statement)
    changed = ast.unparse(ast.fix_missing_locations(_Swap(spot.node, new).visit(tree)))
    after = _told(spot.statement if spot.node is not spot.statement else new)
    if change.operator == "handler":
        before, after = f"{before} …", f"{before} raise"
    return changed, before, after


def sample(found: Sequence[Change], n: int, seed: int) -> list[Change]:
    """Changes on ``n`` lines, one out of each of ``n`` equal stretches of the code: packages keep their share.

    A line's kinds of change are equally likely. The order is random, so that its beginning is a sample, too.
    """
    chance = random.Random(seed)
    at: dict[tuple[str, str, int], list[Change]] = defaultdict(list)
    for change in found:
        at[package(change.file), change.file, change.line].append(change)
    lines, drawn = sorted(at), []
    n = min(n, len(lines))
    for i in range(n):
        here = at[lines[int((i + chance.random()) * len(lines) / n)]]
        kind = chance.choice(sorted({change.operator for change in here}))
        drawn.append(chance.choice([change for change in here if change.operator == kind]))
    chance.shuffle(drawn)
    return drawn


def spots(tree: ast.Module) -> Iterator[Spot]:
    """The nodes that may be changed: no docstrings, annotations, imports, ``__all__``."""
    for statement in tree.body:
        yield from _below(statement, Spot(statement, statement, (), False))


def _below(node: ast.AST, place: Spot) -> Iterator[Spot]:
    if isinstance(node, LEFT_ALONE) or _is_idle(node):
        return
    statement = node if isinstance(node, (ast.stmt, ast.ExceptHandler)) else place.statement
    wording = place.wording or isinstance(node, ast.Raise) or _tells(node)
    wording = wording or (isinstance(node, ast.keyword) and node.arg in WORDING)
    yield dc.replace(place, node=node, statement=statement, wording=wording)
    for field, value in ast.iter_fields(node):
        children = value if isinstance(value, list) else [value]
        if field in ("annotation", "returns", "type_params", "format_spec"):
            continue
        inside = isinstance(node, SCOPES) and field == "body"
        scope = (*place.scope, node) if inside else place.scope
        for child in children:
            text_of_f_string = isinstance(node, ast.JoinedStr) and isinstance(child, ast.Constant)
            if isinstance(child, ast.AST) and not text_of_f_string:
                yield from _below(child, Spot(child, statement, scope, wording))


def _is_idle(node: ast.AST) -> bool:
    """Docstrings, ``__all__``, names of types, and what is read by type checkers only."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        is_alias = isinstance(node.value, ast.Subscript) and getattr(node.value.value, "id", "") in ALIASES
        return node.targets[0].id == "__all__" or is_alias
    if isinstance(node, ast.AnnAssign):
        return "TypeAlias" in ast.unparse(node.annotation)
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def _tells(node: ast.AST) -> bool:
    """Whether it makes an error or a warning, whose words are no behaviour."""
    name = _name(node) if isinstance(node, ast.Call) else ""
    return name.endswith(("Error", "Warning")) or name in {"__init__", "fail", "warn", "TypeVar"}


def alternatives(spot: Spot) -> list[tuple[str, Any]]:
    """(kind of change, what stands in the node's place) for every way to change it."""
    node = spot.node
    kind = type(node)
    if kind is ast.Constant:
        return [("constant", ast.Constant(v)) for v in _other_values(node.value, spot.wording)]
    if kind is ast.Compare:
        return [
            ("comparison", _with(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]]))
            for i, op in enumerate(node.ops)
            for other in COMPARISONS[type(op)]
        ]
    if kind in (ast.BinOp, ast.AugAssign):
        out = [("arithmetic", _with(node, op=ARITHMETIC[type(node.op)]()))] if type(node.op) in ARITHMETIC else []
        return [*out, ("statement", ast.Pass())] if kind is ast.AugAssign else out
    if kind is ast.BoolOp:
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        return [("boolean", _with(node, op=other)), *_without(node, "values", "boolean")]
    if kind is ast.UnaryOp:
        return [("sign", node.operand)] if isinstance(node.op, (ast.USub, ast.Not)) else []
    if kind is ast.Call:
        return _other_calls(node, spot.wording)
    if kind in (ast.Name, ast.Attribute):
        return _other_names(node)
    if kind is ast.Slice:
        return [("slice", _with(node, **{end: None})) for end in ("lower", "upper") if getattr(node, end) is not None]
    if kind in (ast.Dict, ast.List, ast.Set) and isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
        return [*_without(node, "values" if kind is ast.Dict else "elts", "element")]
    if kind in (ast.If, ast.While, ast.IfExp):
        return [("condition", _with(node, test=ast.UnaryOp(ast.Not(), node.test)))]
    if kind is ast.comprehension:
        return [*_without(node, "ifs", "condition")]
    return _other_statements(node)


def _other_values(value: object, wording: bool) -> list[Any]:
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value - 1]
    if isinstance(value, float):
        return [value * 2 if value else 1.0]
    if isinstance(value, str) and not wording and " " not in value:
        return [value + "_"]
    return []


def _other_names(node: ast.Name | ast.Attribute) -> list[tuple[str, Any]]:
    if not isinstance(node.ctx, ast.Load):
        return []
    if isinstance(node, ast.Name):
        return [("name", _with(node, id=OTHER_NAME[node.id]))] if node.id in OTHER_NAME else []
    if node.attr not in OTHER_ATTRIBUTE:
        return []
    return [("name", _with(node, attr=other) if (other := OTHER_ATTRIBUTE[node.attr]) else node.value)]


def _other_calls(node: ast.Call, wording: bool) -> list[tuple[str, Any]]:
    out: list[tuple[str, Any]] = []
    for i, keyword in enumerate(node.keywords):
        if keyword.arg is not None and keyword.arg not in WORDING | NO_MATTER:
            out.append(("argument left out", _with(node, keywords=node.keywords[:i] + node.keywords[i + 1 :])))
    args = node.args
    if len(args) > 1 and not wording and ast.dump(args[0]) != ast.dump(args[1]):
        out.append(("arguments swapped", _with(node, args=[args[1], args[0], *args[2:]])))
    if isinstance(node.func, ast.Name) and node.func.id in LEFT_OUT_FUNCTIONS and args:
        out.append(("call left out", args[0]))
    if isinstance(node.func, ast.Attribute) and node.func.attr in LEFT_OUT_METHODS and not args:
        out.append(("call left out", node.func.value))
    return out


def _other_statements(node: ast.AST) -> list[tuple[str, Any]]:
    if isinstance(node, ast.Return) and node.value is not None and ast.unparse(node.value) != "None":
        return [("return", _with(node, value=ast.Constant(None)))]
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return [("statement", ast.Pass())]
    if isinstance(node, ast.Assign):
        used = {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
        kept = any(isinstance(t, ast.Tuple) or (isinstance(t, ast.Name) and t.id not in used) for t in node.targets)
        return [] if kept else [("statement", ast.Pass())]  # else the name is unknown, which every run notices
    if isinstance(node, (ast.Raise, ast.Continue, ast.Break, ast.Delete)):
        return [("statement", ast.Pass())]
    if isinstance(node, ast.For):
        return [("loop", _with(node, iter=ast.List([], ast.Load())))]
    if isinstance(node, ast.With) and all(item.optional_vars is None for item in node.items):
        return [("statement", ast.If(ast.Constant(True), node.body, []))]
    if isinstance(node, ast.ExceptHandler) and not isinstance(node.body[0], ast.Raise):
        return [("handler", _with(node, body=[ast.Raise(None, None)]))]
    if isinstance(node, ast.FunctionDef):
        every = zip(node.decorator_list, _without(node, "decorator_list", "decorator"), strict=True)
        return [one for decorator, one in every if _name(decorator) not in KEPT_DECORATORS]
    return []


def _name(node: ast.expr) -> str:
    """The last part of the name of what is called or named."""
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _without(node: Any, field: str, operator: str) -> Iterator[tuple[str, Any]]:
    """The node without one of its parts, for each part."""
    fields = [name for name in (field, "keys") if hasattr(node, name)]
    for i in range(len(getattr(node, field))):
        left = {name: getattr(node, name)[:i] + getattr(node, name)[i + 1 :] for name in fields}
        alone = isinstance(node, ast.BoolOp) and len(left[field]) == 1
        yield operator, left[field][0] if alone else _with(node, **left)


def _with(node: Any, **fields: Any) -> Any:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


class _Swap(ast.NodeTransformer):
    def __init__(self, old: ast.AST, new: ast.AST) -> None:
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> Any:
        return self.new if node is self.old else self.generic_visit(node)


def _head(statement: Any) -> tuple[int, int]:
    """First and last line of a statement without its body."""
    first = min([statement.lineno, *(d.lineno for d in getattr(statement, "decorator_list", []))])
    body = getattr(statement, "body", None)
    return first, max(statement.lineno, body[0].lineno - 1) if body else statement.end_lineno


def _told(statement: Any) -> str:
    bodies = {f: [] for f in ("body", "orelse", "finalbody", "handlers") if hasattr(statement, f)}
    return ast.unparse(_with(statement, **bodies)).strip()
