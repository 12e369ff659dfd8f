"""The house rules of DESIGN sections 1, 6, 7 and 8 hold in ``src/perdure``; and each rule can fail."""

from __future__ import annotations

from pathlib import Path

import pytest
import rules_code
import rules_imports
import rules_words
from rules_base import RULES, File

SRC = Path(__file__).parents[2] / "src" / "perdure"
HOUSE = [File(p.relative_to(SRC).as_posix(), p.read_text(encoding="utf-8")) for p in sorted(SRC.rglob("*.py"))]
ERRORS = next(file for file in HOUSE if file.path == "errors.py")

LONG_BODY = "".join(f"    x{i} = n * {i}\n" for i in range(6)) + "    return x5\n"
DEVIATIONS = "\n- From the paper: none.\n- From the code: none.\n"
METHOD_DOC = f"""M: means. Of classes.

Source: paper,
    and code.
Use when: ever.
Deviations:{DEVIATIONS}Relations: none.
Cost: one pass.
"""


def wide(statement: str) -> str:
    """A broad except around nothing."""
    return f"try:\n    f()\nexcept BaseException:\n    {statement}\n"


def method(docstring: str) -> str:
    """A method's file."""
    return f'"""{docstring}"""\n'


BADLY_FORMED = [
    METHOD_DOC.replace("M: means", "Means"),
    METHOD_DOC.replace("Of classes.", "Of classes"),
    METHOD_DOC.replace("Of classes.", f"Of {'classes ' * 14}."),
    METHOD_DOC.replace("- From the code: none.", f"- From the code: {'x' * 105}."),
    METHOD_DOC.replace("- From the code: none.\n", "- From the code:\n  none.\n"),
    METHOD_DOC.replace("- From the code: none.\n", "None.\n"),
    METHOD_DOC.replace("- From the code: none.\n", "- From the code: none.\n" * 14),
    METHOD_DOC.replace("    and code.", "and code."),
    METHOD_DOC.replace("    and code.", "- and code."),
    METHOD_DOC.replace("Relations: none.\n", ""),
    METHOD_DOC.replace("Use when: ever.\n", "").replace("Cost:", "Use when: ever.\nCost:"),
]


def documented(rest: str, raises: str = "") -> str:
    """A public function with a docstring."""
    return f'def f(n):\n    """F.\n\n{raises}    """\n{rest}'


PLANTED = [
    (rules_imports.every_module_has_a_layer, {"helpers.py": ""}),
    (rules_imports.imports_flow_one_way, {"data/a.py": "from perdure.backbone import Backbone"}),
    (rules_imports.imports_flow_one_way, {"data/a.py": "from perdure.modules.heads import GrowingLinear"}),
    (rules_imports.imports_flow_one_way, {"memory/a.py": "from perdure.train import loop"}),
    (rules_imports.imports_flow_one_way, {"eval/a.py": "import perdure.run.runner"}),
    (rules_imports.imports_flow_one_way, {"modules/a.py": "from ..methods import base"}),
    (rules_imports.imports_flow_one_way, {"errors.py": "from perdure import config"}),
    (rules_imports.imports_flow_one_way, {"run/a.py": "from perdure.checks import check_method"}),
    (rules_imports.imports_flow_one_way, {"checks/a.py": "import perdure\nperdure.cli.main()"}),
    (rules_imports.no_import_cycles, {"data/a.py": "from perdure.data import b", "data/b.py": "import perdure.data.a"}),
    (
        rules_imports.no_import_cycles,
        {"data/__init__.py": "from perdure.data.a import A", "data/a.py": "from perdure.data import B"},
    ),
    (
        rules_imports.no_import_cycles,
        {"data/a.py": "from .b import x", "data/b.py": "from .c import x", "data/c.py": "from .a import x"},
    ),
    (rules_imports.no_method_imports_another, {"methods/a.py": "from perdure.methods.simplecil import SimpleCIL"}),
    (rules_imports.no_method_imports_another, {"methods/a.py": "from perdure.methods import ranpac"}),
    (rules_imports.no_method_imports_another, {"methods/a.py": "from .ranpac import RanPAC"}),
    (rules_imports.no_method_imports_another, {"methods/mosaic.py": "from perdure.methods.mos import MOS"}),
    (rules_imports.imports_stand_at_the_top, {"data/a.py": "def f():\n    if f:\n        import os"}),
    (rules_imports.no_dynamic_imports, {"data/a.py": "import importlib\nimportlib.import_module('timm')"}),
    (rules_imports.no_dynamic_imports, {"data/a.py": "__import__('timm')"}),
    (rules_imports.no_dynamic_imports, {"lazy.py": "from importlib.util import module_from_spec as m\nm(1)"}),
    (rules_imports.no_dynamic_imports, {"registry.py": "from importlib.util import module_from_spec as m\nm(1)"}),
    (rules_imports.heavy_libraries_have_one_home, {"modules/a.py": "import timm.layers"}),
    (rules_imports.heavy_libraries_have_one_home, {"data/stream.py": "from timm.data import create_transform"}),
    (rules_imports.heavy_libraries_have_one_home, {"backbone/backbone.py": "import open_clip"}),
    (rules_imports.heavy_libraries_have_one_home, {"train/loop.py": "from lightning.fabric import Fabric"}),
    (rules_imports.heavy_libraries_have_one_home, {"train/loop.py": "import lightning_fabric"}),
    (rules_imports.heavy_libraries_have_one_home, {"eval/matrix.py": "import torchmetrics"}),
    (rules_imports.no_star_imports, {"data/a.py": "from numpy import *"}),
    (rules_imports.no_pickle, {"run/a.py": "import pickle"}),
    (rules_imports.no_pickle, {"run/a.py": "from joblib import dump"}),
    (rules_imports.no_pickle, {"run/a.py": "from torch import save\nsave({}, 'x')"}),
    (rules_code.files_are_short, {"data/a.py": "x = 1\n" * 301}),
    (rules_code.files_are_short, {"methods/a.py": "x = 1\n" * 201}),
    (rules_code.functions_are_short, {"data/a.py": "def f():\n" + "    x = 1\n" * 60}),
    (rules_code.functions_are_short, {"data/a.py": "class A:\n    async def f(self):\n" + "        x = 1\n" * 60}),
    (
        rules_code.no_copied_functions,
        {"data/a.py": f"def f(n):\n{LONG_BODY}", "run/b.py": f'def g(n: int):\n    """G."""\n{LONG_BODY}'},
    ),
    (
        rules_code.a_refusal_names_the_function_that_refuses,
        {"methods/a.py": "class A:\n    def scores(self):\n        self._require_fitted('predict')"},
    ),
    (rules_code.no_copied_functions, {"data/a.py": f"def f(n):\n{LONG_BODY}def g(n):\n{LONG_BODY}"}),
    (rules_code.no_utils, {"data/utils.py": ""}),
    (rules_code.only_the_cli_prints, {"run/a.py": "def f():\n    print('x')"}),
    (rules_code.no_handler_swallows_everything, {"run/a.py": wide("pass")}),
    (rules_code.no_handler_swallows_everything, {"run/a.py": wide("pass").replace(" BaseException", "")}),
    (
        rules_code.no_handler_swallows_everything,
        {"run/a.py": wide("pass").replace("BaseException", "(OSError, BaseException)")},
    ),
    (rules_code.no_handler_swallows_everything, {"run/a.py": wide("if f:\n        return\n    raise")}),
    (rules_code.no_dirty_tricks, {"run/a.py": "x = eval('1')"}),
    (rules_code.no_dirty_tricks, {"run/a.py": "exec('x = 1')"}),
    (rules_code.no_dirty_tricks, {"run/a.py": "x = globals()['y']"}),
    (rules_code.no_dirty_tricks, {"run/a.py": "from os import chdir\nchdir('/')"}),
    (rules_code.no_dirty_tricks, {"run/a.py": "import os as o\no.chdir('/')"}),
    (rules_code.no_dirty_tricks, {"run/a.py": "import sys\nsys.path.insert(0, '.')"}),
    (rules_code.no_dirty_tricks, {"run/a.py": "from sys import path\npath += ['.']"}),
    (rules_code.no_dirty_tricks, {"run/a.py": "def f():\n    global x\n    x = 1"}),
    (rules_code.loading_never_unpickles, {"run/a.py": "import torch\ntorch.load('x')"}),
    (rules_code.loading_never_unpickles, {"run/a.py": "from torch import load\nload('x', weights_only=False)"}),
    (rules_code.loading_never_unpickles, {"run/a.py": "import numpy as np\nnp.load('x')"}),
    (rules_code.loading_never_unpickles, {"run/a.py": "import numpy\nnumpy.load('x', allow_pickle=True)"}),
    (rules_code.no_assert, {"run/a.py": "assert x, 'y'"}),
    (rules_code.text_files_name_their_encoding, {"run/a.py": "x = open('y')"}),
    (rules_code.text_files_name_their_encoding, {"run/a.py": "x = open('y', 'a')"}),
    (rules_code.text_files_name_their_encoding, {"run/a.py": "x = open('y', mode='w', newline='')"}),
    (rules_code.text_files_name_their_encoding, {"run/a.py": "from io import open as o\nx = o('y')"}),
    (rules_code.text_files_name_their_encoding, {"run/a.py": "import os\nx = os.fdopen(3, 'w')"}),
    (rules_code.text_files_name_their_encoding, {"run/a.py": "x = path.read_text()"}),
    (rules_code.text_files_name_their_encoding, {"run/a.py": "(a / b).write_text(y, errors='replace')"}),
    (rules_code.text_files_name_their_encoding, {"run/a.py": "x = path.open('w')"}),
    (rules_words.everything_public_says_its_purpose, {"data/a.py": "x = 1"}),
    (rules_words.everything_public_says_its_purpose, {"data/a.py": '"""A."""\ndef f(): ...'}),
    (rules_words.everything_public_says_its_purpose, {"data/a.py": '"""A."""\nclass A:\n    x = 1'}),
    (
        rules_words.everything_public_says_its_purpose,
        {"data/a.py": '"""A."""\nclass A:\n    """A."""\n    def f(self): ...'},
    ),
    *(
        (rules_words.methods_tell_source_and_cost, {"methods/a.py": method(METHOD_DOC.replace(f"{section}:", section))})
        for section in rules_words.METHOD_SECTIONS
    ),
    (rules_words.methods_tell_source_and_cost, {"methods/a.py": method(METHOD_DOC.replace(" one pass.", ""))}),
    (rules_words.methods_tell_source_and_cost, {"methods/a.py": method(METHOD_DOC.replace(DEVIATIONS, "\n"))}),
    (rules_words.methods_tell_source_and_cost, {"methods/a.py": ""}),
    *((rules_words.method_docstrings_have_one_form, {"methods/a.py": method(text)}) for text in BADLY_FORMED),
    (rules_words.method_docstrings_have_one_form, {"methods/a.py": ""}),
    (rules_words.what_is_raised_is_written, {"data/a.py": documented("    raise E(n)\n")}),
    (
        rules_words.what_is_raised_is_written,
        {"data/a.py": documented("    raise E(n)\n", "    Raises:\n        Other: x\n")},
    ),
    (rules_words.what_is_raised_is_written, {"data/a.py": documented("    def g():\n        raise E\n")}),
    (
        rules_words.what_is_raised_is_written,
        {"data/a.py": 'class A:\n    """A."""\n    def __init__(self):\n        raise E'},
    ),
    (rules_words.errors_say_all_five_things, {"data/a.py": "raise ConfigError('f', 'x', 'y', 1)"}),
    (rules_words.errors_say_all_five_things, {"data/a.py": "raise errors.ConfigError('must be 1')"}),
    (rules_words.errors_say_all_five_things, {"data/a.py": "e = NonFiniteError(1, 2)"}),
    (rules_words.errors_say_all_five_things, {"data/a.py": "raise ConfigError(*pieces)"}),
    (rules_words.errors_say_all_five_things, {"data/a.py": "class Mine(DataError): ...\nraise Mine('x')"}),
    (rules_words.all_errors_are_ours, {"data/a.py": "raise ValueError('x')"}),
    (rules_words.all_errors_are_ours, {"data/a.py": "raise RuntimeError"}),
    (rules_words.all_errors_are_ours, {"data/a.py": "raise AttributeError('x')"}),
    (rules_words.all_errors_are_ours, {"lazy.py": "raise KeyError('x')"}),
    (rules_words.all_errors_are_ours, {"data/a.py": "raise SystemExit(1)"}),
    (rules_words.hints_have_no_full_stop, {"data/a.py": "raise ConfigError('f', 'x', 'y', 1, 'Lower it.')"}),
    (rules_words.hints_have_no_full_stop, {"data/a.py": "raise ConfigError('f', 'x', 'y', 1, f'Lower {x}.')"}),
    (rules_words.hints_have_no_full_stop, {"data/a.py": "hint = 'Lower it.'"}),
    (rules_words.no_f_is_forgotten, {"data/a.py": "x = 'at most {n}'"}),
    (rules_words.no_f_is_forgotten, {"data/a.py": "x = f'{a}' 'but got {value!r}'"}),
    (rules_words.no_f_is_forgotten, {"data/a.py": "x = ('λ is {a.b[0]:.2f}', 1)"}),
]

ALLOWED = [
    (rules_imports.imports_flow_one_way, {"cli.py": "from perdure.run import recipe\nfrom perdure import Backbone"}),
    (rules_imports.imports_flow_one_way, {"methods/a.py": "from perdure.train.loop import train\nimport numpy as np"}),
    (rules_imports.imports_flow_one_way, {"catalog.py": "import perdure", "cli.py": "import perdure, perdure.run"}),
    (rules_imports.no_dynamic_imports, {"lazy.py": "import importlib\nimportlib.import_module('timm')"}),
    (rules_imports.no_method_imports_another, {"methods/a.py": "from perdure.methods.base import Method"}),
    (rules_imports.no_method_imports_another, {"run/a.py": "from perdure.methods.ranpac import RanPAC"}),
    (rules_imports.no_method_imports_another, {"methods/mos_release.py": "from perdure.methods.mos import MOS"}),
    (
        rules_imports.heavy_libraries_have_one_home,
        {"backbone/vit.py": "import timm", "data/preprocess.py": "import timm"},
    ),
    (rules_imports.imports_flow_one_way, {"checks/a.py": "from perdure.run.checkpoint import save_state"}),
    (rules_imports.no_import_cycles, {"data/a.py": "from perdure.data.b import x", "data/b.py": "import numpy"}),
    (
        rules_imports.no_import_cycles,
        {"data/__init__.py": "from .a import x", "data/a.py": "from perdure.data import b", "data/b.py": ""},
    ),
    (rules_code.no_copied_functions, {"data/a.py": "def f(n):\n    return n\ndef g(n):\n    return n"}),
    (rules_code.files_are_short, {"methods/base.py": "x = 1\n" * 300}),
    (rules_code.only_the_cli_prints, {"cli.py": "print(1)", "run/a.py": "console.print(1)"}),
    (rules_code.no_handler_swallows_everything, {"run/a.py": wide("g()\n    raise")}),
    (rules_code.no_dirty_tricks, {"run/a.py": "model.eval()\nx = os.path.join(sys.prefix)"}),
    (
        rules_code.loading_never_unpickles,
        {"run/a.py": "import numpy, torch\ntorch.load(f, weights_only=True)\nnumpy.load(f, allow_pickle=False)"},
    ),
    (
        rules_code.text_files_name_their_encoding,
        {
            "run/a.py": "x = open('y', 'rb'), open('y', mode='ab'), open('y', encoding='utf-8'), open(**how)",
            "run/b.py": "x = path.read_text(encoding='utf-8'), path.open('rb'), Image.open('y'), source.open()",
        },
    ),
    (rules_words.everything_public_says_its_purpose, {"data/__init__.py": "", "data/a.py": '"""A."""\ndef _f(): ...'}),
    (
        rules_words.everything_public_says_its_purpose,
        {"data/a.py": '"""A."""\nclass A:\n    """A."""\n    def forward(self): ...\n    def __len__(self): ...'},
    ),
    (rules_words.methods_tell_source_and_cost, {"methods/a.py": method(METHOD_DOC), "methods/base.py": ""}),
    *(
        (rules_words.method_docstrings_have_one_form, {"methods/a.py": method(text), "methods/base.py": ""})
        for text in (METHOD_DOC, METHOD_DOC.replace(DEVIATIONS, " none.\n"))
    ),
    (
        rules_words.method_docstrings_have_one_form,
        {f"methods/{name}.py": '"""Any."""' for name in ("base", "__init__")},
    ),
    (
        rules_words.what_is_raised_is_written,
        {"data/a.py": documented("    raise E(n)\n", "    Raises:\n        E: if.\n")},
    ),
    (
        rules_words.what_is_raised_is_written,
        {"data/a.py": documented("    try:\n        g()\n    except E:\n        raise\n")},
    ),
    (rules_words.what_is_raised_is_written, {"cli.py": "@app.command()\ndef f():\n    raise E(1)"}),
    (rules_words.what_is_raised_is_written, {"checks/a.py": "def check_x(s):\n    raise s.fail(1)"}),
    (rules_words.errors_say_all_five_things, {"data/a.py": "ConfigError(1, 2, 3, 4, hint=5)\nNonFiniteError(7)"}),
    (rules_words.all_errors_are_ours, {"data/a.py": "raise DataError(1, 2, 3, 4, 5)\nraise error from None"}),
    (rules_words.all_errors_are_ours, {"checks/a.py": "raise s.fail('x')"}),
    (rules_words.all_errors_are_ours, {"lazy.py": "raise AttributeError('x')\nraise ImportError('x')"}),
    (rules_words.all_errors_are_ours, {"cli.py": "import typer\nraise typer.Exit(2)"}),
    (rules_words.all_errors_are_ours, {"config.py": "@field_validator('x')\ndef f(x):\n    raise ValueError('x|y')"}),
    (
        rules_words.no_f_is_forgotten,
        {
            "data/a.py": "def f(x: Float[Tensor, '{n} d']):\n    '''Of {x}.'''\n",
            "data/b.py": "x = 'a {x}'.format(x=f'{x}'), '{{x}}'",
            "cli.py": "from rich.progress import TextColumn\nx = TextColumn('{task.description}')",
        },
    ),
    (rules_words.no_f_is_forgotten, {"data/a.py": "x = 'root/{train,test}/', 'b{color:red}', '{\"a\": 1}', '{}'"}),
]


def files_of(sources: dict[str, str]) -> list[File]:
    """Planted files, with the real ``errors.py`` unless one is planted."""
    return [File(path, source) for path, source in ({ERRORS.path: ERRORS.source} | sources).items()]


def test_the_whole_house_is_read() -> None:
    assert {"errors.py", "methods/base.py", "data/stream.py", "memory/features.py"} <= {file.path for file in HOUSE}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_house_keeps_the_rule(rule) -> None:
    violations = sorted(set(rule(HOUSE)))
    assert not violations, "\n" + "\n".join(violations)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_every_rule_is_planted(rule) -> None:
    assert any(rule is planted for planted, _ in PLANTED)


@pytest.mark.parametrize(("rule", "sources"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_a_planted_violation_is_caught(rule, sources: dict[str, str]) -> None:
    found = list(rule(files_of(sources)))
    assert found
    assert not any(line.startswith(ERRORS.path) for line in found) or ERRORS.path in sources


@pytest.mark.parametrize(("rule", "sources"), ALLOWED, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_allowed_passes(rule, sources: dict[str, str]) -> None:
    assert list(rule(files_of(sources))) == []
