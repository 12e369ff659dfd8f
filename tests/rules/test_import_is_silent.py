"""Importing perdure changes nothing in the process: no folder, no random state, no logging, no search path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import perdure

# run in a process of its own; prints one line per module and thing changed
PROBE = """
import importlib, logging, os, random, sys
import numpy, torch
from torch.utils.data import Dataset

def state():
    return {
        "cwd": os.getcwd(),
        "sys.path": list(sys.path),
        "environment": dict(os.environ),
        "random": random.getstate(),
        "numpy.random": numpy.random.get_state()[1].tolist(),
        "torch.random": torch.get_rng_state().tolist(),
        "root handlers": list(logging.root.handlers),
        "root level": logging.root.level,
        "Dataset.__add__": Dataset.__add__,
        "torch defaults": (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()),
        "stdout": sys.stdout,
    }

for name in sys.argv[1:]:
    before = state()
    importlib.import_module(name)
    after = state()
    for key in before:
        if before[key] != after[key]:
            print(name, key, file=sys.__stdout__)
"""

PLANTED = {
    "cwd": "import os\nos.chdir('/')",
    "sys.path": "import sys\nsys.path.append('.')",
    "environment": "import os\nos.environ['X'] = '1'",
    "random": "import random\nrandom.seed(0)",
    "numpy.random": "import numpy\nnumpy.random.seed(0)",
    "torch.random": "import torch\ntorch.manual_seed(0)",
    "root handlers": "import logging\nlogging.basicConfig()",
    "root level": "import logging\nlogging.root.setLevel(1)",
    "Dataset.__add__": "from torch.utils.data import Dataset\nDataset.__add__ = print",
    "torch defaults": "import torch\ntorch.set_grad_enabled(False)",
    "stdout": "import sys\nsys.stdout = sys.stderr",
}


def changes(modules: list[str], folder: Path) -> list[str]:
    """What importing the modules, one after another, changes in a fresh process started with ``folder`` on its path."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *modules],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines() + [f"stderr {line}" for line in done.stderr.splitlines()]


def perdure_modules() -> list[str]:
    """Every module of the package, ``perdure`` first."""
    root = Path(perdure.__file__).parent
    files = [path.relative_to(root.parent).with_suffix("") for path in sorted(root.rglob("*.py"))]
    names = [".".join(path.parts).removesuffix(".__init__") for path in files if path.name != "__main__"]
    return sorted(names, key=lambda name: (name.count("."), name))


def test_importing_any_module_changes_nothing(tmp_path: Path) -> None:
    # imported alone, rich draws a random number, and scikit-learn and timm set variables of OpenMP and of PyTorch
    modules = perdure_modules()
    found = changes([*modules[:1], "rich.style", "sklearn", "timm", *modules[1:]], tmp_path)
    assert modules[0] == "perdure"
    assert set(found) <= {"rich.style random", "sklearn environment", "timm environment"}


def test_planted_changes_and_noise_are_seen(tmp_path: Path) -> None:
    modules = {f"planted_{i}": (key, source) for i, (key, source) in enumerate(PLANTED.items())}
    for name, (_, source) in modules.items():
        (tmp_path / f"{name}.py").write_text(source)
    (tmp_path / "noisy.py").write_text("import warnings\nwarnings.warn('import-time warning')")
    seen = changes(["noisy", *modules], tmp_path)
    assert [key for name, (key, _) in modules.items() if f"{name} {key}" not in seen] == []
    assert any(line.startswith("stderr ") and "import-time warning" in line for line in seen)


def test_every_module_is_imported() -> None:
    assert {"perdure", "perdure.methods.base", "perdure.data.named"} <= set(perdure_modules())
    with pytest.raises(AssertionError, match="no_such_module"):
        changes(["no_such_module"], Path.cwd())
