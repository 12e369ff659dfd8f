"""A name is imported when it is asked for, and what goes wrong then is told."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import perdure

START = """
from typing import TYPE_CHECKING
from perdure.lazy import on_demand
if TYPE_CHECKING:
    from {name} import inner
    from {name}.things import thing, other as renamed, lost
    from {name}.broken import never
else:
    __getattr__, __dir__ = on_demand(__name__)
plain = 1
"""


@pytest.fixture
def lazy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A package of its own, whose modules are not imported yet."""
    name, folder = "lazy_house", tmp_path / "lazy_house"
    folder.mkdir()
    (folder / "__init__.py").write_text(START.format(name=name) + "dash = 'é'\n", encoding="utf-8")
    (folder / "things.py").write_text("thing, other = object(), object()\n")
    (folder / "inner.py").write_text("")
    (folder / "unsaid.py").write_text("")
    (folder / "broken.py").write_text("import sys\nsys.no_such_thing\n")
    (folder / "missing.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(name)
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


def test_a_name_is_imported_when_it_is_first_asked_for(lazy: ModuleType) -> None:
    assert "lazy_house.things" not in sys.modules
    thing = lazy.thing
    things = sys.modules["lazy_house.things"]
    assert thing is things.thing
    assert lazy.renamed is things.other
    things.thing = None
    assert lazy.thing is thing, "asked for once"


def test_modules_are_names_too_said_or_not(lazy: ModuleType) -> None:
    for name in ("inner", "unsaid"):
        assert f"lazy_house.{name}" not in sys.modules
        assert getattr(lazy, name) is sys.modules[f"lazy_house.{name}"]


def test_all_names_are_listed(lazy: ModuleType) -> None:
    assert {"thing", "renamed", "inner", "plain", "__name__"} <= set(dir(lazy))
    assert "other" not in dir(lazy)
    assert dir(lazy) == sorted(dir(lazy))
    assert set(perdure.__all__) <= set(dir(perdure))
    for package in (perdure, perdure.data, perdure.run):
        assert all(hasattr(package, name) for name in package.__all__)


def test_a_name_that_is_not_there_is_refused_with_what_python_needs_to_suggest_another(lazy: ModuleType) -> None:
    for name in ("thingy", "other", "__wrapped__", "_private"):
        with pytest.raises(AttributeError, match=f"module 'lazy_house' has no attribute '{name}'") as refused:
            getattr(lazy, name)
        assert (refused.value.name, refused.value.obj) == (name, lazy)
    with pytest.raises(ImportError, match="cannot import name 'thingy'"):
        from lazy_house import thingy  # noqa: F401


def test_an_import_that_breaks_tells_its_own_error(lazy: ModuleType) -> None:
    with pytest.raises(ImportError, match=r"lazy_house\.never could not be imported .*'no_such_thing'") as broken:
        from lazy_house import never  # noqa: F401
    assert isinstance(broken.value.__cause__, AttributeError)
    with pytest.raises(ImportError, match=r"lazy_house\.lost could not be imported .*'lost'"):
        _ = lazy.lost
    with pytest.raises(ModuleNotFoundError, match="no_such_module_anywhere"):
        _ = lazy.missing
