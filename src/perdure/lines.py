"""Text as lines of a width, for the command line: docstrings, and names with what is said of each."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

HEADING = re.compile(r"[A-Z][\w-]*( \w+)?:(?=\s|$)")  # of a docstring's section: Source:, Use when:
NAME = re.compile(r"[\w-]+:(?=\s)")  # of what a docstring's first line describes, or of an argument
ROLE = re.compile(r":\w+:`~?([^`]+)`")  # reStructuredText for a link to code
Line = tuple[str, str]  # what is to stand out, and the rest of the line
SHOWN_FILES = 10  # of those that are not read
EMPTY: Line = ("", "")


def described(thing: Any) -> Any:
    """What says what a registered class or function is: its module, or the thing itself where that says nothing."""
    module = inspect.getmodule(thing)
    return module if inspect.getdoc(module) else thing


def purpose(docstring: str) -> str:
    """A docstring's first line, without the markup and the name it may start with.

    Args:
        docstring: without its margin; may be empty.
    """
    first = next(iter(docstring.splitlines()), "").replace("``", "")
    return re.sub(rf"^{NAME.pattern} ", "", first)


def entry_lines(entries: Sequence[tuple[str, str]], width: int) -> list[Line]:
    """Names, and beside each what is said of it.

    Args:
        entries: (name, text).
        width: characters in a line.
    """
    longest_word = max((len(word) for _, text in entries for word in text.split()), default=0)
    column = min(max((len(name) for name, _ in entries), default=0) + 2, width - longest_word)
    lines: list[Line] = []
    for name, text in entries:
        lines += hanging(f"{name}  ".ljust(column) + text, width, "", column, strong=len(name))
    return lines


def docstring_lines(documented: Any, width: int) -> list[Line]:
    """A docstring filled to a width: its sections, lists and examples stay apart; marks of code become single ones.

    Args:
        documented: a module, class or function.
        width: characters in a line.
    """
    return filled(inspect.getdoc(documented) or "", width)


def filled(text: str, width: int) -> list[Line]:
    """Paragraphs, items and sections filled to a width, each apart.

    Args:
        text: as a docstring has it.
        width: characters in a line.
    """
    lines: list[Line] = []
    for block in _blocks(ROLE.sub(r"`\1`", text).replace("``", "`")):
        margin = block[: len(block) - len(block.lstrip())]
        words = block.lstrip()
        named = HEADING.match(block) or NAME.match(words if margin or not lines else "")
        is_item = words.startswith("- ")
        hang = 2 if is_item else 4 if named else 0
        strong = len(margin) + named.end() if named and not is_item else 0
        lines += [("", block)] if words.startswith(">>>") else hanging(block, width, margin, hang, strong)
    return lines


def _blocks(text: str) -> Iterator[str]:
    """What is filled together, each with its first line's indentation: a paragraph, an item, a section, an example."""
    block, hangs = "", False
    for number, line in enumerate(text.splitlines()):
        indent, before = (len(part) - len(part.lstrip()) for part in (line, block))
        words = line.strip()
        begins = words.startswith(("- ", ">>>")) or bool(HEADING.match(line))
        goes_on = words and block and not begins and not block.endswith(":")
        if goes_on and (indent > before or (indent == before and not hangs)):
            block = f"{block} {words}"
            continue
        yield from filter(None, [block])
        if not words:
            yield ""
        block, hangs = line.rstrip(), number > 0 and (begins or bool(indent and NAME.match(words)))
    yield from filter(None, [block])


def hanging(text: str, width: int, margin: str, hang: int, strong: int = 0) -> list[Line]:
    """Lines of a text, all but the first further in; no word is cut.

    Args:
        text: without line breaks.
        width: characters in a line.
        margin: before all lines but the first, which has its own.
        hang: spaces more before these.
        strong: characters at the start that are to stand out.
    """
    filled = textwrap.wrap(
        text, width, subsequent_indent=margin + " " * hang, break_long_words=False, break_on_hyphens=False
    )
    return [(filled[0][:strong], filled[0][strong:]), *(("", line) for line in filled[1:])] if filled else [EMPTY]


def note_of(event: Mapping[str, Any]) -> tuple[str, str] | None:
    """What a run has to say of its data, after a word that says what about it; None if nothing.

    Args:
        event: of a run.
    """
    match event:
        case {"event": "data_changed", "since": changes}:
            return "the data have changed since that run:", "; ".join(changes)
        case {"event": "file_left_out", "reason": reason}:
            return "left out", reason
        case {"event": "note", "text": text}:
            return "note", text
        case {"event": "file_not_read", "reason": reason, "number": number} if number <= SHOWN_FILES:
            return "not read", reason
        case {"event": "file_not_read", "number": number, "of": n} if number == n:
            return "not read", f"{n - SHOWN_FILES} more, all in log.jsonl"
    return None


def task_line(event: Mapping[str, Any], total: float | None) -> str:
    """A finished task.

    Args:
        event: that tells of it.
        total: tasks in all.
    """
    seconds, accuracy = event["train_seconds"] + event["eval_seconds"], event["accuracy"]
    told = "no test images" if accuracy is None else f"accuracy {accuracy:.1%} on all test images seen so far"
    return f"task {event['task'] + 1} of {total:.0f}: {seconds:.1f} s, {told}"
