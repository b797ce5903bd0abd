"""What the documentation has readers type: its fenced blocks, their commands, and what says how a test runs them.

CONTRIBUTING.md tells writers about the marks, which are HTML comments, so readers don't see them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import REPOSITORY

WORLDS = ("root", "user", "booted")  # tests/fuse/test_documents.py runs two, tests/system/test_documents.py the third
SHELL = ("sh", "console")  # what has commands; sh has nothing else, console has `$ ` before each, and what they print
DATA = frozenset(
    ("", "dockerfile", "fstab", "groovy", "ini", "json", "nextflow", "nginx", "promql", "python", "squid", "systemd")
) | {"text", "toml", "yaml"}

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>```+|~~~+)(?P<language>\w*)[^\n`]*$")
_MARK = re.compile(r"^ *<!-- (?P<kind>world|prepare|file|run|within): ?(?P<text>.*)$")
_TEST = re.compile(r"tests/[\w/]+\.py::\w+|\.ci/run")


class MarkError(ValueError):
    """A block or a mark that can't be right; the message begins with where it is."""


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block. `file` is the path that the test writes it to, `test` the one that runs it elsewhere."""

    document: str  # relative to the repository
    line: int  # of the opening fence, from 1
    language: str
    text: str
    world: str
    file: str = ""
    test: str = ""
    within: str = ""  # what stands before a piece of TOML that is no whole file

    @property
    def place(self) -> str:
        return f"{self.document}:{self.line}"


@dataclass(frozen=True, slots=True)
class Hidden:
    """Commands that readers don't see: what they are supposed to have, and checks of what came of theirs."""

    document: str
    line: int
    text: str
    world: str


@dataclass(frozen=True, slots=True)
class Command:
    """One command as a shell takes it, and what the page says it prints (None: the page says nothing)."""

    place: str
    text: str
    shown: str | None = None


Step = Block | Hidden


def documents() -> list[Path]:
    """Return every page for users: README, CONTRIBUTING, and docs without its decisions."""
    pages = (path for path in (REPOSITORY / "docs").rglob("*.md") if "decisions" not in path.parts)
    return [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted(pages)]


def parse(text: str, document: str) -> list[Step]:
    """Return the blocks of a page and its hidden commands, in order. Raises MarkError."""
    return list(_Parser(text.splitlines(), document).steps())


class _Parser:
    """Goes over the lines of one page, and holds the marks that wait for their block."""

    def __init__(self, lines: Sequence[str], document: str) -> None:
        self._lines = lines
        self._document = document
        self._world = WORLDS[0]
        self._waiting: dict[str, str] = {}
        self._at = 0

    def steps(self) -> Iterator[Step]:
        while self._at < len(self._lines):
            line, number = self._lines[self._at], self._at + 1
            self._at += 1
            if fence := _FENCE.match(line):
                yield self._block(fence, number)
            elif mark := _MARK.match(line):
                yield from self._mark(mark["kind"], self._comment(mark["text"], number), number)
            elif re.match(r" *<!-- (?!begin |end )\w+: ", line):
                raise MarkError(f"{self._document}:{number}: no such mark: {line.strip()}")
        if self._waiting:
            raise MarkError(f"{self._document}: the last mark has no block: {self._waiting}")

    def _block(self, fence: re.Match[str], number: int) -> Block:
        indent, closing = len(fence["indent"]), fence["fence"]
        inside: list[str] = []
        while self._at < len(self._lines) and self._lines[self._at].strip() != closing:
            line = self._lines[self._at]
            inside.append(line[indent:] if not line[:indent].strip() else line)
            self._at += 1
        if self._at == len(self._lines):
            raise MarkError(f"{self._document}:{number}: the block has no end")
        self._at += 1
        waiting, self._waiting = self._waiting, {}
        text = "".join(f"{line}\n" for line in inside)
        return Block(
            self._document, number, fence["language"], text, self._world,
            file=waiting.get("file", ""), test=waiting.get("run", ""), within=waiting.get("within", ""),
        )  # fmt: skip

    def _comment(self, text: str, number: int) -> str:
        """Return a comment's text, which may go on over several lines."""
        while not text.endswith("-->"):
            if self._at == len(self._lines):
                raise MarkError(f"{self._document}:{number}: the comment has no end")
            text += "\n" + self._lines[self._at].rstrip()
            self._at += 1
        return text.removesuffix("-->").strip()

    def _mark(self, kind: str, text: str, number: int) -> Iterator[Hidden]:
        place = f"{self._document}:{number}"
        if not text:
            raise MarkError(f"{place}: {kind}: and what?")
        if kind == "prepare":
            yield Hidden(self._document, number, f"{text}\n", self._world)
        elif kind == "world":
            if text not in WORLDS:
                raise MarkError(f"{place}: no world {text!r}; there are: {', '.join(WORLDS)}")
            self._world = text
        elif kind == "run" and not _TEST.fullmatch(text):
            raise MarkError(f"{place}: run: names no test like tests/fuse/test_x.py::test_y: {text}")
        else:
            self._waiting[kind] = text


# --- commands -----------------------------------------------------------------------------------------------------


def commands(block: Block) -> list[Command]:
    """Return the commands of a block, in order. Raises MarkError: what it has is not whole."""
    if block.language == "sh":
        pairs: list[tuple[int, str, str | None]] = [(offset, text, None) for offset, text in split(block.text)]
    elif block.language == "console":
        pairs = list(_typed(block))
    else:
        return []
    found = [Command(f"{block.document}:{block.line + offset}", text, shown) for offset, text, shown in pairs]
    for command in found:
        if not _is_whole(command.text):
            raise MarkError(f"{command.place}: the command is not whole: {command.text}")
    return found


def split(script: str) -> list[tuple[int, str]]:
    """Return the commands of a script, each with the number of its first line (from 1); comments alone are none."""
    found = []
    waiting: list[str] = []
    for number, line in enumerate(script.splitlines(), start=1):
        waiting.append(line)
        text = "\n".join(waiting)
        if not re.sub(r"^\s*#.*", "", text, flags=re.MULTILINE).strip():
            waiting = []
        elif _is_whole(text):
            found.append((number - len(waiting) + 1, text))
            waiting = []
    if waiting:
        found.append((len(script.splitlines()) - len(waiting) + 1, "\n".join(waiting)))
    return found


def _typed(block: Block) -> Iterator[tuple[int, str, str | None]]:
    """Yield what was typed at prompts, with its line, and what is shown below it."""
    number, typed, shown = 0, "", ""
    for offset, line in enumerate(block.text.splitlines(), start=1):
        if line.startswith("$ "):
            if typed:
                yield number, typed, shown
            number, typed, shown = offset, line[2:], ""
        elif line.startswith("> ") and typed and not shown:
            typed += f"\n{line[2:]}"
        elif typed:
            shown += f"{line}\n"
        else:
            raise MarkError(f"{block.place}: a console block begins with `$ ` and a command")
    if typed:
        yield number, typed, shown


_OPENING = {"for": 1, "while": 1, "until": 1, "if": 1, "case": 1, "{": 1, "done": -1, "fi": -1, "esac": -1, "}": -1}


def _is_whole(text: str) -> bool:
    """Return whether a shell would run this, and not wait for more."""
    body = _without_here_documents(text)
    if body is None:
        return False
    lexer = shlex.shlex(body, posix=True, punctuation_chars=True)
    lexer.wordchars += "@%+,$:{}[]!^"
    try:
        words = list(lexer)
    except ValueError:  # a quote is open
        return False
    if re.sub(r"(^|\s)#[^\n]*", "", body).rstrip(" ").endswith(("\\", "|", "&&")):
        return False
    return sum(_OPENING.get(word, 0) for word in words) == 0


def _without_here_documents(text: str) -> str | None:
    """Return a script without the bodies of its here-documents, or None where one has no end."""
    kept: list[str] = []
    ends: list[str] = []
    for line in text.split("\n"):
        if ends:
            if line.strip() == ends[0]:
                ends.pop(0)
            continue
        kept.append(line)
        ends += re.findall(r"(?<!<)<<-?\s*['\"]?(\w+)", line)
    return None if ends else "\n".join(kept)
