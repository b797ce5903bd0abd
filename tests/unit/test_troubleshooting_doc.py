"""`docs/troubleshooting.md` has every line that the daemon can log, and quotes none that it can't."""

from __future__ import annotations

import ast
import errno
import re
from pathlib import Path

import pytest

from refgenfs.fuse import ERRNOS
from refgenfs.logs import SUMMED_UP
from tests.support.messages import all_text, error_kinds, log_calls, log_lines, modules, shown

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md"
TEXT = DOCUMENT.read_text()
SYMPTOMS, _, LINES = TEXT.partition("\n## Every line of the log\n")

_QUOTE = re.compile(r"`([^`]+)`")
# Words of the documentation that stand for what is filled in.
_NAMES = re.compile(
    r"\b(?:NAME|DIR|FILE|KEY|VALUE|SOURCE|TYPE|SOCKET|FOLDER|PROGRAM|URL|ADDRESS|ID|N|M|X|Y|Z|PID|LINE|FSTYPE)\b"
)
_KIND = re.compile(rf"\b(?:{'|'.join(error_kinds())}): ")
# What the kernel, systemd and shells say, and lines of ours with an example filled in.
_OF_OTHERS = {"Assertion failed on job for refgenfs@NAME.service", "watchdog timeout"}
_EXAMPLES = {
    "bwa",
    "x.bam.bai of ",
    "socks…://",
    "SIGKILL",
    "Operation not permitted",
    "processes of other users",
    "open files",
    "process ",
}
_PATHS = re.compile(r"/(?:etc|dev)/[\w./]*")


def tables(text: str) -> list[list[list[str]]]:
    """Return the tables of a text: rows of cells, the header first."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE):
        rows = [
            [cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in block.strip().splitlines()
        ]
        found.append([row for row in rows if not set("".join(row)) <= set("|- ")])
    return found


def quoted(text: str) -> list[str]:
    """Return the lines that the table of lines has an entry for."""
    return [quote for table in tables(text) for row in table[1:] for quote in _QUOTE.findall(row[0])]


def messages() -> set[str]:
    """Return what the symptoms' tables quote as being said by refgenfs."""
    return {
        quote
        for table in tables(SYMPTOMS)
        if table[0][0] in {"message", "log says"}
        for row in table[1:]
        for quote in _QUOTE.findall(row[0])
    } - _OF_OTHERS


def pieces(quote: str) -> list[str]:
    """Return what is fixed in a quote: not what names, numbers and "…" stand for."""
    plain = re.sub(r"\d+", "…", _KIND.sub("…", _NAMES.sub("…", _PATHS.sub("…", quote))))
    for example in _EXAMPLES:
        plain = plain.replace(example, "…")
    return [piece for part in re.split("[…:;,()]", plain) if len(piece := part.strip(" '")) > 2]


ALL_TEXT = re.sub(r"\d+", "…", all_text()).replace("`", "")


def test_every_line_of_the_log_has_one_entry() -> None:
    lines = {message.text for message in log_lines()} | {shown(SUMMED_UP)}
    entries = quoted(LINES)
    assert sorted(lines - set(entries)) == [], "lines without an entry"
    assert sorted(set(entries) - lines) == [], "entries of lines that are no more"
    assert len(entries) == len(set(entries))


def test_every_entry_says_what_it_means_and_what_to_do() -> None:
    for table in tables(LINES):
        assert table[0] == ["line", "means", "do"]
        assert all(len(row) == 3 and all(row) for row in table[1:]), table[1]


def test_what_is_logged_can_be_found_by_its_words() -> None:
    """A message is written where it is logged, and has words of its own beside what is filled in."""
    for module, call, message in log_calls():
        where = f"{module}:{call.lineno}"
        assert isinstance(message, ast.Constant), where
        assert isinstance(message.value, str), where
        assert len(re.findall(r"[a-z]", re.sub(r"%\S*[sdrgfx]", "", message.value))) > 5, where
        assert "\n" not in message.value, where


def test_nothing_logs_but_by_a_logger_of_its_module() -> None:
    """What logs in another way would not be found here."""
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and module != "logs.py":
                on, name = ast.unparse(node.func.value), node.func.attr
                assert on != "logging" or name in {"getLogger", "CapacityLimiter"}, f"{module}:{node.lineno}"
                assert on != "warnings", f"{module}:{node.lineno}"
            if isinstance(node, ast.Assign) and "getLogger" in ast.unparse(node.value):
                assert ast.unparse(node.targets[0]) == "log", f"{module}:{node.lineno}"


@pytest.mark.parametrize("quote", sorted(messages()))
def test_a_message_that_is_quoted_is_one_of_ours(quote: str) -> None:
    assert pieces(quote)
    assert [piece for piece in pieces(quote) if piece not in ALL_TEXT] == []


def test_every_errno_and_error_has_its_row() -> None:
    (table,) = (table for table in tables(SYMPTOMS) if table[0][0] == "errno")
    by_errno = {row[0]: set(_QUOTE.findall(row[2])) for row in table[1:]}
    for kind, number in ERRNOS.items():
        name = errno.errorcode[number]
        assert name in by_errno
        if kind.__name__ not in {"Exception", "RefgenfsError"}:
            assert kind.__name__ in by_errno[name]
    told = set.union(*by_errno.values()) - {"MemoryError", "readlink"}
    assert told <= set(error_kinds())


def test_a_line_that_is_taken_away_or_added_is_noticed() -> None:
    lines = {message.text for message in log_lines()}
    assert "nothing is reloaded: …" in lines
    assert "… failed: …" in lines, "of `log.log` with a level that is decided there"
    assert "…: what is known of its members is not written down: …" in lines, "of what logs as a logger does"
    assert pieces("`KEY stays VALUE until doomsday`") == ["stays", "until doomsday`"]
