from __future__ import annotations

import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace

import pytest

from perdure import registry as registry_module
from perdure.errors import ConfigError, UnknownNameError
from perdure.registry import PluginWarning, Registry
from plugins import Install


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with a registry and two modules, of which one registers itself when imported."""
    package = tmp_path / "some_plugins"
    package.mkdir()
    (package / "__init__.py").write_text("from perdure.registry import Registry\nthings = Registry('t', __name__)\n")
    (package / "one.py").write_text("from some_plugins import things\nthings.register('one')(1)\n")
    (package / "none.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    yield package.name
    for name in [n for n in sys.modules if n.split(".")[0] == package.name]:
        del sys.modules[name]


def test_things_are_found_by_name() -> None:
    things: Registry[type] = Registry("thing")

    @things.register("b")
    class B:
        pass

    things.register("a")(int)
    assert things.names() == ["a", "b"]
    assert things.get("b") is B
    assert things.get("a") is int


def test_a_name_is_taken_once() -> None:
    things: Registry[object] = Registry("thing")
    first = object()
    things.register("x")(first)
    assert things.register("x")(first) is first
    with pytest.raises(ConfigError, match=r"thing registry: name must be unused, but got 'x'\. Choose another"):
        things.register("x")(object())
    assert things.get("x") is first


def test_what_a_module_left_out_registers_is_not_filed() -> None:
    things: Registry[type] = Registry("thing")
    things.register("x")(int)
    things.leave_out(__name__)

    @things.register("x")
    class X:
        pass

    assert X.__name__ == "X"
    assert things.get("x") is int


def test_an_unknown_name_gets_close_matches() -> None:
    things: Registry[int] = Registry("method")
    things.register("ranpac")(1)
    with pytest.raises(UnknownNameError, match=r"method must be known, but got 'ranpca'\. Did you mean 'ranpac'\?"):
        things.get("ranpca")
    with pytest.raises(UnknownNameError, match=r"'zzz'\. Known: ranpac\."):
        things.get("zzz")


def test_modules_of_the_package_are_imported_on_first_use(plugins: str) -> None:
    things: Registry[int] = __import__(plugins).things
    assert f"{plugins}.one" not in sys.modules
    assert things.get("one") == 1
    assert things.names() == ["one"]
    assert f"{plugins}.none" in sys.modules


@pytest.fixture
def things(monkeypatch: pytest.MonkeyPatch) -> Registry[int]:
    """A registry with a thing of its own, which plug-ins find as ``some_house.things``."""
    found: Registry[int] = Registry("thing", group="perdure.things")
    found.register("near")(1)
    monkeypatch.setitem(sys.modules, "some_house", SimpleNamespace(things=found))  # type: ignore[arg-type]
    return found


FAR = "from some_house import things\nthings.register('far')(7)\n"


def test_entry_points_of_other_distributions_are_loaded(things: Registry[int], install: Install) -> None:
    install("perdure-far", {"perdure.things": {"far": "perdure_far"}, "perdure.others": {"x": "nowhere"}}, FAR, "2.5")
    assert things.names() == ["far", "near"]
    assert things.get("far") == 7
    assert things.plugins() == {"perdure-far": "2.5"}
    assert things.broken() == []


BROKEN = {
    "ImportError: no module of mine": "raise ImportError('no module of mine')",
    "SystemExit: 3": "import sys; sys.exit(3)",
    "ZeroDivisionError": "from some_house import things; things.register('half', 'h')(1); raise ZeroDivisionError",
    "ConfigError: thing registry: name must be unused": "from some_house import things; things.register('near')(8)",
    "AttributeError: module 'perdure_bad' has no attribute 'Bad'": "",
}


@pytest.mark.parametrize("told", BROKEN)
def test_a_broken_plugin_is_named_and_costs_nothing_else(told: str, things: Registry[int], install: Install) -> None:
    install("perdure-far", {"perdure.things": {"far": "perdure_far"}}, FAR)
    point = "perdure_bad:Bad" if told.startswith("Attribute") else "perdure_bad"
    install("perdure-bad", {"perdure.things": {"bad": point}}, BROKEN[told], "0.3")
    pattern = f"thing plug-in 'bad' of perdure-bad 0.3 failed to load and is left out: {re.escape(told)}"
    with pytest.warns(PluginWarning, match=pattern) as warned:
        assert things.names() == ["far", "near"]
    assert len(warned) == 1
    assert things.get("near") == 1
    assert things.plugins() == {"perdure-far": "1.0"}
    assert things.broken() == ["bad"]
    assert things.aliases() == {}
    assert "bad" not in things
    with pytest.raises(
        UnknownNameError, match=rf"got 'bad'\. Mend .*perdure-bad 0\.3, .*\({re.escape(told)}"
    ) as caught:
        things.get("bad")
    assert type(caught.value.__cause__).__name__ == told.partition(":")[0]
    with pytest.raises(UnknownNameError, match=r"'half'\. Known: far, near\."):
        things.get("half")


def test_a_plugin_without_a_distribution_is_named_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    things: Registry[int] = Registry("thing", group="perdure.things")
    points = [EntryPoint("good", "json", "perdure.things"), EntryPoint("bad", "nowhere_at_all", "perdure.things")]
    monkeypatch.setattr(registry_module, "entry_points", lambda group: points)
    with pytest.warns(PluginWarning, match="'bad' of an unnamed distribution failed"):
        assert things.plugins() == {}


def test_a_module_that_cannot_be_imported_says_so_every_time(plugins: str) -> None:
    things: Registry[int] = __import__(plugins).things
    sys.modules[f"{plugins}.one"] = None  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(ImportError, match="one"):
            things.get("one")


def test_an_alias_is_found_but_not_listed_and_is_taken() -> None:
    things: Registry[object] = Registry("thing")
    first = things.register("x", "long_x")(object())
    assert things.get("long_x") is things.get("x") is first
    assert things.names() == ["x"]
    with pytest.raises(ConfigError, match=r"name must be unused, but got 'long_x'\. Choose another name"):
        things.register("y", "long_x")(object())
    assert things.names() == ["x"], "nothing is filed under the other name either"


def test_an_alias_is_told_to_nobody_but_leads_to_its_name() -> None:
    things: Registry[int] = Registry("method")
    things.register("aper", "adam")(1)
    things.register("joint")(2)
    assert "adam" in things
    assert "adan" not in things
    assert things.aliases() == {"adam": "aper"}
    with pytest.raises(UnknownNameError, match=r"got 'adan'\. Did you mean 'aper'\? Known: aper, joint\."):
        things.get("adan")
    with pytest.raises(UnknownNameError, match=r"got 'zzz'\. Known: aper, joint\."):
        things.get("zzz")


def test_a_second_thread_waits_until_all_is_discovered(monkeypatch: pytest.MonkeyPatch) -> None:
    things: Registry[int] = Registry("thing")
    started, go_on = threading.Event(), threading.Event()

    def slowly() -> None:
        started.set()
        assert go_on.wait(10)
        things.register("late")(1)

    monkeypatch.setattr(things, "_import_all", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(things.names)
        assert started.wait(10)
        second = pool.submit(things.names)
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        go_on.set()
        assert first.result(10) == second.result(10) == ["late"]


def test_the_package_of_methods_is_their_registry_too() -> None:
    done = subprocess.run([sys.executable, "-c", AS_A_PACKAGE], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["RanPAC", "True", "False", "aper"], done.stderr


AS_A_PACKAGE = """
import perdure
import perdure.methods.ranpac
print(perdure.methods.ranpac.RanPAC.__name__, "adam" in perdure.methods, "nobody" in perdure.methods)
assert perdure.methods.get("ranpac") is perdure.methods.ranpac.RanPAC and "ranpac" in perdure.methods.names()
assert perdure.methods.register("ranpac")(perdure.methods.ranpac.RanPAC) is perdure.methods.get("ranpac")
print(perdure.methods.aliases()["adam"])
"""
