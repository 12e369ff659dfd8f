"""Text of a width: nothing is lost, cut or moved."""

from __future__ import annotations

import inspect

from perdure.lines import Line, described, docstring_lines, entry_lines, purpose


def joined(lines: list[Line]) -> list[str]:
    return [strong + rest for strong, rest in lines]


def test_a_docstring_keeps_its_sections_lists_arguments_and_examples_apart() -> None:
    def documented() -> None:
        """Means: one per class,
        and no more.

        Of :class:`~perdure.Backbone` features.
        Source: a paper with a title that is
            longer than one line.
        Deviations:
        - From the paper: none that would be
          worth a line.
        - From ``code``: none.
        After the list.

        Args:
            first: what comes
                first.
            second: what comes second.
        >>> documented("a very long line is left alone")
        """

    assert joined(docstring_lines(documented, 30)) == [
        "Means: one per class, and no",
        "    more.",
        "",
        "Of `perdure.Backbone`",
        "features.",
        "Source: a paper with a title",
        "    that is longer than one",
        "    line.",
        "Deviations:",
        "- From the paper: none that",
        "  would be worth a line.",
        "- From `code`: none.",
        "After the list.",
        "",
        "Args:",
        "    first: what comes first.",
        "    second: what comes second.",
        '>>> documented("a very long line is left alone")',
    ]
    strong = [strong for strong, _ in docstring_lines(documented, 30) if strong]
    assert strong == ["Means:", "Source:", "Deviations:", "Args:", "    first:", "    second:"]


def test_a_docstring_may_be_missing_or_be_one_line() -> None:
    assert docstring_lines(type("Silent", (), {"__doc__": None}), 80) == []
    named = type("Named", (), {"__doc__": "coda-prompt: mixed."})
    assert docstring_lines(named, 80) == [("coda-prompt:", " mixed.")]


def test_entries_stand_beside_their_names_and_no_word_is_cut() -> None:
    assert joined(entry_lines([("one", "of the entries here"), ("longer", "x"), ("none", "")], 20)) == [
        "one     of the",
        "        entries here",
        "longer  x",
        "none",
    ]
    assert joined(entry_lines([("a_long_name", "y"), ("b", "an" + "other" * 3)], 20)) == [
        "a_long_name  y",
        "b  another" + "other" * 2,
    ]
    assert joined(entry_lines([("a", "x" * 30)], 20)) == ["a", "x" * 30]
    assert entry_lines([], 80) == []


def test_a_purpose_is_the_first_line_without_its_name_and_markup() -> None:
    assert purpose("SLCA: a ``slow`` learner.\n\nMore.") == "a slow learner."
    assert purpose("coda-prompt: mixed.") == "mixed."
    assert purpose("") == ""


def test_a_module_without_a_docstring_is_not_asked() -> None:
    silent = type("Silent", (), {"__module__": "collections_of_nothing", "__doc__": None})
    assert described(silent) is silent
    assert (inspect.getdoc(described(purpose)) or "").startswith("Text as lines")
