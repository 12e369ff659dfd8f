"""Rules on imports: one direction, no cycles, heavy libraries in one place each."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from rules_base import FUNCTIONS, File, file_rule, house_rule

# DESIGN section 1, from the lowest to the highest; those on one level do not import each other, with one exception:
# a check holds the runner's own checkpoints to what it promises
LEVELS = [
    {"errors", "types", "lazy", "lines"},
    {"config", "registry", "tags", "learned"},
    {"data", "modules"},
    {"backbone"},
    {"memory"},
    {"train"},
    {"methods"},
    {"eval"},
    {"run", "checks", "describe"},
    {"catalog"},
    {"shown"},
    {"cli"},
    {"__main__"},
]
ALSO = {("checks", "run")}
WHOLE = {"catalog", "cli"}  # may ask the package itself, which reaches every layer, for what is slow to import
LEVEL = {layer: level for level, layers in enumerate(LEVELS) for layer in layers}

HOMES = {
    "timm": ("backbone/", "data/preprocess.py", "data/display.py"),
    "open_clip": ("backbone/clip.py",),
    "lightning": ("train/runtime.py",),
    "lightning_fabric": ("train/runtime.py",),
    "pytorch_lightning": ("train/runtime.py",),
    "torchmetrics": (),  # slow to import; tests compare with it
}
DYNAMIC = {
    **dict.fromkeys(("importlib.import_module", "__import__"), ("registry.py", "lazy.py")),
    **dict.fromkeys(
        ("importlib.util.module_from_spec", "importlib.util.spec_from_file_location"), ("run/method_file.py",)
    ),
}


def imports(file: File) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything a file imports, ``perdure.data.Task`` for ``from perdure.data import Task``."""
    for node in file.walk(ast.Import, ast.ImportFrom):
        base = ""
        if isinstance(node, ast.ImportFrom):
            package = file.module.split(".")
            drop = max(node.level - file.path.endswith("__init__.py"), 0)
            above = package[: len(package) - drop] if node.level else []
            base = ".".join([*above, *filter(None, [node.module]), ""])
        yield from ((node.lineno, base + alias.name) for alias in node.names)


def layer(module: str) -> str:
    """``data`` for ``perdure.data.images``; ``""`` for ``perdure`` itself and for other packages."""
    parts = module.split(".")
    return parts[1] if parts[0] == "perdure" and len(parts) > 1 else ""


def inner_imports(files: Sequence[File]) -> dict[str, set[str]]:
    """Module to the modules among ``files`` it imports."""
    known = {file.module for file in files}

    def home(name: str) -> str:
        while name not in known and name:
            name = name.rpartition(".")[0]
        return name

    return {file.module: {home(name) for _, name in imports(file)} - {""} for file in files}


@file_rule
def every_module_has_a_layer(file: File) -> Iterator[tuple[int, str]]:
    if file.module != "perdure" and layer(file.module) not in LEVEL:
        yield 1, f"{layer(file.module)} is no layer of DESIGN section 1"


@file_rule
def imports_flow_one_way(file: File) -> Iterator[tuple[int, str]]:
    mine = layer(file.module)
    for line, name in imports(file):
        theirs = layer(name)
        is_inner = mine in LEVEL and theirs in LEVEL and mine != theirs
        if name == "perdure" and mine not in WHOLE:
            yield line, f"{mine} imports perdure itself, which reaches every layer"
        if is_inner and LEVEL[theirs] >= LEVEL[mine] and (mine, theirs) not in ALSO:
            yield line, f"{mine} imports {theirs}, which is not below it"


@house_rule
def no_import_cycles(files: Sequence[File]) -> Iterator[str]:
    graph = inner_imports(files)
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> Iterator[str]:
        if module in path:
            yield " -> ".join([*path[path.index(module) :], module])
        elif module not in done:
            for imported in sorted(graph[module]):
                yield from visit(imported, [*path, module])
            done.add(module)

    for module in graph:
        yield from visit(module, [])


@file_rule
def no_method_imports_another(file: File) -> Iterator[tuple[int, str]]:
    """But a published variant the method it is a variant of: ``mos_release`` imports ``mos``."""
    if file.is_method:
        own = file.module.rpartition(".")[2]
        for line, name in imports(file):
            theirs = name.removeprefix("perdure.methods.").partition(".")[0]
            is_base = name.startswith("perdure.methods.base") or own.startswith(f"{theirs}_")
            if layer(name) == "methods" and not is_base:
                yield line, f"imports {name}; what methods share belongs in modules/"


@file_rule
def imports_stand_at_the_top(file: File) -> Iterator[tuple[int, str]]:
    for function in file.walk(*FUNCTIONS, ast.Lambda):
        for node in ast.walk(function):
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node.lineno, "import inside a function"


@file_rule
def no_dynamic_imports(file: File) -> Iterator[tuple[int, str]]:
    for node in file.walk(ast.Call):
        homes = DYNAMIC.get(file.called(node.func))
        if homes is not None and file.path not in homes:
            yield node.lineno, f"imports by name; only {' and '.join(homes)} may"


@file_rule
def heavy_libraries_have_one_home(file: File) -> Iterator[tuple[int, str]]:
    for line, name in imports(file):
        homes = HOMES.get(name.split(".")[0])
        if homes is not None and not any(
            file.path == h or (h.endswith("/") and file.path.startswith(h)) for h in homes
        ):
            yield line, f"imports {name}, allowed only in {' and '.join(homes) or 'tests'}"


@file_rule
def no_star_imports(file: File) -> Iterator[tuple[int, str]]:
    for node in file.walk(ast.ImportFrom):
        if any(alias.name == "*" for alias in node.names):
            yield node.lineno, f"star import of {node.module}"


@file_rule
def no_pickle(file: File) -> Iterator[tuple[int, str]]:
    for line, name in imports(file):
        if name.split(".")[0] in {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}:
            yield line, f"imports {name}; state is safetensors, JSON and npz"
    for node in file.walk(ast.Call):
        if file.called(node.func) == "torch.save":
            yield node.lineno, "torch.save writes a pickle"
