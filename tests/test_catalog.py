"""What is listed without importing is what importing registers."""

from __future__ import annotations

import pytest

from perdure import catalog
from perdure.catalog import Entry, Kind, registered, written
from perdure.registry import PluginWarning
from plugins import Install


@pytest.mark.parametrize("kind", catalog.PACKAGES)
def test_the_sources_tell_what_the_registry_has(kind: Kind) -> None:
    assert written(kind) == registered(kind)


def test_entries_have_names_aliases_purposes_and_notes() -> None:
    methods = {entry.name: entry for entry in written("methods")}
    dap = methods["dap"]
    assert (dap.aliases, dap.note) == (("domain_adaptive_prompt",), "needs a plain Vision Transformer")
    assert dap.purpose.startswith("in every block a small generator makes prompts")
    assert methods["mos_release"].note.endswith("depends on the test batch"), "some of its tags are no plain values"
    assert methods["ranpac"].note == "", "none of its tags is worth a note"
    assert {entry.note for entry in written("backbones")} == {"offline", "weights from the hub or a file"}
    assert Entry("synthetic", (), "Six classes of striped colour patches, 8 train and 4 test images each.", "") in (
        written("datasets")
    )


def test_what_does_not_say_what_it_is_is_listed_all_the_same() -> None:
    source = "import x\n\n\n@methods.register('a', 'b')\n@x\nclass A:\n    '''A: of its own.'''\n\n\n@x.register('c')\n"
    assert [*catalog._written("methods", source + "class C: ...")] == [Entry("a", ("b",), "of its own.", "")]
    bare = "@backbones.register('a')\ndef load(): ...\n"
    assert [*catalog._written("backbones", bare)] == [Entry("a", (), "", "offline")]


PLUGIN = '''"""Far: from elsewhere."""
from perdure.methods import register
from perdure.methods.simplecil import SimpleCIL

@register("far", "yonder")
class Far(SimpleCIL):
    pass
'''


def test_a_registry_is_asked_only_where_it_has_plugins(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Kind] = []
    ask = registered
    monkeypatch.setattr(catalog, "registered", lambda kind: asked.append(kind) or ask(kind))
    before = catalog.names("all", 200)
    assert asked == []
    install("perdure-far", {"perdure.methods": {"far": "perdure_far"}}, PLUGIN)
    after = catalog.names("all", 200)
    assert asked == ["methods"]
    new = [" ".join((strong + rest).split()) for strong, rest in after if (strong, rest) not in before]
    assert new == ["far from elsewhere. (any split, same result)"]
    assert Entry("far", ("yonder",), "from elsewhere.", "any split, same result") in registered("methods")


def test_a_broken_plugin_is_told_of_and_left_out(install: Install) -> None:
    install("perdure-bad", {"perdure.datasets": {"bad": "perdure_bad"}}, "raise OSError('no disk')")
    before = written("datasets")
    with pytest.warns(PluginWarning, match="data set plug-in 'bad' of perdure-bad"):
        lines = catalog.names("data", 200)
    assert {entry.name for entry in before} <= {strong.strip() for strong, _ in lines}
